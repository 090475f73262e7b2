"""Where a model comes from: a folder, or a version in the registry."""

import hashlib
import re
from dataclasses import dataclass

_PREFIX = "models:/"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version in the registry; `model_id` stands alone for a model that has no version."""

    name: str
    version: str
    model_id: str = ""


def parse_model(text: str) -> ModelVersion | None:
    """Tell a registry URI from a folder.

    Args:
        text: `models:/NAME/VERSION`, `models:/m-ID`, or a folder. NAME may hold anything but
            a colon and a slash.

    Returns:
        The version, or None for a folder.

    Raises:
        ValueError: It starts like a registry URI but is none.
    """
    if not text.startswith(_PREFIX):
        return None
    name, _, version = text.removeprefix(_PREFIX).rpartition("/")
    if not name and version.startswith("m-"):
        return ModelVersion("", "", version)
    if not name or not version.isascii() or not version.isdigit():
        raise ValueError(
            f"'{text}' is not models:/NAME/VERSION with a version number at the end; "
            "stages and aliases are resolved by the controller"
        )
    return ModelVersion(name, version)


def cache_name(version: ModelVersion, tracking_uri: str) -> str:
    """Name the cache folder of a version: readable, safe, one for each registry.

    Args:
        version: The version.
        tracking_uri: The registry it is in.

    Returns:
        A name of letters, digits and dashes.
    """
    identity = f"{tracking_uri}\n{version.name}\n{version.version}\n{version.model_id}"
    words = f"{version.name} v{version.version}" if version.name else version.model_id
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[-48:].strip("-")
    return f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

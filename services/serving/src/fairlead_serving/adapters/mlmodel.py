"""Reads the `MLmodel` file of a model folder and its input example."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fairlead_serving.app.ports import ModelFolder
from fairlead_serving.domain.errors import CannotLoadError
from fairlead_serving.domain.signature import read_signature

_log = logging.getLogger(__name__)


def read_folder(path: Path) -> ModelFolder:
    """Read what a model folder says about itself.

    Args:
        path: The folder, with an `MLmodel` file in it.

    Returns:
        The folder's settings.

    Raises:
        CannotLoadError: It is not a model folder.
    """
    document = _read_document(path)
    try:
        signature = read_signature(document.get("signature"))
    except ValueError as error:
        raise CannotLoadError(f"The signature in '{path.name}/MLmodel' cannot be read.") from error
    return ModelFolder(
        path=path,
        flavors=document["flavors"],
        signature=signature,
        example=_read_example(path, document.get("saved_input_example_info") or {}),
        takes_anything=bool(document.get("is_signature_from_type_hint")),
    )


def _read_document(path: Path) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load((path / "MLmodel").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CannotLoadError(
            f"'{path}' is not a model folder: it has no readable MLmodel file."
        ) from error
    except yaml.YAMLError as error:
        raise CannotLoadError(f"'{path.name}/MLmodel' is not valid YAML.") from error
    if not isinstance(document, dict) or not isinstance(document.get("flavors"), dict):
        raise CannotLoadError(f"'{path.name}/MLmodel' names no flavors.")
    if not all(isinstance(settings, dict) for settings in document["flavors"].values()):
        raise CannotLoadError(f"'{path.name}/MLmodel' has a flavor without settings.")
    return document


def _read_example(path: Path, info: Mapping[str, Any]) -> Any:
    """Read the example as a payload; one that cannot be read only costs the warm-up."""
    try:
        serving = path / str(info.get("serving_input_path") or "serving_input_example.json")
        if serving.is_file():
            return json.loads(serving.read_bytes())
        plain = path / str(info.get("artifact_path") or "input_example.json")
        return _as_payload(json.loads(plain.read_bytes()), info) if plain.is_file() else None
    except (OSError, ValueError):
        _log.warning("The model's input example cannot be read; there is no warm-up")
        return None


def _as_payload(example: Any, info: Mapping[str, Any]) -> Any:
    """Wrap an example of older MLflow versions, which saved the data without its form."""
    if info.get("type") == "dataframe":
        return {"dataframe_split": example}
    if isinstance(example, dict) and example.keys() & {"inputs", "instances"}:
        return example
    return {"inputs": example}

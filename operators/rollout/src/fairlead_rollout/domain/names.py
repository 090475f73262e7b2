"""Names of what belongs to one version of a served model."""

import hashlib
import re
import unicodedata

MAX_LABEL = 63  # of a DNS label, RFC 1123
_NOT_ALLOWED = re.compile(r"[^a-z0-9]+")


def slug(text: str) -> str:
    """Turn any model name into a DNS label: lower case letters, digits and dashes.

    >>> slug("Flight Delay (EU) – 2026.v1")
    'flight-delay-eu-2026-v1'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return _NOT_ALLOWED.sub("-", plain).strip("-")[:MAX_LABEL].strip("-") or "model"


def short_hash(*parts: str) -> str:
    """Six hexadecimal digits that tell two things with the same slug apart."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:6]


def workload_name(model: str, registered_model: str, version: str) -> str:
    """Name the workload of one version: slug, version and a short hash, without dots.

    It begins with a letter, as the name of a Service must.

    >>> workload_name("2026-delays", "Delays", "12")
    'm-2026-delays-v12-645cfb'
    """
    tail = f"-v{version}-{short_hash(model, registered_model, version)}"
    name = slug(model)
    head = name if name[0].isalpha() else f"m-{name}"
    return head[: MAX_LABEL - len(tail)].strip("-") + tail

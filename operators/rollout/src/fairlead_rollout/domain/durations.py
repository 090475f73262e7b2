"""Durations as people write them in a ServedModel: `90s`, `10m`, `1h30m`, `14d`, `250ms`."""

import re
from datetime import timedelta

from fairlead_rollout.domain.errors import InvalidSpecError

PATTERN = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$"
LONGEST = timedelta(days=3650)
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(field: str, text: str) -> timedelta:
    """Read a duration.

    Args:
        field: What the error names.
        text: Numbers with a unit each (`ms`, `s`, `m`, `h`, `d`), such as `1h30m`.

    Raises:
        InvalidSpecError: The text is not a duration, or longer than ten years.
    """
    if not re.match(PATTERN, text):
        raise InvalidSpecError(
            f"{field}: {text!r} is not a duration; write for example 30s, 10m, 1h30m or 14d"
        )
    seconds = sum(float(n) * _SECONDS[unit] for n, unit in _PART.findall(text))
    if seconds > LONGEST.total_seconds():
        raise InvalidSpecError(f"{field}: {text!r} is longer than {LONGEST.days} days")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """Write a duration in its two largest units, for people: `1d 2h`, `3m 20s`, `0.4s`."""
    seconds = max(duration.total_seconds(), 0.0)
    if seconds < 1:
        return f"{seconds:.1f}s"
    parts = []
    rest = round(seconds)
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, int(_SECONDS[unit]))
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])

"""Reading a JSON document field by field; an error names the field."""

import re
from collections.abc import Mapping, Sequence

_LARGEST_INTEGER = 2**53
"""What every reader of JSON can tell from its neighbours."""


class PlanError(ValueError):
    """A traffic plan breaks a rule.

    Args:
        field: The path of the field at fault, as in ``arms[0].weight``.
        reason: What the field must be.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def read_object(
    value: object, field: str, keys: Sequence[str], optional: Sequence[str] = ()
) -> Mapping[str, object]:
    """Return an object that holds exactly these keys, or any keys if none are given.

    Args:
        value: The decoded JSON.
        field: Its path.
        keys: The keys it must have.
        optional: The keys it may have beside them.
    """
    if not isinstance(value, dict):
        raise PlanError(field, "must be an object")
    prefix = "" if field == "plan" else f"{field}."
    for key in keys:
        require(key in value, f"{prefix}{key}", "is required")
    for key in value:
        known = not keys or key in keys or key in optional
        require(known, f"{prefix}{key}", "is not a field of a traffic plan")
    return value


def read_items(value: object, field: str) -> list[tuple[str, object]]:
    """Return the items of a list, each with the name of its field."""
    if not isinstance(value, list):
        raise PlanError(field, "must be a list")
    return [(f"{field}[{index}]", item) for index, item in enumerate(value)]


def read_text(value: object, field: str) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise PlanError(field, "must be a string")
    return value


def read_optional_text(value: object, field: str) -> str | None:
    """Return a string, or None for null."""
    return None if value is None else read_text(value, field)


def read_integer(value: object, field: str) -> int:
    """Return an integer."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has one kind of number; the schema takes 1.0 for an integer, too.
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanError(field, "must be an integer")
    # Beyond, it could not be written down again, and would hold up every other model's plan.
    require(abs(value) <= _LARGEST_INTEGER, field, f"must be at most {_LARGEST_INTEGER}")
    return value


def read_number(value: object, field: str) -> float:
    """Return a number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise PlanError(field, "must be a number")
    return value


def read_boolean(value: object, field: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise PlanError(field, "must be true or false")
    return value


def require_match(pattern: re.Pattern[str], value: str, field: str) -> None:
    """Refuse a string that does not match as a whole."""
    require(pattern.fullmatch(value) is not None, field, f"must match {pattern.pattern}")


def require_within(value: int, low: int, high: int, field: str) -> None:
    """Refuse an integer outside a range."""
    require(low <= value <= high, field, f"must be from {low} to {high}")


def require(condition: bool, field: str, reason: str) -> None:  # noqa: FBT001 - reads as a sentence.
    """Refuse a value unless a condition holds."""
    if not condition:
        raise PlanError(field, reason)

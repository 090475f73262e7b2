"""Reads single values of MLflow's scalar types, and says what is wrong with those it refuses.

A column takes what MLflow's server takes (integers widen, text that is a number is one, null is a
missing value where the type has one), but not where MLflow would change a value in silence: a
fraction is not cut to an integer, a number does not wrap round, text is not taken for a boolean.
Inside lists, objects and parameters MLflow converts nothing, and `read_strictly` is for those.
`docs/reference/input-types.md` has every rule beside MLflow's own.
"""

import base64
import binascii
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import NoneType
from typing import Any

from fairlead_serving.domain.signature import Kind

FLOAT16_MAX, FLOAT32_MAX, FLOAT64_MAX = 65504.0, 3.4028234663852886e38, sys.float_info.max
RANGES = {Kind.INTEGER: (-(2**31), 2**31 - 1), Kind.LONG: (-(2**63), 2**63 - 1)}
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_REAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_BELOW_MICROSECONDS = re.compile(r"[.,][0-9]{6}[0-9]*[1-9]")
_YEARS = range(1678, 2262)  # What a timestamp in nanoseconds can hold, in whole years.
_JSON_NAMES = {
    NoneType: "null",
    bool: "a boolean",
    int: "a whole number",
    float: "a number with a fraction",
    str: "a string",
    list: "a list",
    dict: "an object",
}
_WANTED = {
    Kind.BOOLEAN: "true or false (boolean)",
    Kind.INTEGER: "a whole number of 32 bits (integer)",
    Kind.LONG: "a whole number of 64 bits (long)",
    Kind.FLOAT: "a number of 32 bits (float)",
    Kind.DOUBLE: "a number (double)",
    Kind.STRING: "a string (string)",
    Kind.BINARY: "a string in base64 (binary)",
    Kind.DATETIME: "a date and time in ISO 8601 (datetime)",
}


class RefusedError(Exception):
    """A value is not of its type; the caller knows the field and the row.

    Attributes:
        path: Where it is inside a nested value, as in `.stops[2].gate`; no key of a map is in it,
            as those are what was sent.
    """

    path = ""

    def inside(self, step: str) -> "RefusedError":
        """Give the same error, seen from one level above."""
        self.path = step + self.path
        return self


@dataclass(frozen=True, slots=True)
class Rule:
    """How one kind reads a column.

    A column whose values all have a type in `as_is` is taken unchanged, which is nearly every
    request; else each value goes through `read`.
    """

    as_is: frozenset[type]
    read: Callable[[Any], object]


def json_name(value: object) -> str:
    """Name the JSON type of a value, for messages."""
    return _JSON_NAMES.get(type(value), type(value).__name__)


def of_type(value: Any, wanted: type, words: str) -> Any:
    """Give a value of a JSON type, or raise `RefusedError`."""
    if not isinstance(value, wanted):
        raise RefusedError(f"must be {words}, not {json_name(value)}")
    return value


def read_strictly(value: object, kind: Kind) -> object:
    """Read a value where MLflow converts nothing: no text or boolean is a number, null is no value.

    Args:
        value: The value as JSON gave it.
        kind: The type that the signature asks for.

    Returns:
        The value; a number in the form of its type, which JSON cannot tell.

    Raises:
        RefusedError: It is not of that type.
    """
    if type(value) not in _STRICT[kind]:
        raise _refuse(value, _WANTED[kind])
    return RULES[kind].read(value)


def _refuse(value: object, wanted: str, hint: str = "") -> RefusedError:
    return RefusedError(f"must be {wanted}, not {json_name(value)}{hint}")


def _read_boolean(value: object) -> object:
    if value in (0, 1) and isinstance(value, bool | int | float):
        return bool(value)
    raise _refuse(value, _WANTED[Kind.BOOLEAN])


def whole_number(wanted: str, low: int, high: int) -> Callable[[object], object]:
    """Give the function that reads a whole number between two, both included, so called."""

    def read(value: object) -> object:
        if value is None:
            hint = "; a column that may miss values has to be a double in the signature"
            raise _refuse(value, wanted, hint)
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            value = int(value)
        # JavaScript and JSON do not tell 7.0 from 7, so a float without a fraction is welcome.
        if not isinstance(value, int) and not (isinstance(value, float) and value.is_integer()):
            raise _refuse(value, wanted)
        number = int(value)
        if not low <= number <= high:
            raise RefusedError(f"is out of the range of {wanted}")
        return number

    return read


def real_number(wanted: str, limit: float) -> Callable[[object], object]:
    """Give the function that reads a number of at most a size, so called; null is missing."""

    def read(value: object) -> object:
        if value is None:
            return None
        if isinstance(value, str) and _REAL.fullmatch(value):
            value = float(value)
        if not isinstance(value, float | int):
            raise _refuse(value, wanted)
        number = float(value)
        if abs(number) > limit:
            raise RefusedError(f"is out of the range of {wanted}")
        return number

    return read


def _read_string(value: object) -> object:
    if value is not None and type(value) is not str:
        raise _refuse(value, _WANTED[Kind.STRING])
    return value


def _read_binary(value: object) -> object:
    if type(value) is not str:
        raise _refuse(value, _WANTED[Kind.BINARY])
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(f"must be {_WANTED[Kind.BINARY]}") from error


def _read_datetime(value: object) -> object:
    if value is None:
        return None
    if type(value) is not str:
        raise _refuse(value, _WANTED[Kind.DATETIME])
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise RefusedError(f"must be {_WANTED[Kind.DATETIME]}") from error
    if _BELOW_MICROSECONDS.search(value):
        raise RefusedError("has parts of a microsecond, which are lost")
    if moment.year not in _YEARS:
        raise RefusedError(f"must be between the years {_YEARS.start} and {_YEARS.stop - 1}")
    # MLflow's datetime has no zone; a zoned one means the same instant in UTC.
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


RULES: Mapping[Kind, Rule] = {
    Kind.BOOLEAN: Rule(frozenset({bool}), _read_boolean),
    Kind.INTEGER: Rule(frozenset(), whole_number(_WANTED[Kind.INTEGER], *RANGES[Kind.INTEGER])),
    Kind.LONG: Rule(frozenset(), whole_number(_WANTED[Kind.LONG], *RANGES[Kind.LONG])),
    Kind.FLOAT: Rule(frozenset(), real_number(_WANTED[Kind.FLOAT], FLOAT32_MAX)),
    Kind.DOUBLE: Rule(
        frozenset({float, int, NoneType}), real_number(_WANTED[Kind.DOUBLE], FLOAT64_MAX)
    ),
    Kind.STRING: Rule(frozenset({str, NoneType}), _read_string),
    Kind.BINARY: Rule(frozenset(), _read_binary),
    Kind.DATETIME: Rule(frozenset(), _read_datetime),
}
"""How a column of each kind is read."""
_NUMBERS = frozenset({int, float})
_STRICT: Mapping[Kind, frozenset[type]] = {
    Kind.BOOLEAN: frozenset({bool}),
    Kind.INTEGER: _NUMBERS,
    Kind.LONG: _NUMBERS,
    Kind.FLOAT: _NUMBERS,
    Kind.DOUBLE: _NUMBERS,
    Kind.STRING: frozenset({str}),
    Kind.BINARY: frozenset({str}),
    Kind.DATETIME: frozenset({str}),
}

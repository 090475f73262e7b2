"""Checks one column, parameter or nested value against its type.

What MLflow's server takes is taken (integers widen, text that is a number is one, null is a
missing value where the type has one), but not where MLflow would change a value in silence: a
fraction is not cut to an integer, a number does not wrap round, text is not taken for a boolean.
`docs/reference/input-types.md` has every rule beside MLflow's own.
Messages name the field, the row and the type that came, never the value.
"""

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import NoneType
from typing import Any

from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.signature import (
    Anything,
    ArrayOf,
    Column,
    Kind,
    MapOf,
    ObjectOf,
    ValueType,
)

MAX_NESTING = 64
"""How deep lists and objects may go; deeper is a mistake, or an attack."""

FLOAT32_MAX = 3.4028234663852886e38
RANGES = {Kind.INTEGER: (-(2**31), 2**31 - 1), Kind.LONG: (-(2**63), 2**63 - 1)}
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_YEARS = range(1678, 2262)  # What a timestamp in nanoseconds can hold, in whole years.
_MAY_MISS = frozenset({Kind.FLOAT, Kind.DOUBLE, Kind.STRING, Kind.DATETIME})
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
    Kind.BOOLEAN: "true or false",
    Kind.INTEGER: "a whole number of 32 bits",
    Kind.LONG: "a whole number of 64 bits",
    Kind.FLOAT: "a number of 32 bits",
    Kind.DOUBLE: "a number",
    Kind.STRING: "a string",
    Kind.BINARY: "a string in base64",
    Kind.DATETIME: "a date and time in ISO 8601",
}


class _RefusedError(Exception):
    """A value is not of its type; the caller knows the field and the row."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one kind reads a column.

    A column whose values all have a type in `as_is` is taken unchanged, which is nearly every
    request; else each value goes through `read`.
    """

    as_is: frozenset[type]
    read: Callable[[Any], object]


def read_column(field: str, values: Sequence[Any], kind: ValueType) -> Sequence[Any]:
    """Check the values of one column and give them in the type of the column.

    Args:
        field: The name to use in messages.
        values: The values as JSON gave them, one for each row.
        kind: The type that the signature asks for.

    Returns:
        The values; a missing one is None.

    Raises:
        BadInputError: A value is not of that type.
    """
    rule = _RULES.get(kind) if isinstance(kind, Kind) else None
    if rule is not None and rule.as_is.issuperset(map(type, values)):
        return values
    return [_read_at(field, row, value, kind) for row, value in enumerate(values)]


def is_given(spec: Column, values: Sequence[Any]) -> bool:
    """Tell whether a column that came counts as given.

    Args:
        spec: The column.
        values: Its values.

    Returns:
        False for an optional column of nothing but nulls whose type has no missing value: that
        says the same as leaving it out.
    """
    if spec.required or spec.type in _MAY_MISS:
        return True
    return any(value is not None for value in values)


def read_value(field: str, value: object, kind: ValueType) -> object:
    """Check a single value, such as a parameter.

    Args:
        field: The name to use in messages.
        value: The value as JSON gave it.
        kind: The type that the signature asks for.

    Returns:
        The value in that type.

    Raises:
        BadInputError: It is not of that type.
    """
    try:
        return _read(value, kind)
    except _RefusedError as error:
        raise BadInputError(f"'{field}' {error}.", field) from error


def json_name(value: object) -> str:
    """Name the JSON type of a value, for messages."""
    return _JSON_NAMES.get(type(value), type(value).__name__)


def _read_at(field: str, row: int, value: object, kind: ValueType) -> object:
    try:
        return _read(value, kind)
    except _RefusedError as error:
        raise BadInputError(f"'{field}' in row {row} {error}.", field) from error


def _read(value: object, kind: ValueType, depth: int = 0) -> object:
    if depth > MAX_NESTING:
        raise _RefusedError(f"is nested deeper than {MAX_NESTING} levels")
    match kind:
        case Kind():
            return _RULES[kind].read(value)
        case ArrayOf(items):
            listed = _of_type(value, list, "a list")
            return [_read(item, items, depth + 1) for item in listed]
        case MapOf(values):
            mapped = _of_type(value, dict, "an object")
            return {key: _read(item, values, depth + 1) for key, item in mapped.items()}
        case ObjectOf():
            return _read_object(_of_type(value, dict, "an object"), kind, depth)
        case Anything():
            return value


def _read_object(value: Mapping[str, Any], kind: ObjectOf, depth: int) -> dict[str, object]:
    properties = {item.name: item for item in kind.properties}
    for name, item in properties.items():
        if item.required and name not in value:
            raise _RefusedError(f"lacks the property '{name}'")
    if value.keys() - properties.keys():
        raise _RefusedError("has a property that the signature does not know")
    return {
        name: _read_property(name, item, properties[name].type, depth)
        for name, item in value.items()
        if item is not None or properties[name].required
    }


def _read_property(name: str, value: object, kind: ValueType, depth: int) -> object:
    try:
        return _read(value, kind, depth + 1)
    except _RefusedError as error:
        raise _RefusedError(f"has a property '{name}' that {error}") from error


def _of_type(value: Any, wanted: type, words: str) -> Any:
    if not isinstance(value, wanted):
        raise _RefusedError(f"must be {words}, not {json_name(value)}")
    return value


def _refuse(value: object, kind: Kind, hint: str = "") -> _RefusedError:
    return _RefusedError(f"must be {_WANTED[kind]} ({kind}), not {json_name(value)}{hint}")


def _read_boolean(value: object) -> object:
    if value in (0, 1) and isinstance(value, bool | int | float):
        return bool(value)
    raise _refuse(value, Kind.BOOLEAN)


def _whole_number(kind: Kind) -> Callable[[object], object]:
    low, high = RANGES[kind]

    def read(value: object) -> object:
        if value is None:
            hint = "; a column that may miss values has to be a double in the signature"
            raise _refuse(value, kind, hint)
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            value = int(value)
        # JavaScript and JSON do not tell 7.0 from 7, so a float without a fraction is welcome.
        if not isinstance(value, int) and not (isinstance(value, float) and value.is_integer()):
            raise _refuse(value, kind)
        number = int(value)
        if not low <= number <= high:
            raise _RefusedError(f"is out of the range of {_WANTED[kind]} ({kind})")
        return number

    return read


def _real_number(kind: Kind) -> Callable[[object], object]:
    def read(value: object) -> object:
        if value is None:
            return None
        if isinstance(value, str) and _REAL.fullmatch(value):
            value = float(value)
        if not isinstance(value, float | int):
            raise _refuse(value, kind)
        number = float(value)
        if math.isinf(number):
            raise _RefusedError(f"is out of the range of {_WANTED[kind]} ({kind})")
        if kind is Kind.FLOAT and abs(number) > FLOAT32_MAX:
            raise _RefusedError(f"is out of the range of {_WANTED[kind]} ({kind})")
        return number

    return read


def _read_string(value: object) -> object:
    if value is not None and type(value) is not str:
        raise _refuse(value, Kind.STRING)
    return value


def _read_binary(value: object) -> object:
    if type(value) is not str:
        raise _refuse(value, Kind.BINARY)
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _RefusedError(f"must be {_WANTED[Kind.BINARY]} ({Kind.BINARY})") from error


def _read_datetime(value: object) -> object:
    if value is None:
        return None
    if type(value) is not str:
        raise _refuse(value, Kind.DATETIME)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise _RefusedError(f"must be {_WANTED[Kind.DATETIME]} ({Kind.DATETIME})") from error
    if moment.year not in _YEARS:
        raise _RefusedError(f"must be between the years {_YEARS.start} and {_YEARS.stop - 1}")
    # MLflow's datetime has no zone; a zoned one means the same instant in UTC.
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


_RULES: Mapping[Kind, _Rule] = {
    Kind.BOOLEAN: _Rule(frozenset({bool}), _read_boolean),
    Kind.INTEGER: _Rule(frozenset(), _whole_number(Kind.INTEGER)),
    Kind.LONG: _Rule(frozenset(), _whole_number(Kind.LONG)),
    Kind.FLOAT: _Rule(frozenset(), _real_number(Kind.FLOAT)),
    Kind.DOUBLE: _Rule(frozenset({float, int, NoneType}), _real_number(Kind.DOUBLE)),
    Kind.STRING: _Rule(frozenset({str, NoneType}), _read_string),
    Kind.BINARY: _Rule(frozenset(), _read_binary),
    Kind.DATETIME: _Rule(frozenset(), _read_datetime),
}

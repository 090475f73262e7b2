"""Checks columns and parameters against their types.

Messages name the field, the row and the type that came, never the value.
"""

from collections.abc import Sequence
from typing import Any

from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.nested import read_nested
from fairlead_serving.domain.scalars import RULES, RefusedError
from fairlead_serving.domain.signature import Column, Kind, ValueType

MAY_NOT_MISS = frozenset({Kind.BOOLEAN, Kind.INTEGER, Kind.LONG, Kind.BINARY})


def read_column(
    field: str, values: Sequence[Any], kind: ValueType, *, required: bool = True, first: int = 0
) -> Sequence[Any]:
    """Check the values of one column and give them in the type of the column.

    Args:
        field: The name to use in messages.
        values: The values as JSON gave them, one for each row.
        kind: The type that the signature asks for.
        required: Whether the signature asks for the column; a nested value of an optional one may
            be null.
        first: The row of the first value, for messages.

    Returns:
        The values; a missing one is None.

    Raises:
        BadInputError: A value is not of that type; its field is the column, and inside a nested
            value the path from there.
    """
    rule = RULES.get(kind) if isinstance(kind, Kind) else None
    as_is = rule.as_is if rule else frozenset()
    if as_is.issuperset(map(type, values)):
        return values
    found = []
    for row, value in enumerate(values, first):
        if type(value) in as_is:  # One wrong value must not make all of them dear.
            found.append(value)
            continue
        try:
            found.append(rule.read(value) if rule else read_nested(value, kind, required=required))
        except RefusedError as error:
            words = f"'{field}' in row {row} {error}."
            raise BadInputError(words, field + error.path) from error
    return found


def is_given(spec: Column, values: Sequence[Any]) -> bool:
    """Tell whether a column that came counts as given.

    Args:
        spec: The column.
        values: Its values.

    Returns:
        False for an optional column of nothing but nulls whose type has no missing value: that
        says the same as leaving it out.
    """
    if spec.required or spec.type not in MAY_NOT_MISS:
        return True
    return any(value is not None for value in values)


def read_value(field: str, value: object, kind: ValueType, *, required: bool) -> object:
    """Check a single value, such as a parameter.

    Args:
        field: The name to use in messages.
        value: The value as JSON gave it.
        kind: The type that the signature asks for.
        required: Whether null is refused.

    Returns:
        The value in that type.

    Raises:
        BadInputError: It is not of that type.
    """
    try:
        return read_nested(value, kind, required=required)
    except RefusedError as error:
        raise BadInputError(f"'{field}' {error}.", field + error.path) from error

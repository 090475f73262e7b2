"""Reads values inside lists and objects, as MLflow's schema enforcement does.

Whether null, and an empty object, stand for a missing value is said once, by the column or the
property, and holds for what it contains down to the next property.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from fairlead_serving.domain.scalars import RefusedError, of_type, read_strictly
from fairlead_serving.domain.signature import (
    Anything,
    ArrayOf,
    Kind,
    MapOf,
    ObjectOf,
    ValueType,
)

MAX_NESTING = 64
"""How deep lists and objects may go; deeper is a mistake, or an attack."""

MISSING_ITEMS = {Kind.FLOAT: math.nan, Kind.DOUBLE: math.nan, Kind.DATETIME: None}
"""What null is in a list of values that have a missing one."""


def read_nested(value: object, kind: ValueType, *, required: bool, depth: int = 0) -> object:
    """Check a value of a nested type, or one inside it.

    Args:
        value: The value as JSON gave it.
        kind: The type that the signature asks for.
        required: Whether null is refused.
        depth: How many lists and objects are around it.

    Returns:
        The value in that type.

    Raises:
        RefusedError: It is not of that type.
    """
    if depth > MAX_NESTING:
        raise RefusedError(f"is nested deeper than {MAX_NESTING} levels")
    if value is None and (not required or takes_null(kind)):
        return None
    found: object = value
    match kind:
        case Kind():
            found = read_strictly(value, kind)
        case ArrayOf(Kind() as items):
            found = _read_list(of_type(value, list, "a list"), partial(_read_item, kind=items))
        case ArrayOf(items):
            deeper = partial(read_nested, kind=items, required=required, depth=depth + 1)
            found = _read_list(of_type(value, list, "a list"), deeper)
        case MapOf(values):
            mapped = of_type(value, dict, "an object")
            deeper = partial(read_nested, kind=values, required=required, depth=depth + 1)
            found = dict(zip(mapped, _read_map(mapped.values(), deeper), strict=True))
        case ObjectOf():
            properties = of_type(value, dict, "an object")
            found = _read_object(properties, kind, required=required, depth=depth)
    return found


def takes_null(kind: ValueType) -> bool:
    """Tell whether null is a value of a type, even where one is required."""
    return isinstance(kind, Anything) or kind in {ArrayOf(Anything()), MapOf(Anything())}


def _read_list(items: Iterable[object], read: Callable[[object], object]) -> list[object]:
    found = []
    for at, item in enumerate(items):
        try:
            found.append(read(item))
        except RefusedError as error:
            raise error.inside(f"[{at}]") from error
    return found


def _read_map(values: Iterable[object], read: Callable[[object], object]) -> list[object]:
    try:
        return [read(value) for value in values]
    except RefusedError as error:
        raise error.inside(".*") from error


def _read_item(value: object, kind: Kind) -> object:
    if value is None and kind in MISSING_ITEMS:
        return MISSING_ITEMS[kind]
    return read_strictly(value, kind)


def _read_object(
    value: Mapping[str, Any], kind: ObjectOf, *, required: bool, depth: int
) -> dict[str, object]:
    if not required and not value:
        return {}
    properties = {item.name: item for item in kind.properties}
    for name, item in properties.items():
        if item.required and name not in value:
            raise RefusedError(f"lacks the property '{name}'")
    if value.keys() - properties.keys():
        raise RefusedError("has a property that the signature does not know")
    found = {}
    for name, item in value.items():
        spec = properties[name]
        try:
            found[name] = read_nested(item, spec.type, required=spec.required, depth=depth + 1)
        except RefusedError as error:
            refused = RefusedError(f"has a property '{name}' that {error}")
            raise refused.inside(f".{name}{error.path}") from error
    return found

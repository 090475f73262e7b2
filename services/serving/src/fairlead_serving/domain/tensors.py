"""Checks nested lists against a tensor signature."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fairlead_serving.domain.data import Array, Tensors, layout_of
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.scalars import (
    FLOAT16_MAX,
    RULES,
    RefusedError,
    json_name,
    of_type,
    real_number,
    whole_number,
)
from fairlead_serving.domain.signature import Kind, Tensor

_MAX_DIMENSIONS = 32
_BITS = {f"{sign}int{bits}": (sign, bits) for sign in ("", "u") for bits in (8, 16, 32, 64)}

Frame = Mapping[Any, Sequence[Any]]


def read_tensors(form: str, given: object, specs: Sequence[Tensor]) -> Tensors:
    """Read `inputs` or `instances` into the arrays that a signature asks for.

    Args:
        form: The key of the request.
        given: Nested lists, a mapping of them by name, or a list of such mappings, one a row.
        specs: The tensors of the signature; a single one may be without a name.

    Returns:
        The arrays, with the lengths that the signature leaves open filled in.

    Raises:
        BadInputError: A tensor is missing, ragged, or not of its shape or type.
    """
    if specs[0].name is None:
        return to_tensors({None: _read_array(form, given, specs[0])})
    mapping = _mapping(form, given, specs)
    tensors = to_tensors({spec.name: _read_named(mapping, spec) for spec in specs})
    if form == "instances" and tensors.layout is None:
        raise BadInputError("The tensors in 'instances' differ in how many rows they have.", form)
    return tensors


def read_frame(form: str, columns: Frame, specs: Sequence[Tensor]) -> Tensors:
    """Read the columns of a data frame into the arrays that a signature asks for.

    Args:
        form: The key of the request, for messages.
        columns: The values of each column; a list is a row of the tensor, flat or nested.
        specs: The tensors of the signature. One without a name takes the only column there is,
            or its columns are those of the frame.

    Returns:
        The arrays.

    Raises:
        BadInputError: As `read_tensors`.
    """
    if specs[0].name is not None:
        given = {spec.name: columns[spec.name] for spec in specs if spec.name in columns}
        return to_tensors({spec.name: _read_named(given, spec, _read_cells) for spec in specs})
    if len(columns) == 1:
        (cells,) = columns.values()
        return to_tensors({None: _read_cells(form, cells, specs[0])})
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return to_tensors({None: _read_array(form, rows, specs[0])})


def _mapping(form: str, given: object, specs: Sequence[Tensor]) -> Mapping[Any, Any]:
    if isinstance(given, Mapping):
        return given
    if isinstance(given, list) and given and all(isinstance(row, dict) for row in given):
        return {spec.name: [row.get(spec.name) for row in given] for spec in specs}
    if len(specs) == 1 and isinstance(given, list):
        return {specs[0].name: given}
    names = ", ".join(str(spec.name) for spec in specs)
    raise BadInputError(f"'{form}' must be an object with the tensors {names}.", form)


def _read_named(
    mapping: Mapping[Any, Any],
    spec: Tensor,
    read: Callable[[str, Any, Tensor], Array] | None = None,
) -> Array:
    if mapping.get(spec.name) is None:
        raise BadInputError(f"The tensor '{spec.name}' is missing.", spec.name)
    return (read or _read_array)(str(spec.name), mapping[spec.name], spec)


def _read_array(field: str, given: object, spec: Tensor) -> Array:
    if spec.shape == () and not isinstance(given, list | None):
        return check_array(field, [given], (), spec)
    values, shape = flatten(field, given, ragged=spec.dtype == "object")
    return check_array(field, values, shape, spec)


def _read_cells(field: str, cells: Sequence[Any], spec: Tensor) -> Array:
    """Read one column: scalars, or the rows of the tensor, which may have been flattened."""
    values, shape = flatten(field, cells)
    row = spec.shape[1:]
    is_flat = shape[1:] == (math.prod(row),) and min(row, default=1) > 0
    if is_flat or (shape[1:], row) == ((), (1,)):
        shape = (shape[0], *row)
    return check_array(field, values, shape, spec)


def check_array(field: str, values: Sequence[Any], shape: tuple[int, ...], spec: Tensor) -> Array:
    """Check flat values against a tensor of the signature.

    Args:
        field: What the tensor is called, for messages.
        values: The values as JSON has them, in C order.
        shape: Their shape.
        spec: What the signature asks for.

    Returns:
        The array.

    Raises:
        BadInputError: It is not of the shape or the type.
    """
    if not _fits(shape, spec):
        raise wrong_shape(field, spec, shape)
    return Array(_read_items(field, values, spec.dtype, shape), shape, spec.dtype)


def wrong_shape(field: str, spec: Tensor, shape: Sequence[int]) -> BadInputError:
    """Say that a tensor has another shape."""
    message = f"'{field}' must have the shape {list(spec.shape)}, not {list(shape)}."
    return BadInputError(message, field)


def ragged_lists(field: str) -> BadInputError:
    """Say that the lists of a tensor differ."""
    return BadInputError(f"'{field}' has lists of different lengths or depths.", field)


def _fits(shape: tuple[int, ...], spec: Tensor) -> bool:
    # MLflow's two ways to say that anything goes: lists of different lengths are objects.
    if spec.dtype == "object" and (
        spec.shape == (-1,) or (len(shape) == 1 and -1 in spec.shape[1:])
    ):
        return True
    return len(shape) == len(spec.shape) and all(
        wanted in (-1, actual) for wanted, actual in zip(spec.shape, shape, strict=True)
    )


def flatten(
    field: str, given: object, *, ragged: bool = False
) -> tuple[list[Any], tuple[int, ...]]:
    """Take nested lists apart, one dimension a turn: no recursion for a payload to exhaust.

    Args:
        field: What they are called, for messages.
        given: The lists.
        ragged: Whether lists that differ in length or depth are values themselves.

    Returns:
        The values in C order, and the shape.

    Raises:
        BadInputError: It is no list, or its lists differ in length or depth.
    """
    if not isinstance(given, list | tuple):
        raise BadInputError(f"'{field}' must be a list, not {json_name(given)}.", field)
    items: list[Any] = list(given)
    shape = [len(items)]
    while items and any(isinstance(item, list) for item in items):
        lengths = {len(item) if isinstance(item, list) else -1 for item in items}
        if len(lengths) > 1 or len(shape) == _MAX_DIMENSIONS:
            if ragged:
                break
            raise ragged_lists(field)
        shape.append(lengths.pop())
        items = [value for item in items for value in item]
    return items, tuple(shape)


def whole_range(dtype: str) -> tuple[int, int] | None:
    """Give the smallest and the largest number of a type of whole numbers; None for another."""
    if dtype not in _BITS:
        return None
    sign, bits = _BITS[dtype]
    return (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def check_item(field: str, value: object, spec: Tensor) -> None:
    """Check one item of a tensor, named with its place, as `check_array` checks them all."""
    _read_items(field, [value], spec.dtype, ())


def place_of(at: int, shape: Sequence[int]) -> str:
    """Write where an item is in a tensor, as in `[3][1]`.

    Args:
        at: Its place in C order.
        shape: The tensor's.
    """
    indexes = []
    for length in reversed(shape):
        at, index = divmod(at, length)
        indexes.append(f"[{index}]")
    return "".join(reversed(indexes))


def _read_items(
    field: str, values: Sequence[Any], dtype: str, shape: Sequence[int]
) -> Sequence[Any]:
    as_is, read = _item_rule(dtype)
    if as_is.issuperset(map(type, values)):
        return values
    found: list[Any] = []
    try:
        found.extend(read(value) for value in values)
    except RefusedError as error:
        place = field + place_of(len(found), shape)
        raise BadInputError(f"'{place}' {error}.", place) from error
    return found


def _item_rule(dtype: str) -> tuple[frozenset[type], Callable[[Any], object]]:
    """Give the types of values that an array takes as they are, and how it reads others."""
    whole = whole_range(dtype)
    if whole is not None:
        return frozenset(), whole_number(f"a whole number ({dtype})", *whole)
    return _RULES.get(dtype) or _rule(
        Kind.DATETIME if dtype.startswith("datetime") else Kind.DOUBLE
    )


def _rule(kind: Kind) -> tuple[frozenset[type], Callable[[Any], object]]:
    return RULES[kind].as_is, RULES[kind].read


def _read_bytes(value: object) -> object:
    text = of_type(value, str, "a string")
    if not text.isascii():
        raise RefusedError("must be ASCII")
    return text


_RULES: Mapping[str, tuple[frozenset[type], Callable[[Any], object]]] = {
    "bool": _rule(Kind.BOOLEAN),
    "float16": (frozenset(), real_number("a number of 16 bits (float16)", FLOAT16_MAX)),
    "float32": _rule(Kind.FLOAT),
    "str": (frozenset({str}), lambda value: of_type(value, str, "a string")),
    "bytes": (frozenset(), _read_bytes),
    "object": (frozenset(), lambda value: value),
}


def to_tensors(arrays: Mapping[str | None, Array]) -> Tensors:
    """Put checked arrays together.

    Raises:
        BadInputError: There is not one row.
    """
    shape = next(iter(arrays.values())).shape
    rows = shape[0] if shape else 1
    if rows == 0:
        raise BadInputError("There are no rows.")
    return Tensors(arrays, rows, layout_of(arrays))

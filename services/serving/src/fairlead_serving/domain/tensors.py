"""Checks nested lists against a tensor signature."""

from collections.abc import Mapping, Sequence
from typing import Any

from fairlead_serving.domain.data import Array, Tensors, layout_of
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.signature import Kind, Tensor
from fairlead_serving.domain.values import json_name, read_column

_MAX_DIMENSIONS = 32
_UNSIGNED_BITS = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}
_SIGNED_BITS = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
_KINDS = {"bool": Kind.BOOLEAN, "float16": Kind.FLOAT, "float32": Kind.FLOAT}


def read_tensors(form: str, given: object, specs: Sequence[Tensor]) -> Tensors:
    """Read nested lists into the arrays that a signature asks for.

    Args:
        form: The key of the request, for messages.
        given: Nested lists, a mapping of them, or the columns of a data frame.
        specs: The tensors of the signature; a single one may be without a name.

    Returns:
        The arrays, with the lengths that the signature leaves open filled in.

    Raises:
        BadInputError: A tensor is missing, ragged, or not of its shape or type.
    """
    if specs[0].name is None:
        array = _read_array(form, _matrix(given), specs[0])
        return to_tensors({None: array})
    mapping = _mapping(form, given, specs)
    return to_tensors({spec.name: _read_named(mapping, spec) for spec in specs})


def _matrix(given: object) -> object:
    """Turn the columns of a data frame into rows; leave anything else."""
    if not isinstance(given, Mapping):
        return given
    columns = list(given.values())
    if not all(isinstance(column, list | tuple) for column in columns):
        return None
    if len(columns) == 1 and columns[0] and isinstance(columns[0][0], list):
        return list(columns[0])
    return [list(row) for row in zip(*columns, strict=False)]


def _mapping(form: str, given: object, specs: Sequence[Tensor]) -> Mapping[Any, Any]:
    if isinstance(given, Mapping):
        return given
    if isinstance(given, list) and given and all(isinstance(row, dict) for row in given):
        return {spec.name: [row.get(spec.name) for row in given] for spec in specs}
    if len(specs) == 1 and isinstance(given, list):
        return {specs[0].name: given}
    names = ", ".join(str(spec.name) for spec in specs)
    raise BadInputError(f"'{form}' must be an object with the tensors {names}.", form)


def _read_named(mapping: Mapping[Any, Any], spec: Tensor) -> Array:
    if mapping.get(spec.name) is None:
        raise BadInputError(f"The tensor '{spec.name}' is missing.", spec.name)
    return _read_array(str(spec.name), mapping[spec.name], spec)


def _read_array(field: str, given: object, spec: Tensor) -> Array:
    values, shape = flatten(field, given)
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
    fits = len(shape) == len(spec.shape) and all(
        wanted in (-1, actual) for wanted, actual in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise BadInputError(
            f"'{field}' must have the shape {list(spec.shape)}, not {list(shape)}.", field
        )
    return Array(_read_items(field, values, spec.dtype), shape, spec.dtype)


def flatten(field: str, given: object) -> tuple[list[Any], tuple[int, ...]]:
    """Take nested lists apart, one dimension a turn: no recursion for a payload to exhaust.

    Args:
        field: What they are called, for messages.
        given: The lists.

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
            raise BadInputError(f"'{field}' has lists of different lengths or depths.", field)
        shape.append(lengths.pop())
        items = [value for item in items for value in item]
    return items, tuple(shape)


def _read_items(field: str, values: Sequence[Any], dtype: str) -> Sequence[Any]:
    kind = item_kind(dtype)
    read = read_column(field, values, kind)
    low, high = item_range(dtype)
    if kind is Kind.LONG and not all(low <= value <= high for value in read):
        raise BadInputError(f"'{field}' has a value out of the range of {dtype}.", field)
    return read


def item_range(dtype: str) -> tuple[int, int]:
    """Give the smallest and the largest whole number of a type, both of at most 64 bits."""
    if dtype in _UNSIGNED_BITS:
        return 0, min(2 ** _UNSIGNED_BITS[dtype], 2**63) - 1
    bits = _SIGNED_BITS.get(dtype, 64)
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def item_kind(dtype: str) -> Kind:
    """Give the kind of value that JSON has for the items of a type."""
    if dtype in _SIGNED_BITS or dtype in _UNSIGNED_BITS:
        return Kind.LONG
    if dtype.startswith("datetime"):
        return Kind.DATETIME
    if dtype.startswith(("str", "object", "<U", "U")):
        return Kind.STRING
    if dtype.startswith("bytes"):
        return Kind.STRING
    return _KINDS.get(dtype, Kind.DOUBLE)


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

"""Decodes requests straight into the types of a signature: decoding them is checking them.

This is the short way for the requests that nearly everybody sends. What it does not take (an
exotic form, a mistake) goes the long way through `decode`, which knows every form and finds the
words for every mistake; what it does take, it reads as `decode` would.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Annotated, Any, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import astuple

from fairlead_serving.domain.data import (
    Array,
    Columns,
    Data,
    Layout,
    Records,
    Request,
    TensorLayout,
    Tensors,
)
from fairlead_serving.domain.decode import check_names, only_form
from fairlead_serving.domain.mistakes import refuse_mistake
from fairlead_serving.domain.params import read_params
from fairlead_serving.domain.scalars import FLOAT16_MAX, FLOAT32_MAX, RANGES
from fairlead_serving.domain.signature import Column, Kind, Name, Signature, Tensor, ValueType
from fairlead_serving.domain.tensors import whole_range
from fairlead_serving.domain.values import is_given, read_column

_FORMS = ("inputs", "dataframe_split", "dataframe_records", "instances")
_MAX_DIMENSIONS = 4
_A_ROW = Meta(min_length=1)

Read = Callable[[Any], Data | None]


class _Form(msgspec.Struct, frozen=True):
    """One of MLflow's forms: its type, and the function from a value of it to data."""

    type: Any
    read: Read


def compile_decoder(signature: Signature) -> Callable[[bytes], Request | None]:
    """Compile the short way for one signature.

    Args:
        signature: The model's.

    Returns:
        A function from a JSON body to the checked request, or to None when the body has to go
        the long way. It raises `BadInputError` where it can tell what is wrong.
    """
    forms = _column_forms(signature) if signature.columns else _tensor_forms(signature)
    if not forms:
        return _long_way
    fields = [
        (name, (forms[name].type if name in forms else msgspec.Raw) | UnsetType, UNSET)
        for name in _FORMS
    ]
    document = msgspec.defstruct("Document", [*fields, ("params", Any, None)], gc=False)
    decode = msgspec.json.Decoder(document).decode
    readers = [forms[name].read if name in forms else _long_way for name in _FORMS]
    return partial(_decode, decode, readers, signature)


def _decode(
    decode: Callable[[bytes], Any], readers: Sequence[Read], signature: Signature, body: bytes
) -> Request | None:
    try:
        *values, params = astuple(decode(body))
    except RecursionError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        refuse_mistake(body, error, signature)
        return None
    given = [pair for pair in zip(readers, values, strict=True) if pair[1] is not UNSET]
    if len(given) != 1:
        only_form(
            {form: 0 for form, value in zip(_FORMS, values, strict=True) if value is not UNSET}
        )
    read, value = given[0]
    checked = read_params(params, signature.params)
    data = read(value)
    return None if data is None else Request(data, checked)


def _long_way(_: object) -> None:
    return None


def _column_forms(signature: Signature) -> Mapping[str, _Form]:
    columns, names = signature.columns, signature.column_names
    if len(set(names)) < len(names):
        return {}
    finish = _finisher(columns, names)
    row: Any = tuple[tuple(_cell(spec) for spec in columns)]  # type: ignore[misc]
    rows = Annotated[list[row], _A_ROW]
    if not signature.has_names:
        return dict.fromkeys(("inputs", "instances"), _Form(rows, finish))
    return _named_forms(columns, names, rows, finish)


def _named_forms(
    columns: Sequence[Column], names: tuple[Name, ...], rows: Any, finish: Read
) -> Mapping[str, _Form]:
    split = msgspec.defstruct(
        "Split",
        [("columns", list[str]), ("data", rows), ("index", Any, None)],
        forbid_unknown_fields=True,
    )
    records: Any = Annotated[list[_struct(columns, _cell)], _A_ROW]  # type: ignore[misc]
    either = records
    if all(isinstance(spec.type, Kind) for spec in columns):
        # An object with lists is one row where lists are values, so this is not for those.
        either = records | _struct(columns, _cells)
    values = _Form(either, partial(_read_values, finish, _column_finisher(columns, names)))
    return {
        "dataframe_split": _Form(split, partial(_read_split, list(names), finish)),
        "dataframe_records": _Form(records, partial(_read_records, finish)),
        "instances": values,
        "inputs": values,
    }


def _struct(columns: Sequence[Column], type_of: Callable[[Column], Any]) -> Any:
    return msgspec.defstruct(
        "Fields",
        [
            (
                f"field_{number}",
                type_of(spec) if spec.required else type_of(spec) | UnsetType,
                msgspec.field(name=str(spec.name))
                if spec.required
                else msgspec.field(name=str(spec.name), default=UNSET),
            )
            for number, spec in enumerate(columns)
        ],
        kw_only=True,
        gc=False,
    )


def _cell(spec: Column) -> Any:
    checked = _SCALARS.get(spec.type, Any) if isinstance(spec.type, Kind) else Any
    return checked if spec.required else checked | None


def _cells(spec: Column) -> Any:
    return list[_cell(spec)]  # type: ignore[misc]


def _read_split(names: list[Name], finish: Read, split: Any) -> Data | None:
    if split.columns == names:
        return finish(split.data)
    check_names("dataframe_split.columns", split.columns, frozenset(names))
    return None


def _read_records(finish: Read, records: Sequence[Any]) -> Data | None:
    return finish([astuple(record) for record in records])


def _read_values(finish: Read, finish_columns: Read, value: Any) -> Data | None:
    if isinstance(value, list):
        return _read_records(finish, value)
    return finish_columns(astuple(value))


def _finisher(columns: Sequence[Column], names: tuple[Name, ...]) -> Read:
    """Give the function from rows to data; rows as they are, where that is all they need."""
    if all(spec.required and spec.type in _SCALARS for spec in columns):
        layout = Layout(names, tuple(spec.type for spec in columns))
        return partial(Records, layout)
    finish = _column_finisher(columns, names)
    return lambda rows: finish(list(zip(*rows, strict=True)))


def _column_finisher(columns: Sequence[Column], names: tuple[Name, ...]) -> Read:
    return partial(_finish_columns, list(zip(names, columns, strict=True)))


def _finish_columns(
    specs: Sequence[tuple[Name, Column]], columns: Sequence[Sequence[Any] | UnsetType]
) -> Data | None:
    kept: list[tuple[Name, ValueType, Sequence[Any]]] = []
    for (name, spec), given in zip(specs, columns, strict=True):
        values = _given(given, spec)
        if values is not None and is_given(spec, values):
            field = f"column {name}" if spec.name is None else spec.name
            read = read_column(field, values, spec.type, required=spec.required)
            kept.append((name, spec.type, read))
    if len({len(values) for _, _, values in kept}) != 1 or not kept[0][2]:
        return None
    chosen, types, cells = zip(*kept, strict=True)
    return Columns(Layout(chosen, types), cells)


def _given(values: Any, spec: Column) -> Sequence[Any] | None:
    """Give a column with null for what some rows leave out; None if all of them do."""
    if spec.required:
        return cast("Sequence[Any]", values)
    if values is UNSET or all(value is UNSET for value in values):
        return None
    return [None if value is UNSET else value for value in values]


def _tensor_forms(signature: Signature) -> Mapping[str, _Form]:
    specs = signature.tensors
    if not specs or not all(_is_simple(spec) for spec in specs):
        return {}
    layout = tuple((spec.name, spec.dtype, spec.shape[1:]) for spec in specs)
    if specs[0].name is None:
        form = _Form(_nested(specs[0]), partial(_read_tensor, layout))
        return {"inputs": form, "instances": form}
    fields = [
        (f"tensor_{number}", _nested(spec), msgspec.field(name=str(spec.name)))
        for number, spec in enumerate(specs)
    ]
    type_ = msgspec.defstruct("Inputs", fields, gc=False)
    return {
        "inputs": _Form(type_, partial(_read_tensors, layout)),
        "instances": _Form(type_, partial(_read_instances, layout)),
    }


def _is_simple(spec: Tensor) -> bool:
    """Tell whether a type can say the shape: all lengths but the first are fixed."""
    fixed = all(length >= 0 for length in spec.shape[1:])
    return 0 < len(spec.shape) <= _MAX_DIMENSIONS and fixed and _item(spec.dtype) is not None


def _nested(spec: Tensor) -> Any:
    nested: Any = _item(spec.dtype)
    for length in reversed(spec.shape[1:]):
        nested = Annotated[list[nested], Meta(min_length=length, max_length=length)]
    rows = _A_ROW if spec.shape[0] < 0 else Meta(min_length=spec.shape[0], max_length=spec.shape[0])
    return Annotated[list[nested], rows]


def _item(dtype: str) -> Any:
    """Give the type of one value of an array; None for what has to go the long way."""
    whole = whole_range(dtype)
    if whole is not None:
        low, high = whole
        return Annotated[int, Meta(ge=low, le=min(high, RANGES[Kind.LONG][1]))]
    return _ITEMS.get(dtype)


def _read_tensor(layout: TensorLayout, given: list[Any]) -> Data:
    ((name, dtype, shape),) = layout
    return Tensors({name: _flatten(given, shape, dtype)}, len(given), layout)


def _read_tensors(layout: TensorLayout, given: Any) -> Tensors:
    values = astuple(given)
    arrays = {
        name: _flatten(value, shape, dtype)
        for (name, dtype, shape), value in zip(layout, values, strict=True)
    }
    agrees = len(set(map(len, values))) == 1
    return Tensors(arrays, len(values[0]), layout if agrees else None)


def _read_instances(layout: TensorLayout, given: Any) -> Data | None:
    tensors = _read_tensors(layout, given)
    return tensors if tensors.layout else None  # They have to agree in how many rows they have.


def _flatten(given: list[Any], shape: tuple[int, ...], dtype: str) -> Array:
    rows = len(given)
    for _ in shape:
        given = given[0] if len(given) == 1 else list(chain.from_iterable(given))
    return Array(given, (rows, *shape), dtype)


_SCALARS: Mapping[ValueType, Any] = {
    Kind.BOOLEAN: bool,
    Kind.INTEGER: Annotated[int, Meta(ge=RANGES[Kind.INTEGER][0], le=RANGES[Kind.INTEGER][1])],
    Kind.LONG: Annotated[int, Meta(ge=RANGES[Kind.LONG][0], le=RANGES[Kind.LONG][1])],
    Kind.FLOAT: Annotated[float, Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)] | None,
    Kind.DOUBLE: float | None,
    Kind.STRING: str | None,
}
"""The kinds whose values JSON has as they are; the others are read a column at a time."""
_ITEMS: Mapping[str, Any] = {
    "bool": bool,
    "float16": Annotated[float, Meta(ge=-FLOAT16_MAX, le=FLOAT16_MAX)] | None,
    "float32": _SCALARS[Kind.FLOAT],
    "float64": _SCALARS[Kind.DOUBLE],
    "str": str,
}

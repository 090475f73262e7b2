"""Makes the examples of a document from the input example that a model was saved with.

Each is in the form that the document asks for, however the example was saved: it is read as a
request and written again.
"""

import base64
import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

import orjson

from fairlead_serving.domain.csv import read_csv
from fairlead_serving.domain.data import Array, Columns, Data, Raw, Records, Tensors
from fairlead_serving.domain.decode import decode, decode_columns
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.signature import ArrayOf, Kind, Name, Signature, ValueType
from fairlead_serving.domain.tensors import flatten
from fairlead_serving.domain.v2 import DTYPES, KINDS, read_infer

_ROWS = 3
"""More rows tell a reader nothing new."""

_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}
_PLAIN: Mapping[type, str] = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}


@dataclass(frozen=True, slots=True)
class Examples:
    """One request in each of the forms that can say it; None for a form that cannot.

    Attributes:
        json: For `/invocations`.
        csv: The same as CSV, without parameters.
        infer: For the Open Inference Protocol.
    """

    json: object = None
    csv: str | None = None
    infer: object = None


@dataclass(frozen=True, slots=True)
class _Table:
    names: tuple[Name, ...]
    types: tuple[ValueType | None, ...]
    columns: Sequence[Sequence[Any]]


def build_examples(payload: object, signature: Signature) -> Examples:
    """Make the examples.

    Args:
        payload: What the model was saved with, in any of MLflow's forms, or None.
        signature: The model's.

    Returns:
        The examples; none if the payload is not of the signature, as one may be that was saved
        with another version of the model.
    """
    if not isinstance(payload, dict):
        return Examples()
    try:
        request = decode(payload, signature)
    except BadInputError:
        return Examples()
    made = _examples(payload, request.data, signature)
    return Examples(
        made.json,
        _if_read(_read_csv, made.csv, signature),
        _if_read(_read_infer, made.infer, signature),
    )


def _if_read(read: Callable[[Any, Signature], object], made: Any, signature: Signature) -> Any:
    """Keep what can be read again; CSV, for one, has no empty bytes."""
    try:
        return made if made is None or read(made, signature) else None
    except BadInputError:
        return None


def _read_csv(made: str, signature: Signature) -> object:
    return decode_columns(read_csv(made, signature), signature)


def _read_infer(made: object, signature: Signature) -> object:
    return read_infer(orjson.dumps(made), None, signature)


def _examples(payload: Mapping[str, Any], data: Data, signature: Signature) -> Examples:
    params = payload.get("params") or {}
    match data:
        case Tensors():
            return _of_tensors(_first_rows(data, signature), params)
        case Raw():
            return Examples(payload, None, _infer(_raw_input(data.value), params))
    return _of_table(_table(data), params, signature)


def _table(data: Records | Columns) -> _Table:
    layout = data.layout
    columns = [[_plain(value) for value in column[:_ROWS]] for column in data.by_column()]
    return _Table(layout.names, layout.types or (None,) * len(columns), columns)


def _plain(value: Any) -> Any:
    """Give a checked value as JSON has it."""
    match value:
        case datetime():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode()
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {key: _plain(item) for key, item in value.items()}
    return value


def _of_table(table: _Table, params: Mapping[str, Any], signature: Signature) -> Examples:
    rows = [list(row) for row in zip(*table.columns, strict=True)]
    if signature.has_names:
        records = [dict(zip(table.names, row, strict=True)) for row in rows]
        document: dict[str, Any] = {"dataframe_records": records}
    elif signature.columns:
        document = {"inputs": rows}
    else:
        document = {"dataframe_split": {"columns": list(table.names), "data": rows}}
    is_flat = all(kind is None or isinstance(kind, Kind) for kind in table.types)
    text = _csv(table.names, rows) if is_flat else None
    inputs = _column_inputs(table, signature)
    return Examples(_with_params(document, params), text, _infer(inputs, params))


def _of_tensors(tensors: Tensors, params: Mapping[str, Any]) -> Examples:
    nested = {name: _nested(array.values, array.shape) for name, array in tensors.arrays.items()}
    document = {"inputs": nested.get(None, nested)}
    inputs = [
        _input(name or "input-1", array.shape, _DATATYPES.get(array.dtype, "BYTES"), array.values)
        for name, array in tensors.arrays.items()
    ]
    return Examples(_with_params(document, params), _tensor_csv(nested), _infer(inputs, params))


def _first_rows(tensors: Tensors, signature: Signature) -> Tensors:
    if not signature.has_rows or tensors.layout is None:
        return tensors
    rows = min(tensors.rows, _ROWS)
    arrays: dict[str | None, Array] = {
        name: Array(
            [_plain(value) for value in array.values[: rows * math.prod(array.shape[1:])]],
            (rows, *array.shape[1:]),
            array.dtype,
        )
        for name, array in tensors.arrays.items()
    }
    return Tensors(arrays, rows, tensors.layout)


def _nested(values: Sequence[Any], shape: Sequence[int]) -> list[Any]:
    """Put flat values in C order into nested lists."""
    nested = list(values)
    for length in reversed(shape[1:]):
        nested = [nested[at : at + length] for at in range(0, len(nested), length)]
    return nested


def _with_params(document: dict[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    return document | ({"params": params} if params else {})


def _infer(
    inputs: Sequence[Mapping[str, Any] | None], params: Mapping[str, Any]
) -> dict[str, Any] | None:
    if not inputs or None in inputs:
        return None
    return {"inputs": [*inputs], **({"parameters": params} if params else {})}


def _input(
    name: str, shape: Sequence[int], datatype: str, data: Iterable[Any], **more: Any
) -> dict[str, Any]:
    return {"name": name, "shape": [*shape], "datatype": datatype, "data": [*data], **more}


def _column_inputs(table: _Table, signature: Signature) -> list[dict[str, Any] | None]:
    """Give an input for each column, the required ones first, as the document has them."""
    if table.types == (None,):  # A single input without a signature is an array and no column.
        return []
    optional = {spec.name for spec in signature.columns if not spec.required}
    columns = zip(table.names, table.types, table.columns, strict=True)
    return [
        _column_input(str(name), kind, values)
        for name, kind, values in sorted(columns, key=lambda column: column[0] in optional)
    ]


def _column_input(
    name: str, kind: ValueType | None, values: Sequence[Any]
) -> dict[str, Any] | None:
    rows = len(values)
    match kind:
        case None:
            datatype = _datatype(values)
            return None if datatype is None else _input(name, [rows], datatype, values)
        case Kind.BINARY:
            return _input(name, [rows], "BYTES", values, parameters={"content_type": "base64"})
        case Kind():
            return _input(name, [rows], KINDS[kind], values)
        case ArrayOf(Kind() as items) if len(widths := set(map(len, values))) == 1 and any(widths):
            return _input(name, [rows, *widths], KINDS[items], chain.from_iterable(values))
    return _input(name, [rows], "BYTES", [orjson.dumps(value).decode() for value in values])


def _raw_input(value: object) -> list[dict[str, Any] | None]:
    """Give an array of numbers as an input; what else a model takes unchecked stays out."""
    try:
        values, shape = flatten("inputs", value)
    except BadInputError:
        return []
    datatype = _datatype(values)
    return [] if datatype in {None, "BYTES"} else [_input("input-1", shape, str(datatype), values)]


def _datatype(values: Sequence[Any]) -> str | None:
    kinds = set(map(type, values))
    if kinds == {int, float}:
        return "FP64"
    return _PLAIN.get(kinds.pop()) if len(kinds) == 1 else None


def _tensor_csv(nested: Mapping[str | None, list[Any]]) -> str | None:
    if None in nested:
        rows = nested[None]
        is_table = isinstance(rows[0], list) and not isinstance((rows[0] or [[]])[0], list)
        return _csv(range(len(rows[0])), rows) if is_table else None
    if any(isinstance(column[0], list) for column in nested.values()):
        return None
    return _csv(tuple(map(str, nested)), list(zip(*nested.values(), strict=True)))


def _csv(names: Sequence[Name], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else value

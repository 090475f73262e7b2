"""Finds the mistake at which a typed decoder stopped, without reading the whole body again.

The long way reads a body again and checks it a column at a time, which costs many times what a
good one does. Nearly always one value is wrong, and the decoder says where it is: that value is cut
out and checked alone. What turns out to be no mistake (a number as text) goes the long way.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import orjson

from fairlead_serving.domain.decode import missing_column, only_form, row_length, too_few_columns
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.signature import Signature
from fairlead_serving.domain.tensors import check_item, ragged_lists, wrong_shape
from fairlead_serving.domain.values import read_column

_PLACE = re.compile(r" - at `\$\.(\w+)(.*)`$", re.DOTALL)
_LACKING = re.compile(r"^Object missing required field `(.*)` - at ", re.DOTALL)
_NAN = b"NaN"
_BYTE = re.compile(r"\(byte ([0-9]+)\)$")
_RECORD = re.compile(r"^\[(\d+)\]\.(.+)$", re.DOTALL)
_ROW = re.compile(r"^\[(\d+)\](?:\[(\d+)\])?$")
_COLUMN = re.compile(r"\.(.+)\[(\d+)\]", re.DOTALL)
_TENSOR = re.compile(r"(?:\.(.+?))?((?:\[\d+\])*)", re.DOTALL)


class _Split(msgspec.Struct):
    data: list[msgspec.Raw]
    columns: Any = None


class _Rows(msgspec.Struct):
    inputs: list[msgspec.Raw] = []
    instances: list[msgspec.Raw] = []
    dataframe_records: list[msgspec.Raw] = []


class _Named(msgspec.Struct):
    inputs: dict[str, msgspec.Raw] = {}
    instances: dict[str, msgspec.Raw] = {}


class _Splits(msgspec.Struct):
    dataframe_split: _Split


# One pass over a body gives all its rows or columns, none of them read.
_splits = msgspec.json.Decoder(_Splits).decode
_rows = msgspec.json.Decoder(_Rows).decode
_named = msgspec.json.Decoder(_Named).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def refuse_mistake(body: bytes, error: Exception, signature: Signature) -> None:
    """Refuse a body for the mistake that its decoder met.

    Args:
        body: The body.
        error: What the decoder raised.
        signature: The model's.

    Raises:
        BadInputError: The body is no JSON, or the value is not of the signature. It returns if the
            long way may take the body, or knows better what is wrong with it.
    """
    if isinstance(error, UnicodeDecodeError):
        raise BadInputError("The body is not in UTF-8.") from error
    if isinstance(error, msgspec.ValidationError):
        _refuse_value(body, str(error), signature)
    elif isinstance(error, msgspec.DecodeError):
        found = _BYTE.search(str(error))
        at = int(found[1]) if found else len(body)
        if not body.startswith(_NAN, at):  # The long way knows that word.
            raise BadInputError(_not_json(body, at)) from error


def _not_json(body: bytes, at: int) -> str:
    line, column = body.count(b"\n", 0, at) + 1, at - body.rfind(b"\n", 0, at)
    return f"The body is not valid JSON at line {line}, column {column}."


def _refuse_value(body: bytes, message: str, signature: Signature) -> None:
    place = _PLACE.search(message)
    if place is None:
        only_form([])  # The decoder takes any object, so this is none.
        return
    form, rest = place.groups()
    try:
        if signature.tensors:
            _refuse_item(body, form, rest, signature)
        else:
            _refuse_cell(body, form, rest, _LACKING.match(message), signature)
    except (ValueError, KeyError, IndexError, RecursionError):
        # A key that is there twice, or lists without end: not what the decoder saw.
        return


def _refuse_cell(
    body: bytes, form: str, rest: str, lacking: re.Match[str] | None, signature: Signature
) -> None:
    if form == "dataframe_split":
        _refuse_split(_splits(body).dataframe_split, rest, signature)
    elif column := _COLUMN.fullmatch(rest):
        name, row = column[1], int(column[2])
        values = _list(getattr(_named(body), form)[name])
        _check(name, row, _read(values[row]), signature)
    elif lacking is not None:
        _refuse_lacking(body, int(_ROW.findall(rest)[0][0]), lacking[1], signature)
    elif signature.has_names:
        row, name = _RECORD.findall(rest)[0]
        record = _read(getattr(_rows(body), form)[int(row)])
        _check(name, int(row), record[name], signature)
    else:
        _refuse_row(form, getattr(_rows(body), form), rest, signature)


def _refuse_lacking(body: bytes, row: int, name: str, signature: Signature) -> None:
    """Refuse a column that a record lacks, if null would be refused, or no record has it."""
    if row:
        _check(name, row, None, signature)
    # With an escape in the body the name may be there in another spelling.
    elif orjson.dumps(name) not in body and b"\\" not in body:
        raise missing_column(name)


def _refuse_split(split: _Split, rest: str, signature: Signature) -> None:
    if split.columns == list(signature.column_names):
        _refuse_row("dataframe_split", split.data, rest.removeprefix(".data"), signature)
    elif isinstance(split.columns, list) and all(isinstance(name, str) for name in split.columns):
        for spec in signature.columns:
            if spec.required and spec.name not in split.columns:
                raise missing_column(str(spec.name))


def _refuse_row(form: str, rows: Sequence[msgspec.Raw], rest: str, signature: Signature) -> None:
    """Refuse a value of a row that is a list, or the length of the row, which the first decides."""
    found, width = _ROW.findall(rest)[0], len(signature.columns)
    row, values = int(found[0]), _read(rows[int(found[0])])
    if found[1]:
        at = int(found[1])
        _check(signature.column_names[at], row, values[at], signature)
    elif isinstance(values, list) and row:
        field = "dataframe_split.data" if form == "dataframe_split" else form
        raise row_length(field, row, len(values), width)
    elif isinstance(values, list) and len(values) < width and form != "dataframe_split":
        raise too_few_columns(len(values), width)


def _check(name: str | int, row: int, value: object, signature: Signature) -> None:
    spec = signature.columns[signature.column_names.index(name)]
    field = f"column {name}" if spec.name is None else spec.name
    if value is not None or spec.required:
        read_column(field, [value], spec.type, required=spec.required, first=row)


def _refuse_item(body: bytes, form: str, rest: str, signature: Signature) -> None:
    found = _TENSOR.fullmatch(rest)
    if found is None or form.startswith("dataframe"):
        return
    specs = {spec.name: spec for spec in signature.tensors}
    name = found[1]
    if name not in specs:  # MLflow takes named tensors without an object around them too.
        return
    spec = specs[name]
    rows = getattr(_rows(body), form) if name is None else _list(getattr(_named(body), form)[name])
    place = [int(index) for index in re.findall(r"\d+", found[2])]
    if len(place) == len(spec.shape):
        where = "".join(f"[{index}]" for index in place)
        check_item(f"{name or form}{where}", _item(rows, place), spec)
    else:
        first: Any = _read(rows[0])
        shape = [len(rows), *_lengths(first)]
        raise ragged_lists(name or form) if any(place) else wrong_shape(name or form, spec, shape)


def _item(rows: Sequence[msgspec.Raw], place: Sequence[int]) -> Any:
    item: Any = _read(rows[place[0]])
    for index in place[1:]:
        item = item[index]
    return item


def _read(raw: msgspec.Raw) -> Any:
    return orjson.loads(bytes(raw))  # It takes no other buffer.


def _lengths(item: Any) -> Iterator[int]:
    while isinstance(item, list):
        yield len(item)
        item = item[0] if item else None

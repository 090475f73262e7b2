"""Reads the payload of a request into columns, tensors or raw data, against the signature.

The forms are MLflow's: `dataframe_split`, `dataframe_records`, `instances`, `inputs`, CSV.
Columns that the signature does not know are left out, as MLflow does.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from fairlead_serving.domain.data import Columns, Layout, Raw, Request
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.params import read_params
from fairlead_serving.domain.signature import ArrayOf, Column, Name, ObjectOf, Signature
from fairlead_serving.domain.tensors import read_frame, read_tensors
from fairlead_serving.domain.values import is_given, read_column

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_SPLIT_KEYS = frozenset({"columns", "data", "index"})

RawColumns = Mapping[Name, Sequence[Any]]
Wanted = frozenset[Name] | None
"""The names of the columns that are looked at; None for all, where the signature names none."""


def decode(payload: object, signature: Signature) -> Request:
    """Read a decoded JSON payload against a signature.

    Args:
        payload: What the JSON parser gave.
        signature: The model's; an empty one lets the data through unchecked.

    Returns:
        The data and the parameters.

    Raises:
        BadInputError: The payload is not of the signature.
    """
    document, form = only_form(payload)
    params = read_params(document.get("params"), signature.params)
    value = document[form]
    if signature.columns:
        wanted = frozenset(signature.column_names) if signature.has_names else None
        given = _as_mlflow_reads(form, value, signature.columns)
        return _request(_READERS[form](form, given, wanted), signature, params)
    if form.startswith("dataframe"):
        return _framed(form, _READERS[form](form, value, None), signature, params)
    return _unframed(form, value, signature, params)


def decode_columns(columns: RawColumns, signature: Signature) -> Request:
    """Read named columns, such as those of a CSV, against a signature.

    Args:
        columns: The values of each column.
        signature: The model's.

    Returns:
        The data; parameters have their defaults.

    Raises:
        BadInputError: The columns are not of the signature.
    """
    params = read_params(None, signature.params)
    if signature.columns:
        return _request(columns, signature, params)
    return _framed("csv", columns, signature, params)


def only_form(payload: object) -> tuple[Mapping[str, Any], str]:
    """Give a payload and the one form that it has.

    Raises:
        BadInputError: It is no object, or has no form, or several.
    """
    wanted = f"exactly one of {', '.join(FORMATS)}"
    if not isinstance(payload, dict):
        raise BadInputError(f"The body must be a JSON object with {wanted}.")
    present = [form for form in FORMATS if form in payload]
    if len(present) != 1:
        found = " and ".join(present) or "none of them"
        raise BadInputError(f"The body must have {wanted}; it has {found}.")
    return payload, present[0]


def _as_mlflow_reads(form: str, value: Any, columns: Sequence[Column]) -> object:
    """Give `inputs` and `instances` the shape that MLflow sees in them.

    An object is one row when a column is an array or an object (its lists are values then). What
    is neither an object nor a list of them fills the only column there is.
    """
    if form.startswith("dataframe"):
        return value
    if isinstance(value, dict):
        nested = any(isinstance(spec.type, ArrayOf | ObjectOf) for spec in columns)
        return [value] if nested else value
    if len(columns) > 1 or value is None or _is_records(value):
        return value
    (only,) = columns
    if only.name is None:
        return value if isinstance(value, list) else [value]
    if not isinstance(value, list):
        return value
    return [{only.name: value}] if isinstance(only.type, ArrayOf) else {only.name: value}


def _framed(
    form: str, columns: RawColumns, signature: Signature, params: Mapping[str, object]
) -> Request:
    if signature.tensors:
        return Request(read_frame(form, columns, signature.tensors), params)
    _check_rows(columns.values())
    return Request(Columns(Layout(tuple(columns)), list(columns.values())), params)


def _unframed(
    form: str, value: object, signature: Signature, params: Mapping[str, object]
) -> Request:
    if signature.tensors:
        return Request(read_tensors(form, value, signature.tensors), params)
    value = _columns_of_records(value) if form == "instances" and _is_records(value) else value
    rows = len(value) if isinstance(value, list) else 1
    if not rows:
        raise BadInputError("There are no rows.", form)
    return Request(Raw(value, rows), params)


def _request(columns: RawColumns, signature: Signature, params: Mapping[str, object]) -> Request:
    read = _named if signature.has_names else _unnamed
    chosen = read(columns, signature.columns)
    _check_rows([columns[name] for name, _ in chosen])
    layout = Layout(tuple(name for name, _ in chosen), tuple(spec.type for _, spec in chosen))
    # A column without a name in the signature has the caller's, which no message may hold.
    values = [
        read_column(
            f"column {number}" if spec.name is None else spec.name,
            columns[name],
            spec.type,
            required=spec.required,
        )
        for number, (name, spec) in enumerate(chosen)
    ]
    return Request(Columns(layout, values), params)


def _named(columns: RawColumns, specs: Sequence[Column]) -> list[tuple[Name, Column]]:
    return [(str(spec.name), spec) for spec in specs if _is_given(columns, spec)]


def _is_given(columns: RawColumns, spec: Column) -> bool:
    values = columns.get(str(spec.name))
    if values is None and spec.required:
        raise missing_column(str(spec.name))
    return values is not None and is_given(spec, values)


def _unnamed(columns: RawColumns, specs: Sequence[Column]) -> list[tuple[Name, Column]]:
    if len(columns) < len(specs):
        raise too_few_columns(len(columns), len(specs))
    return list(zip(columns, specs, strict=False))


def _check_rows(columns: Iterable[Sequence[Any]]) -> None:
    if not len(next(iter(columns), ())):
        raise BadInputError("There are no rows.")


def _read_split(form: str, value: object, wanted: Wanted) -> RawColumns:
    if not isinstance(value, dict) or "data" not in value or not value.keys() <= _SPLIT_KEYS:
        raise BadInputError(
            f"'{form}' must be an object with 'data', 'columns' and, if need be, 'index'.", form
        )
    data = _rows(f"{form}.data", value["data"])
    names = value.get("columns")
    if names is None:
        names = list(range(len(data[0])))
    return _split_columns(f"{form}.data", _names(f"{form}.columns", names, wanted), data, wanted)


def _names(field: str, names: object, wanted: Wanted) -> list[Name]:
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise BadInputError(f"'{field}' must be a list of names.", field)
    check_names(field, names, wanted)
    return names


def check_names(field: str, names: Sequence[Name], wanted: Wanted) -> None:
    """Refuse names of columns of which one that is looked at is there twice.

    Args:
        field: What the names are called, for messages.
        names: The names.
        wanted: The columns that are looked at; None for all.

    Raises:
        BadInputError: A name is there twice.
    """
    counted = [name for name in names if wanted is None or name in wanted]
    if len(set(counted)) < len(counted):
        raise BadInputError(f"'{field}' names a column twice.", field)


def _split_columns(
    field: str, names: Sequence[Name], data: Sequence[Sequence[Any]], wanted: Wanted
) -> RawColumns:
    for row, values in enumerate(data):
        if len(values) != len(names):
            raise row_length(field, row, len(values), len(names))
    columns = zip(names, zip(*data, strict=True), strict=True)
    return {name: cells for name, cells in columns if wanted is None or name in wanted}


def missing_column(name: str) -> BadInputError:
    """Say that a column is not there."""
    return BadInputError(f"The column '{name}' is missing.", name)


def too_few_columns(given: int, wanted: int) -> BadInputError:
    """Say that columns without names are too few."""
    return BadInputError(f"The model takes {wanted} columns, not {given}.")


def row_length(field: str, row: int, values: int, names: int) -> BadInputError:
    """Say that a row is shorter or longer than the others."""
    message = f"'{field}' has {values} values in row {row}; {names} are named."
    return BadInputError(message, field)


def _rows(field: str, data: object) -> list[list[Any]]:
    """Give rows; values that are no lists are the only column's."""
    if isinstance(data, list) and not any(isinstance(row, list | dict) for row in data):
        data = [[value] for value in data]
    if not isinstance(data, list) or not all(isinstance(row, list) for row in data):
        raise BadInputError(f"'{field}' must be a list of rows, each a list of values.", field)
    if not data:
        raise BadInputError("There are no rows.", field)
    return data


def _read_records(form: str, value: object, wanted: Wanted) -> RawColumns:
    if _is_records(value):
        return _columns_of_records(value, wanted)
    if wanted is None and isinstance(value, list):
        return _read_values(form, value, wanted)
    raise BadInputError(f"'{form}' must be a list of records, each an object.", form)


def _is_records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _columns_of_records(records: Any, wanted: Wanted = None) -> RawColumns:
    names = dict.fromkeys(chain.from_iterable(records))
    return {
        name: [record.get(name) for record in records]
        for name in names
        if wanted is None or name in wanted
    }


def _read_values(form: str, value: object, wanted: Wanted) -> RawColumns:
    """Read `inputs` or `instances`, which hold records, columns or rows without names."""
    if _is_records(value):
        return _columns_of_records(value, wanted)
    if isinstance(value, dict):
        return _columns_of_mapping(form, value, wanted)
    rows = _rows(form, value)
    return _split_columns(form, range(len(rows[0])), rows, None)


def _columns_of_mapping(form: str, value: Mapping[str, Any], wanted: Wanted) -> RawColumns:
    """Read columns; a value that is no list is that of every row."""
    found = {name: cells for name, cells in value.items() if wanted is None or name in wanted}
    lengths = {len(cells) for cells in found.values() if isinstance(cells, list)}
    if len(lengths) > 1:
        raise BadInputError(f"The columns in '{form}' differ in length.", form)
    rows = max(lengths, default=1)
    return {
        name: cells if isinstance(cells, list) else [cells] * rows for name, cells in found.items()
    }


_READERS: Mapping[str, Callable[[str, Any, Wanted], RawColumns]] = {
    "dataframe_split": _read_split,
    "dataframe_records": _read_records,
    "instances": _read_values,
    "inputs": _read_values,
}

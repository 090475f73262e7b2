"""Reads the payload of a request into columns, tensors or raw data, against the signature.

The forms are MLflow's: `dataframe_split`, `dataframe_records`, `instances`, `inputs`, CSV.
Columns that the signature does not know are left out, as MLflow does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fairlead_serving.domain.data import Columns, Layout, Raw, Request
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.params import read_params
from fairlead_serving.domain.signature import Column, Kind, Name, Signature
from fairlead_serving.domain.tensors import read_tensors
from fairlead_serving.domain.values import is_given, read_column

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_SPLIT_KEYS = frozenset({"columns", "data", "index"})

RawColumns = Mapping[Name, Sequence[Any]]


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
    document, form = _only_form(payload)
    params = read_params(document.get("params"), signature.params)
    value = document[form]
    if signature.columns:
        columns = _READERS[form](form, _as_mlflow_reads(form, value, signature.columns))
        return _request(columns, signature, params)
    if signature.tensors or not form.startswith("dataframe"):
        return _unframed(form, value, signature, params)
    return Request(_unchecked(_READERS[form](form, value)), params)


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
    if signature.tensors:
        return Request(read_tensors("csv", columns, signature.tensors), params)
    return Request(_unchecked(columns), params)


def _only_form(payload: object) -> tuple[Mapping[str, Any], str]:
    wanted = f"exactly one of {', '.join(FORMATS)}"
    if not isinstance(payload, dict):
        raise BadInputError(f"The body must be a JSON object with {wanted}.")
    present = [form for form in FORMATS if form in payload]
    if len(present) != 1:
        found = " and ".join(present) or "none of them"
        raise BadInputError(f"The body must have {wanted}; it has {found}.")
    return payload, present[0]


def _as_mlflow_reads(form: str, value: object, columns: Sequence[Column]) -> object:
    """Give `inputs` and `instances` the shape that MLflow sees in them.

    An object is one row when a column is nested (its lists are values then), and a plain list
    fills the only column there is.
    """
    if form.startswith("dataframe"):
        return value
    if isinstance(value, dict) and not all(isinstance(spec.type, Kind) for spec in columns):
        return [value]
    only = columns[0].name if len(columns) == 1 else None
    if only is not None and isinstance(value, list) and not _is_records(value):
        return {only: value}
    return value


def _unframed(
    form: str, value: object, signature: Signature, params: Mapping[str, object]
) -> Request:
    if signature.tensors:
        given = _READERS[form](form, value) if form.startswith("dataframe") else value
        return Request(read_tensors(form, given, signature.tensors), params)
    value = _columns_of_records(value) if form == "instances" and _is_records(value) else value
    rows = len(value) if isinstance(value, list) else 1
    if not rows:
        raise BadInputError("There are no rows.", form)
    return Request(Raw(value, rows), params)


def _unchecked(columns: RawColumns) -> Columns:
    _check_rows(columns)
    return Columns(Layout(tuple(columns)), list(columns.values()))


def _request(columns: RawColumns, signature: Signature, params: Mapping[str, object]) -> Request:
    _check_rows(columns)
    read = _named if signature.has_names else _unnamed
    chosen = read(columns, signature.columns)
    layout = Layout(tuple(name for name, _ in chosen), tuple(spec.type for _, spec in chosen))
    # A column without a name in the signature has the caller's, which no message may hold.
    values = [
        read_column(
            f"column {number}" if spec.name is None else spec.name, columns[name], spec.type
        )
        for number, (name, spec) in enumerate(chosen)
    ]
    return Request(Columns(layout, values), params)


def _named(columns: RawColumns, specs: Sequence[Column]) -> list[tuple[Name, Column]]:
    return [(str(spec.name), spec) for spec in specs if _is_given(columns, spec)]


def _is_given(columns: RawColumns, spec: Column) -> bool:
    values = columns.get(str(spec.name))
    if values is None and spec.required:
        raise BadInputError(f"The column '{spec.name}' is missing.", spec.name)
    return values is not None and is_given(spec, values)


def _unnamed(columns: RawColumns, specs: Sequence[Column]) -> list[tuple[Name, Column]]:
    if len(columns) < len(specs):
        raise BadInputError(f"The model takes {len(specs)} columns, not {len(columns)}.")
    return list(zip(columns, specs, strict=False))


def _check_rows(columns: RawColumns) -> None:
    if not len(next(iter(columns.values()), ())):
        raise BadInputError("There are no rows.")


def _read_split(form: str, value: object) -> RawColumns:
    if not isinstance(value, dict) or "data" not in value or not value.keys() <= _SPLIT_KEYS:
        raise BadInputError(
            f"'{form}' must be an object with 'data', 'columns' and, if need be, 'index'.", form
        )
    data = _rows(form, value["data"])
    names = value.get("columns")
    if names is None:
        names = list(range(len(data[0])))
    return _split_columns(form, _names(form, names), data)


def _names(form: str, names: object) -> list[Name]:
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise BadInputError(f"'{form}.columns' must be a list of names.", f"{form}.columns")
    if len(set(names)) < len(names):
        raise BadInputError(f"'{form}.columns' names a column twice.", f"{form}.columns")
    return names


def _split_columns(form: str, names: Sequence[Name], data: Sequence[Sequence[Any]]) -> RawColumns:
    for row, values in enumerate(data):
        if len(values) != len(names):
            raise BadInputError(
                f"'{form}.data' has {len(values)} values in row {row}; {len(names)} are named.",
                f"{form}.data",
            )
    return dict(zip(names, zip(*data, strict=True), strict=True))


def _rows(form: str, data: object) -> list[list[Any]]:
    name = f"{form}.data" if form == "dataframe_split" else form
    if not isinstance(data, list) or not all(isinstance(row, list) for row in data):
        raise BadInputError(f"'{name}' must be a list of rows, each a list of values.", name)
    if not data:
        raise BadInputError("There are no rows.", name)
    return data


def _read_records(form: str, value: object) -> RawColumns:
    if not _is_records(value):
        raise BadInputError(f"'{form}' must be a list of records, each an object.", form)
    return _columns_of_records(value)


def _is_records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _columns_of_records(records: Any) -> RawColumns:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _read_values(form: str, value: object) -> RawColumns:
    """Read `inputs` or `instances`, which hold records, columns or rows without names."""
    if _is_records(value):
        return _columns_of_records(value)
    if isinstance(value, dict):
        return _columns_of_mapping(form, value)
    if isinstance(value, list) and value and not any(isinstance(row, list) for row in value):
        return {0: value}
    return _split_columns(form, range(len(_rows(form, value)[0])), _rows(form, value))


def _columns_of_mapping(form: str, value: Mapping[str, Any]) -> RawColumns:
    if not any(isinstance(values, list) for values in value.values()):
        return {name: [single] for name, single in value.items()}
    # The keys are the caller's own words, so no message may hold one.
    if not all(isinstance(values, list) for values in value.values()):
        raise BadInputError(f"The columns in '{form}' must all be lists, or all be scalars.", form)
    if len(set(map(len, value.values()))) > 1:
        raise BadInputError(f"The columns in '{form}' differ in length.", form)
    return value  # type: ignore[return-value]  # A mapping's key type is invariant.


_READERS: Mapping[str, Callable[[str, object], RawColumns]] = {
    "dataframe_split": _read_split,
    "dataframe_records": _read_records,
    "instances": _read_values,
    "inputs": _read_values,
}

"""Reads CSV into columns; the first line names them."""

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.signature import NUMERIC, Kind, Signature, ValueType

_MISSING = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"}
    | {"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)
"""What pandas takes for a missing value."""
_WHOLE = re.compile(r" *[+-]?[0-9]+ *")
_REAL = re.compile(r" *[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)? *")
_BOOLEANS = {"true": True, "false": False}
_TEXT = frozenset({"str", "bytes", "object"})
_BYTE_ORDER_MARK = "\ufeff"

Cell = Any
Name = str | int


def read_csv(text: str, signature: Signature) -> Mapping[Name, Sequence[Cell]]:
    """Read CSV into the values that the same data would have in JSON.

    Args:
        text: The whole text.
        signature: Names the type of each column; a column it does not know, or any column of
            an empty signature, is read as the narrowest type that fits all of its cells.

    Returns:
        The columns by name.

    Raises:
        BadInputError: It is not CSV, or a line has too few or too many cells.
    """
    header, *lines = _lines(text)
    kinds = _kinds(header, signature)
    known = {column.name for column in signature.columns}
    known |= {tensor.name for tensor in signature.tensors}
    counted = [name for name in header if name in known or not signature.has_names]
    if len(set(counted)) < len(counted):
        raise BadInputError("The first line names a column twice.", "csv")
    for number, line in enumerate(lines):
        if len(line) != len(header):
            raise BadInputError(
                f"Row {number} has {len(line)} cells; the first line names {len(header)}.", "csv"
            )
    cells = zip(*lines, strict=True) if lines else ((),) * len(header)
    return {
        name: _read_column(column, kinds.get(name))
        for name, column in zip(header, cells, strict=True)
    }


def _kinds(header: Sequence[str], signature: Signature) -> Mapping[str, ValueType]:
    if signature.columns and not signature.has_names:
        types = (column.type for column in signature.columns)
        return dict(zip(header, types, strict=False))
    text = {str(spec.name): Kind.STRING for spec in signature.tensors if spec.dtype in _TEXT}
    if None in {spec.name for spec in signature.tensors} and text:
        return dict.fromkeys(header, Kind.STRING)
    return {**text, **{str(column.name): column.type for column in signature.columns}}


def _lines(text: str) -> list[list[str]]:
    source = StringIO(text.removeprefix(_BYTE_ORDER_MARK), newline="")
    try:
        lines = [line for line in csv.reader(source, strict=True) if not _is_blank(line)]
    except csv.Error as error:
        raise BadInputError("The body is not valid CSV.", "csv") from error
    if not lines:
        raise BadInputError("The body has no line that names the columns.", "csv")
    return lines


def _is_blank(line: Sequence[str]) -> bool:
    return not line or (len(line) == 1 and line[0].isspace())


def _read_column(cells: Sequence[str], kind: ValueType | None) -> list[Cell]:
    if kind in NUMERIC:
        found = [None if cell in _MISSING else _number_or_text(cell) for cell in cells]
        if str not in set(map(type, found)):
            return found
    else:
        found = [None if cell in _MISSING else cell for cell in cells]
    if kind in {Kind.STRING, Kind.BINARY, Kind.DATETIME}:
        return found
    for read in (_boolean,) if kind in NUMERIC else _NARROWEST_FIRST:
        try:
            return [None if cell in _MISSING else read(cell) for cell in cells]
        except (KeyError, ValueError):
            continue
    return found


def _number_or_text(cell: str) -> Cell:
    for read in (_whole, _real):
        try:
            return read(cell)
        except ValueError:
            continue
    return cell


def _boolean(cell: str) -> bool:
    return _BOOLEANS[cell.lower()]


def _whole(cell: str) -> int:
    if not _WHOLE.fullmatch(cell):
        raise ValueError
    return int(cell)


def _real(cell: str) -> float:
    number = float(cell) if _REAL.fullmatch(cell) else math.inf
    if math.isinf(number):
        raise ValueError
    return number


_NARROWEST_FIRST: tuple[Callable[[str], Cell], ...] = (_boolean, _whole, _real)

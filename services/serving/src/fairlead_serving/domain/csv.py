"""Reads CSV into columns; the first line names them."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.signature import Kind, Signature

_MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False}
_BOOLEANS |= {"FALSE": False}

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
    if len(set(header)) < len(header):
        raise BadInputError("The first line names a column twice.", "csv")
    for number, line in enumerate(lines):
        if len(line) != len(header):
            raise BadInputError(
                f"Row {number} has {len(line)} cells; the first line names {len(header)}.", "csv"
            )
    kinds = {column.name: column.type for column in signature.columns}
    cells = zip(*lines, strict=True) if lines else ((),) * len(header)
    return {
        name: _read_column(column, kinds.get(name))
        for name, column in zip(header, cells, strict=True)
    }


def _lines(text: str) -> list[list[str]]:
    try:
        lines = [line for line in csv.reader(StringIO(text, newline=""), strict=True) if line]
    except csv.Error as error:
        raise BadInputError("The body is not valid CSV.", "csv") from error
    if not lines:
        raise BadInputError("The body has no line that names the columns.", "csv")
    return lines


def _read_column(cells: Sequence[str], kind: object) -> list[Cell]:
    if kind in {Kind.STRING, Kind.BINARY, Kind.DATETIME}:
        return [None if cell in _MISSING else cell for cell in cells]
    for read in _NARROWEST_FIRST:
        try:
            return [None if cell in _MISSING else read(cell) for cell in cells]
        except ValueError:
            continue
    return [None if cell in _MISSING else cell for cell in cells]


def _boolean(cell: str) -> bool:
    if cell not in _BOOLEANS:
        raise ValueError
    return _BOOLEANS[cell]


def _real(cell: str) -> float:
    number = float(cell)
    if not math.isfinite(number):
        raise ValueError
    return number


_NARROWEST_FIRST: tuple[Callable[[str], Cell], ...] = (_boolean, int, _real)

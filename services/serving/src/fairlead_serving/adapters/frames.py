"""Builds data frames. Whoever imports this brings pandas, which is large and slow to import."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fairlead_serving.adapters.arrays import DTYPES, build_matrix
from fairlead_serving.domain.data import Columns, Records
from fairlead_serving.domain.signature import Anything, Kind, Name, ValueType

_TEXT = pd.Series([""]).dtype
"""What pandas makes of strings. Given for each column, lest one of nothing but nulls be something
else, and a prediction depend on the rows beside it."""


class Frames:
    """Builds the frames of one model; remembers its columns, which rarely change."""

    def __init__(self) -> None:
        self._names: tuple[Name, ...] = ()
        self._index: pd.Index = pd.Index([])

    def build(self, data: Records | Columns) -> pd.DataFrame:
        """Build what MLflow would hand to a model.

        Args:
            data: The checked table.
        """
        layout = data.layout
        if layout.names != self._names:
            self._names, self._index = layout.names, pd.Index(layout.names)
        matrix = build_matrix(data)
        if matrix is not None:
            # One block of memory: an eighth of the time that a column at a time takes.
            return pd.DataFrame(matrix, columns=self._index, copy=False)
        frame = pd.DataFrame(dict(enumerate(self.build_columns(data))), copy=False)
        frame.columns = self._index
        return frame

    def build_columns(self, data: Records | Columns) -> list[Any]:
        """Build an array, or a series, of each column of a table.

        Args:
            data: The checked table.
        """
        types = data.layout.types or (None,) * len(data.layout.names)
        return [_column(values, kind) for values, kind in zip(data.by_column(), types, strict=True)]


def _column(values: Sequence[Any], kind: ValueType | None) -> Any:
    if isinstance(kind, Kind) and kind in DTYPES:
        return np.array(values, dtype=DTYPES[kind])
    if kind is Kind.STRING:
        # Not a series: its index and name cost as much again, and the frame has its own.
        return pd.array(list(values), dtype=_TEXT)
    if kind is None or isinstance(kind, Anything):
        return pd.Series(list(values))
    return pd.Series(list(values), dtype=object)

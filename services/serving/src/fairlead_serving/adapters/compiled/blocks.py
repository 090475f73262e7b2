"""What flows through a compiled pipeline: the columns of a request, as numbers or as they came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead_serving.adapters.compiled.errors import NotTakenError
from fairlead_serving.domain.data import Columns, Data, Records, Tensors
from fairlead_serving.domain.signature import NUMERIC, Kind, Name, Signature

Numbers = NDArray[np.floating[Any]]
Cells = list[Sequence[Any]]
"""Columns of values as they came: strings, or numbers that name categories."""
Block = Numbers | Cells


class Holds(Enum):
    """What a block holds."""

    NUMBERS = auto()
    CELLS = auto()


@dataclass(frozen=True, slots=True)
class Shape:
    """The input of a pipeline: what its columns are called and hold."""

    names: tuple[Name, ...]
    kinds: tuple[Kind, ...]

    def holds(self, indexes: Sequence[int]) -> Holds:
        """Tell what some columns hold: numbers, if all of them do."""
        is_numeric = all(self.kinds[at] in NUMERIC for at in indexes)
        return Holds.NUMBERS if is_numeric else Holds.CELLS

    def dtype(self, indexes: Sequence[int]) -> type[np.floating[Any]]:
        """Give the type that numpy finds for some columns: 32 bits only where all have them."""
        return np.float32 if {self.kinds[at] for at in indexes} == {Kind.FLOAT} else np.float64


def shape_of(signature: Signature) -> Shape | None:
    """Give the shape of a signature; None for one that no compiled pipeline takes."""
    if signature.columns:
        kinds = tuple(spec.type for spec in signature.columns if isinstance(spec.type, Kind))
        is_known = len(kinds) == len(signature.columns) and all(
            kind in NUMERIC or kind is Kind.STRING for kind in kinds
        )
        if not is_known or not all(spec.required for spec in signature.columns):
            return None
        return Shape(signature.column_names, kinds)
    if len(signature.tensors) != 1 or len(signature.tensors[0].shape) != 2:  # noqa: PLR2004
        return None
    kind = _TENSOR_KINDS.get(signature.tensors[0].dtype)
    width = signature.tensors[0].shape[1]
    return Shape(tuple(range(width)), (kind,) * width) if kind and width > 0 else None


_TENSOR_KINDS: Mapping[str, Kind] = {
    "float64": Kind.DOUBLE,
    "float32": Kind.FLOAT,
    "int64": Kind.LONG,
    "int32": Kind.INTEGER,
}


class Frame:
    """The rows of one call.

    Args:
        data: The checked input.
        shape: What the pipeline was compiled for.
    """

    __slots__ = ("_cells", "_data", "_shape")

    def __init__(self, data: Data, shape: Shape) -> None:
        self._data = data
        self._shape = shape
        self._cells: Sequence[Sequence[Any]] | None = None

    def numbers(self, indexes: Sequence[int]) -> Numbers:
        """Give some columns as numbers: an array of the shape (rows, columns), in C order."""
        dtype = self._shape.dtype(indexes)
        if len(indexes) == len(self._shape.names) and list(indexes) == sorted(indexes):
            return self._all(dtype)
        cells = self._by_column()
        return np.ascontiguousarray(np.array([cells[at] for at in indexes], dtype=dtype).T)

    def cells(self, indexes: Sequence[int]) -> Cells:
        """Give some columns as they came."""
        cells = self._by_column()
        return [cells[at] for at in indexes]

    def _all(self, dtype: type[np.floating[Any]]) -> Numbers:
        match self._data:
            case Tensors(arrays):
                (array,) = arrays.values()
                return np.array(array.values, dtype=dtype).reshape(array.shape)
            case Records(_, cells):
                return np.array(cells, dtype=dtype)
        return np.ascontiguousarray(np.array(self._by_column(), dtype=dtype).T)

    def _by_column(self) -> Sequence[Sequence[Any]]:
        if self._cells is None:
            self._cells = _by_column(self._data)
        return self._cells


def finite(block: Numbers) -> Numbers:
    """Give a block back if all of its numbers are finite.

    Raises:
        NotTakenError: One is not; some models take it and some refuse it.
    """
    # A sum is finite only if all numbers are; scikit-learn asks the same way.
    if not np.isfinite(block.sum(dtype=np.float64)):
        raise NotTakenError
    return block


def _by_column(data: Data) -> Sequence[Sequence[Any]]:
    match data:
        case Records() | Columns():
            return data.by_column()
        case Tensors(arrays):
            (array,) = arrays.values()
            return [array.values[at :: array.shape[1]] for at in range(array.shape[1])]
    raise TypeError("A compiled pipeline takes no data without a signature.")

"""What a request holds once it is checked: rows, columns, tensors, or what nothing describes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import msgspec

from fairlead_serving.domain.signature import Name, ValueType


@dataclass(frozen=True)
class Layout:
    """The columns of a table, in the order in which the model takes them.

    Attributes:
        names: What they are called; numbers where the signature has no names.
        types: Of what type they are; empty where there is no signature to say.
    """

    names: tuple[Name, ...]
    types: tuple[ValueType, ...] = ()

    @cached_property
    def only_type(self) -> ValueType | None:
        """The type of all columns, if they have one in common."""
        return self.types[0] if len(set(self.types)) == 1 else None


class Records(msgspec.Struct, frozen=True):
    """A table by rows: each holds a value for each column of the layout."""

    layout: Layout
    cells: Sequence[Sequence[Any]]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.cells)

    def by_column(self) -> Sequence[Sequence[Any]]:
        """Give the values of each column."""
        return list(zip(*self.cells, strict=True))


class Columns(msgspec.Struct, frozen=True):
    """A table by columns, all of one length."""

    layout: Layout
    cells: Sequence[Sequence[Any]]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.cells[0]) if self.cells else 0

    def by_column(self) -> Sequence[Sequence[Any]]:
        """Give the values of each column."""
        return self.cells


class Array(msgspec.Struct, frozen=True):
    """A tensor as one flat list of values and its shape."""

    values: Sequence[Any]
    shape: tuple[int, ...]
    dtype: str


TensorLayout = tuple[tuple[str | None, str, tuple[int, ...]], ...]


class Tensors(msgspec.Struct, frozen=True):
    """One array, or several by name; the first dimension counts rows.

    Attributes:
        arrays: The arrays.
        rows: How many rows the first of them has.
        layout: Name, type and shape of a row of each; None where they differ in their rows.
    """

    arrays: Mapping[str | None, Array]
    rows: int
    layout: TensorLayout | None


class Raw(msgspec.Struct, frozen=True):
    """Data that no signature describes: what `inputs` or `instances` held."""

    value: Any
    rows: int


Data = Records | Columns | Tensors | Raw


class Request(msgspec.Struct, frozen=True):
    """What to predict on: the checked input and parameters, defaults included."""

    data: Data
    params: Mapping[str, object] = {}


def can_merge(one: Request, other: Request) -> bool:
    """Tell whether two requests can be one call of a model that predicts row by row."""
    a, b = one.data, other.data
    if isinstance(a, Raw) or isinstance(b, Raw) or type(a) is not type(b):
        return False
    is_alike = a.layout is b.layout or a.layout == b.layout
    return is_alike and a.layout is not None and one.params == other.params


def merge(requests: Sequence[Request]) -> Request:
    """Make one request of several, in their order.

    Args:
        requests: At least one; each can be merged with the first.
    """
    first = requests[0]
    everything: Any = [request.data for request in requests]
    return Request(_MERGES[type(first.data)](everything), first.params)


def layout_of(arrays: Mapping[str | None, Array]) -> TensorLayout | None:
    """Give the layout of arrays: None where they differ in how many rows they have."""
    if len({array.shape[:1] for array in arrays.values()}) != 1:
        return None
    return tuple((name, array.dtype, array.shape[1:]) for name, array in arrays.items())


def _merge_records(several: Sequence[Records]) -> Records:
    rows = list(chain.from_iterable(records.cells for records in several))
    return Records(several[0].layout, rows)


def _merge_columns(several: Sequence[Columns]) -> Columns:
    columns = zip(*(data.cells for data in several), strict=True)
    return Columns(several[0].layout, [list(chain.from_iterable(parts)) for parts in columns])


def _merge_tensors(several: Sequence[Tensors]) -> Tensors:
    arrays = {
        name: _merge_arrays([data.arrays[name] for data in several]) for name in several[0].arrays
    }
    return Tensors(arrays, sum(data.rows for data in several), several[0].layout)


def _merge_arrays(several: Sequence[Array]) -> Array:
    first = several[0]
    shape = (sum(array.shape[0] for array in several), *first.shape[1:])
    return Array(list(chain.from_iterable(array.values for array in several)), shape, first.dtype)


_MERGES: Mapping[type, Any] = {
    Records: _merge_records,
    Columns: _merge_columns,
    Tensors: _merge_tensors,
}

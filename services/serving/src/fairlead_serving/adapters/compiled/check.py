"""Compares what may replace a model with the model itself, on rows that a caller might send."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from fairlead_serving.adapters.compiled.blocks import Shape
from fairlead_serving.adapters.compiled.errors import NotTakenError
from fairlead_serving.adapters.compiled.parts import name_of, steps_of
from fairlead_serving.adapters.compiled.pipeline import indexes_of
from fairlead_serving.domain.data import Array as FlatArray
from fairlead_serving.domain.data import Data, Layout, Records, Request, Tensors, merge
from fairlead_serving.domain.signature import Kind, Signature

_BATCH, _SINGLES, _COLUMNS = 64, 8, 32
_UNSEEN = ("", "never seen before")
Predict = Callable[[Data], Any]


class Replacement(Protocol):
    """What may predict in a model's place.

    Attributes:
        shape: What its input is.
        tolerance: How far floats may differ, relative to the largest.
    """

    @property
    def shape(self) -> Shape:
        """See above."""

    @property
    def tolerance(self) -> float:
        """See above."""

    def predict(self, data: Data) -> Any:
        """Predict; `NotTakenError` leaves the data to the model."""


def find_difference(
    replacement: Replacement,
    predict: Predict,
    estimator: Any,
    signature: Signature,
    example: Data | None,
) -> str:
    """Look for rows on which a replacement is not the model.

    Args:
        replacement: What was made of the model.
        predict: The model's own method.
        estimator: The model, which knows the categories it was trained on.
        signature: What rows look like.
        example: The model's input example.

    Returns:
        What differs, in words without values; empty if rows were compared and nothing does.
    """
    compared = 0
    for what, calls in _samples(estimator, signature, replacement.shape, example):
        taken = list(_taken(replacement, calls))
        if not taken:
            continue
        asked, found = zip(*taken, strict=True)
        try:
            expected = np.asarray(predict(_together(asked)))
        except Exception as error:  # noqa: BLE001  # Whatever it is, nothing should have come.
            return f"{what}: the model raises {type(error).__name__}"
        ends = list(accumulate(data.rows for data in asked))
        pairs = zip(found, np.split(expected, ends[:-1]), strict=True)
        if not all(_is_same(*pair, replacement.tolerance) for pair in pairs):
            return what
        compared += 1
    return "" if compared else "it took none of the rows it was compared on"


def _together(calls: Sequence[Data]) -> Data:
    return calls[0] if len(calls) == 1 else merge([Request(data) for data in calls]).data


def _taken(replacement: Replacement, calls: Sequence[Data]) -> Iterator[tuple[Data, Any]]:
    """Give the calls that a replacement does not leave to the model, and what it predicts."""
    for data in calls:
        with suppress(NotTakenError):
            yield data, np.asarray(replacement.predict(data))


def draw(estimator: Any, signature: Signature, shape: Shape) -> Data:
    """Draw a row that the model is likely to take.

    Args:
        estimator: The model.
        signature: What rows look like.
        shape: The same, for what is made of the model.
    """
    return _data([_Drawer(shape, _categories(estimator, shape)).row()], signature, shape)


def _is_same(found: Any, expected: Any, tolerance: float) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.dtype.kind != "f":
        return bool(np.array_equal(found, expected))
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return bool(
        np.allclose(found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
    )


def _samples(
    estimator: Any, signature: Signature, shape: Shape, example: Data | None
) -> Iterator[tuple[str, Sequence[Data]]]:
    """Give what a replacement is asked, call by call; the model is asked all of a list at once.

    It takes milliseconds for a call, whatever the rows, and a start would be mostly that.
    """
    draw = _Drawer(shape, _categories(estimator, shape))

    def call(*rows: list[Any]) -> Data:
        return _data(list(rows), signature, shape)

    if example is not None:
        yield "the input example", [example]
    yield "many rows", [call(*(draw.row() for _ in range(_BATCH)))]
    yield "a single row", [call(draw.row())]  # The model is asked for one, too.
    yield "a single row", [call(draw.row()) for _ in range(_SINGLES)]
    columns = range(min(len(shape.names), _COLUMNS))
    yield "a missing value", [call(draw.row(missing=at)) for at in columns]
    yield "an unseen value", [call(draw.row(unseen=at)) for at in columns]


class _Drawer:
    """Draws rows: always the same ones, lest a model be compiled on one start and not the next."""

    def __init__(self, shape: Shape, categories: Mapping[int, Sequence[Any]]) -> None:
        self._shape = shape
        self._categories = categories
        self._random = random.Random(1)  # noqa: S311  # Nothing secret.

    def row(self, missing: int | None = None, unseen: int | None = None) -> list[Any]:
        """Draw a row; one of its values may be missing, or one that the model has not seen."""
        row = [self._value(at, kind, unseen) for at, kind in enumerate(self._shape.kinds)]
        if missing is not None and self._shape.kinds[missing] in _MAY_MISS:
            row[missing] = None
        return row

    def _value(self, at: int, kind: Kind, unseen: int | None) -> Any:
        categories = self._categories.get(at, ())
        if kind is Kind.STRING:
            words = categories if categories and at != unseen else _UNSEEN
            return self._random.choice(list(words))
        if categories and at != unseen:
            return self._random.choice(list(categories))
        if kind is Kind.BOOLEAN:
            return self._random.random() < 0.5  # noqa: PLR2004
        number = self._random.gauss(0, 1) * 10.0 ** self._random.randrange(-3, 6)
        return number if kind in _REAL else round(number)


_REAL = frozenset({Kind.FLOAT, Kind.DOUBLE})
_MAY_MISS = _REAL | {Kind.STRING}


def _categories(estimator: Any, shape: Shape) -> Mapping[int, Sequence[Any]]:
    """Give the categories that were seen in each column, where an encoder has learnt them."""
    steps = steps_of(estimator)
    branches = [(steps, list(range(len(shape.names))))]
    if name_of(steps[0]) == "ColumnTransformer":
        branches = [
            (steps_of(part), indexes_of(columns, shape))
            for _, part, columns in steps[0].transformers_
        ]
    found: dict[int, Sequence[Any]] = {}
    for parts, indexes in branches:
        for part in parts:
            for at, categories in zip(indexes, getattr(part, "categories_", ()), strict=False):
                found[at] = [one for one in categories.tolist() if not _is_missing(one)]
    return found


def _is_missing(value: object) -> bool:
    return value is None or value != value  # noqa: PLR0124  # NaN.


def _data(rows: list[list[Any]], signature: Signature, shape: Shape) -> Data:
    if signature.tensors:
        (spec,) = signature.tensors
        values = [value for row in rows for value in row]
        array = FlatArray(values, (len(rows), len(shape.names)), spec.dtype)
        return Tensors({spec.name: array}, len(rows), None)
    return Records(Layout(shape.names, shape.kinds), rows)

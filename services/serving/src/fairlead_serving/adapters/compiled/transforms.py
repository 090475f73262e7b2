"""The transformers that are known: each becomes a function from a block to a block."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fairlead_serving.adapters.compiled.blocks import Block, Cells, Holds, Numbers
from fairlead_serving.adapters.compiled.errors import CannotCompileError, NotTakenError
from fairlead_serving.adapters.compiled.parts import name_of

Step = Callable[[Any], Any]
_MISSING = object()
"""Stands for every kind of missing value among categories."""


def compile_transform(transformer: Any, holds: Holds) -> Step:
    """Compile a fitted transformer.

    Args:
        transformer: The transformer.
        holds: What it gets.

    Raises:
        CannotCompileError: It is not known, or its settings are not.
    """
    compiler = _COMPILERS.get(name_of(transformer))
    if compiler is None:
        raise CannotCompileError(type(transformer).__name__)
    return compiler(transformer, holds)


def held_after(transformer: Any, holds: Holds) -> Holds:
    """Tell what a transformer gives: an imputer what it gets, all others numbers."""
    return holds if name_of(transformer) == "SimpleImputer" else Holds.NUMBERS


def _standard(scaler: Any, holds: Holds) -> Step:
    _require(holds is Holds.NUMBERS, scaler)
    mean = scaler.mean_ if scaler.with_mean else None
    scale = scaler.scale_ if scaler.with_std else None
    return partial(_scale, mean, scale)


def _robust(scaler: Any, holds: Holds) -> Step:
    _require(holds is Holds.NUMBERS, scaler)
    center = scaler.center_ if scaler.with_centering else None
    scale = scaler.scale_ if scaler.with_scaling else None
    return partial(_scale, center, scale)


def _max_abs(scaler: Any, holds: Holds) -> Step:
    _require(holds is Holds.NUMBERS and not getattr(scaler, "clip", False), scaler)
    return partial(_scale, None, scaler.scale_)


def _scale(centre: Any, scale: Any, block: Numbers) -> Numbers:
    # In place and in this order, as scikit-learn has it: rounding is the same then.
    if centre is not None:
        block -= centre
    if scale is not None:
        block /= scale
    return block


def _min_max(scaler: Any, holds: Holds) -> Step:
    _require(holds is Holds.NUMBERS, scaler)

    def run(block: Numbers) -> Numbers:
        block *= scaler.scale_
        block += scaler.min_
        if scaler.clip:
            np.clip(block, *scaler.feature_range, out=block)
        return block

    return run


def _impute(imputer: Any, holds: Holds) -> Step:
    _require(imputer.indicator_ is None, imputer)
    fill = imputer.statistics_
    _require(not any(_is_nan(value) for value in fill), imputer)
    if holds is Holds.CELLS:
        _require(_key(imputer.missing_values) is _MISSING, imputer)
        return partial(_impute_cells, list(fill))
    _require(_is_nan(imputer.missing_values), imputer)
    return partial(_impute_numbers, np.asarray(fill, dtype=float))


def _impute_numbers(fill: Numbers, block: Numbers) -> Numbers:
    missing = np.isnan(block)
    if missing.any():
        block[missing] = fill[np.nonzero(missing)[1]]
    return block


def _impute_cells(fill: Sequence[Any], block: Cells) -> Cells:
    return [
        [value if cell is None else cell for cell in column]
        for value, column in zip(fill, block, strict=True)
    ]


def _one_hot(encoder: Any, holds: Holds) -> Step:
    _require(encoder.handle_unknown in {"error", "ignore"}, encoder)
    _require_plain_categories(encoder)
    drops = encoder.drop_idx_
    if drops is None:
        drops = [None] * len(encoder.categories_)
    tables, start = [], 0
    for categories, drop in zip(encoder.categories_, drops, strict=True):
        places, width = {}, len(categories) - (drop is not None)
        for at, category in enumerate(categories):
            if at != drop:
                places[_key(category)] = start + at - (drop is not None and at > drop)
        dropped = set() if drop is None else {_key(categories[drop])}
        tables.append((places, dropped))
        start += width
    is_strict = encoder.handle_unknown == "error"
    return partial(_set_ones, tables, start, holds, is_strict=is_strict)


def _set_ones(
    tables: Sequence[tuple[Mapping[Any, int], set[Any]]],
    width: int,
    holds: Holds,
    block: Block,
    *,
    is_strict: bool,
) -> Numbers:
    columns = _columns(block, holds)
    ones = np.zeros((len(columns[0]), width))
    for (places, dropped), column in zip(tables, columns, strict=True):
        for row, cell in enumerate(column):
            key = _key(cell)
            at = places.get(key)
            if at is not None:
                ones[row, at] = 1.0
            elif is_strict and key not in dropped:
                raise NotTakenError
    return ones


def _ordinal(encoder: Any, holds: Holds) -> Step:
    _require_plain_categories(encoder)
    unknown = encoder.unknown_value if encoder.handle_unknown == "use_encoded_value" else None
    tables: list[Mapping[Any, float]] = []
    for categories in encoder.categories_:
        table = {_key(category): float(at) for at, category in enumerate(categories)}
        if _MISSING in table:
            table[_MISSING] = float(encoder.encoded_missing_value)
        tables.append(table)
    _require(np.dtype(encoder.dtype) == np.float64, encoder)
    return partial(_set_codes, tables, unknown, holds)


def _set_codes(
    tables: Sequence[Mapping[Any, float]], unknown: float | None, holds: Holds, block: Block
) -> Numbers:
    columns = _columns(block, holds)
    codes = np.empty((len(columns[0]), len(columns)))
    for at, (table, column) in enumerate(zip(tables, columns, strict=True)):
        found = [table.get(_key(cell), unknown) for cell in column]
        if None in found:
            raise NotTakenError
        codes[:, at] = found
    return codes


def _columns(block: Block, holds: Holds) -> Sequence[Sequence[Any]]:
    return block.T.tolist() if holds is Holds.NUMBERS else block  # type: ignore[union-attr, return-value]


def _key(cell: Any) -> Any:
    """Give what a category is looked up by; numpy's scalars are equal to Python's."""
    return _MISSING if cell is None or _is_nan(cell) else cell


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _require_plain_categories(encoder: Any) -> None:
    """Refuse categories that share a place: rare ones, or two kinds of missing."""
    _require(not getattr(encoder, "_infrequent_enabled", False), encoder)
    for categories in encoder.categories_:
        _require(len(set(map(_key, categories))) == len(categories), encoder)


def _require(condition: object, transformer: Any) -> None:
    if not condition:
        raise CannotCompileError(f"{type(transformer).__name__} with these settings")


_COMPILERS: Mapping[str, Callable[[Any, Holds], Step]] = {
    "StandardScaler": _standard,
    "RobustScaler": _robust,
    "MaxAbsScaler": _max_abs,
    "MinMaxScaler": _min_max,
    "SimpleImputer": _impute,
    "OneHotEncoder": _one_hot,
    "OrdinalEncoder": _ordinal,
}

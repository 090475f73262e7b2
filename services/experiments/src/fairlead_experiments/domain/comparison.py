"""Compares a shadow with the version that answers, by pairs of predictions for the same request.

Each request is one pair, whatever its rows: one row of it is compared, the same on both sides.
Requests that one side had no room for, or whose caller left, say nothing about the models.
"""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, auto

from fairlead_experiments.domain import sequential
from fairlead_experiments.domain.predictions import Pair, Side

ALPHA = 0.05
"""The bounds of the share that disagrees hold at all moments at once but for this probability."""

MOST_CLASSES = 20
"""Of more classes the rarer ones are one, `other`, in the confusion matrix."""

_NO_ANSWER, _CLIENT_LEFT, _NO_ROOM = 0, 499, 503
_FIRST_FAILURE = 400
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)

Value = str | int | float | bool | None


class Kind(StrEnum):
    """What a pair says."""

    NO_ROOM = auto()
    STABLE_FAILED = auto()
    SHADOW_FAILED = auto()
    BOTH_FAILED = auto()
    UNREAD = auto()
    ROWS_DIFFER = auto()
    TYPES_DIFFER = auto()
    CLASSES = auto()
    NUMBERS = auto()


_DISAGREEING = (Kind.SHADOW_FAILED, Kind.ROWS_DIFFER, Kind.TYPES_DIFFER)
"""What disagrees whatever was predicted."""


@dataclass(frozen=True, slots=True)
class Classes:
    """A confusion matrix.

    Attributes:
        names: The most frequent classes; the last is `other` if `folded` is above 0.
        counts: Pairs by the answer's class (rows) and the shadow's (columns).
        folded: How many classes `other` stands for.
    """

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    folded: int


@dataclass(frozen=True, slots=True)
class Numbers:
    """Differences, shadow less stable, in the prediction's unit.

    Attributes:
        quantiles: By percent, from 1 to 99.
        beyond: The share whose difference is larger than the tolerance, either way.
    """

    pairs: int
    mean: float
    quantiles: dict[str, float]
    beyond: float


@dataclass(frozen=True, slots=True)
class Durations:
    """Milliseconds of one side, over the pairs that both answered."""

    median: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What pairs say together.

    Attributes:
        compared: Pairs that agree or disagree.
        disagreed: Those that disagree.
        low: The lower bound of the share that disagrees, over all requests; None without pairs.
        high: The upper bound.
        kinds: How many pairs are of each kind.
    """

    compared: int
    disagreed: int
    low: float | None
    high: float | None
    kinds: dict[Kind, int]
    classes: Classes | None
    numbers: Numbers | None
    stable: Durations | None
    shadow: Durations | None


def compare(pairs: Sequence[Pair], tolerance: float) -> Comparison:
    """Compare.

    Args:
        pairs: The pairs.
        tolerance: How far numbers may differ and agree, in the prediction's unit. Above 0, whole
            numbers are numbers too; else they are classes.
    """
    sorted_out = [(_sort(pair, tolerance), pair) for pair in pairs]
    kinds = Counter(kind for kind, _ in sorted_out)
    labels = [_labels(pair) for kind, pair in sorted_out if kind is Kind.CLASSES]
    differences = [_difference(pair) for kind, pair in sorted_out if kind is Kind.NUMBERS]
    disagreed = (
        sum(kinds[kind] for kind in _DISAGREEING)
        + sum(stable != shadow for stable, shadow in labels)
        + sum(abs(difference) > tolerance for difference in differences)
    )
    compared = sum(kinds[kind] for kind in _DISAGREEING) + len(labels) + len(differences)
    low, high = (
        sequential.proportion_bounds(disagreed, compared, ALPHA) if compared else (None, None)
    )
    answered = [pair for kind, pair in sorted_out if _is_answered(kind)]
    return Comparison(
        compared=compared,
        disagreed=disagreed,
        low=low,
        high=high,
        kinds={kind: kinds[kind] for kind in Kind},
        classes=_classes(labels) if labels else None,
        numbers=_numbers(differences, tolerance) if differences else None,
        stable=_durations([pair.stable.duration_ms for pair in answered]),
        shadow=_durations([pair.shadow.duration_ms for pair in answered]),
    )


def _sort(pair: Pair, tolerance: float) -> Kind:
    stable, shadow = pair.stable, pair.shadow
    if _had_no_room(stable) or _had_no_room(shadow):
        return Kind.NO_ROOM
    if _has_failed(stable):
        return Kind.BOTH_FAILED if _has_failed(shadow) else Kind.STABLE_FAILED
    if _has_failed(shadow):
        return Kind.SHADOW_FAILED
    if stable.value is None or shadow.value is None:
        return Kind.UNREAD
    if stable.rows != shadow.rows:
        return Kind.ROWS_DIFFER
    return _sort_values(_value(stable), _value(shadow), tolerance)


def _sort_values(stable: Value, shadow: Value, tolerance: float) -> Kind:
    kinds = {_type(stable), _type(shadow)}
    if kinds <= {int, float} and (float in kinds or tolerance > 0):
        return Kind.NUMBERS
    if float in kinds and type(None) not in kinds:
        return Kind.TYPES_DIFFER
    return Kind.CLASSES


def _type(value: Value) -> type:
    return type(value)


def _had_no_room(side: Side) -> bool:
    return side.code in {_NO_ANSWER, _CLIENT_LEFT, _NO_ROOM}


def _has_failed(side: Side) -> bool:
    return side.code >= _FIRST_FAILURE


def _is_answered(kind: Kind) -> bool:
    return kind in {Kind.UNREAD, Kind.ROWS_DIFFER, Kind.TYPES_DIFFER, Kind.CLASSES, Kind.NUMBERS}


def _value(side: Side) -> Value:
    assert side.value is not None
    value: Value = json.loads(side.value)
    return value


def _labels(pair: Pair) -> tuple[str, str]:
    """Answer both sides' JSON: the text "1" and the number 1 are two classes."""
    assert pair.stable.value is not None
    assert pair.shadow.value is not None
    return pair.stable.value, pair.shadow.value


def _difference(pair: Pair) -> float:
    stable, shadow = _value(pair.stable), _value(pair.shadow)
    assert isinstance(stable, int | float)
    assert isinstance(shadow, int | float)
    return float(shadow) - float(stable)


def _classes(labels: Sequence[tuple[str, str]]) -> Classes:
    cells = Counter(labels)
    sizes = Counter(label for pair in labels for label in pair)
    ranked = sorted(sizes, key=lambda label: (-sizes[label], label))
    shown = ranked if len(ranked) <= MOST_CLASSES else ranked[: MOST_CLASSES - 1]
    folded = len(ranked) - len(shown)
    order = {label: index for index, label in enumerate(sorted(shown))}
    size = len(order) + (folded > 0)
    counts = [[0] * size for _ in range(size)]
    for (stable, shadow), n in cells.items():
        counts[order.get(stable, size - 1)][order.get(shadow, size - 1)] += n
    names = [_name(label) for label in order] + ["other"] * (folded > 0)
    return Classes(tuple(names), tuple(tuple(row) for row in counts), folded)


def _name(label: str) -> str:
    value = json.loads(label)
    return value if isinstance(value, str) else label


def _numbers(differences: Sequence[float], tolerance: float) -> Numbers:
    percentiles = _percentiles(differences)
    return Numbers(
        pairs=len(differences),
        mean=statistics.fmean(differences),
        quantiles={str(percent): percentiles[percent] for percent in _PERCENTILES},
        beyond=sum(abs(d) > tolerance for d in differences) / len(differences),
    )


def _durations(milliseconds: Sequence[float]) -> Durations | None:
    if not milliseconds:
        return None
    percentiles = _percentiles(milliseconds)
    return Durations(percentiles[50], percentiles[95], percentiles[99])


def _percentiles(values: Sequence[float]) -> dict[int, float]:
    """Answer the values below which so many percent are, interpolated between neighbours."""
    if len(values) == 1:
        return dict.fromkeys(range(1, 100), values[0])
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return dict(enumerate(cuts, start=1))

"""What one request and one unit add to the counts of their rollout.

An analysis reads sums, not rows. So that a sum can follow every change (a unit that meets its
other arm, a value that is replaced), what a unit adds is a function of all that is known of it:
the counts change by what it adds now, less what it added before.

Sums of outcomes and of their products are kept as whole numbers, in units of 2^-2148: every
double, and every product of two, is a whole number of these. Sums of them are exact, whatever the
order and whatever was taken out again; a common offset, however large, cancels without a trace.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction

from fairlead_experiments.domain.effect import Arm
from fairlead_experiments.domain.linear import Matrix, Moments, Shared, StepMoments
from fairlead_experiments.domain.linear import Vector as Triple
from fairlead_experiments.domain.records import (
    Exposure,
    Kind,
    Objective,
    ObjectiveKind,
    Requests,
    Rollout,
)

Cell = tuple[int, str]
"""A step and an arm."""

Pair = tuple[Cell, Cell]
"""Two cells of one unit, the smaller first; a cell with itself, too."""

Vector = tuple[float, ...]
"""What a unit counts with in a cell; as many numbers for every unit of a rollout."""

Sums = tuple[int, ...]
"""How many units, then sums in units of 2^-2148, the smallest product of two doubles.

Of the first cell's vectors, place by place, of the second's, and of the products of each place of
the first with each place of the second.
"""

_POINT = 2148
_NO_ANSWER = 0
_CLIENT_LEFT = 499
_SERVER_ERROR = 500
_EVERY_STEP = -1
_BOTH_ARMS = ""
_STABLE, _CANDIDATE = str(Arm.STABLE), str(Arm.CANDIDATE)


class Count(StrEnum):
    """What is counted: units and outcomes; bad units are counted by their `Kind`."""

    UNITS = "units"
    NEW = "new"
    MIXED = "mixed"
    WAITING = "waiting"
    CAPPED = "capped"
    DISTINCT = "distinct"
    OUTCOMES = "outcomes"
    MEASURED = "measured"


CountKey = tuple[str, str, int, str]
"""What is counted, the outcome or the steps it is of, a step or -1, an arm or none."""


# --- requests -------------------------------------------------------------------------------


def judge_request(exposure: Exposure, rollout: Rollout) -> Requests:
    """Answer what a request adds to the counters of its step and arm.

    When the client left, nobody knows how the request would have ended: it counts against nobody,
    and is no answer either.
    """
    has_stayed = exposure.code != _CLIENT_LEFT
    is_answered = exposure.code not in {_NO_ANSWER, _CLIENT_LEFT}
    own = rollout.candidate if exposure.arm == Arm.CANDIDATE else rollout.stable
    stood_in = has_stayed and bool(exposure.version) and exposure.version != own
    is_retried = has_stayed and exposure.attempts > 1
    has_failed = exposure.code == _NO_ANSWER or exposure.code >= _SERVER_ERROR
    slower_than = rollout.latency.slower_than if rollout.latency else None
    return Requests(
        requests=1,
        answered=int(is_answered),
        errors=int(has_failed or is_retried or stood_in),
        slow=int(
            is_answered and slower_than is not None and exposure.duration_ms > slower_than * 1000.0
        ),
        fallbacks=int(stood_in),
        retried=int(is_retried),
    )


def is_bad(requests: Requests, kind: Kind) -> bool:
    """Tell whether a request is bad in one way."""
    return bool(requests.errors if kind is Kind.ERRORS else requests.slow)


# --- units ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unit:
    """All that is known of one unit in one rollout.

    Attributes:
        cells: What it met.
        outcomes: For each outcome's name and cell: how many there are, and their sum.
    """

    cells: frozenset[Cell] = frozenset()
    outcomes: Mapping[tuple[str, int, str], tuple[int, float]] = field(default_factory=dict)

    @property
    def mixed_since(self) -> float:
        """The first step in which it met stable although it had met the candidate by then."""
        met = min((step for step, arm in self.cells if arm == _CANDIDATE), default=math.inf)
        back = (step for step, arm in self.cells if arm == _STABLE and step >= met)
        return min(back, default=math.inf)


def is_followed(rollout: Rollout) -> bool:
    """Tell whether the counts say all of a rollout's objective, or its units must be swept.

    What depends on the time of an outcome, or on each single value of a unit, is swept.
    """
    objective = rollout.objective
    return objective is None or (
        objective.window is None
        and objective.covariate is None
        and objective.kind is not ObjectiveKind.BINARY
    )


def counts(unit: Unit, rollout: Rollout) -> Iterator[tuple[CountKey, int]]:
    """Answer what a unit adds to the counts of its rollout."""
    yield from _met(unit)
    for (name, _, arm), (n, _) in unit.outcomes.items():
        yield (Count.OUTCOMES, name, _EVERY_STEP, arm), n
    if rollout.objective is not None and is_followed(rollout):
        yield from _measured(unit, rollout.objective)


def _met(unit: Unit) -> Iterator[tuple[CountKey, int]]:
    first = min((step for step, _ in unit.cells), default=0)
    for step, arm in unit.cells:
        yield (Count.UNITS, "", step, arm), 1
        if step == first and not {(first, _STABLE), (first, _CANDIDATE)} <= unit.cells:
            yield (Count.NEW, "", step, arm), 1
    for arm in {arm for _, arm in unit.cells}:
        yield (Count.DISTINCT, "", _EVERY_STEP, arm), 1
    since = unit.mixed_since
    if since < math.inf:
        yield (Count.MIXED, "", _EVERY_STEP, _BOTH_ARMS), 1
    for step in {step for step, _ in unit.cells if step >= since}:
        yield (Count.MIXED, "", step, _BOTH_ARMS), 1


def _measured(unit: Unit, objective: Objective) -> Iterator[tuple[CountKey, int]]:
    found, since = _values(unit, objective), unit.mixed_since
    masks: dict[str, int] = {}
    for step, arm in unit.cells:
        if step >= since:
            continue
        masks.setdefault(arm, 0)
        if (step, arm) not in found:
            yield (Count.WAITING, "", step, arm), 1
            continue
        masks[arm] |= 1 << step
        if _is_beyond(found[step, arm][0], objective):
            yield (Count.CAPPED, "", step, arm), 1
    for arm, mask in masks.items():
        kind, name = (Count.MEASURED, f"{mask:x}") if mask else (Count.WAITING, "")
        yield (kind, name, _EVERY_STEP, arm), 1


def vectors(unit: Unit, rollout: Rollout) -> dict[Cell, Vector]:
    """Answer what a unit counts with in each cell, but for the steps from which on it is mixed.

    A mean of its outcomes; of a ratio, its numerator and its denominator.
    """
    objective = rollout.objective
    if objective is None or not is_followed(rollout):
        return {}
    return {
        cell: (_capped(value, objective), *others)
        for cell, (value, *others) in _values(unit, objective).items()
    }


def _values(unit: Unit, objective: Objective) -> dict[Cell, Vector]:
    """The vectors, before any cap."""
    found: dict[Cell, Vector] = {}
    since = unit.mixed_since
    for (name, step, arm), (n, total) in unit.outcomes.items():
        if step >= since or name not in {objective.outcome, objective.denominator}:
            continue
        if not objective.is_ratio:
            found[step, arm] = (total / n,)
            continue
        value, denominator = found.get((step, arm), (0.0, 0.0))
        is_own = name == objective.outcome
        found[step, arm] = (total, denominator) if is_own else (value, total)
    return found


def _capped(value: float, objective: Objective) -> float:
    cap = objective.cap
    return value if cap is None else max(-cap, min(cap, value))


def _is_beyond(value: float, objective: Objective) -> bool:
    return objective.cap is not None and abs(value) > objective.cap


# --- sums of outcomes -----------------------------------------------------------------------


def moments(before: Mapping[Cell, Vector], after: Mapping[Cell, Vector]) -> dict[Pair, Sums]:
    """Answer what the sums change by when a unit's vectors become others."""
    changed = {cell for cell in {*before, *after} if before.get(cell) != after.get(cell)}
    found: dict[Pair, Sums] = {}
    for sign, of in ((-1, before), (1, after)):
        for pair, sums in _products(of, changed):
            signed = tuple(sign * value for value in sums)
            found[pair] = plus(found[pair], signed) if pair in found else signed
    return found


def plus(first: Sums, second: Sums) -> Sums:
    """Answer the sums of both."""
    return tuple(a + b for a, b in zip(first, second, strict=True))


def _products(of: Mapping[Cell, Vector], changed: set[Cell]) -> Iterator[tuple[Pair, Sums]]:
    ratios = {cell: [_ratio(value) for value in vector] for cell, vector in of.items()}
    for cell in changed & ratios.keys():
        for other in ratios:
            if other in changed and other < cell:
                continue  # Met from the other side.
            pair = (cell, other) if cell <= other else (other, cell)
            yield pair, _sums(ratios[pair[0]], ratios[pair[1]])


def _sums(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> Sums:
    alone = (_whole(*a) for a in (*first, *second))
    return (1, *alone, *(_whole(a[0] * b[0], a[1] + b[1]) for a in first for b in second))


def _ratio(value: float) -> tuple[int, int]:
    """A double as a whole number of 2^-n, and n."""
    numerator, denominator = value.as_integer_ratio()
    return numerator, denominator.bit_length() - 1


def _whole(numerator: int, digits: int) -> int:
    return numerator << (_POINT - digits)


def write_sums(sums: Sums) -> str:
    """Write sums down, but for the number of units: hexadecimal, and binary digits after the point."""
    return " ".join(f"{value >> _zeros(value):x}:{_POINT - _zeros(value)}" for value in sums[1:])


def _zeros(value: int) -> int:
    return (value & -value).bit_length() - 1 if value else _POINT


def read_sums(n: int, text: str) -> Sums:
    """Read sums that were written down."""
    parts = (part.split(":") for part in text.split())
    return (n, *(int(number, 16) << (_POINT - int(digits)) for number, digits in parts))


def summarise(sums: Mapping[Pair, Sums]) -> tuple[tuple[StepMoments, ...], tuple[Shared, ...]]:
    """Answer what the sums say: means, and products of distances from them, each rounded once."""
    cells = {first: found for (first, second), found in sums.items() if first == second}
    shared = tuple(
        Shared(a[0], Arm(a[1]), b[0], Arm(b[1]), _comoments(found, cells[a], cells[b]))
        for (a, b), found in sorted(sums.items())
        if a != b
    )

    def cell(step: int, arm: Arm) -> Moments:
        found = cells.get((step, str(arm)))
        if found is None:
            return Moments()
        return Moments(found[0], _triple([float(m) for m in _means(found)]), _comoments(found))

    return tuple(
        StepMoments(step, cell(step, Arm.STABLE), cell(step, Arm.CANDIDATE))
        for step in sorted({step for step, _ in cells})
    ), shared


def _places(sums: Sums) -> int:
    """How many numbers a vector has: of k there are 2 k sums and k^2 products."""
    return math.isqrt(len(sums)) - 1


def _means(cell: Sums) -> list[Fraction]:
    return [Fraction(total, cell[0] << _POINT) for total in cell[1 : 1 + _places(cell)]]


def _comoments(pair: Sums, first: Sums | None = None, second: Sums | None = None) -> Matrix:
    """Sums of (x - a)(y - b) over a pair's units, a and b the means of the whole cells."""
    n, k = pair[0], _places(pair)
    a, b = _means(first or pair), _means(second or pair)
    x, y = ([Fraction(v, 1 << _POINT) for v in pair[i : i + k]] for i in (1, 1 + k))
    products = [Fraction(v, 1 << _POINT) for v in pair[1 + 2 * k :]]
    rows = [
        _triple(
            [
                float(products[i * k + j] - b[j] * x[i] - a[i] * y[j] + n * a[i] * b[j])
                for j in range(k)
            ]
        )
        for i in range(k)
    ]
    return (*rows, *[_triple([])] * (3 - k))  # type: ignore[return-value]


def _triple(numbers: list[float]) -> Triple:
    value, denominator, covariate = (*numbers, *[0.0] * (3 - len(numbers)))
    return value, denominator, covariate


def measured_distinct(
    masks: Mapping[tuple[str, str], int], steps: Collection[int]
) -> dict[str, int]:
    """Answer the distinct measured units per arm, over some steps.

    Args:
        masks: Units by arm and by the set of steps they were measured in, bit by bit, hexadecimal.
        steps: The steps.
    """
    wanted = sum(1 << step for step in steps)
    found: dict[str, int] = {}
    for (arm, mask), n in masks.items():
        if int(mask, 16) & wanted:
            found[arm] = found.get(arm, 0) + n
    return found

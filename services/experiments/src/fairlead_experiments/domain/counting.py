"""What one request and one unit add to the counts of their rollout.

An analysis reads sums, not rows. So that a sum can follow every change (a unit that meets its
other arm, a value that is replaced), what a unit adds is a function of all that is known of it:
the counts change by what it adds now, less what it added before.

Sums of outcomes and of their products are kept as whole numbers, in units of 2^-2148: every
double, and every product of two, is a whole number of these. Sums of them are exact, whatever the
order and whatever was taken out again; a common offset, however large, cancels without a trace.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from fairlead_experiments.domain.effect import Arm
from fairlead_experiments.domain.linear import Matrix, Moments, Shared, StepMoments
from fairlead_experiments.domain.linear import Vector as Triple
from fairlead_experiments.domain.records import (
    Exposure,
    Kind,
    Missing,
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
_NO_STEPS = "0"
_BINARY = (0.0, 1.0)
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
    MISSING = "missing"
    COVERED = "covered"
    REFUSED = "refused"


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
class Detail:
    """What one unit's single outcomes say in one cell, where the time or value of each matters.

    Attributes:
        first_at: When it met the cell first, in microseconds since 1970.
        n: How many outcomes count: those within the window, 0 or 1 where they must be; those of the
            denominator, too.
        total: The sum of those of the objective's own outcome.
        denominator: The sum of those of the denominator.
        refused: Outcomes of a binary objective that are neither 0 nor 1.
    """

    first_at: int
    n: int = 0
    total: float = 0.0
    denominator: float = 0.0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Unit:
    """All that is known of one unit in one rollout.

    Attributes:
        cells: What it met.
        outcomes: For each outcome's name and cell: how many there are, and their sum.
        details: What its single outcomes say in each cell, if the objective asks for that.
        covariate: The mean of its covariate before its first request; None without one.
    """

    cells: frozenset[Cell] = frozenset()
    outcomes: Mapping[tuple[str, int, str], tuple[int, float]] = field(default_factory=dict)
    details: Mapping[Cell, Detail] = field(default_factory=dict)
    covariate: float | None = None

    @property
    def mixed_since(self) -> float:
        """The first step in which it met stable although it had met the candidate by then."""
        met = min((step for step, arm in self.cells if arm == _CANDIDATE), default=math.inf)
        back = (step for step, arm in self.cells if arm == _STABLE and step >= met)
        return min(back, default=math.inf)


def is_detailed(rollout: Rollout) -> bool:
    """Tell whether an objective asks for the time or the value of each single outcome."""
    objective = rollout.objective
    return objective is not None and (
        objective.window is not None
        or objective.covariate is not None
        or objective.kind is ObjectiveKind.BINARY
    )


def window_of(rollout: Rollout) -> int | None:
    """Answer the window of a rollout's objective in microseconds; None without one."""
    window = rollout.objective.window if rollout.objective else None
    return None if window is None else round(window * 1e6)


def detail(rollout: Rollout, first_at: int, outcomes: Iterable[tuple[str, float, int]]) -> Detail:
    """Answer what a unit's outcomes say in a cell.

    Args:
        rollout: Whose objective asks.
        first_at: When the unit met the cell first, in microseconds since 1970.
        outcomes: Name, value and time of each, of the objective's outcome and denominator.
    """
    objective, window = rollout.objective, window_of(rollout)
    assert objective is not None
    values: dict[bool, list[float]] = {True: [], False: []}
    refused = 0
    for name, value, observed_at in outcomes:
        if objective.kind is ObjectiveKind.BINARY and value not in _BINARY:
            refused += 1
        elif window is None or observed_at <= first_at + window:
            values[name == objective.outcome].append(value)
    own, others = values[True], values[False]
    return Detail(first_at, len(own) + len(others), math.fsum(own), math.fsum(others), refused)


def covariate(rollout: Rollout, values: Sequence[float]) -> float | None:
    """Answer a unit's covariate, of its values before its first request; None without any.

    Where it is the objective's own outcome it has the objective's cap.
    """
    objective = rollout.objective
    if objective is None or not values:
        return None
    mean = math.fsum(values) / len(values)
    return _capped(mean, objective) if objective.covariate == objective.outcome else mean


def counts(unit: Unit, rollout: Rollout, at: int) -> Iterator[tuple[CountKey, int]]:
    """Answer what a unit adds to the counts of its rollout.

    Args:
        unit: Which.
        rollout: Its rollout.
        at: The time, in microseconds since 1970, by which a window is over or not.
    """
    yield from _met(unit)
    for (name, _, arm), (n, _) in unit.outcomes.items():
        yield (Count.OUTCOMES, name, _EVERY_STEP, arm), n
    for (_, arm), found in unit.details.items():
        if found.refused:
            yield (Count.REFUSED, "", _EVERY_STEP, arm), found.refused
    if rollout.objective is not None:
        yield from _measured(unit, rollout, at)


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


def _measured(unit: Unit, rollout: Rollout, at: int) -> Iterator[tuple[CountKey, int]]:
    values = _values(unit, rollout, at)
    stands = _stands(unit, rollout, values, at)
    is_covered = unit.covariate is not None
    for cell, (is_due, is_found) in stands.items():
        if not (is_due and is_found):
            yield (Count.MISSING if is_due else Count.WAITING, "", *cell), 1
        if cell in values and is_covered:
            yield (Count.COVERED, "", *cell), 1
        if cell in values and _is_beyond(values[cell][0], rollout.objective):
            yield (Count.CAPPED, "", *cell), 1
    for arm in {arm for _, arm in stands}:
        here = [stood for (_, of), stood in stands.items() if of == arm]
        mask = f"{sum(1 << step for step, of in values if of == arm):x}"
        if mask != _NO_STEPS:
            yield (Count.MEASURED, mask, _EVERY_STEP, arm), 1
        if mask != _NO_STEPS and is_covered:
            yield (Count.COVERED, mask, _EVERY_STEP, arm), 1
        if not any(is_found for _, is_found in here):
            kind = Count.MISSING if all(is_due for is_due, _ in here) else Count.WAITING
            yield (kind, "", _EVERY_STEP, arm), 1


def _stands(
    unit: Unit, rollout: Rollout, values: Mapping[Cell, Vector], at: int
) -> dict[Cell, tuple[bool, bool]]:
    """Whether a unit's outcome is due and whether it has one, in each cell before it is mixed."""
    since, window = unit.mixed_since, window_of(rollout)
    cells = [cell for cell in unit.cells if cell[0] < since]
    if not is_detailed(rollout):
        return {cell: (cell in values, cell in values) for cell in cells}
    return {cell: _stand(unit.details.get(cell), window, at) for cell in cells}


def _stand(known: Detail | None, window: int | None, at: int) -> tuple[bool, bool]:
    is_found = known is not None and known.n > 0
    if window is None:
        return is_found, is_found
    return known is not None and known.first_at + window <= at, is_found


def vectors(unit: Unit, rollout: Rollout, at: int) -> dict[Cell, Vector]:
    """Answer what a unit counts with in each cell, but for the steps from which on it is mixed.

    A mean of its outcomes; of a ratio, its numerator and its denominator. With a covariate also
    that, and whether it has one (1 or 0): the point it is measured from is known only later.

    Args:
        unit: Which.
        rollout: Its rollout.
        at: The time, in microseconds since 1970, by which a window is over or not.
    """
    objective = rollout.objective
    if objective is None:
        return {}
    more: Vector = ()
    if objective.covariate is not None:
        more = (0.0, 0.0) if unit.covariate is None else (unit.covariate, 1.0)
    return {
        cell: (_capped(value, objective), *others, *more)
        for cell, (value, *others) in _values(unit, rollout, at).items()
    }


def _values(unit: Unit, rollout: Rollout, at: int) -> dict[Cell, Vector]:
    """The vectors, before any cap and without the covariate."""
    if not is_detailed(rollout):
        return _sums_of(unit, rollout)
    found: dict[Cell, Vector] = {}
    since, objective, window = unit.mixed_since, rollout.objective, window_of(rollout)
    for cell, known in unit.details.items():
        is_due, is_found = _stand(known, window, at)
        if cell[0] >= since or not is_due or objective is None:
            continue
        if is_found and objective.is_ratio:
            found[cell] = known.total, known.denominator
        elif is_found:
            found[cell] = (known.total / known.n,)
        elif objective.missing is Missing.ZERO:
            found[cell] = (0.0,)
    return found


def _sums_of(unit: Unit, rollout: Rollout) -> dict[Cell, Vector]:
    """The vectors of an objective that asks for sums of outcomes alone."""
    found: dict[Cell, Vector] = {}
    since, objective = unit.mixed_since, rollout.objective
    for (name, step, arm), (n, total) in unit.outcomes.items():
        if objective is None or step >= since:
            continue
        if name not in {objective.outcome, objective.denominator}:
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


def _is_beyond(value: float, objective: Objective | None) -> bool:
    return objective is not None and objective.cap is not None and abs(value) > objective.cap


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


def count_change(
    rollout: Rollout,
    before: tuple[Unit, int],
    after: tuple[Unit, int],
    counted: Counter[CountKey],
    sums: dict[Pair, Sums],
) -> None:
    """Add what a unit's change makes to the counts and sums of its rollout.

    Args:
        rollout: Which.
        before: What was known of the unit, and the time as of which it was counted.
        after: What is known now, and the time as of which it is counted.
        counted: What the counts change by.
        sums: What the sums change by.
    """
    (was, then), (unit, at) = before, after
    for key, n in counts(unit, rollout, at):
        counted[key] += n
    for key, n in counts(was, rollout, then):
        counted[key] -= n
    changed = moments(vectors(was, rollout, then), vectors(unit, rollout, at))
    for pair, found in changed.items():
        sums[pair] = plus(sums[pair], found) if pair in sums else found


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


@dataclass(frozen=True, slots=True)
class _Form:
    """One number of a unit as whole multiples of the places of its vector, by a whole divisor."""

    factors: Mapping[int, int] = field(default_factory=dict)
    divisor: int = 1

    def of(self, values: Sequence[int]) -> int:
        return sum(factor * values[place] for place, factor in self.factors.items())


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums of the three numbers that an estimate asks for, not yet divided.

    Attributes:
        n: Units.
        first: Of the first cell, in units of 2^-2148 by the form's divisor.
        second: Of the second.
        products: Of a number of the first with one of the second, by both divisors.
    """

    n: int
    first: tuple[int, ...]
    second: tuple[int, ...]
    products: tuple[tuple[int, ...], ...]


def summarise(
    sums: Mapping[Pair, Sums], *, is_ratio: bool = False, has_covariate: bool = False
) -> tuple[tuple[StepMoments, ...], tuple[Shared, ...]]:
    """Answer what the sums say: means, and products of distances from them, each rounded once.

    A covariate is measured from the mean of all that are known, weighted by the cells that they
    are measured in; a unit without one counts as that.

    Args:
        sums: Of vectors as `vectors` makes them.
        is_ratio: Whether their second place is a denominator.
        has_covariate: Whether their last two places are a covariate and whether there is one.
    """
    forms = _forms(sums, is_ratio=is_ratio, has_covariate=has_covariate)
    known = {pair: _formed(found, forms) for pair, found in sums.items()}
    cells = {first: found for (first, second), found in known.items() if first == second}
    shared = tuple(
        Shared(a[0], Arm(a[1]), b[0], Arm(b[1]), _comoments(found, cells[a], cells[b], forms))
        for (a, b), found in sorted(known.items(), key=lambda item: item[0])
        if a != b
    )

    def cell(step: int, arm: Arm) -> Moments:
        found = cells.get((step, str(arm)))
        if found is None:
            return Moments()
        mean = [
            total / (found.n * form.divisor << _POINT)
            for total, form in zip(found.first, forms, strict=True)
        ]
        return Moments(found.n, _triple(mean), _comoments(found, found, found, forms))

    return tuple(
        StepMoments(step, cell(step, Arm.STABLE), cell(step, Arm.CANDIDATE))
        for step in sorted({step for step, _ in cells})
    ), shared


def _forms(
    sums: Mapping[Pair, Sums], *, is_ratio: bool, has_covariate: bool
) -> tuple[_Form, _Form, _Form]:
    """Value, denominator and distance of the covariate."""
    value, denominator = _Form({0: 1}), _Form({1: 1}) if is_ratio else _Form()
    if not has_covariate:
        return value, denominator, _Form()
    place = 2 if is_ratio else 1
    alone = [found for (first, second), found in sums.items() if first == second]
    total = sum(found[1 + place] for found in alone)
    number = sum(found[2 + place] for found in alone)
    if not number:
        return value, denominator, _Form()
    common = math.gcd(total, number)
    return (
        value,
        denominator,
        _Form({place: number // common, place + 1: -total // common}, number // common),
    )


def _formed(sums: Sums, forms: Sequence[_Form]) -> _Sums:
    places = math.isqrt(len(sums)) - 1  # Of k places there are 2 k sums and k^2 products.
    first, second = sums[1 : 1 + places], sums[1 + places : 1 + 2 * places]
    rows = [sums[i : i + places] for i in range(1 + 2 * places, len(sums), places)]
    columns = [[form.of(row) for row in rows] for form in forms]
    return _Sums(
        sums[0],
        tuple(form.of(first) for form in forms),
        tuple(form.of(second) for form in forms),
        tuple(tuple(form.of(column) for column in columns) for form in forms),
    )


def _comoments(pair: _Sums, first: _Sums, second: _Sums, forms: Sequence[_Form]) -> Matrix:
    """Sums of (x - a)(y - b) over a pair's units, a and b the means of the whole cells."""

    def product(i: int, j: int) -> float:
        a, b = first.first[i], second.first[j]
        above = (
            (pair.products[i][j] * first.n * second.n << _POINT)
            - b * pair.first[i] * first.n
            - a * pair.second[j] * second.n
            + pair.n * a * b
        )
        divisor = first.n * second.n * forms[i].divisor * forms[j].divisor
        return above / (divisor << 2 * _POINT)

    rows = [_triple([product(i, j) for j in range(3)]) for i in range(3)]
    return rows[0], rows[1], rows[2]


def _triple(numbers: Sequence[float]) -> Triple:
    return numbers[0], numbers[1], numbers[2]


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

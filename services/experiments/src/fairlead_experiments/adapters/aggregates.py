"""Reads what was counted for a rollout, grouped by the database."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    FromClause,
    Select,
    and_,
    case,
    cast,
    exists,
    func,
    or_,
    select,
)

from fairlead_experiments.adapters.schema import BAD_UNITS, REQUESTS, UNIT_OUTCOMES, UNITS
from fairlead_experiments.domain.effect import Arm, Overlap, StepSummary, Summary
from fairlead_experiments.domain.records import (
    Aggregates,
    Kind,
    Requests,
    Rollout,
    UnitCounts,
)

_SMALLEST = 1e-150
"""Smaller distances are none: PostgreSQL refuses a product that a double cannot hold."""


def read(connection: Connection, rollout: Rollout) -> Aggregates:
    """Answer the aggregates of a rollout; the caller's transaction makes them one moment's."""
    mixed = _mixed(connection, rollout.id)
    measured: tuple[StepSummary, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    distinct: dict[str, int] = {}
    if rollout.objective:
        question = _Question(rollout.id, rollout.objective.outcome, bool(mixed))
        measured, overlaps = _moments(connection, question)
        distinct = _measured_distinct(connection, question, measured)
    return Aggregates(
        requests=_requests(connection, rollout.id),
        bad_units=_bad_units(connection, rollout.id),
        units=_units(connection, rollout.id),
        mixed=mixed,
        distinct=_distinct(connection, rollout.id),
        outcomes=_outcomes(connection, rollout),
        measured=measured,
        overlaps=overlaps,
        measured_distinct=distinct,
        unassigned=_unassigned(connection, rollout.id),
    )


def _requests(connection: Connection, rollout: str) -> dict[tuple[int, str], Requests]:
    assigned = (REQUESTS.c.rollout == rollout, REQUESTS.c.assigned == 1)
    return {
        (row.step, row.arm): Requests(
            requests=row.requests,
            answered=row.answered,
            errors=row.errors,
            slow=row.slow,
            fallbacks=row.fallbacks,
            retried=row.retried,
        )
        for row in connection.execute(select(REQUESTS).where(*assigned))
    }


def _bad_units(connection: Connection, rollout: str) -> dict[Kind, dict[tuple[int, str], int]]:
    key = BAD_UNITS.c.kind, BAD_UNITS.c.step, BAD_UNITS.c.arm
    counted = select(*key, func.count()).where(BAD_UNITS.c.rollout == rollout).group_by(*key)
    found: dict[Kind, dict[tuple[int, str], int]] = {kind: {} for kind in Kind}
    for kind, step, arm, n in connection.execute(counted):
        found[Kind(kind)][step, arm] = n
    return found


def _unassigned(connection: Connection, rollout: str) -> int:
    total = select(func.coalesce(func.sum(REQUESTS.c.requests), 0))
    of_none = total.where(REQUESTS.c.rollout == rollout, REQUESTS.c.assigned == 0)
    return int(connection.scalar(of_none) or 0)


def _units(connection: Connection, rollout: str) -> dict[tuple[int, str], UnitCounts]:
    exposed = select(UNITS.c.step, UNITS.c.arm, func.count()).where(UNITS.c.rollout == rollout)
    grouped = exposed.group_by(UNITS.c.step, UNITS.c.arm)
    other = UNITS.alias("other")
    seen_elsewhere = exists().where(
        other.c.rollout == UNITS.c.rollout,
        other.c.unit == UNITS.c.unit,
        or_(
            other.c.step < UNITS.c.step,
            and_(other.c.step == UNITS.c.step, other.c.arm != UNITS.c.arm),
        ),
    )
    new = {(step, arm): n for step, arm, n in connection.execute(grouped.where(~seen_elsewhere))}
    return {
        (step, arm): UnitCounts(units=n, new=new.get((step, arm), 0))
        for step, arm, n in connection.execute(grouped)
    }


def _mixed(connection: Connection, rollout: str) -> dict[int, int]:
    twice = (
        select(UNITS.c.step)
        .where(UNITS.c.rollout == rollout)
        .group_by(UNITS.c.unit, UNITS.c.step)
        .having(func.count() > 1)
        .subquery()
    )
    counted = select(twice.c.step, func.count()).group_by(twice.c.step)
    return {row[0]: row[1] for row in connection.execute(counted)}


def _distinct(connection: Connection, rollout: str) -> dict[str, int]:
    counted = select(UNITS.c.arm, func.count(UNITS.c.unit.distinct()))
    rows = connection.execute(counted.where(UNITS.c.rollout == rollout).group_by(UNITS.c.arm))
    return {row[0]: row[1] for row in rows}


def _outcomes(connection: Connection, rollout: Rollout) -> dict[str, int]:
    """Outcomes per arm: of the objective, or of any name where there is none."""
    counted = select(UNIT_OUTCOMES.c.arm, func.sum(UNIT_OUTCOMES.c.n))
    counted = counted.where(UNIT_OUTCOMES.c.rollout == rollout.id)
    if rollout.objective:
        counted = counted.where(UNIT_OUTCOMES.c.outcome == rollout.objective.outcome)
    return {arm: int(n) for arm, n in connection.execute(counted.group_by(UNIT_OUTCOMES.c.arm))}


# --- the objective --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Question:
    """Whose values are asked for; leaving out nobody is cheaper where nobody is mixed."""

    rollout: str
    outcome: str
    has_mixed: bool


def _unit_means(question: _Question, source: FromClause) -> Select[Any]:
    """Each unit's mean outcome in a step, without units that met both arms in it."""
    mean = _distance(source.c.total) / cast(source.c.n, Double)
    found = select(source.c.unit, source.c.step, source.c.arm, mean.label("y")).where(
        source.c.rollout == question.rollout, source.c.outcome == question.outcome
    )
    if not question.has_mixed:
        return found
    met = UNITS.alias()
    other_arm = exists().where(
        met.c.rollout == source.c.rollout,
        met.c.unit == source.c.unit,
        met.c.step == source.c.step,
        met.c.arm != source.c.arm,
    )
    return found.where(~other_arm)


def _distance(value: ColumnElement[float]) -> ColumnElement[float]:
    return case((func.abs(value) < _SMALLEST, 0.0), else_=value)


def _moments(
    connection: Connection, question: _Question
) -> tuple[tuple[StepSummary, ...], tuple[Overlap, ...]]:
    """Means, M2 and products across steps, by pairing each unit's steps in the database.

    Values are taken as distances from their common mean, so that a large offset does not cancel.
    """
    values = _unit_means(question, UNIT_OUTCOMES).subquery()
    centre = connection.scalar(select(func.avg(values.c.y))) or 0.0
    x = _distance(values.c.y - centre)
    sums = func.count().label("n"), func.sum(x).label("first"), func.sum(x * x).label("square")
    key = values.c.step, values.c.arm
    cells = {
        (row.step, row.arm): Summary(
            row.n, row.first / row.n, max(0.0, row.square - row.first * row.first / row.n)
        )
        for row in connection.execute(select(*key, *sums).group_by(*key))
    }
    overlaps = tuple(
        Overlap(row.step, Arm(row.arm), row.other_step, Arm(row.other_arm), _comoment(row, cells))
        for row in connection.execute(_pairs(question, centre))
    )
    return _summaries(cells, centre), overlaps


def _pairs(question: _Question, centre: float) -> Select[Any]:
    values = _unit_means(question, UNIT_OUTCOMES.alias("a")).subquery("first_step")
    others = _unit_means(question, UNIT_OUTCOMES.alias("b")).subquery("other_step")
    x, y = _distance(values.c.y - centre), _distance(others.c.y - centre)
    key = (values.c.step, values.c.arm, others.c.step, others.c.arm)
    return (
        select(
            values.c.step,
            values.c.arm,
            others.c.step.label("other_step"),
            others.c.arm.label("other_arm"),
            func.count().label("n"),
            func.sum(x * y).label("product"),
            func.sum(x).label("first"),
            func.sum(y).label("second"),
        )
        .where(values.c.unit == others.c.unit, values.c.step < others.c.step)
        .group_by(*key)
        .order_by(*key)
    )


def _comoment(row: Any, cells: dict[tuple[int, str], Summary]) -> float:
    """Sum of (x - a)(y - b) over the shared units, a and b the means of the whole cells."""
    a = cells[row.step, row.arm].mean
    b = cells[row.other_step, row.other_arm].mean
    return float(row.product - b * row.first - a * row.second + row.n * a * b)


def _summaries(cells: dict[tuple[int, str], Summary], centre: float) -> tuple[StepSummary, ...]:
    def cell(step: int, arm: Arm) -> Summary:
        found = cells.get((step, arm))
        return Summary(found.n, found.mean + centre, found.m2) if found else Summary()

    return tuple(
        StepSummary(step, cell(step, Arm.STABLE), cell(step, Arm.CANDIDATE))
        for step in sorted({step for step, _ in cells})
    )


def _measured_distinct(
    connection: Connection,
    question: _Question,
    measured: tuple[StepSummary, ...],
) -> dict[str, int]:
    """Distinct measured units per arm, over the steps that enter the estimate."""
    values = _unit_means(question, UNIT_OUTCOMES).subquery()
    entered = [step.index for step in measured if step.is_comparable]
    counted = select(values.c.arm, func.count(values.c.unit.distinct()))
    rows = connection.execute(counted.where(values.c.step.in_(entered)).group_by(values.c.arm))
    return {row[0]: row[1] for row in rows}

"""Reads what was counted for a rollout, grouped by the database."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, exists, func, or_, select

from fairlead_experiments.adapters import measures
from fairlead_experiments.adapters.schema import BAD_UNITS, REQUESTS, UNIT_OUTCOMES, UNITS
from fairlead_experiments.domain.records import (
    Aggregates,
    Kind,
    Requests,
    Rollout,
    UnitCounts,
)


def read(connection: Connection, rollout: Rollout, at: datetime) -> Aggregates:
    """Answer the aggregates of a rollout; the caller's transaction makes them one moment's.

    Args:
        connection: A transaction that sees one moment.
        rollout: Whose aggregates.
        at: The time now: whether a window is over is asked of it.
    """
    mixed, mixed_distinct = _mixed(connection, rollout.id)
    measured: dict[str, Any] = {}
    if rollout.objective:
        measured = measures.read(connection, rollout, at, has_mixed=mixed_distinct > 0)
    return Aggregates(
        requests=_requests(connection, rollout.id),
        bad_units=_bad_units(connection, rollout.id),
        units=_units(connection, rollout.id),
        mixed=mixed,
        mixed_distinct=mixed_distinct,
        distinct=_distinct(connection, rollout.id),
        outcomes=_outcomes(connection, rollout),
        unassigned=_unassigned(connection, rollout.id),
        **measured,
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


def _mixed(connection: Connection, rollout: str) -> tuple[dict[int, int], int]:
    """Per step the units that are mixed by then, and how many there are in all."""
    crossed = measures.crossed(rollout).cte("crossed")
    total = connection.scalar(select(func.count()).select_from(crossed)) or 0
    if not total:
        return {}, 0
    counted = (
        select(UNITS.c.step, func.count(UNITS.c.unit.distinct()))
        .join(crossed, crossed.c.unit == UNITS.c.unit)
        .where(UNITS.c.rollout == rollout, UNITS.c.step >= crossed.c.since)
        .group_by(UNITS.c.step)
    )
    return {row[0]: row[1] for row in connection.execute(counted)}, total


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

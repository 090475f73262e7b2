"""Reads what was counted for a rollout: some hundred rows at most, however much was sent."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from fairlead_experiments.adapters import measures
from fairlead_experiments.adapters.ledger import read_moments
from fairlead_experiments.adapters.schema import COUNTERS, REQUESTS
from fairlead_experiments.domain.counting import (
    Count,
    is_followed,
    measured_distinct,
    summarise,
)
from fairlead_experiments.domain.linear import entered_steps
from fairlead_experiments.domain.records import (
    Aggregates,
    Kind,
    Requests,
    Rollout,
    Standing,
    UnitCounts,
)

_Counts = dict[tuple[str, int, str], int]
"""By name, step and arm; the step is -1 for what is counted over all steps."""

_EVERY_STEP = -1


def read(connection: Connection, rollout: Rollout, at: datetime) -> Aggregates:
    """Answer the aggregates of a rollout; the caller's transaction makes them one moment's.

    Args:
        connection: A transaction that sees one moment.
        rollout: Whose aggregates.
        at: The time now: whether a window is over is asked of it.
    """
    found = _counts(connection, rollout.id)
    mixed = {step: n for (_, step, _), n in found.get(Count.MIXED, {}).items()}
    mixed_distinct = mixed.pop(_EVERY_STEP, 0)
    return Aggregates(
        requests=_requests(connection, rollout.id),
        bad_units={
            kind: {(step, arm): n for (_, step, arm), n in found.get(kind, {}).items()}
            for kind in Kind
        },
        units=_units(found),
        mixed=mixed,
        mixed_distinct=mixed_distinct,
        distinct={arm: n for (_, _, arm), n in found.get(Count.DISTINCT, {}).items()},
        outcomes=_outcomes(found, rollout),
        unassigned=_unassigned(connection, rollout.id),
        **_objective(connection, rollout, at, found, has_mixed=mixed_distinct > 0),
    )


def _objective(
    connection: Connection,
    rollout: Rollout,
    at: datetime,
    found: dict[str, _Counts],
    *,
    has_mixed: bool,
) -> dict[str, Any]:
    """Answer the parts that are about the objective, by name: counted, or else swept."""
    if rollout.objective is None:
        return {}
    if not is_followed(rollout):
        return measures.read(connection, rollout, at, has_mixed=has_mixed)
    moments, shared = summarise(read_moments(connection, rollout.id))
    measured = {
        (step.index, str(arm)): of.n
        for step in moments
        for arm, of in (("stable", step.stable), ("candidate", step.candidate))
        if of.n
    }
    return {
        "moments": moments,
        "shared": shared,
        "standing": _standing(found, measured),
        "standing_distinct": _standing_distinct(
            found, entered_steps(moments, is_ratio=rollout.objective.is_ratio)
        ),
    }


def _standing(
    found: dict[str, _Counts], measured: dict[tuple[int, str], int]
) -> dict[tuple[int, str], Standing]:
    waiting, capped = found.get(Count.WAITING, {}), found.get(Count.CAPPED, {})
    cells = measured.keys() | {(step, arm) for _, step, arm in waiting if step != _EVERY_STEP}
    return {
        cell: Standing(
            measured=measured.get(cell, 0),
            waiting=waiting.get(("", *cell), 0),
            capped=capped.get(("", *cell), 0),
        )
        for cell in cells
    }


def _standing_distinct(found: dict[str, _Counts], entered: frozenset[int]) -> dict[str, Standing]:
    masks = {(arm, mask): n for (mask, _, arm), n in found.get(Count.MEASURED, {}).items()}
    measured = measured_distinct(masks, entered)
    waiting = {
        arm: n for (_, step, arm), n in found.get(Count.WAITING, {}).items() if step == _EVERY_STEP
    }
    capped = found.get(Count.CAPPED, {})
    return {
        arm: Standing(
            measured=measured.get(arm, 0),
            waiting=waiting.get(arm, 0),
            capped=sum(n for (_, _, of), n in capped.items() if of == arm),
        )
        for arm in {*waiting, *(of for of, _ in masks)}
    }


def _counts(connection: Connection, rollout: str) -> dict[str, _Counts]:
    found: dict[str, _Counts] = {}
    counted = select(COUNTERS).where(COUNTERS.c.rollout == rollout, COUNTERS.c.n != 0)
    for _, kind, name, step, arm, n in connection.execute(counted):
        found.setdefault(kind, {})[name, step, arm] = n
    return found


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


def _units(found: dict[str, _Counts]) -> dict[tuple[int, str], UnitCounts]:
    new = found.get(Count.NEW, {})
    return {
        (step, arm): UnitCounts(units=n, new=new.get(("", step, arm), 0))
        for (_, step, arm), n in found.get(Count.UNITS, {}).items()
    }


def _outcomes(found: dict[str, _Counts], rollout: Rollout) -> dict[str, int]:
    """Outcomes per arm: of the objective, or of any name where there is none."""
    total: dict[str, int] = {}
    for (name, _, arm), n in found.get(Count.OUTCOMES, {}).items():
        if rollout.objective is None or name == rollout.objective.outcome:
            total[arm] = total.get(arm, 0) + n
    return total


def _unassigned(connection: Connection, rollout: str) -> int:
    total = select(func.coalesce(func.sum(REQUESTS.c.requests), 0))
    of_none = total.where(REQUESTS.c.rollout == rollout, REQUESTS.c.assigned == 0)
    return int(connection.scalar(of_none) or 0)

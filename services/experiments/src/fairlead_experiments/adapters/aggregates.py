"""Reads what was counted for a rollout: some hundred rows at most, however much was sent."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from fairlead_experiments.adapters.details import change_until
from fairlead_experiments.adapters.ledger import read_moments
from fairlead_experiments.adapters.schema import COUNTERS, REQUESTS
from fairlead_experiments.domain.counting import (
    Count,
    CountKey,
    Pair,
    Sums,
    measured_distinct,
    plus,
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
from fairlead_experiments.domain.times import microseconds

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
    changed, more = change_until(connection, rollout, microseconds(at))
    found = _counts(connection, rollout.id, changed)
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
        **_objective(connection, rollout, found, more),
    )


def _objective(
    connection: Connection,
    rollout: Rollout,
    found: dict[str, _Counts],
    more: dict[Pair, Sums],
) -> dict[str, Any]:
    """Answer the parts that are about the objective, by name."""
    objective = rollout.objective
    if objective is None:
        return {}
    sums = read_moments(connection, rollout.id)
    sums |= {pair: plus(sums[pair], s) if pair in sums else s for pair, s in more.items()}
    moments, shared = summarise(
        {pair: s for pair, s in sums.items() if s[0]},
        is_ratio=objective.is_ratio,
        has_covariate=objective.covariate is not None,
    )
    measured = {
        (step.index, str(arm)): of.n
        for step in moments
        for arm, of in (("stable", step.stable), ("candidate", step.candidate))
        if of.n
    }
    standing = _standing(found, measured)
    return {
        "moments": moments,
        "shared": shared,
        "standing": standing,
        "standing_distinct": _standing_distinct(
            found, standing, entered_steps(moments, is_ratio=objective.is_ratio)
        ),
        "refused": {arm: n for (_, _, arm), n in found.get(Count.REFUSED, {}).items()},
    }


def _standing(
    found: dict[str, _Counts], measured: dict[tuple[int, str], int]
) -> dict[tuple[int, str], Standing]:
    waiting, missing = found.get(Count.WAITING, {}), found.get(Count.MISSING, {})
    capped, covered = found.get(Count.CAPPED, {}), found.get(Count.COVERED, {})
    silent = {(step, arm) for _, step, arm in (*waiting, *missing) if step != _EVERY_STEP}
    return {
        cell: Standing(
            measured=measured.get(cell, 0),
            waiting=waiting.get(("", *cell), 0),
            missing=missing.get(("", *cell), 0),
            capped=capped.get(("", *cell), 0),
            covered=covered.get(("", *cell), 0),
        )
        for cell in measured.keys() | silent
    }


def _standing_distinct(
    found: dict[str, _Counts], standing: dict[tuple[int, str], Standing], entered: frozenset[int]
) -> dict[str, Standing]:
    measured, covered = (
        measured_distinct(
            {(arm, mask): n for (mask, _, arm), n in found.get(kind, {}).items() if mask}, entered
        )
        for kind in (Count.MEASURED, Count.COVERED)
    )
    waiting, missing = found.get(Count.WAITING, {}), found.get(Count.MISSING, {})
    return {
        arm: Standing(
            measured=measured.get(arm, 0),
            waiting=waiting.get(("", _EVERY_STEP, arm), 0),
            missing=missing.get(("", _EVERY_STEP, arm), 0),
            capped=sum(part.capped for (_, of), part in standing.items() if of == arm),
            covered=covered.get(arm, 0),
        )
        for arm in {arm for _, arm in standing}
    }


def _counts(
    connection: Connection, rollout: str, changed: Mapping[CountKey, int]
) -> dict[str, _Counts]:
    counted = select(COUNTERS).where(COUNTERS.c.rollout == rollout)
    known = Counter({tuple(row[1:5]): row.n for row in connection.execute(counted)})
    known.update(changed)
    found: dict[str, _Counts] = {}
    for (kind, name, step, arm), n in known.items():
        if n:
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

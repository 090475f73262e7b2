"""Counts a rollout afresh: how it is counted came or changed, by its record or a release.

Its units have their turns in their order, some in a transaction, and batches come in between. What
these change is counted at once of a unit that has had its turn; of another it is only kept. An
analysis waits until all have had theirs.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

from sqlalchemy import Connection, delete, select, text

from fairlead_experiments.adapters.database import is_server
from fairlead_experiments.adapters.details import is_far, note_last_request
from fairlead_experiments.adapters.ledger import Ledger, add_counts, add_moments, count_until
from fairlead_experiments.adapters.progress import between, counted_to, note_counted
from fairlead_experiments.adapters.schema import (
    COUNTERS,
    DETAILS,
    MOMENTS,
    REQUESTS,
    UNIT_OUTCOMES,
    UNITS,
)
from fairlead_experiments.adapters.traffic import count_requests, count_unassigned
from fairlead_experiments.domain.counting import (
    CountKey,
    Pair,
    Sums,
    Unit,
    count_change,
    is_detailed,
)
from fairlead_experiments.domain.records import Rollout

AT_ONCE = 10_000
"""Rows of units that one transaction counts: a part of a second of the one writer."""

DETAILED_AT_ONCE = 1_000
"""As many where what was sent of each unit is read again."""


def is_behind(connection: Connection, rollout: Rollout, at: int) -> bool:
    """Tell whether much has to be counted before a rollout's counts can be those of a time."""
    return counted_to(connection, rollout.id) is not None or is_far(connection, rollout, at)


def catch_up(connection: Connection, rollout: Rollout, at: int) -> None:
    """Count some units more; where all are counted, those whose window has ended by a time."""
    if count_more(connection, rollout):
        count_until(connection, rollout, at)


def start_count(connection: Connection, rollout: Rollout) -> None:
    """Have all of a rollout counted: how it is counted came or changed."""
    for table in (REQUESTS, COUNTERS, MOMENTS):
        connection.execute(delete(table).where(table.c.rollout == rollout.id))
    count_unassigned(connection, rollout)
    if is_detailed(rollout):
        note_last_request(connection, rollout.id)
        _analyze(connection, rollout.id)
    note_counted(connection, rollout.id, "")


def count_more(connection: Connection, rollout: Rollout) -> bool:
    """Count the next units of a rollout; answer whether all are counted."""
    start = counted_to(connection, rollout.id)
    if start is None:
        return True
    at_once = DETAILED_AT_ONCE if is_detailed(rollout) else AT_ONCE
    rows = select(UNITS.c.unit).where(between(UNITS, rollout.id, start)).order_by(UNITS.c.unit)
    end = connection.scalar(rows.offset(at_once - 1).limit(1))
    note_counted(connection, rollout.id, end)
    mine = between(UNITS, rollout.id, start, end)
    units = sorted(connection.scalars(select(UNITS.c.unit).where(mine).distinct()))
    if units:
        count_requests(connection, rollout, units)
        connection.execute(delete(DETAILS).where(between(DETAILS, rollout.id, start, end)))
        if is_detailed(rollout):
            Ledger(connection, {rollout.id: rollout}).count_afresh(rollout, units)
        else:
            _count_plain(connection, rollout, start, end)
    return end is None


def _count_plain(connection: Connection, rollout: Rollout, start: str, end: str | None) -> None:
    counted: Counter[CountKey] = Counter()
    sums: dict[Pair, Sums] = {}
    for unit in _units_between(connection, rollout, start, end):
        count_change(rollout, (Unit(), 0), (unit, 0), counted, sums)
    add_counts(connection, rollout.id, counted)
    add_moments(connection, rollout.id, sums)


def _units_between(
    connection: Connection, rollout: Rollout, start: str, end: str | None
) -> Iterator[Unit]:
    """Answer units in their order, by walking through both tables side by side."""
    cells = select(UNITS).where(between(UNITS, rollout.id, start, end)).order_by(UNITS.c.unit)
    outcomes = (
        select(UNIT_OUTCOMES)
        .where(between(UNIT_OUTCOMES, rollout.id, start, end))
        .order_by(UNIT_OUTCOMES.c.unit)
    )
    measured = groupby(connection.execute(outcomes), key=itemgetter(1))
    unit, rows = next(measured, (None, iter(())))
    for met, found in groupby(connection.execute(cells), key=itemgetter(1)):
        here = frozenset((row.step, row.arm) for row in found)
        if unit != met:
            yield Unit(here)
            continue
        yield Unit(here, {(r.outcome, r.step, r.arm): (r.n, r.total) for r in rows})
        unit, rows = next(measured, (None, iter(())))


def _analyze(connection: Connection, rollout: str) -> None:
    """Let PostgreSQL know what came lately: else its plan for the join of the rows takes minutes.

    A rollout that nobody has met yet, as when its record comes first, has nothing to join.
    """
    met = select(UNITS.c.unit).where(UNITS.c.rollout == rollout).limit(1)
    if is_server(connection) and connection.scalar(met) is not None:
        connection.execute(text("ANALYZE exposures, outcomes"))

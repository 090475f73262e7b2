"""What goes when it is old: rows of closed rollouts, and outcomes that belong to no exposure.

A rollout goes one way: open, closed (it takes nothing more), concluded (its last analysis is kept),
emptied (its rows are gone). Its record, its counts and its decisions stay. Each step is one short
transaction of the one writer, so batches that are sent meanwhile come in between; a process that
dies leaves what the next one goes on with.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Table, delete, func, select, text, tuple_, update

from fairlead_experiments.adapters import pairs
from fairlead_experiments.adapters.bulk import delete_rows
from fairlead_experiments.adapters.database import Checked, among, is_server
from fairlead_experiments.adapters.partitions import (
    drop,
    is_before,
    is_empty,
    names,
    rollouts_in,
)
from fairlead_experiments.adapters.schema import (
    BAD_UNITS,
    DETAILS,
    EXPOSURES,
    OUTCOMES,
    ROLLOUTS,
    UNIT_OUTCOMES,
    UNITS,
)
from fairlead_experiments.app.documents import load_rollout
from fairlead_experiments.domain.records import Outcome
from fairlead_experiments.domain.times import microseconds

AT_ONCE = 5_000
"""Rows that one transaction removes of a table: some tens of milliseconds."""

_SLACK = timedelta(days=1)
"""Outcomes that were still there when a rollout began stay while it is open.

A pass is made more often than that, so none that the rollout saw is older.
"""

_MICROSECOND = timedelta(microseconds=1)
_DROP_WAITS = "SET LOCAL lock_timeout = '1s'"  # Whoever reads waits behind a drop that waits.
_OPEN = ROLLOUTS.c.closed_at.is_(None)
_CONCLUDED = ROLLOUTS.c.last_analysis.is_not(None)


# --- what comes too late --------------------------------------------------------------------


def closed_among(connection: Connection, rollouts: set[str]) -> set[str]:
    """Answer which of some rollouts are closed."""
    mine = among(connection, ROLLOUTS.c.id, sorted(rollouts))
    return set(connection.scalars(select(ROLLOUTS.c.id).where(mine, ~_OPEN)))


def outcomes_of_closed(connection: Connection, outcomes: Sequence[Outcome]) -> set[int]:
    """Answer the places of the outcomes that belong to a closed rollout.

    An outcome by inference id whose exposure is not there may wait for it, unless it was observed
    before a closed rollout was decided: exposures do not come as late as that. An outcome of a unit
    is the unit's, not a rollout's: it may explain a part of a later one.
    """
    decided = connection.scalar(select(func.max(ROLLOUTS.c.decided_at)).where(~_OPEN))
    if decided is None:
        return set()
    ids = sorted({o.inference_id for o in outcomes if o.inference_id is not None})
    found = (
        select(EXPOSURES.c.inference_id, ROLLOUTS.c.closed_at)
        .join(ROLLOUTS, ROLLOUTS.c.id == EXPOSURES.c.rollout, isouter=True)
        .where(among(connection, EXPOSURES.c.inference_id, ids))
    )
    closed_at = {row.inference_id: row.closed_at for row in connection.execute(found)}
    return {
        place
        for place, outcome in enumerate(outcomes)
        if (key := outcome.inference_id) is not None
        and (closed_at[key] is not None if key in closed_at else outcome.observed_at <= decided)
    }


# --- what goes ------------------------------------------------------------------------------


class SqlArchive(Checked):
    """Lets go what is older than it has to be (see `app.ports.Archive`)."""

    def close(self, *, decided_before: datetime, now: datetime) -> int:
        """Close the rollouts that were decided before a time; answer how many."""
        old = update(ROLLOUTS).where(_OPEN, ROLLOUTS.c.decided_at < microseconds(decided_before))
        with self._writing() as connection:
            return connection.execute(old.values(closed_at=microseconds(now))).rowcount

    def list_closing(self) -> list[str]:
        """Answer the closed rollouts whose last analysis is not made yet."""
        found = select(ROLLOUTS.c.id).where(~_OPEN, ~_CONCLUDED).order_by(ROLLOUTS.c.id)
        with self._reading() as connection:
            return list(connection.scalars(found))

    def conclude(self, rollout: str, analysis: str) -> None:
        """Keep the last analysis of a closed rollout; the first one stays."""
        mine = update(ROLLOUTS).where(ROLLOUTS.c.id == rollout, ~_OPEN, ~_CONCLUDED)
        with self._writing() as connection:
            connection.execute(mine.values(last_analysis=analysis))

    def drop_partitions(self, *, before: datetime) -> int:
        """Drop what holds nothing but rows of concluded rollouts; SQLite has no partitions."""
        if not is_server(self._engine):
            return 0
        end = microseconds(before)
        with self._reading() as connection:
            old = [
                (table, name)
                for table in (EXPOSURES, OUTCOMES)
                for name in sorted(names(connection, table))
                if is_before(name, end)
            ]
        return sum(self._drop(table, name) for table, name in old)

    def _drop(self, table: Table, name: str) -> bool:
        with self._writing() as connection:
            if name not in names(connection, table) or not _is_over(connection, table, name):
                return False
            connection.execute(text(_DROP_WAITS))
            drop(connection, name)
        return True

    def remove_rows(self) -> int | None:
        """Remove some rows of a concluded rollout; answer how many, or None if none are left."""
        waiting = select(ROLLOUTS.c.id).where(_CONCLUDED, ROLLOUTS.c.is_emptied == 0)
        with self._writing() as connection:
            rollout = connection.scalar(waiting.order_by(ROLLOUTS.c.id).limit(1))
            if rollout is None:
                return None
            removed = _remove_exposures(connection, rollout) or _remove_units(connection, rollout)
            if not removed:
                mine = update(ROLLOUTS).where(ROLLOUTS.c.id == rollout)
                connection.execute(mine.values(is_emptied=1))
            return removed

    def remove_outcomes(self, *, keep: timedelta, now: datetime) -> Iterator[int]:
        """Remove outcomes that belong to no exposure, some at a time; answer how many each time.

        They were observed longer than `keep` ago; of a unit whose model has an open rollout with a
        covariate, longer than `keep` before that rollout began.
        """
        key = OUTCOMES.c.subject, OUTCOMES.c.outcome, OUTCOMES.c.moment
        old = OUTCOMES.c.observed_at < microseconds(now - keep)
        after: tuple[Any, ...] = ("", "", 0)
        while True:
            page = select(OUTCOMES).where(old, tuple_(*key) > after).order_by(*key)
            with self._reading() as connection:
                rows = connection.execute(page.limit(AT_ONCE)).all()
                gone = _unheld(connection, rows, keep + _SLACK)
            if gone:
                with self._writing() as connection:
                    gone = _unheld(connection, _again(connection, gone), keep + _SLACK)
                    delete_rows(connection, OUTCOMES, [(*r[:3], r.observed_at) for r in gone])
            yield len(gone)
            if len(rows) < AT_ONCE:
                return
            after = tuple(rows[-1][:3])

    def remove_comparisons(self, *, before: datetime) -> int:
        """Remove comparisons of shadows whose last pair came before a time; answer how many."""
        with self._writing() as connection:
            return pairs.remove_comparisons(connection, microseconds(before))


def _is_over(connection: Connection, table: Table, name: str) -> bool:
    """Whether nobody needs a row of a partition any more."""
    if table is OUTCOMES:
        return is_empty(connection, name)
    concluded = set(connection.scalars(select(ROLLOUTS.c.id).where(_CONCLUDED)))
    return all(rollout in concluded for rollout in rollouts_in(connection, name))


def _remove_exposures(connection: Connection, rollout: str) -> int:
    """Remove some exposures with the outcomes of their inference ids."""
    key = select(EXPOSURES.c.inference_id, EXPOSURES.c.at)
    found = connection.execute(key.where(EXPOSURES.c.rollout == rollout).limit(AT_ONCE)).all()
    ids = among(connection, OUTCOMES.c.inference_id, [row.inference_id for row in found])
    connection.execute(delete(OUTCOMES).where(ids, OUTCOMES.c.model.is_(None)))
    delete_rows(connection, EXPOSURES, [tuple(row) for row in found])
    return len(found)


def _remove_units(connection: Connection, rollout: str) -> int:
    """Remove some rows of each table of units, in their order."""
    removed = 0
    for table in (UNITS, UNIT_OUTCOMES, DETAILS, BAD_UNITS):
        mine = table.c.rollout == rollout
        ordered = select(table.c.unit).where(mine).order_by(table.c.unit)
        last = connection.scalar(ordered.offset(AT_ONCE - 1).limit(1))
        some = (
            delete(table).where(mine)
            if last is None
            else delete(table).where(mine, table.c.unit <= last)
        )
        removed += connection.execute(some).rowcount
    return removed


def _floors(connection: Connection, keep: timedelta) -> dict[str, int]:
    """Per model: outcomes of units as old as this may be a covariate of an open rollout."""
    floors: dict[str, int] = {}
    for document in connection.scalars(select(ROLLOUTS.c.document).where(_OPEN)):
        rollout = load_rollout(document)
        if rollout.objective and rollout.objective.covariate:
            floor = microseconds(rollout.started_at) - keep // _MICROSECOND
            floors[rollout.model] = min(floor, floors.get(rollout.model, floor))
    return floors


def _again(connection: Connection, rows: Sequence[Any]) -> list[Any]:
    """Read outcomes again: a late exposure may have taken one over, a later value its place."""
    known = {(*row[:3], row.observed_at) for row in rows}
    subjects = among(connection, OUTCOMES.c.subject, sorted({row.subject for row in rows}))
    moments = among(connection, OUTCOMES.c.moment, sorted({row.moment for row in rows}))
    found = connection.execute(select(OUTCOMES).where(subjects, moments))
    return [row for row in found if (*row[:3], row.observed_at) in known]


def _unheld(connection: Connection, rows: Sequence[Any], keep: timedelta) -> list[Any]:
    """Answer the outcomes that belong to no exposure and are no covariate."""
    floors = _floors(connection, keep)
    ids = among(
        connection,
        EXPOSURES.c.inference_id,
        sorted({row.inference_id for row in rows if row.inference_id is not None}),
    )
    held = set(connection.scalars(select(EXPOSURES.c.inference_id).where(ids)))
    return [
        row
        for row in rows
        if row.inference_id not in held
        and (row.model is None or row.observed_at < floors.get(row.model, row.observed_at + 1))
    ]

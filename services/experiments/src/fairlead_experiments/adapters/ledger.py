"""The units that one transaction touches: read once, changed in memory, written and counted once."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, delete, select

from fairlead_experiments.adapters.bulk import add_rows, delete_rows, insert_rows, replace_rows
from fairlead_experiments.adapters.database import among
from fairlead_experiments.adapters.details import (
    Known,
    change_until,
    due_until,
    next_time,
    note_time,
    read_kept,
    read_rows,
)
from fairlead_experiments.adapters.progress import counted_to, is_counted
from fairlead_experiments.adapters.schema import (
    COUNTERS,
    DETAILS,
    MOMENTS,
    UNIT_OUTCOMES,
    UNITS,
)
from fairlead_experiments.domain.counting import (
    Cell,
    CountKey,
    Pair,
    Sums,
    Unit,
    count_change,
    is_detailed,
    plus,
    read_sums,
    write_sums,
)
from fairlead_experiments.domain.records import Rollout

UnitKey = tuple[str, str]
"""A rollout and a unit."""

Measured = tuple[str, int, str]
"""An outcome's name, a step and an arm."""


class Ledger:
    """Follows what a transaction changes about units, and what that changes about the counts.

    A rollout without a record is not counted: nobody can ask for its analysis, and what its
    record says decides how it is counted. The record's coming counts all that is there.

    Args:
        connection: A writing transaction.
        records: The records of the rollouts that are touched, as far as there are any.
    """

    def __init__(self, connection: Connection, records: Mapping[str, Rollout]) -> None:
        self._connection = connection
        self._records = records
        self._cells: dict[UnitKey, set[Cell]] = {}
        self._outcomes: dict[UnitKey, dict[Measured, tuple[int, float]]] = {}
        self._details: dict[UnitKey, Known] = {}
        self._before: dict[UnitKey, Unit] = {}

    def meet(self, met: set[tuple[str, str, int, str]]) -> None:
        """Note that units met arms: (rollout, unit, step, arm)."""
        self._load_cells({(rollout, unit) for rollout, unit, _, _ in met})
        new = [row for row in met if row[2:] not in self._cells[row[:2]]]
        self._load_outcomes({row[:2] for row in new})
        for rollout, unit, step, arm in new:
            self._cells[rollout, unit].add((step, arm))
        insert_rows(self._connection, UNITS, sorted(new))

    def touch(self, keys: Iterable[UnitKey]) -> None:
        """Note that rows were sent of units whose single outcomes may matter."""
        self._load_all({key for key in keys if self._is_detailed(key[0])})

    def add(self, measured: Iterable[tuple[UnitKey, Measured, float]]) -> None:
        """Add outcomes to what units measured."""
        given = list(measured)
        self._load_all({key for key, _, _ in given})
        for key, place, value in given:
            n, total = self._outcomes[key].get(place, (0, 0.0))
            self._outcomes[key][place] = n + 1, total + value

    def put(
        self, counted: Mapping[tuple[UnitKey, str], Mapping[Measured, tuple[int, float]]]
    ) -> None:
        """Replace all that units measured of an outcome."""
        self._load_all({key for key, _ in counted})
        for (key, name), found in counted.items():
            others = {m: v for m, v in self._outcomes[key].items() if m[0] != name}
            self._outcomes[key] = {**others, **found}

    def save(self) -> None:
        """Write what changed, and count it."""
        self._write_outcomes()
        self._refresh()
        self._write_details()
        for rollout, units in _by_rollout(self._before).items():
            if rollout in self._records:
                self._count(self._records[rollout], units)

    def _count(self, rollout: Rollout, units: list[str]) -> None:
        counted: Counter[CountKey] = Counter()
        sums: dict[Pair, Sums] = {}
        at = due_until(self._connection, rollout.id) if is_detailed(rollout) else 0
        end = counted_to(self._connection, rollout.id)
        for unit in units:
            if not is_counted(unit, end):
                continue
            before, after = self._before[rollout.id, unit], self._unit((rollout.id, unit))
            count_change(rollout, (before, at), (after, at), counted, sums)
        add_counts(self._connection, rollout.id, counted)
        add_moments(self._connection, rollout.id, sums)

    def _unit(self, key: UnitKey) -> Unit:
        details, covariate = self._details.get(key, ({}, None))
        return Unit(frozenset(self._cells[key]), dict(self._outcomes[key]), details, covariate)

    def _is_detailed(self, rollout: str) -> bool:
        return rollout in self._records and is_detailed(self._records[rollout])

    def _refresh(self) -> None:
        """Read anew what single outcomes say: a late exposure or a value may change any of it."""
        for rollout, units in _by_rollout(self._before).items():
            if self._is_detailed(rollout):
                known = read_rows(self._connection, self._records[rollout], units)
                self._details.update(((rollout, unit), found) for unit, found in known.items())

    def _load_all(self, keys: set[UnitKey]) -> None:
        self._load_cells(keys)
        self._load_outcomes(keys)

    def _load_cells(self, keys: set[UnitKey]) -> None:
        unknown = keys - self._cells.keys()
        self._cells.update((key, set()) for key in unknown)
        for rollout, units in _by_rollout(unknown).items():
            found = select(UNITS.c.unit, UNITS.c.step, UNITS.c.arm)
            mine = UNITS.c.rollout == rollout, among(self._connection, UNITS.c.unit, units)
            for unit, step, arm in self._connection.execute(found.where(*mine)):
                self._cells[rollout, unit].add((step, arm))

    def _load_outcomes(self, keys: set[UnitKey]) -> None:
        unknown = keys - self._outcomes.keys()
        self._outcomes.update((key, {}) for key in unknown)
        table = UNIT_OUTCOMES.c
        for rollout, units in _by_rollout(unknown).items():
            mine = table.rollout == rollout, among(self._connection, table.unit, units)
            found = select(*(c for c in table if c is not table.rollout)).where(*mine)
            for unit, name, step, arm, n, total in self._connection.execute(found):
                self._outcomes[rollout, unit][name, step, arm] = n, total
            if self._is_detailed(rollout):
                kept = read_kept(self._connection, rollout, units)
                self._details.update(((rollout, unit), found) for unit, found in kept.items())
        self._before.update((key, self._unit(key)) for key in unknown)

    def count_afresh(self, rollout: Rollout, units: list[str]) -> None:
        """Count units of which nothing is counted, and write down their details."""
        keys = {(rollout.id, unit) for unit in units}
        self._load_all(keys)
        self._before = dict.fromkeys(keys, Unit())
        self._refresh()
        self._write_details()
        self._count(rollout, units)

    def _write_details(self) -> None:
        rows = []
        for key, (details, covariate) in self._details.items():
            before = self._before[key]
            if covariate != before.covariate:
                before = Unit()
            rows += [
                (*key, *cell, d.first_at, d.n, d.total, d.denominator, d.refused, covariate)
                for cell, d in details.items()
                if before.details.get(cell) != d
            ]
        replace_rows(self._connection, DETAILS, sorted(rows))

    def _write_outcomes(self) -> None:
        changed, gone = [], []
        for key, before in self._before.items():
            now = self._outcomes[key]
            changed += [(*key, *m, *v) for m, v in now.items() if before.outcomes.get(m) != v]
            gone += [(*key, *m) for m in before.outcomes if m not in now]
        delete_rows(self._connection, UNIT_OUTCOMES, gone)
        replace_rows(self._connection, UNIT_OUTCOMES, sorted(changed))


# --- the passing of time --------------------------------------------------------------------


def count_until(connection: Connection, rollout: Rollout, at: int) -> None:
    """Count a step further those whose window has ended by a time."""
    if at <= due_until(connection, rollout.id):
        return
    then = next_time(connection, rollout, at)
    counted, sums = change_until(connection, rollout, then)
    add_counts(connection, rollout.id, counted)
    add_moments(connection, rollout.id, sums)
    note_time(connection, rollout.id, then)


# --- what is counted ------------------------------------------------------------------------


def add_counts(connection: Connection, rollout: str, counted: Mapping[CountKey, int]) -> None:
    """Add to the counts of a rollout."""
    changed = sorted((key, n) for key, n in counted.items() if n)
    add_rows(connection, COUNTERS, [(rollout, *key, n) for key, n in changed])
    if any(n < 0 for _, n in changed):
        nothing = delete(COUNTERS).where(COUNTERS.c.rollout == rollout, COUNTERS.c.n == 0)
        connection.execute(nothing)


def read_moments(connection: Connection, rollout: str) -> dict[Pair, Sums]:
    """Answer the sums of a rollout."""
    found = connection.execute(select(MOMENTS).where(MOMENTS.c.rollout == rollout))
    return {
        ((step, arm), (other_step, other_arm)): read_sums(n, text)
        for _, step, arm, other_step, other_arm, n, text in found
    }


def add_moments(connection: Connection, rollout: str, sums: Mapping[Pair, Sums]) -> None:
    """Add to the sums of a rollout."""
    if not sums:
        return
    known = read_moments(connection, rollout)
    now = {pair: plus(known[pair], s) if pair in known else s for pair, s in sums.items()}
    rows = [(rollout, *a, *b, found[0], write_sums(found)) for (a, b), found in now.items()]
    replace_rows(connection, MOMENTS, sorted(row for row in rows if row[5]))
    delete_rows(connection, MOMENTS, sorted(row[:5] for row in rows if not row[5]))


def _by_rollout(keys: Iterable[UnitKey]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for rollout, unit in sorted(keys):
        found[rollout].append(unit)
    return found

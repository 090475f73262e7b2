"""What single outcomes of units say, for objectives that ask for the time or value of each.

A window is over by the passing of time, without anybody writing. So the counts of such a rollout
are those as of one moment, kept with it (`rollouts.due_until`). A reader who asks for another
moment finds by index the units whose window ended between the two, and changes in memory what they
change: the counts are then exactly those of the moment it asks for, earlier or later. Where these
are many, they are first written into the counts, some at a time.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from sqlalchemy import ColumnElement, Connection, and_, func, select, update

from fairlead_experiments.adapters.database import among
from fairlead_experiments.adapters.schema import DETAILS, EXPOSURES, OUTCOMES, ROLLOUTS, UNITS
from fairlead_experiments.domain.counting import (
    Cell,
    CountKey,
    Detail,
    Pair,
    Sums,
    Unit,
    count_change,
    covariate,
    detail,
    window_of,
)
from fairlead_experiments.domain.records import Rollout

AT_ONCE = 1_000
"""Cells that a reader changes in memory; more are written into the counts first."""

STEP = 5_000
"""Cells that one transaction writes into the counts: less than a second of the one writer."""

Known = tuple[dict[Cell, Detail], float | None]
"""A unit's details, and its covariate."""


def read_kept(connection: Connection, rollout: str, units: Sequence[str]) -> dict[str, Known]:
    """Answer the details of units as they are kept."""
    found: dict[str, Known] = {unit: ({}, None) for unit in units}
    mine = DETAILS.c.rollout == rollout, among(connection, DETAILS.c.unit, units)
    for row in connection.execute(select(DETAILS).where(*mine)):
        details, _ = found[row.unit]
        details[row.step, row.arm] = Detail(
            row.first_at, row.n, row.total, row.denominator, row.refused
        )
        found[row.unit] = details, row.covariate
    return found


def read_rows(connection: Connection, rollout: Rollout, units: Sequence[str]) -> dict[str, Known]:
    """Answer the details of units by what was sent of them."""
    first_at = _first(connection, rollout.id, units)
    outcomes = _outcomes(connection, rollout, units)
    earliest: dict[str, int] = {}
    for (unit, _), at in first_at.items():
        earliest[unit] = min(at, earliest.get(unit, at))
    before = _before(connection, rollout, earliest)
    found: dict[str, Known] = {
        unit: ({}, covariate(rollout, before.get(unit, []))) for unit in units
    }
    for (unit, cell), at in first_at.items():
        found[unit][0][cell] = detail(rollout, at, outcomes.get((unit, cell), []))
    return found


def _first(
    connection: Connection, rollout: str, units: Sequence[str]
) -> dict[tuple[str, Cell], int]:
    key = EXPOSURES.c.unit, EXPOSURES.c.step, EXPOSURES.c.arm
    mine = EXPOSURES.c.rollout == rollout, among(connection, EXPOSURES.c.unit, units)
    found = select(*key, func.min(EXPOSURES.c.at)).where(*mine).group_by(*key)
    return {(unit, (step, arm)): at for unit, step, arm, at in connection.execute(found)}


def _outcomes(
    connection: Connection, rollout: Rollout, units: Sequence[str]
) -> dict[tuple[str, Cell], list[tuple[str, float, int]]]:
    objective = rollout.objective
    names = (
        [name for name in (objective.outcome, objective.denominator) if name] if objective else []
    )
    key = EXPOSURES.c.unit, EXPOSURES.c.step, EXPOSURES.c.arm
    told = OUTCOMES.c.outcome, OUTCOMES.c.value, OUTCOMES.c.observed_at
    rows = (
        select(*key, *told)
        .join(OUTCOMES, OUTCOMES.c.inference_id == EXPOSURES.c.inference_id)
        .where(
            EXPOSURES.c.rollout == rollout.id,
            among(connection, EXPOSURES.c.unit, units),
            OUTCOMES.c.outcome.in_(names),
        )
    )
    found: defaultdict[tuple[str, Cell], list[tuple[str, float, int]]] = defaultdict(list)
    for unit, step, arm, name, value, at in connection.execute(rows):
        found[unit, (step, arm)].append((name, value, at))
    return found


def _before(
    connection: Connection, rollout: Rollout, earliest: dict[str, int]
) -> dict[str, list[float]]:
    """Each unit's values of the covariate before its first request."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    if rollout.objective is None or rollout.objective.covariate is None:
        return found
    rows = select(OUTCOMES.c.unit, OUTCOMES.c.value, OUTCOMES.c.observed_at).where(
        OUTCOMES.c.model == rollout.model,
        OUTCOMES.c.outcome == rollout.objective.covariate,
        among(connection, OUTCOMES.c.unit, sorted(earliest)),
    )
    for unit, value, at in connection.execute(rows):
        if at < earliest[unit]:
            found[unit].append(value)
    return found


# --- the passing of time --------------------------------------------------------------------


def due_until(connection: Connection, rollout: str) -> int:
    """Answer the time as of which a rollout is counted."""
    return connection.scalar(select(ROLLOUTS.c.due_until).where(ROLLOUTS.c.id == rollout)) or 0


def is_far(connection: Connection, rollout: Rollout, at: int) -> bool:
    """Tell whether the windows of many cells have ended since a rollout was counted."""
    if window_of(rollout) is None:
        return False
    since = due_until(connection, rollout.id)
    if at <= since:
        return False
    ended = select(DETAILS.c.unit).where(_between(rollout, since, at)).limit(AT_ONCE + 1)
    return len(connection.execute(ended).all()) > AT_ONCE


def change_until(
    connection: Connection, rollout: Rollout, at: int
) -> tuple[Counter[CountKey], dict[Pair, Sums]]:
    """Answer what the counts change by when they become those of another time."""
    counted: Counter[CountKey] = Counter()
    sums: dict[Pair, Sums] = {}
    if window_of(rollout) is None:
        return counted, sums
    since = due_until(connection, rollout.id)
    # Not DISTINCT: SQLite would walk through all units in their order for it.
    ended = select(DETAILS.c.unit).where(_between(rollout, *sorted((since, at))))
    for unit in _units(connection, rollout.id, sorted(set(connection.scalars(ended)))):
        count_change(rollout, (unit, since), (unit, at), counted, sums)
    return counted, sums


def next_time(connection: Connection, rollout: Rollout, at: int) -> int:
    """Answer how far the counts can be taken in one step: to `at`, or not quite."""
    since, window = due_until(connection, rollout.id), window_of(rollout) or 0
    ended = select(DETAILS.c.first_at).where(_between(rollout, since, at))
    last = connection.scalar(ended.order_by(DETAILS.c.first_at).offset(STEP - 1).limit(1))
    return at if last is None else int(last) + window


def note_last_request(connection: Connection, rollout: str) -> None:
    """Have a rollout that is counted afresh counted as of its last request, if that is later."""
    last = connection.scalar(select(func.max(EXPOSURES.c.at)).where(EXPOSURES.c.rollout == rollout))
    if last is not None and last > due_until(connection, rollout):
        note_time(connection, rollout, last)


def note_time(connection: Connection, rollout: str, at: int) -> None:
    """Note the time as of which a rollout is counted from now on."""
    connection.execute(update(ROLLOUTS).where(ROLLOUTS.c.id == rollout).values(due_until=at))


def _between(rollout: Rollout, since: int, at: int) -> ColumnElement[bool]:
    """Cells whose window ended after one time, and by another."""
    window = window_of(rollout) or 0
    return and_(
        DETAILS.c.rollout == rollout.id,
        DETAILS.c.first_at > since - window,
        DETAILS.c.first_at <= at - window,
    )


def _units(connection: Connection, rollout: str, units: Sequence[str]) -> Iterator[Unit]:
    """Answer units with what of them depends on time."""
    for start in range(0, len(units), STEP):
        some = units[start : start + STEP]
        cells: defaultdict[str, set[Cell]] = defaultdict(set)
        mine = UNITS.c.rollout == rollout, among(connection, UNITS.c.unit, some)
        for unit, step, arm in connection.execute(
            select(UNITS.c.unit, UNITS.c.step, UNITS.c.arm).where(*mine)
        ):
            cells[unit].add((step, arm))
        for unit, (details, found) in read_kept(connection, rollout, some).items():
            yield Unit(frozenset(cells[unit]), {}, details, found)

"""The store over SQL: SQLite for one machine, PostgreSQL for a cluster.

Every write is one transaction with no other writer beside it (`database.writing`), in bulk
statements. New rows are counted by adding to the aggregates. What changes a count after the fact
(a replaced value, a unit's outcome that belongs to another exposure than thought) counts the
touched units afresh from the rows, so that sums stay exact.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    text,
    update,
)

from fairlead_experiments.adapters import aggregates
from fairlead_experiments.adapters.database import (
    among,
    reading,
    upsert,
    upsert_earliest,
    writing,
)
from fairlead_experiments.adapters.schema import (
    BAD_UNITS,
    DECISIONS,
    EXPOSURES,
    OUTCOMES,
    REQUESTS,
    ROLLOUTS,
    UNIT_OUTCOMES,
    UNITS,
)
from fairlead_experiments.app.documents import (
    dump_decision,
    dump_rollout,
    load_decision,
    load_rollout,
)
from fairlead_experiments.app.validation import microseconds
from fairlead_experiments.domain.effect import Arm
from fairlead_experiments.domain.records import (
    Aggregates,
    Counts,
    Decision,
    Exposure,
    Kind,
    Outcome,
    Rollout,
)

T = TypeVar("T")
Key = tuple[Any, ...]
Touched = set[tuple[str, str, str]]
"""(rollout, outcome, unit) whose counts have to be made afresh."""

# PostgreSQL's protocol counts parameters in 16 bits, SQLite stops at 32,766; a statement here
# binds at most four lists of this length.
_CHUNK = 5_000
_NO_ANSWER = 0
_CLIENT_LEFT = 499
_SERVER_ERROR = 500


class SqlStore:
    """Keeps exposures, outcomes and rollouts in a database (see `app.ports.Store`).

    Args:
        engine: The database.
        check_tables: Raises while the tables are not up to date.
    """

    def __init__(self, engine: Engine, check_tables: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._check_tables = check_tables

    @contextmanager
    def _reading(self, *, is_sweep: bool = False) -> Iterator[Connection]:
        self._check_tables()
        with reading(self._engine, is_sweep=is_sweep) as connection:
            yield connection

    @contextmanager
    def _writing(self, *, is_long: bool = False) -> Iterator[Connection]:
        self._check_tables()
        with writing(self._engine, is_long=is_long) as connection:
            yield connection

    def check(self) -> None:
        """Raise unless the database answers."""
        with self._reading() as connection:
            connection.execute(text("SELECT 1"))

    def add_exposures(self, exposures: Sequence[Exposure]) -> Counts:
        """Keep each exposure the first time its inference id comes."""
        if not exposures:
            return Counts(0, 0)
        first = {e.inference_id: e for e in reversed(exposures)}
        with self._writing() as connection:
            known = set(_matching(connection, EXPOSURES.c.inference_id, first))
            new = [e for e in first.values() if e.inference_id not in known]
            if new:
                _insert_exposures(connection, new)
        return Counts(len(new), len(exposures) - len(new))

    def add_outcomes(self, outcomes: Sequence[Outcome]) -> Counts:
        """Keep each outcome, the one observed last where several have one key."""
        if not outcomes:
            return Counts(0, 0)
        latest = _latest(outcomes)
        with self._writing() as connection:
            known = _known_outcomes(connection, list(latest.values()))
            new = [o for key, o in latest.items() if key not in known]
            later = [o for key, o in latest.items() if key in known and _replaces(o, known[key])]
            _insert_outcomes(connection, new)
            _replace_outcomes(connection, later)
        changed = len(new) + len(later)
        return Counts(changed, len(outcomes) - changed)

    def put_rollout(self, rollout: Rollout) -> None:
        """Keep or replace the record; what depends on it is counted afresh if it changed."""
        bad = {
            "stable": rollout.stable,
            "candidate": rollout.candidate,
            "slower_than": rollout.latency.slower_than if rollout.latency else None,
        }
        row = {
            **bad,
            "model": rollout.model,
            "started_at": microseconds(rollout.started_at),
            "document": dump_rollout(rollout),
        }
        with self._writing(is_long=True) as connection:
            kept = select(ROLLOUTS).where(ROLLOUTS.c.id == rollout.id)
            before = connection.execute(kept).mappings().one_or_none()
            if before:
                connection.execute(
                    update(ROLLOUTS).where(ROLLOUTS.c.id == rollout.id).values(**row)
                )
            else:
                connection.execute(insert(ROLLOUTS).values(id=rollout.id, **row))
            if before is None or any(before[name] != value for name, value in bad.items()):
                _count_requests_afresh(connection, rollout.id)
            if before is None or before["model"] != rollout.model:
                met = select(UNITS.c.unit).where(UNITS.c.rollout == rollout.id)
                _attach(connection, OUTCOMES.c.unit.in_(met))

    def get_rollout(self, rollout: str) -> Rollout | None:
        """Answer the record, or None."""
        with self._reading() as connection:
            document = connection.scalar(
                select(ROLLOUTS.c.document).where(ROLLOUTS.c.id == rollout)
            )
        return None if document is None else load_rollout(document)

    def list_rollouts(self, model: str | None) -> list[Rollout]:
        """Answer all records, or a model's, the latest start first."""
        found = select(ROLLOUTS.c.document).order_by(ROLLOUTS.c.started_at.desc(), ROLLOUTS.c.id)
        if model is not None:
            found = found.where(ROLLOUTS.c.model == model)
        with self._reading() as connection:
            return [load_rollout(row) for row in connection.scalars(found)]

    def put_decision(self, decision: Decision) -> None:
        """Keep a decision; the same one again changes nothing."""
        same = (DECISIONS.c.rollout == decision.rollout, DECISIONS.c.id == decision.id)
        row = {"at": decision.at, "document": dump_decision(decision)}
        with self._writing() as connection:
            if not connection.execute(update(DECISIONS).where(*same).values(**row)).rowcount:
                key = {"rollout": decision.rollout, "id": decision.id}
                connection.execute(insert(DECISIONS).values(**key, **row))

    def list_decisions(self, rollout: str) -> list[Decision]:
        """Answer a rollout's decisions, the earliest first."""
        found = (
            select(DECISIONS)
            .where(DECISIONS.c.rollout == rollout)
            .order_by(DECISIONS.c.at, DECISIONS.c.id)
        )
        with self._reading() as connection:
            return [
                load_decision(row.rollout, row.id, row.at, row.document)
                for row in connection.execute(found)
            ]

    def last_decision_at(self, rollout: str) -> int | None:
        """Answer when the newest decision was taken, in microseconds since 1970, or None."""
        with self._reading() as connection:
            at: int | None = connection.scalar(
                select(func.max(DECISIONS.c.at)).where(DECISIONS.c.rollout == rollout)
            )
        return at

    def read_aggregates(self, rollout: Rollout, at: datetime) -> Aggregates:
        """Answer what was counted for a rollout, as of one moment."""
        with self._reading(is_sweep=True) as connection:
            return aggregates.read(connection, rollout, at)


# --- exposures ------------------------------------------------------------------------------


def _insert_exposures(connection: Connection, new: list[Exposure]) -> None:
    connection.execute(insert(EXPOSURES), [_exposure_row(e) for e in new])
    _count_units(connection, new)
    for chunk in _chunks([e.inference_id for e in new]):
        _count_requests(connection, among(connection, EXPOSURES.c.inference_id, chunk))
    _count_waiting_outcomes(connection, {e.inference_id: e for e in new})
    units = sorted({e.unit for e in new if e.unit is not None})
    for chunk in _chunks(units):
        _attach(connection, among(connection, OUTCOMES.c.unit, chunk))


def _exposure_row(exposure: Exposure) -> dict[str, object]:
    return {
        "inference_id": exposure.inference_id,
        "rollout": exposure.rollout,
        "step": exposure.step,
        "arm": exposure.arm,
        "version": exposure.version,
        "unit": exposure.unit,
        "at": exposure.at,
        "code": exposure.code,
        "attempts": exposure.attempts,
        "duration_ms": exposure.duration_ms,
    }


def _count_units(connection: Connection, new: list[Exposure]) -> None:
    met = Counter((e.rollout, e.unit, e.step, e.arm) for e in new if e.unit is not None)
    rows = [
        {"rollout": rollout, "unit": unit, "step": step, "arm": arm, "requests": n}
        for (rollout, unit, step, arm), n in met.items()
    ]
    if rows:
        connection.execute(upsert(connection, UNITS, ("requests",)), rows)


# --- requests -------------------------------------------------------------------------------

# What makes a request bad is told by the database alone, from an exposure and its rollout's record,
# so that what is added batch by batch is what counting afresh finds. Without a record no version is
# known to stand in and none is slow; the record's coming counts afresh. When the client left, nobody
# knows how the request would have ended: it counts against nobody, and is no answer either.

_STAYED = EXPOSURES.c.code != _CLIENT_LEFT
_ANSWERED = EXPOSURES.c.code.not_in([_NO_ANSWER, _CLIENT_LEFT])
_FAILED = or_(EXPOSURES.c.code == _NO_ANSWER, EXPOSURES.c.code >= _SERVER_ERROR)
_RETRIED = and_(_STAYED, EXPOSURES.c.attempts > 1)
_OWN = case((EXPOSURES.c.arm == str(Arm.CANDIDATE), ROLLOUTS.c.candidate), else_=ROLLOUTS.c.stable)
_STOOD_IN = and_(_STAYED, EXPOSURES.c.version != "", EXPOSURES.c.version != _OWN)
_BAD: dict[Kind, ColumnElement[bool]] = {
    Kind.ERRORS: or_(_FAILED, _RETRIED, _STOOD_IN),
    Kind.SLOW: and_(_ANSWERED, EXPOSURES.c.duration_ms > ROLLOUTS.c.slower_than * 1000.0),
}
_RECORDED = EXPOSURES.outerjoin(ROLLOUTS, ROLLOUTS.c.id == EXPOSURES.c.rollout)


def _count_requests(connection: Connection, chosen: ColumnElement[bool]) -> None:
    """Add the chosen exposures to the requests of their step and arm, and to the bad units."""
    key = {
        "rollout": EXPOSURES.c.rollout,
        "step": EXPOSURES.c.step,
        "arm": EXPOSURES.c.arm,
        "assigned": case(
            (EXPOSURES.c.unit.is_(None), literal_column("0")), else_=literal_column("1")
        ),
    }
    counters: dict[str, ColumnElement[Any]] = {
        "requests": func.count(),
        "answered": _number_of(_ANSWERED),
        "errors": _number_of(_BAD[Kind.ERRORS]),
        "slow": _number_of(_BAD[Kind.SLOW]),
        "fallbacks": _number_of(_STOOD_IN),
        "retried": _number_of(_RETRIED),
    }
    named = [column.label(name) for name, column in {**key, **counters}.items()]
    counted = select(*named).select_from(_RECORDED).where(chosen).group_by(*key.values())
    adding = upsert(connection, REQUESTS, tuple(counters))
    connection.execute(adding.from_select([*key, *counters], counted))
    for kind in Kind:
        _note_bad_units(connection, kind, chosen)


def _number_of(what: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((what, 1), else_=0))


def _note_bad_units(connection: Connection, kind: Kind, chosen: ColumnElement[bool]) -> None:
    """Keep each unit's first bad request, by the time it was made, whenever it arrives."""
    order = EXPOSURES.c.at, EXPOSURES.c.inference_id
    place = func.row_number().over(
        partition_by=(EXPOSURES.c.rollout, EXPOSURES.c.unit), order_by=order
    )
    names = ("rollout", "unit", "step", "arm", "at", "inference_id")
    bad = (
        select(*(EXPOSURES.c[name] for name in names), place.label("place"))
        .select_from(_RECORDED)
        .where(chosen, EXPOSURES.c.unit.is_not(None), _BAD[kind])
        .subquery()
    )
    first = select(literal(str(kind)), *(bad.c[name] for name in names)).where(bad.c.place == 1)
    connection.execute(upsert_earliest(connection, BAD_UNITS).from_select(["kind", *names], first))


def _count_requests_afresh(connection: Connection, rollout: str) -> None:
    """Count a rollout's requests from the rows: what makes them bad came or changed."""
    for table in (REQUESTS, BAD_UNITS):
        connection.execute(delete(table).where(table.c.rollout == rollout))
    _count_requests(connection, EXPOSURES.c.rollout == rollout)


# --- outcomes before their exposure ---------------------------------------------------------


def _count_waiting_outcomes(connection: Connection, new: dict[str, Exposure]) -> None:
    """Count the outcomes that came before their exposure."""
    found = select(OUTCOMES.c.inference_id, OUTCOMES.c.outcome, OUTCOMES.c.value)
    measured = [
        (new[row.inference_id], row.outcome, row.value)
        for chunk in _chunks(list(new))
        for row in connection.execute(
            found.where(among(connection, OUTCOMES.c.inference_id, chunk))
        )
    ]
    _add_measured(connection, measured)


# --- outcomes -------------------------------------------------------------------------------


def _key(outcome: Any) -> Key:
    return outcome.subject, outcome.outcome, outcome.moment


def _replaces(later: Outcome, earlier: Any) -> bool:
    """Whether an outcome takes the place of one with its key.

    The one observed last wins, not the one that came last: a replay must not undo a correction.
    Where both were observed at once, the one that came last wins.
    """
    if later.observed_at == earlier.observed_at:
        return bool(later.value != earlier.value)
    return bool(later.observed_at > earlier.observed_at)


def _latest(outcomes: Sequence[Outcome]) -> dict[Key, Outcome]:
    latest: dict[Key, Outcome] = {}
    for outcome in outcomes:
        key = _key(outcome)
        if key not in latest or _replaces(outcome, latest[key]):
            latest[key] = outcome
    return latest


def _known_outcomes(connection: Connection, outcomes: list[Outcome]) -> dict[Key, Any]:
    found: dict[Key, Any] = {}
    for chunk in _chunks(outcomes):
        rows = connection.execute(
            select(OUTCOMES).where(
                among(connection, OUTCOMES.c.subject, {o.subject for o in chunk}),
                among(connection, OUTCOMES.c.outcome, {o.outcome for o in chunk}),
                among(connection, OUTCOMES.c.moment, {o.moment for o in chunk}),
            )
        )
        found.update((_key(row), row) for row in rows)
    return found


def _insert_outcomes(connection: Connection, new: list[Outcome]) -> None:
    if not new:
        return
    connection.execute(insert(OUTCOMES), [asdict(o) for o in new])
    by_inference: defaultdict[str, list[Outcome]] = defaultdict(list)
    for outcome in new:
        if outcome.inference_id is not None:
            by_inference[outcome.inference_id].append(outcome)
    measured = [
        (row, outcome.outcome, outcome.value)
        for row in _exposed(connection, by_inference)
        for outcome in by_inference[row.inference_id]
    ]
    _add_measured(connection, measured)
    units = sorted({o.unit for o in new if o.unit is not None})
    for chunk in _chunks(units):
        _attach(connection, among(connection, OUTCOMES.c.unit, chunk))


def _replace_outcomes(connection: Connection, later: list[Outcome]) -> None:
    if not later:
        return
    rows = [
        {
            "subject_": o.subject,
            "outcome_": o.outcome,
            "moment_": o.moment,
            "value_": o.value,
            "observed_": o.observed_at,
        }
        for o in later
    ]
    same = [OUTCOMES.c[name] == bindparam(f"{name}_") for name in ("subject", "outcome", "moment")]
    replaced = update(OUTCOMES).where(*same)
    connection.execute(
        replaced.values(value=bindparam("value_"), observed_at=bindparam("observed_")), rows
    )
    attached = {
        key: row.inference_id
        for key, row in _known_outcomes(connection, later).items()
        if row.inference_id is not None
    }
    exposed = {row.inference_id: row for row in _exposed(connection, set(attached.values()))}
    _count_afresh(
        connection,
        {
            (exposed[found].rollout, key[1], exposed[found].unit)
            for key, found in attached.items()
            if key in {_key(o) for o in later} and found in exposed
        },
    )


def _exposed(connection: Connection, inference_ids: Iterable[str]) -> Iterator[Any]:
    """The exposures of units with these ids."""
    found = select(EXPOSURES).where(EXPOSURES.c.unit.is_not(None))
    for chunk in _chunks(sorted(inference_ids)):
        yield from connection.execute(
            found.where(among(connection, EXPOSURES.c.inference_id, chunk))
        )


# --- outcomes of units ----------------------------------------------------------------------


def _attach(connection: Connection, chosen: ColumnElement[bool]) -> None:
    """Attach units' outcomes to exposures; count afresh what that changes.

    An outcome of a unit and model belongs to the unit's latest exposure, at or before it was
    observed, in any rollout of that model: the arm it met last is the one it can be an effect of.
    That is a function of what has been sent, whatever came first.
    """
    met = (
        select(EXPOSURES.c.inference_id)
        .join(ROLLOUTS, ROLLOUTS.c.id == EXPOSURES.c.rollout)
        .where(
            EXPOSURES.c.unit == OUTCOMES.c.unit,
            ROLLOUTS.c.model == OUTCOMES.c.model,
            EXPOSURES.c.at <= OUTCOMES.c.observed_at,
        )
        .order_by(EXPOSURES.c.at.desc(), EXPOSURES.c.inference_id.desc())
        .limit(1)
        .scalar_subquery()
    )
    found = connection.execute(
        select(OUTCOMES, met.label("met")).where(OUTCOMES.c.model.is_not(None), chosen)
    )
    moved = [row for row in found if row.met != row.inference_id]
    if moved:
        _move(connection, moved)


def _move(connection: Connection, moved: list[Any]) -> None:
    same = [OUTCOMES.c[name] == bindparam(f"{name}_") for name in ("subject", "outcome", "moment")]
    connection.execute(
        update(OUTCOMES).where(*same).values(inference_id=bindparam("met_")),
        [
            {"subject_": r.subject, "outcome_": r.outcome, "moment_": r.moment, "met_": r.met}
            for r in moved
        ],
    )
    ends = {found for row in moved for found in (row.inference_id, row.met) if found is not None}
    exposed = {row.inference_id: row for row in _exposed(connection, ends)}
    _count_afresh(
        connection,
        {
            (exposed[found].rollout, row.outcome, row.unit)
            for row in moved
            for found in (row.inference_id, row.met)
            if found in exposed
        },
    )


# --- what units measured --------------------------------------------------------------------


def _add_measured(connection: Connection, measured: list[tuple[Any, str, float]]) -> None:
    """Add outcomes to the units of their exposures; requests without a unit have none."""
    counts: defaultdict[Key, list[float]] = defaultdict(lambda: [0, 0.0])
    for exposure, outcome, value in measured:
        if exposure.unit is not None:
            row = counts[exposure.rollout, outcome, exposure.unit, exposure.step, exposure.arm]
            row[0] += 1
            row[1] += value
    if counts:
        rows = [_unit_outcome(key, int(n), total) for key, (n, total) in counts.items()]
        connection.execute(upsert(connection, UNIT_OUTCOMES, ("n", "total")), rows)


def _unit_outcome(key: Key, n: int, total: float) -> dict[str, object]:
    names = ("rollout", "outcome", "unit", "step", "arm")
    return {**dict(zip(names, key, strict=True)), "n": n, "total": total}


def _count_afresh(connection: Connection, touched: Touched) -> None:
    """Count units' outcomes from the rows."""
    if not touched:
        return
    same = and_(*(UNIT_OUTCOMES.c[n] == bindparam(f"{n}_") for n in ("rollout", "outcome", "unit")))
    connection.execute(
        delete(UNIT_OUTCOMES).where(same),
        [{"rollout_": r, "outcome_": o, "unit_": u} for r, o, u in touched],
    )
    key = (
        EXPOSURES.c.rollout,
        OUTCOMES.c.outcome,
        EXPOSURES.c.unit,
        EXPOSURES.c.step,
        EXPOSURES.c.arm,
    )
    counted = (
        select(*key, func.count(), func.sum(OUTCOMES.c.value))
        .join(OUTCOMES, OUTCOMES.c.inference_id == EXPOSURES.c.inference_id)
        .group_by(*key)
    )
    rows = [
        _unit_outcome(tuple(row[:5]), row[5], row[6])
        for chunk in _chunks(sorted({unit for _, _, unit in touched}))
        for row in connection.execute(counted.where(among(connection, EXPOSURES.c.unit, chunk)))
        if tuple(row[:3]) in touched
    ]
    if rows:
        connection.execute(insert(UNIT_OUTCOMES), rows)


# --- lists ----------------------------------------------------------------------------------


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _matching(
    connection: Connection, column: ColumnElement[str], values: Iterable[str]
) -> Iterator[str]:
    for chunk in _chunks(list(values)):
        yield from connection.scalars(select(column).where(among(connection, column, chunk)))

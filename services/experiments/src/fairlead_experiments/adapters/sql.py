"""The store over SQL: SQLite for one machine, PostgreSQL for a cluster.

Every write is one transaction with no other writer beside it (`database.writing`), in bulk
statements. New rows are counted by adding to the aggregates. What changes a count after the fact
(a replaced value, a unit's outcome that belongs to another exposure than thought) counts the
touched units afresh from the rows, so that sums stay exact.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
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
    select,
    text,
    update,
)

from fairlead_experiments.adapters import aggregates
from fairlead_experiments.adapters.database import reading, upsert, writing
from fairlead_experiments.adapters.schema import (
    BUCKETS,
    EXPOSURES,
    OUTCOMES,
    ROLLOUTS,
    UNIT_OUTCOMES,
    UNITS,
)
from fairlead_experiments.app.documents import dump_rollout, load_rollout
from fairlead_experiments.app.validation import microseconds
from fairlead_experiments.domain.records import Aggregates, Counts, Exposure, Outcome, Rollout

T = TypeVar("T")
Key = tuple[Any, ...]
Touched = set[tuple[str, str, str]]
"""(rollout, outcome, unit) whose counts have to be made afresh."""

BUCKET_MICROSECONDS = 10_000_000

# PostgreSQL's protocol counts parameters in 16 bits, SQLite stops at 32,766; a statement here
# binds at most four lists of this length.
_CHUNK = 5_000
_SERVER_ERROR = 500


class SqlStore:
    """Keeps exposures, outcomes and rollouts in a database (see `app.ports.Store`)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def check(self) -> None:
        """Raise unless the database answers."""
        with reading(self._engine) as connection:
            connection.execute(text("SELECT 1"))

    def add_exposures(self, exposures: Sequence[Exposure]) -> Counts:
        """Keep each exposure the first time its inference id comes."""
        if not exposures:
            return Counts(0, 0)
        first = {e.inference_id: e for e in reversed(exposures)}
        with writing(self._engine) as connection:
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
        with writing(self._engine) as connection:
            known = _known_outcomes(connection, list(latest.values()))
            new = [o for key, o in latest.items() if key not in known]
            later = [o for key, o in latest.items() if key in known and _replaces(o, known[key])]
            _insert_outcomes(connection, new)
            _replace_outcomes(connection, later)
        changed = len(new) + len(later)
        return Counts(changed, len(outcomes) - changed)

    def put_rollout(self, rollout: Rollout) -> None:
        """Keep or replace the record; what depends on it is counted afresh if it changed."""
        slower_than = rollout.latency.slower_than if rollout.latency else None
        row = {
            "model": rollout.model,
            "started_at": microseconds(rollout.started_at),
            "slower_than": slower_than,
            "document": dump_rollout(rollout),
        }
        with writing(self._engine) as connection:
            before = connection.execute(
                select(ROLLOUTS.c.model, ROLLOUTS.c.slower_than).where(ROLLOUTS.c.id == rollout.id)
            ).one_or_none()
            if before:
                connection.execute(
                    update(ROLLOUTS).where(ROLLOUTS.c.id == rollout.id).values(**row)
                )
            else:
                connection.execute(insert(ROLLOUTS).values(id=rollout.id, **row))
            if before is None or before.slower_than != slower_than:
                _recount_slow(connection, rollout.id, slower_than)
            if before is None or before.model != rollout.model:
                met = select(UNITS.c.unit).where(UNITS.c.rollout == rollout.id)
                _attach(connection, OUTCOMES.c.unit.in_(met))

    def get_rollout(self, rollout: str) -> Rollout | None:
        """Answer the record, or None."""
        with reading(self._engine) as connection:
            document = connection.scalar(
                select(ROLLOUTS.c.document).where(ROLLOUTS.c.id == rollout)
            )
        return None if document is None else load_rollout(document)

    def list_rollouts(self, model: str | None) -> list[Rollout]:
        """Answer all records, or a model's, the latest start first."""
        found = select(ROLLOUTS.c.document).order_by(ROLLOUTS.c.started_at.desc(), ROLLOUTS.c.id)
        if model is not None:
            found = found.where(ROLLOUTS.c.model == model)
        with reading(self._engine) as connection:
            return [load_rollout(row) for row in connection.scalars(found)]

    def read_aggregates(self, rollout: Rollout) -> Aggregates:
        """Answer what was counted for a rollout, as of one moment."""
        with reading(self._engine) as connection:
            return aggregates.read(connection, rollout)


# --- exposures ------------------------------------------------------------------------------


def _insert_exposures(connection: Connection, new: list[Exposure]) -> None:
    connection.execute(insert(EXPOSURES), [_exposure_row(e) for e in new])
    _count_units(connection, new)
    _count_requests(connection, new)
    _count_waiting_outcomes(connection, {e.inference_id: e for e in new})
    units = sorted({e.unit for e in new if e.unit is not None})
    for chunk in _chunks(units):
        _attach(connection, OUTCOMES.c.unit.in_(chunk))


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


_COUNTERS = ("requests", "answered", "failed", "retried", "slow")
_BUCKET = ("rollout", "step", "bucket", "arm", "version", "assigned")


def _count_requests(connection: Connection, new: list[Exposure]) -> None:
    bounds = _slower_than(connection, {e.rollout for e in new})
    counts: defaultdict[Key, list[int]] = defaultdict(lambda: [0] * len(_COUNTERS))
    for e in new:
        key = (
            *(e.rollout, e.step, e.at // BUCKET_MICROSECONDS, e.arm),
            *(e.version or "", int(e.unit is not None)),
        )
        row = counts[key]
        retried = e.attempts > 1
        row[0] += 1
        row[1] += e.code != 0
        row[2] += e.code == 0 or e.code >= _SERVER_ERROR or retried
        row[3] += retried
        row[4] += e.code != 0 and e.duration_ms > bounds.get(e.rollout, float("inf"))
    rows = [
        dict(zip((*_BUCKET, *_COUNTERS), (*key, *row), strict=True)) for key, row in counts.items()
    ]
    connection.execute(upsert(connection, BUCKETS, _COUNTERS), rows)


def _slower_than(connection: Connection, rollouts: set[str]) -> dict[str, float]:
    """The bound of slow answers in milliseconds; without a record, none is slow yet."""
    found = select(ROLLOUTS.c.id, ROLLOUTS.c.slower_than)
    return {
        row.id: row.slower_than * 1000.0
        for chunk in _chunks(sorted(rollouts))
        for row in connection.execute(found.where(ROLLOUTS.c.id.in_(chunk)))
        if row.slower_than is not None
    }


def _recount_slow(connection: Connection, rollout: str, slower_than: float | None) -> None:
    """Count the slow requests afresh: the bound came, went or moved."""
    of_rollout = BUCKETS.c.rollout == rollout
    connection.execute(update(BUCKETS).where(of_rollout).values(slow=0))
    if slower_than is None:
        return
    slow = (
        select(
            EXPOSURES.c.step.label("step_"),
            (EXPOSURES.c.at // BUCKET_MICROSECONDS).label("bucket_"),
            EXPOSURES.c.arm.label("arm_"),
            func.coalesce(EXPOSURES.c.version, "").label("version_"),
            case((EXPOSURES.c.unit.is_(None), 0), else_=1).label("assigned_"),
        )
        .where(EXPOSURES.c.rollout == rollout, EXPOSURES.c.code != 0)
        .where(EXPOSURES.c.duration_ms > slower_than * 1000.0)
        .subquery()
    )
    counted = select(*slow.c, func.count().label("slow_")).group_by(*slow.c)
    rows = [dict(row) for row in connection.execute(counted).mappings()]
    if rows:
        same = [BUCKETS.c[name] == bindparam(f"{name}_") for name in _BUCKET if name != "rollout"]
        recounted = update(BUCKETS).where(of_rollout, *same).values(slow=bindparam("slow_"))
        connection.execute(recounted, rows)


def _count_waiting_outcomes(connection: Connection, new: dict[str, Exposure]) -> None:
    """Count the outcomes that came before their exposure."""
    found = select(OUTCOMES.c.inference_id, OUTCOMES.c.outcome, OUTCOMES.c.value)
    measured = [
        (new[row.inference_id], row.outcome, row.value)
        for chunk in _chunks(list(new))
        for row in connection.execute(found.where(OUTCOMES.c.inference_id.in_(chunk)))
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
                OUTCOMES.c.subject.in_({o.subject for o in chunk}),
                OUTCOMES.c.outcome.in_({o.outcome for o in chunk}),
                OUTCOMES.c.moment.in_({o.moment for o in chunk}),
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
        _attach(connection, OUTCOMES.c.unit.in_(chunk))


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
        yield from connection.execute(found.where(EXPOSURES.c.inference_id.in_(chunk)))


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
        for row in connection.execute(counted.where(EXPOSURES.c.unit.in_(chunk)))
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
        yield from connection.scalars(select(column).where(column.in_(chunk)))

"""The store over SQL: SQLite for one machine, PostgreSQL for a cluster.

Every write is one transaction with no other writer beside it (`database.writing`), in bulk
statements, and changes the counts by what it changes (`ledger`, `traffic`). What changes a unit's
sum after the fact (a replaced value, an outcome that belongs to another exposure than thought)
counts that unit afresh from the rows, so that its sum stays exact.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from operator import attrgetter
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    bindparam,
    func,
    insert,
    select,
    update,
)

from fairlead_experiments.adapters import aggregates, pairs
from fairlead_experiments.adapters.bulk import delete_rows, insert_rows
from fairlead_experiments.adapters.database import Checked, among, check_release
from fairlead_experiments.adapters.ledger import Ledger, Measured, UnitKey
from fairlead_experiments.adapters.partitions import make_room
from fairlead_experiments.adapters.recount import catch_up, count_more, is_behind, start_count
from fairlead_experiments.adapters.retention import closed_among, outcomes_of_closed
from fairlead_experiments.adapters.schema import DECISIONS, EXPOSURES, OUTCOMES, ROLLOUTS, UNITS
from fairlead_experiments.adapters.traffic import add_requests
from fairlead_experiments.app.documents import (
    dump_decision,
    dump_rollout,
    load_decision,
    load_rollout,
)
from fairlead_experiments.app.errors import StoreUnavailableError
from fairlead_experiments.domain.counting import is_detailed
from fairlead_experiments.domain.predictions import Prediction, Seen
from fairlead_experiments.domain.records import (
    Aggregates,
    Closing,
    Counts,
    Decision,
    Exposure,
    Outcome,
    Rollout,
)
from fairlead_experiments.domain.times import microseconds

Key = tuple[Any, ...]

_exposure_row = attrgetter(*EXPOSURES.columns.keys())
_outcome_row = attrgetter(*OUTCOMES.columns.keys())

COUNTED_BY = 2
"""How this release counts; what another one counted is counted afresh once, at the start.

Who changes it adds a migration, be it an empty one: by that a process of the release before knows
that it must count no more.
"""

_STEPS = 5
"""How often one look counts some more; the next look goes on from there."""


class SqlStore(Checked):
    """Keeps exposures, outcomes and rollouts in a database (see `app.ports.Store`)."""

    def check(self) -> None:
        """Raise unless the database answers, and its tables are of this release."""
        with self._reading() as connection:
            check_release(connection)

    def add_exposures(self, exposures: Sequence[Exposure]) -> Counts:
        """Keep each exposure the first time its inference id comes, unless its rollout is closed."""
        if not exposures:
            return Counts(0, 0)
        with self._writing() as connection:
            closed = closed_among(connection, {e.rollout for e in exposures})
            late = tuple(n for n, e in enumerate(exposures) if e.rollout in closed)
            first = {e.inference_id: e for e in reversed(exposures) if e.rollout not in closed}
            mine = among(connection, EXPOSURES.c.inference_id, list(first))
            known = set(connection.scalars(select(EXPOSURES.c.inference_id).where(mine)))
            new = [e for e in first.values() if e.inference_id not in known]
            if new:
                _insert_exposures(connection, new)
        return Counts(len(new), len(exposures) - len(new) - len(late), late)

    def add_outcomes(self, outcomes: Sequence[Outcome]) -> Counts:
        """Keep each outcome, the one observed last where several have one key.

        Those that belong to a closed rollout are told apart (`outcomes_of_closed`).
        """
        if not outcomes:
            return Counts(0, 0)
        with self._writing() as connection:
            late = outcomes_of_closed(connection, outcomes)
            latest = _latest([o for n, o in enumerate(outcomes) if n not in late])
            known = _known_outcomes(connection, list(latest.values()))
            new = [o for key, o in latest.items() if key not in known]
            later = [o for key, o in latest.items() if key in known and _replaces(o, known[key])]
            _insert_outcomes(connection, new)
            _replace_outcomes(connection, later, known)
        changed = len(new) + len(later)
        return Counts(changed, len(outcomes) - changed - len(late), tuple(sorted(late)))

    def add_predictions(self, predictions: Sequence[Prediction], *, now: datetime) -> Counts:
        """Keep each prediction the first time it comes, and pair it with what it is a copy of."""
        if not predictions:
            return Counts(0, 0)
        with self._writing() as connection:
            new = pairs.add(connection, predictions, microseconds(now))
        return Counts(new, len(predictions) - new)

    def list_seen(
        self, model: str, *, stable: str | None, shadow: str | None, now: datetime
    ) -> list[Seen]:
        """Answer what was seen of a model's shadows, the latest first, as far as it is asked for."""
        with self._reading() as connection:
            return pairs.read(connection, model, stable, shadow, microseconds(now))

    def put_rollout(self, rollout: Rollout) -> Rollout:
        """Keep or replace the record; what depends on it is counted afresh if it changed.

        Of a closed rollout the counts stay, for what they were counted from may be gone; and with
        them what the record says of how they are counted.
        """
        with self._writing(is_long=True) as connection:
            kept = select(ROLLOUTS).where(ROLLOUTS.c.id == rollout.id)
            before = connection.execute(kept).mappings().one_or_none()
            mine = update(ROLLOUTS).where(ROLLOUTS.c.id == rollout.id)
            row = _record_row(rollout)
            if before and before["closed_at"] is not None:
                rollout = _with_counted(rollout, load_rollout(before["document"]))
                connection.execute(mine.values(document=dump_rollout(rollout)))
                return rollout
            if before:
                connection.execute(mine.values(**row))
            else:
                connection.execute(insert(ROLLOUTS).values(id=rollout.id, **row))
            is_counted_otherwise = before is None or _is_counted_otherwise(before, rollout, row)
            if is_counted_otherwise:
                # Sums by the record before cannot follow outcomes that are attached by this one.
                start_count(connection, rollout)
            if before is None or before["model"] != rollout.model:
                met = select(UNITS.c.unit).where(UNITS.c.rollout == rollout.id)
                _attach(connection, OUTCOMES.c.unit.in_(met))
            if is_counted_otherwise:
                count_more(connection, rollout)
        return rollout

    def count_stale(self) -> None:
        """Have counted afresh what an earlier release counted in another way, and has all its rows.

        Units are counted by `count_some` from then on, and whenever an analysis is asked for.
        """
        has_rows = ROLLOUTS.c.last_analysis.is_(None)
        stale = select(ROLLOUTS.c.id).where(ROLLOUTS.c.counted_by != COUNTED_BY, has_rows)
        with self._writing(is_long=True) as connection:
            for rollout in _records(connection, connection.scalars(stale)).values():
                start_count(connection, rollout)
                done = update(ROLLOUTS).where(ROLLOUTS.c.id == rollout.id)
                connection.execute(done.values(counted_by=COUNTED_BY))

    def count_some(self) -> bool:
        """Count some units of a rollout that is being counted afresh; answer whether one was."""
        has_rows = ROLLOUTS.c.last_analysis.is_(None)
        waiting = select(ROLLOUTS.c.id).where(ROLLOUTS.c.counted_to.is_not(None), has_rows)
        with self._writing() as connection:
            rollout = connection.scalar(waiting.order_by(ROLLOUTS.c.id).limit(1))
            if rollout is not None:
                count_more(connection, _records(connection, {rollout})[rollout])
        return rollout is not None

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

    def read_closing(self, rollout: str) -> Closing | None:
        """Answer how far a rollout is that is closed; None while it is open."""
        found = select(ROLLOUTS.c.closed_at, ROLLOUTS.c.last_analysis)
        closed = ROLLOUTS.c.id == rollout, ROLLOUTS.c.closed_at.is_not(None)
        with self._reading() as connection:
            row = connection.execute(found.where(*closed)).one_or_none()
        return row and Closing(row.closed_at, row.last_analysis)

    def read_aggregates(self, rollout: Rollout, at: datetime) -> Aggregates:
        """Answer what was counted for a rollout, as of one moment.

        Where much is not counted yet (units after a change of the record, windows that have ended
        since the last look) some of that is done first.
        """
        now = microseconds(at)
        for _ in range(_STEPS):
            with self._reading() as connection:
                check_release(connection)
                _check_record(connection, rollout)
                if not is_behind(connection, rollout, now):
                    return aggregates.read(connection, rollout, at)
            with self._writing() as connection:
                # The record may have changed since the caller read it, and what is counted with it.
                for current in _records(connection, {rollout.id}).values():
                    catch_up(connection, current, now)
        raise StoreUnavailableError("units are being counted: ask again")


# --- rollouts -------------------------------------------------------------------------------


def _is_counted_otherwise(before: RowMapping, rollout: Rollout, row: dict[str, Any]) -> bool:
    """Whether a request, or a unit, counts for something else than by the record before."""
    was = load_rollout(before["document"])
    tells_bad = ("model", "stable", "candidate", "slower_than")
    return was.objective != rollout.objective or any(before[n] != row[n] for n in tells_bad)


def _record_row(rollout: Rollout) -> dict[str, Any]:
    return {
        "model": rollout.model,
        "started_at": microseconds(rollout.started_at),
        "stable": rollout.stable,
        "candidate": rollout.candidate,
        "slower_than": rollout.latency.slower_than if rollout.latency else None,
        "document": dump_rollout(rollout),
        "counted_by": COUNTED_BY,
        "decided_at": microseconds(rollout.decided_at) if rollout.decided_at else None,
    }


def _with_counted(rollout: Rollout, counted: Rollout) -> Rollout:
    """Answer a record, with what another says of how its rollout is counted."""
    return replace(
        rollout,
        model=counted.model,
        stable=counted.stable,
        candidate=counted.candidate,
        objective=counted.objective,
        latency=counted.latency,
    )


def _check_record(connection: Connection, rollout: Rollout) -> None:
    """Raise if a rollout is counted by another record by now than the caller has."""
    kept = _records(connection, {rollout.id}).get(rollout.id)
    if kept is not None and _with_counted(rollout, kept) != rollout:
        raise StoreUnavailableError("the rollout's record has just changed: ask again")


# --- exposures ------------------------------------------------------------------------------


def _insert_exposures(connection: Connection, new: list[Exposure]) -> None:
    make_room(connection, EXPOSURES, (e.at for e in new))
    insert_rows(connection, EXPOSURES, [_exposure_row(e) for e in new])
    records = _records(connection, {e.rollout for e in new})
    add_requests(connection, new, records)
    ledger = Ledger(connection, records)
    ledger.meet({(e.rollout, e.unit, e.step, e.arm) for e in new if e.unit is not None})
    ledger.add(_waiting_outcomes(connection, new))
    ledger.touch({(e.rollout, e.unit) for e in new if e.unit is not None})
    ledger.save()
    _attach_to(connection, new)


def _records(connection: Connection, rollouts: Iterable[str]) -> dict[str, Rollout]:
    found = select(ROLLOUTS.c.id, ROLLOUTS.c.document)
    mine = among(connection, ROLLOUTS.c.id, sorted(rollouts))
    return {key: load_rollout(document) for key, document in connection.execute(found.where(mine))}


def _waiting_outcomes(
    connection: Connection, new: list[Exposure]
) -> Iterator[tuple[UnitKey, Measured, float]]:
    """The outcomes that came before their exposure; requests without a unit have none."""
    exposed = {e.inference_id: e for e in new if e.unit is not None}
    found = select(OUTCOMES.c.inference_id, OUTCOMES.c.outcome, OUTCOMES.c.value)
    mine = among(connection, OUTCOMES.c.inference_id, list(exposed))
    for inference_id, outcome, value in connection.execute(found.where(mine)):
        exposure = exposed[inference_id]
        assert exposure.unit is not None
        yield (exposure.rollout, exposure.unit), (outcome, exposure.step, exposure.arm), value


def _attach_to(connection: Connection, new: list[Exposure]) -> None:
    """Attach units' outcomes, which may belong to an exposure that came now."""
    exposed = [e for e in new if e.unit is not None]
    if exposed:
        earliest = min(e.at for e in exposed)
        units = among(connection, OUTCOMES.c.unit, sorted({str(e.unit) for e in exposed}))
        _attach(connection, and_(units, OUTCOMES.c.observed_at >= earliest))


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
    if not outcomes:
        return {}
    wanted = {_key(o) for o in outcomes}
    subjects = among(connection, OUTCOMES.c.subject, sorted({o.subject for o in outcomes}))
    moments = among(connection, OUTCOMES.c.moment, sorted({o.moment for o in outcomes}))
    rows = connection.execute(select(OUTCOMES).where(subjects, moments))
    return {_key(row): row for row in rows if _key(row) in wanted}


def _insert_outcomes(connection: Connection, new: list[Outcome]) -> None:
    if not new:
        return
    make_room(connection, OUTCOMES, (o.observed_at for o in new))
    insert_rows(connection, OUTCOMES, [_outcome_row(o) for o in new])
    exposed = _exposed(connection, {o.inference_id for o in new if o.inference_id is not None})
    ledger = Ledger(connection, _records(connection, {row.rollout for row in exposed.values()}))
    ledger.add(
        ((row.rollout, row.unit), (outcome.outcome, row.step, row.arm), outcome.value)
        for outcome in new
        if (row := exposed.get(outcome.inference_id or ""))
    )
    ledger.save()
    units = sorted({o.unit for o in new if o.unit is not None})
    if units:
        _attach(connection, among(connection, OUTCOMES.c.unit, units))
        _note_covariates(connection, new)


def _replace_outcomes(
    connection: Connection, later: list[Outcome], known: Mapping[Key, Any]
) -> None:
    """Put later values in the place of earlier ones, attached as these were."""
    if not later:
        return
    ids = {_key(o): known[_key(o)].inference_id for o in later}
    delete_rows(connection, OUTCOMES, [(*key, known[key].observed_at) for key in ids])
    make_room(connection, OUTCOMES, (o.observed_at for o in later))
    attached = [replace(o, inference_id=ids[_key(o)]) for o in later]
    insert_rows(connection, OUTCOMES, [_outcome_row(o) for o in attached])
    exposed = _exposed(connection, {found for found in ids.values() if found is not None})
    _count_afresh(
        connection,
        {
            ((row.rollout, row.unit), outcome.outcome)
            for outcome in attached
            if (row := exposed.get(outcome.inference_id or ""))
        },
    )
    _note_covariates(connection, attached)


def _note_covariates(connection: Connection, outcomes: Sequence[Outcome]) -> None:
    """Count units whose covariate outcomes of theirs may be."""
    told = {(o.model, o.outcome, o.unit) for o in outcomes if o.model and o.unit}
    models = among(connection, ROLLOUTS.c.model, sorted({str(model) for model, _, _ in told}))
    found = select(ROLLOUTS.c.document).where(models, ROLLOUTS.c.closed_at.is_(None))
    records = {r.id: r for r in map(load_rollout, connection.scalars(found)) if is_detailed(r)}
    ledger = Ledger(connection, records)
    ledger.touch(
        (rollout.id, str(unit))
        for rollout in records.values()
        for model, name, unit in told
        if rollout.objective and (rollout.model, rollout.objective.covariate) == (model, name)
    )
    ledger.save()


def _exposed(connection: Connection, inference_ids: set[str]) -> dict[str, Any]:
    """The exposures of units with these ids, but for those of closed rollouts."""
    if not inference_ids:
        return {}
    mine = among(connection, EXPOSURES.c.inference_id, sorted(inference_ids))
    found = (
        select(EXPOSURES)
        .join(ROLLOUTS, ROLLOUTS.c.id == EXPOSURES.c.rollout, isouter=True)
        .where(EXPOSURES.c.unit.is_not(None), mine, ROLLOUTS.c.closed_at.is_(None))
    )
    return {row.inference_id: row for row in connection.execute(found)}


# --- outcomes of units ----------------------------------------------------------------------


def _attach(connection: Connection, chosen: ColumnElement[bool]) -> None:
    """Attach units' outcomes to exposures; count afresh what that changes.

    An outcome of a unit and model belongs to the unit's latest exposure, at or before it was
    observed, in any rollout of that model: the arm it met last is the one it can be an effect of.
    That is a function of what has been sent, whatever came first; but a closed rollout gets none,
    and what belonged to it when it was closed stays apart, though its exposure be gone.
    """
    met = (
        select(EXPOSURES.c.inference_id)
        .join(ROLLOUTS, ROLLOUTS.c.id == EXPOSURES.c.rollout)
        .where(
            EXPOSURES.c.unit == OUTCOMES.c.unit,
            ROLLOUTS.c.model == OUTCOMES.c.model,
            ROLLOUTS.c.closed_at.is_(None),
            EXPOSURES.c.at <= OUTCOMES.c.observed_at,
        )
        .order_by(EXPOSURES.c.at.desc(), EXPOSURES.c.inference_id.desc())
        .limit(1)
        .scalar_subquery()
    )
    found = connection.execute(
        select(OUTCOMES, met.label("met")).where(OUTCOMES.c.model.is_not(None), chosen)
    )
    changed = [row for row in found if row.met != row.inference_id]
    held = _exposed(connection, {row.inference_id for row in changed if row.inference_id})
    moved = [row for row in changed if row.inference_id is None or row.inference_id in held]
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
    exposed = _exposed(connection, ends)
    _count_afresh(
        connection,
        {
            ((exposed[found].rollout, row.unit), row.outcome)
            for row in moved
            for found in (row.inference_id, row.met)
            if found in exposed
        },
    )


def _count_afresh(connection: Connection, touched: set[tuple[UnitKey, str]]) -> None:
    """Count units' outcomes from the rows: sums without what was taken out are then exact."""
    rollouts = sorted({rollout for (rollout, _), _ in touched})
    ledger = Ledger(connection, _records(connection, rollouts))
    for rollout in rollouts:
        mine = {(key, name) for key, name in touched if key[0] == rollout}
        ledger.put(_counted(connection, rollout, mine))
    ledger.save()


def _counted(
    connection: Connection, rollout: str, touched: set[tuple[UnitKey, str]]
) -> dict[tuple[UnitKey, str], dict[Measured, tuple[int, float]]]:
    place = EXPOSURES.c.unit, OUTCOMES.c.outcome, EXPOSURES.c.step, EXPOSURES.c.arm
    counted = (
        select(*place, func.count(), func.sum(OUTCOMES.c.value))
        .join(OUTCOMES, OUTCOMES.c.inference_id == EXPOSURES.c.inference_id)
        .where(
            EXPOSURES.c.rollout == rollout,
            among(connection, EXPOSURES.c.unit, sorted({unit for (_, unit), _ in touched})),
        )
        .group_by(*place)
    )
    found: dict[tuple[UnitKey, str], dict[Measured, tuple[int, float]]] = {t: {} for t in touched}
    for unit, name, step, arm, n, total in connection.execute(counted):
        if ((rollout, unit), name) in found:
            found[(rollout, unit), name][name, step, arm] = n, total
    return found

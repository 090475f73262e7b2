"""Counts that follow every change equal counts made afresh, on both databases, to the last bit."""

import itertools
import math
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import experiments_sweep
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, delete, func, select, update

from fairlead_experiments.adapters import details, recount, sql
from fairlead_experiments.adapters.database import reading, writing
from fairlead_experiments.adapters.ledger import count_until
from fairlead_experiments.adapters.preparation import Preparation
from fairlead_experiments.adapters.recount import count_more, start_count
from fairlead_experiments.adapters.schema import (
    BAD_UNITS,
    COUNTERS,
    DETAILS,
    EXPOSURES,
    MOMENTS,
    REQUESTS,
    ROLLOUTS,
    UNIT_OUTCOMES,
    UNITS,
)
from fairlead_experiments.adapters.sql import SqlStore
from fairlead_experiments.app.errors import StoreUnavailableError
from fairlead_experiments.app.validation import read_exposures, read_outcomes, read_rollout
from fairlead_experiments.domain.counting import (
    Count,
    is_detailed,
    moments,
    plus,
    read_sums,
    summarise,
    write_sums,
)
from fairlead_experiments.domain.linear import NOTHING
from fairlead_experiments.domain.records import Aggregates, Kind, Rollout

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
UNIT_NAMES = ("a", "b", "c", "d")
ARMS = ("stable", "candidate")
VALUES = st.sampled_from([0.0, 1.0, 0.1, -3.75, 1e9 + 0.1, 1e100, 5e-324])
SECOND = st.integers(0, 5).map(lambda s: f"2026-01-01T00:00:0{s}Z")
EXPOSURE = st.fixed_dictionaries(
    {
        "inferenceId": st.integers(0, 20),
        "unit": st.sampled_from([None, *UNIT_NAMES]),
        "arm": st.sampled_from(ARMS),
        "step": st.integers(0, 2),
        "at": SECOND,
        "code": st.sampled_from([0, 200, 422, 499, 500]),
        "attempts": st.sampled_from([1, 2]),
        "durationMs": st.sampled_from([1.0, 200.0, 300.0]),
        "version": st.sampled_from([None, "", "3", "4"]),
    }
)
OUTCOME = st.fixed_dictionaries(
    {
        "inferenceId": st.integers(0, 20),
        "outcome": st.sampled_from(["y", "z"]),
        "value": VALUES,
        "observedAt": SECOND,
    }
)
UNIT_OUTCOME = st.fixed_dictionaries(
    {
        "unit": st.sampled_from(UNIT_NAMES),
        "outcome": st.sampled_from(["y", "z"]),
        "value": VALUES,
        "observedAt": SECOND,
    }
)
DETAILED: list[dict[str, Any]] = [
    {"outcome": "y", "kind": "binary"},
    {"outcome": "y", "window": 2},
    {"outcome": "y", "window": 2, "kind": "binary", "missing": "zero"},
    {"outcome": "z", "window": 1, "missing": "zero", "cap": 0.5},
    {"outcome": "y", "covariate": "z"},
    {"outcome": "y", "covariate": "y", "cap": 2.0, "window": 3},
    {"outcome": "y", "kind": "ratio", "denominator": "z", "window": 2, "covariate": "y"},
    {"outcome": "y", "kind": "ratio", "denominator": "z", "covariate": "z", "cap": 0.5},
]
RECORD = st.fixed_dictionaries(
    {
        "candidate": st.sampled_from(["4", "5"]),
        "objective": st.sampled_from(
            [
                None,
                {"outcome": "y"},
                {"outcome": "z", "cap": 1.5},
                {"outcome": "y", "kind": "ratio", "denominator": "z"},
                *DETAILED,
            ]
        ),
        "slowerThan": st.sampled_from([None, 0.1, 0.25]),
    }
)
SENT = st.one_of(
    st.just("count"),
    st.lists(EXPOSURE, min_size=1, max_size=8),
    st.lists(OUTCOME, min_size=1, max_size=8),
    st.lists(UNIT_OUTCOME, min_size=1, max_size=4),
)
BATCH = st.one_of(SENT, RECORD)
_numbers = itertools.count()


class Case:
    """One sequence of batches, sent for a rollout and a model of its own."""

    def __init__(self, store: SqlStore) -> None:
        self.number = next(_numbers)
        self.rollout = f"r{self.number}"
        self._store = store

    def send(self, batch: Any) -> None:
        """Send a batch, or the record, or have some units counted."""
        if batch == "count":
            self._store.count_some()
        elif isinstance(batch, dict):
            self._store.put_rollout(self.record(batch))
        elif "arm" in batch[0]:
            items = [
                {**i, "inferenceId": self._id(i), "unit": i["unit"], "rollout": self.rollout}
                for i in batch
            ]
            found, rejected = read_exposures(items, now=NOW)
            assert not rejected
            self._store.add_exposures(found)
        else:
            outcomes, rejected = read_outcomes([self._outcome(i) for i in batch], now=NOW)
            assert not rejected
            self._store.add_outcomes(outcomes)

    def record(self, given: dict[str, Any]) -> Rollout:
        """The record with what varies."""
        objective, slower = given["objective"], given["slowerThan"]
        return read_rollout(
            self.rollout,
            {
                "model": f"m{self.number}",
                "stable": "3",
                "candidate": given["candidate"],
                "startedAt": "2026-01-01T00:00:00Z",
                "state": "running",
                "steps": [],
                "objective": objective and {**objective, "better": "lower", "minimumEffect": 0.1},
                "guardrails": {"latency": slower and {"slowerThan": slower, "margin": 0.25}},
            },
        )

    def _id(self, item: dict[str, Any]) -> str:
        return f"{self.number}-{item['inferenceId']}"

    def _outcome(self, item: dict[str, Any]) -> dict[str, Any]:
        if "unit" in item:
            return {**item, "model": f"m{self.number}"}
        return {**item, "inferenceId": self._id(item)}

    def last_request(self, engine: Engine) -> int:
        """When the last request was made: what is counted afresh is counted as of then."""
        last = select(func.max(EXPOSURES.c.at)).where(EXPOSURES.c.rollout == self.rollout)
        with engine.connect() as connection:
            return connection.scalar(last) or 0

    def tables(self, engine: Engine) -> list[list[tuple[Any, ...]]]:
        """All that is counted for the rollout."""
        counted = (UNITS, UNIT_OUTCOMES, REQUESTS, BAD_UNITS, COUNTERS, MOMENTS, DETAILS)
        with engine.connect() as connection:
            return [
                sorted(
                    map(tuple, connection.execute(select(t).where(t.c.rollout == self.rollout))),
                    key=repr,
                )
                for t in counted
            ]


def count_at_once(monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    """Have a transaction count so many units afresh."""
    monkeypatch.setattr(recount, "AT_ONCE", units)
    monkeypatch.setattr(recount, "DETAILED_AT_ONCE", units)


def count_whole(connection: Connection, rollout: Rollout) -> None:
    """Count all of a rollout afresh."""
    start_count(connection, rollout)
    while not count_more(connection, rollout):
        pass


@pytest.mark.parametrize("at_once", [1, 1000], ids=["one at a time", "at once"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(BATCH, min_size=1, max_size=8),
    last=RECORD,
    more=st.lists(SENT, max_size=4),
    data=st.data(),
)
def test_counts_that_follow_equal_counts_made_afresh(
    *,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
    batches: list[Any],
    last: dict[str, Any],
    more: list[Any],
    data: st.DataObject,
) -> None:
    """Replays, duplicates, any order, corrections, a record that comes late or changes.

    One at a time: batches and records come while units are still being counted afresh.
    """
    count_at_once(monkeypatch, at_once)
    store = SqlStore(engine)
    case = Case(store)
    replayed = [*batches, *data.draw(st.lists(st.sampled_from(batches), max_size=3)), last, *more]
    for batch in replayed:
        case.send(batch)
    rollout = case.record(last)
    with writing(engine) as connection:
        while not count_more(connection, rollout):
            pass
        count_until(connection, rollout, case.last_request(engine))
    followed = case.tables(engine)
    read = store.read_aggregates(rollout, NOW)

    with writing(engine) as connection:
        count_whole(connection, rollout)

    assert followed == case.tables(engine)
    assert read == store.read_aggregates(rollout, NOW)
    assert_swept(engine, read, rollout)
    assert_plain(read, rollout, *followed[:2])


def met(*names: str) -> list[dict[str, Any]]:
    """Make a request of each unit."""
    made = {"step": 0, "code": 200, "attempts": 1, "durationMs": 1.0, "version": "4"}
    at = "2026-01-01T00:00:00Z"
    return [
        {**made, "inferenceId": n, "unit": unit, "arm": ARMS[n % 2], "at": at}
        for n, unit in enumerate(names)
    ]


@pytest.mark.parametrize("objective", [{"outcome": "y"}, DETAILED[0]], ids=["plain", "detailed"])
def test_batches_come_in_while_units_are_counted_afresh(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, objective: dict[str, Any]
) -> None:
    """Another objective is counted some units at a time; an analysis says so until all are."""
    count_at_once(monkeypatch, 1)
    monkeypatch.setattr(sql, "_STEPS", 1)
    store = SqlStore(engine)
    case = Case(store)
    given = {"candidate": "4", "slowerThan": None}
    case.send({**given, "objective": None})
    case.send(met("a", "b", "d", "e"))
    read_at_last(store, case.record({**given, "objective": None}), NOW)
    rollout = case.record({**given, "objective": objective})
    case.send({**given, "objective": objective})

    with pytest.raises(StoreUnavailableError) as caught:
        store.read_aggregates(rollout, NOW)
    case.send(met("a", "b", "d", "e", "c", "f", "a"))
    found = read_at_last(store, rollout, NOW)

    assert caught.value.reason == "units are being counted: ask again"
    assert {cell: of.units for cell, of in found.units.items()} == {
        (0, "stable"): 3,
        (0, "candidate"): 3,
    }
    assert_swept(engine, found, rollout)


def test_what_an_earlier_release_counted_is_counted_beside_the_requests(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is ready at once, and counts to the end without being asked."""
    count_at_once(monkeypatch, 1)
    store = SqlStore(engine)
    case = Case(store)
    case.send({"candidate": "4", "slowerThan": None, "objective": {"outcome": "y"}})
    case.send(met(*UNIT_NAMES))
    expected = case.tables(engine)
    mine = ROLLOUTS.c.id == case.rollout
    with engine.begin() as connection:
        connection.execute(delete(COUNTERS).where(COUNTERS.c.rollout == case.rollout))
        connection.execute(update(ROLLOUTS).where(mine).values(counted_by=1))
    preparation = Preparation(engine)

    preparation.start()
    for _ in range(1200):
        if case.tables(engine) == expected:
            break
        time.sleep(0.05)
    preparation.stop()

    preparation.check()
    assert case.tables(engine) == expected


LOOK = st.integers(0, 9)
MODERATE = st.sampled_from([0.0, 1.0, 0.1, -3.75, 7.0])
EVENT = st.one_of(
    LOOK,
    LOOK,
    st.lists(EXPOSURE, min_size=1, max_size=8),
    st.lists(OUTCOME.flatmap(lambda o: MODERATE.map(lambda v: {**o, "value": v})), min_size=1),
    st.lists(UNIT_OUTCOME.flatmap(lambda o: MODERATE.map(lambda v: {**o, "value": v})), min_size=1),
)


@pytest.mark.parametrize("at_once", [1, 1000], ids=["one at a time", "at once"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=st.lists(EVENT, min_size=1, max_size=10),
    objective=st.sampled_from(DETAILED),
    is_late=st.booleans(),
)
def test_what_depends_on_time_is_that_of_the_moment_that_is_asked_for(
    *,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
    events: list[Any],
    objective: dict[str, Any],
    is_late: bool,
) -> None:
    """Looks of any times between any batches, each equal to a sweep of the rows at that time."""
    count_at_once(monkeypatch, at_once)
    monkeypatch.setattr(details, "AT_ONCE", at_once)
    monkeypatch.setattr(details, "STEP", at_once)
    store = SqlStore(engine)
    case = Case(store)
    record = {"candidate": "4", "objective": objective, "slowerThan": None}
    rollout = case.record(record)
    for event in [*events, record, 9, 2] if is_late else [record, *events, 9, 2]:
        if isinstance(event, int):
            look(store, engine, rollout, event)
        else:
            case.send(event)


def look(store: SqlStore, engine: Engine, rollout: Rollout, second: int) -> None:
    """Compare what is read as of a second with a sweep of the rows."""
    if store.get_rollout(rollout.id) is None:
        return
    at = datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)
    found = read_at_last(store, rollout, at)
    assert_swept(engine, found, rollout, at)
    with reading(engine) as connection:
        swept = experiments_sweep.read(connection, rollout, at, has_mixed=True)
    assert found.refused == swept["refused"]
    for mine, theirs in zip(found.moments, swept["moments"], strict=True):
        for arm in ("stable", "candidate"):
            assert_near(getattr(mine, arm).mean, getattr(theirs, arm).mean)
            assert_near(getattr(mine, arm).comoments, getattr(theirs, arm).comoments)
    for one, other in zip(found.shared, swept["shared"], strict=True):
        key = one.first, one.first_arm, one.second, one.second_arm
        assert key == (other.first, other.first_arm, other.second, other.second_arm)
        assert_near(one.comoments, other.comoments)


def test_windows_are_counted_by_the_record_that_is_kept(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that began with the record before writes down nothing of it."""
    monkeypatch.setattr(details, "AT_ONCE", 0)
    store = SqlStore(engine)
    case = Case(store)
    given = {"candidate": "4", "slowerThan": None}
    before = {**given, "objective": {"outcome": "y", "window": 1, "missing": "zero"}}
    after = {**given, "objective": {"outcome": "y", "window": 6, "missing": "zero"}}
    case.send(before)
    case.send(met(*UNIT_NAMES))
    case.send(after)

    with suppress(StoreUnavailableError):
        store.read_aggregates(case.record(before), datetime(2026, 1, 1, 0, 0, 4, tzinfo=UTC))

    for second in (5, 7):
        look(store, engine, case.record(after), second)


@pytest.mark.parametrize("objective", [{"outcome": "y"}, DETAILED[0], DETAILED[-1]], ids=str)
def test_a_record_changes_its_model_and_its_objective_at_once(
    engine: Engine, objective: dict[str, Any]
) -> None:
    """Outcomes that move to or from its exposures are no part of sums by the record before."""
    store = SqlStore(engine)
    case, other = Case(store), Case(store)
    given = {"candidate": "4", "slowerThan": None}
    before = case.record({**given, "objective": {"outcome": "y", "covariate": "z"}})
    after = replace(case.record({**given, "objective": objective}), model=f"m{other.number}")
    met = {"step": 0, "code": 200, "attempts": 1, "durationMs": 1.0, "version": "4"}
    told = [
        {"unit": unit, "outcome": "y", "value": value, "observedAt": "2026-01-01T00:00:02Z"}
        for unit, value in (("a", 1.0), ("b", 0.0))
    ]
    store.put_rollout(before)
    case.send(
        [
            {**met, "inferenceId": n, "unit": unit, "arm": ARMS[n], "at": "2026-01-01T00:00:01Z"}
            for n, unit in enumerate(("a", "b"))
        ]
    )
    case.send(told)
    other.send(told[:1])

    store.put_rollout(after)
    followed = case.tables(engine)
    read = store.read_aggregates(after, NOW)
    with writing(engine) as connection:
        count_whole(connection, after)

    assert followed == case.tables(engine)
    assert_swept(engine, read, after)


def test_counts_are_read_by_the_record_they_were_made_by(engine: Engine) -> None:
    """Whoever read the record before it changed is asked to read it again."""
    store = SqlStore(engine)
    case = Case(store)
    given = {"candidate": "4", "slowerThan": None}
    before = {**given, "objective": {"outcome": "y", "kind": "ratio", "denominator": "z"}}
    after = {**given, "objective": {"outcome": "y"}}
    met = {"step": 0, "code": 200, "attempts": 1, "durationMs": 1.0, "version": "4"}
    at = "2026-01-01T00:00:00Z"
    case.send(before)
    case.send([{**met, "inferenceId": 1, "unit": "a", "arm": "candidate", "at": at}])
    case.send([{"inferenceId": 1, "outcome": "y", "value": 1.0, "observedAt": at}])
    case.send(after)

    with pytest.raises(StoreUnavailableError) as raised:
        store.read_aggregates(case.record(before), NOW)

    assert "changed" in raised.value.reason
    assert store.read_aggregates(case.record(after), NOW).outcomes == {"candidate": 1}


def read_at_last(store: SqlStore, rollout: Rollout, at: datetime) -> Aggregates:
    """Look again where many windows have ended: each look gets further."""
    for _ in range(50):
        with suppress(StoreUnavailableError):
            return store.read_aggregates(rollout, at)
    pytest.fail("it gets no further")


def assert_near(found: Any, expected: Any) -> None:
    """A sweep rounds each product."""
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def assert_swept(engine: Engine, found: Aggregates, rollout: Rollout, at: datetime = NOW) -> None:
    """Compare how the units stand with what a sweep of the rows says."""
    if rollout.objective is None:
        return
    with reading(engine) as connection:
        swept = experiments_sweep.read(connection, rollout, at, has_mixed=True)
    assert found.standing == swept["standing"]
    assert found.standing_distinct == swept["standing_distinct"]
    cells = [(step.index, step.stable.n, step.candidate.n) for step in found.moments]
    assert cells == [(step.index, step.stable.n, step.candidate.n) for step in swept["moments"]]


def assert_plain(
    found: Aggregates, rollout: Rollout, cells: list[tuple[Any, ...]], sums: list[tuple[Any, ...]]
) -> None:
    """Compare with the rules as they are told, over the units' rows."""
    met: dict[str, set[tuple[int, str]]] = {}
    for _, unit, step, arm in cells:
        met.setdefault(unit, set()).add((step, arm))
    mixed = {(u, s) for u, c in met.items() for s, _ in c if is_mixed(c, s)}
    for step, arm in {cell for cells_ in met.values() for cell in cells_}:
        here = [unit for unit, cells_ in met.items() if (step, arm) in cells_]
        first = [u for u in here if min(met[u])[0] == step and len({*met[u]} & both(step)) == 1]
        assert (found.units[step, arm].units, found.units[step, arm].new) == (len(here), len(first))
    assert sum(found.mixed.values()) == len(mixed)
    assert found.mixed_distinct == len({unit for unit, _ in mixed})
    for arm in ARMS:
        distinct = sum(any(a == arm for _, a in cells_) for cells_ in met.values())
        assert found.distinct.get(arm, 0) == distinct

    objective = rollout.objective
    wanted = [row for row in sums if objective is None or row[2] == objective.outcome]
    for arm in ARMS:
        assert found.outcomes.get(arm, 0) == sum(row[5] for row in wanted if row[4] == arm)
    if is_detailed(rollout):
        return
    values: dict[tuple[int, str], dict[str, Fraction]] = {}
    for _, unit, name, step, arm, n, total in (
        wanted if objective and not objective.is_ratio else []
    ):
        assert name == objective.outcome
        if (unit, step) not in mixed:
            cap = objective.cap or math.inf
            values.setdefault((step, arm), {})[unit] = Fraction(max(-cap, min(cap, total / n)))
    if objective is None or not objective.is_ratio:
        assert_moments(found, values)


def both(step: int) -> set[tuple[int, str]]:
    """Both arms in a step."""
    return {(step, arm) for arm in ARMS}


def is_mixed(cells: set[tuple[int, str]], step: int) -> bool:
    """Whether a unit met stable by this step, although it had met the candidate by then."""
    return any(
        s <= step and any(t <= s and other == "candidate" for t, other in cells)
        for s, arm in cells
        if arm == "stable"
    )


def assert_moments(found: Aggregates, values: dict[tuple[int, str], dict[str, Fraction]]) -> None:
    """Compare means and products of distances with fractions, which do not round."""
    means = {cell: sum(of.values()) / len(of) for cell, of in values.items()}
    for step in found.moments:
        for arm, summary in (("stable", step.stable), ("candidate", step.candidate)):
            of = values.get((step.index, arm), {})
            mean = means.get((step.index, arm), Fraction(0))
            m2 = float(sum((value - mean) ** 2 for value in of.values()))
            assert (summary.n, summary.mean) == (len(of), (float(mean), 0.0, 0.0))
            assert summary.comoments == ((m2, 0.0, 0.0), NOTHING, NOTHING)
    assert {s.index for s in found.moments} == {step for step, _ in values}
    products = {}
    for a, b in itertools.combinations(sorted(values), 2):
        if shared := values[a].keys() & values[b].keys():
            distances = ((values[a][u] - means[a]) * (values[b][u] - means[b]) for u in shared)
            products[a, b] = float(sum(distances))
    assert products == {
        ((o.first, str(o.first_arm)), (o.second, str(o.second_arm))): o.comoments[0][0]
        for o in found.shared
    }


VECTORS = st.dictionaries(
    st.tuples(st.integers(0, 3), st.sampled_from(ARMS)),
    st.tuples(st.floats(-1e100, 1e100), st.floats(-1e100, 1e100)),
    max_size=5,
)


@given(units=st.lists(st.tuples(VECTORS, VECTORS), min_size=1, max_size=6), data=st.data())
def test_what_a_unit_adds_can_be_taken_out_again(
    units: list[tuple[Any, Any]], data: st.DataObject
) -> None:
    """Any doubles, in any order: after all changes are undone nothing is left, not even a bit."""
    changes = [(before, after) for before, after in units]
    undone = [(after, before) for before, after in units]
    total: dict[Any, Any] = {}
    for before, after in data.draw(st.permutations(changes + undone)):
        for pair, sums in moments(before, after).items():
            total[pair] = plus(total[pair], sums) if pair in total else sums

    assert not any(any(sums) for sums in total.values())


@given(st.lists(st.floats(-1e100, 1e100), min_size=1, max_size=5))
def test_sums_are_read_as_they_were_written(values: list[float]) -> None:
    """Whatever the numbers, and zero, and whatever their signs."""
    for value in values:
        (sums,) = moments({}, {(0, "stable"): (value,)}).values()
        assert read_sums(sums[0], write_sums(sums)) == sums


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e12])
def test_an_offset_does_not_cancel(offset: float) -> None:
    """Values that differ by one part in 10^12 keep their variance, exactly."""
    total: dict[Any, Any] = {}
    for value in (1.0, 2.0, 3.0):
        for pair, sums in moments({}, {(0, "stable"): (offset + value,)}).items():
            total[pair] = plus(total[pair], sums) if pair in total else sums

    (step,), _ = summarise(total)

    assert (step.stable.n, step.stable.mean[0]) == (3, offset + 2.0)
    assert step.stable.comoments[0][0] == 2.0


def test_kinds_of_bad_requests_are_counted_like_the_rest() -> None:
    """No two things that are counted share a name, or one would overwrite the other."""
    names = [*Count, *Kind]
    assert len({str(name) for name in names}) == len(names)

"""The store's contract: whatever comes in, and in whatever order, counts once and right."""

import itertools
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, func, select

from fairlead_experiments.adapters.database import migrate, open_engine
from fairlead_experiments.adapters.schema import (
    BAD_UNITS,
    COUNTERS,
    EXPOSURES,
    MOMENTS,
    OUTCOMES,
    REQUESTS,
    UNIT_OUTCOMES,
    UNITS,
)
from fairlead_experiments.adapters.sql import SqlStore
from fairlead_experiments.app.validation import read_exposures, read_outcomes, read_rollout
from fairlead_experiments.domain.effect import Arm
from fairlead_experiments.domain.records import Aggregates, Counts, Kind

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
Build = Callable[..., dict[str, Any]]
RECORD: dict[str, Any] = {
    "model": "flight-delay",
    "stable": "3",
    "candidate": "4",
    "startedAt": "2026-01-01T00:00:00Z",
    "state": "running",
    "steps": [{"index": k, "weight": weight} for k, weight in enumerate((100, 1000, 5000))],
}


def send(store: SqlStore, *items: dict[str, Any]) -> Counts:
    """Keep exposures or outcomes, by what they are."""
    if "arm" in items[0]:
        taken, rejected = read_exposures(items, now=NOW)
        assert not rejected
        return store.add_exposures(taken)
    found, rejected = read_outcomes(items, now=NOW)
    assert not rejected
    return store.add_outcomes(found)


def tables(engine: Engine) -> list[list[tuple]]:
    """All that is counted, sorted."""
    with engine.connect() as connection:
        return [
            sorted(tuple(row) for row in connection.execute(select(table)))
            for table in (UNITS, UNIT_OUTCOMES, REQUESTS, BAD_UNITS, COUNTERS, MOMENTS)
        ]


def measured(engine: Engine) -> list[tuple]:
    """(unit, step, arm, n, total) of every unit's outcomes."""
    columns = [UNIT_OUTCOMES.c[name] for name in ("unit", "step", "arm", "n", "total")]
    with engine.connect() as connection:
        return sorted(tuple(row) for row in connection.execute(select(*columns)))


def test_an_exposure_counts_once(store: SqlStore, engine: Engine, exposure: Build) -> None:
    """The same exposure, in one batch or in two, counts once."""
    assert send(store, exposure(), exposure()) == Counts(1, 1)
    assert send(store, exposure(), exposure(inferenceId="i2")) == Counts(1, 1)

    with engine.connect() as connection:
        assert sorted(connection.scalars(select(EXPOSURES.c.inference_id))) == ["i1", "i2"]


def test_more_items_than_one_statement_binds(store: SqlStore, exposure: Build) -> None:
    """10,000 exposures, then the same again, stay within the limits on bound parameters."""
    batch = [exposure(inferenceId=f"i{n}", unit=f"u{n}") for n in range(10_000)]

    assert send(store, *batch) == Counts(10_000, 0)
    assert send(store, *batch) == Counts(0, 10_000)


@pytest.mark.parametrize("first", ["exposure", "outcome"])
def test_outcomes_meet_their_exposure_in_any_order(
    store: SqlStore, engine: Engine, exposure: Build, outcome: Build, first: str
) -> None:
    """An outcome may come before its exposure."""
    items = [exposure(), outcome(value=0.5)]
    for item in items if first == "exposure" else reversed(items):
        send(store, item)

    assert measured(engine) == [("N14228", 0, "candidate", 1, 0.5)]


@pytest.mark.parametrize(
    ("changes", "counts", "total"),
    [
        pytest.param({"value": 0.5}, Counts(0, 1), 0.5, id="the same again"),
        pytest.param({"value": 0.7}, Counts(1, 0), 0.7, id="corrected"),
        pytest.param(
            {"value": 0.7, "observedAt": "2026-01-01T00:06:00Z"}, Counts(1, 0), 0.7, id="later"
        ),
        pytest.param(
            {"value": 0.7, "observedAt": "2026-01-01T00:04:00Z"}, Counts(0, 1), 0.5, id="older"
        ),
    ],
)
def test_the_value_observed_last_counts(
    *,
    store: SqlStore,
    engine: Engine,
    exposure: Build,
    outcome: Build,
    changes: dict[str, Any],
    counts: Counts,
    total: float,
) -> None:
    """A later value replaces an earlier one and the counts follow; a replay undoes nothing."""
    send(store, exposure())
    send(store, outcome(value=0.5))

    assert send(store, outcome(**changes)) == counts
    assert measured(engine) == [("N14228", 0, "candidate", 1, total)]


def test_a_replaced_huge_value_leaves_no_trace(
    store: SqlStore, engine: Engine, exposure: Build, outcome: Build
) -> None:
    """Replacing 1e100 by 1 leaves the others' sum exact."""
    send(store, exposure(), exposure(inferenceId="i2"))
    send(store, outcome(value=1e100), outcome(inferenceId="i2", value=0.25))
    send(store, outcome(value=1))

    assert measured(engine) == [("N14228", 0, "candidate", 2, 1.25)]


def unit_outcome(outcome: Build, minute: int, **changed: Any) -> dict[str, Any]:
    """An outcome of the unit N14228, observed at a minute past midnight."""
    item = outcome(
        unit="N14228", model="flight-delay", observedAt=f"2026-01-01T00:{minute:02}:00Z", **changed
    )
    del item["inferenceId"]
    return item


def test_a_units_outcome_belongs_to_its_latest_exposure(
    store: SqlStore, engine: Engine, exposure: Build, outcome: Build, record: Build
) -> None:
    """An outcome by unit and model attaches to the exposure met last before it was observed."""
    store.put_rollout(read_rollout("r1", record()))
    send(
        store,
        exposure(at="2026-01-01T00:01:00Z", arm="stable"),
        exposure(inferenceId="i2", at="2026-01-01T00:10:00Z", step=1),
        exposure(inferenceId="i3", at="2026-01-01T00:30:00Z", step=2),
    )
    send(store, unit_outcome(outcome, 5, value=1), unit_outcome(outcome, 20, value=2))
    send(store, unit_outcome(outcome, 0, value=4))

    assert measured(engine) == [("N14228", 0, "stable", 1, 1.0), ("N14228", 1, "candidate", 1, 2.0)]


def test_a_units_outcome_moves_to_an_exposure_that_comes_late(
    store: SqlStore, engine: Engine, exposure: Build, outcome: Build, record: Build
) -> None:
    """A later exposure that arrives late takes the outcome over; other models' have no part."""
    store.put_rollout(read_rollout("r1", record()))
    store.put_rollout(read_rollout("r2", record(model="other")))
    send(store, exposure(at="2026-01-01T00:01:00Z", arm="stable"))
    send(store, unit_outcome(outcome, 20, value=2))
    send(store, exposure(inferenceId="i2", at="2026-01-01T00:10:00Z", step=1))
    send(store, exposure(inferenceId="i3", at="2026-01-01T00:15:00Z", rollout="r2"))

    assert measured(engine) == [("N14228", 1, "candidate", 1, 2.0)]


def test_any_order_gives_the_same_counts(
    new_engine: Callable[[], Engine], exposure: Build, outcome: Build, record: Build
) -> None:
    """Exposures, outcomes, corrections and the record, shuffled and replayed: the same tables."""
    rng = random.Random(20261121)
    items: list[dict[str, Any]] = []
    for n in range(40):
        arm = rng.choice(["stable", "candidate"])
        at = f"2026-01-01T00:{rng.randrange(30):02}:00Z"
        code = rng.choice([200, 200, 404, 503, 0])
        items.append(
            exposure(
                inferenceId=f"i{n}",
                unit=rng.choice([None, "a", "b", "c", "d", "N14228"]),
                arm=arm,
                step=rng.randrange(2),
                at=at,
                code=code,
                durationMs=rng.uniform(0, 400),
                version=rng.choice([None, "3", "4"]),
            )
        )
        seen = f"2026-01-01T01:{n:02}:00Z"
        value = rng.randrange(8)
        items.append(outcome(inferenceId=f"i{rng.randrange(40)}", value=value, observedAt=seen))
    items += [unit_outcome(outcome, minute, value=minute) for minute in range(0, 30, 7)]

    found = []
    for run in range(4):
        engine = new_engine()
        store = SqlStore(engine)
        shuffled = rng.sample(items + items[:20], len(items) + 20)
        for place in range(0, len(shuffled), 5):
            if place == run * 20:
                store.put_rollout(read_rollout("r1", record()))
            batch = shuffled[place : place + 5]
            for kind in (True, False):
                chosen = [item for item in batch if ("arm" in item) == kind]
                if chosen:
                    send(store, *chosen)
        found.append(tables(engine))

    assert found[1:] == found[:1] * 3
    assert all(found[0])


def test_the_analysis_reads_what_was_counted(
    store: SqlStore, exposure: Build, outcome: Build, record: Build
) -> None:
    """Errors, fallbacks, retries, slow answers and mixed units are read as the record names them."""
    send(
        store,
        exposure(inferenceId="ok", unit="a"),
        exposure(inferenceId="slow", unit="a", durationMs=201.0),
        exposure(inferenceId="stood-in", unit="b", version="3"),
        exposure(inferenceId="retried", unit="b", attempts=2),
        exposure(inferenceId="failed", unit="c", code=503),
        exposure(inferenceId="lost", unit="c", code=0, version=None, durationMs=5000),
        exposure(inferenceId="client", unit="d", code=422),
        exposure(inferenceId="mixed-1", unit="e", arm="candidate"),
        exposure(inferenceId="mixed-2", unit="e", arm="stable"),
        exposure(inferenceId="nobody", unit=None, arm="stable", code=500),
    )
    send(store, *(outcome(inferenceId=i, value=1) for i in ("ok", "slow", "mixed-1", "nobody")))
    rollout = read_rollout("r1", record())
    store.put_rollout(rollout)

    data = store.read_aggregates(rollout, NOW)

    candidate = data.requests[0, Arm.CANDIDATE]
    assert (candidate.requests, candidate.answered, candidate.slow) == (8, 7, 1)
    assert (candidate.errors, candidate.fallbacks, candidate.retried) == (4, 1, 1)
    assert data.requests[0, Arm.STABLE].errors == 0
    assert data.bad_units == {
        Kind.ERRORS: {(0, Arm.CANDIDATE): 2},
        Kind.SLOW: {(0, Arm.CANDIDATE): 1},
    }
    assert data.unassigned == 1
    assert data.mixed == {0: 1}
    assert data.units[0, Arm.CANDIDATE].units == 5
    assert data.units[0, Arm.CANDIDATE].new == 4
    assert data.moments[0].candidate.n == 1


def test_a_client_that_left_counts_against_nobody(
    store: SqlStore, exposure: Build, record: Build
) -> None:
    """Code 499 is a request, and no error, retry, fallback or slow answer, nor any answer."""
    left = {"code": 499, "durationMs": 5000.0}
    send(
        store,
        exposure(inferenceId="left", unit="a", version=None, **left),
        exposure(inferenceId="retried", unit="b", attempts=3, **left),
        exposure(inferenceId="stood-in", unit="c", version="3", **left),
    )
    rollout = read_rollout("r1", record())
    store.put_rollout(rollout)

    data = store.read_aggregates(rollout, NOW)

    counted = data.requests[0, Arm.CANDIDATE]
    assert (counted.requests, counted.answered, counted.slow) == (3, 0, 0)
    assert (counted.errors, counted.fallbacks, counted.retried) == (0, 0, 0)
    assert not any(any(bad.values()) for bad in data.bad_units.values())


def test_a_new_bound_counts_slow_answers_afresh(
    store: SqlStore, exposure: Build, record: Build
) -> None:
    """Moving `slowerThan` counts what came before by the new bound; dropping it counts none."""
    send(
        store,
        exposure(durationMs=150.0, unit="a"),
        exposure(inferenceId="i2", durationMs=250.0, unit="b"),
    )
    slow = []
    for latency in (0.2, 0.1, None):
        guard = {"slowerThan": latency, "margin": 0.25} if latency else None
        rollout = read_rollout("r1", record(guardrails={"errors": None, "latency": guard}))
        store.put_rollout(rollout)
        data = store.read_aggregates(rollout, NOW)
        bad = data.bad_units[Kind.SLOW].get((0, Arm.CANDIDATE), 0)
        slow.append((data.requests[0, Arm.CANDIDATE].slow, bad))

    assert slow == [(1, 1), (2, 2), (0, 0)]


def test_other_versions_are_told_afresh(store: SqlStore, exposure: Build, record: Build) -> None:
    """Who stood in is told by the record, also one that comes or changes after the exposures."""
    send(store, exposure(version="3"), exposure(inferenceId="i2", version="4", unit="b"))
    found = []
    for candidate in ("4", "3", "5"):
        rollout = read_rollout("r1", record(candidate=candidate, stable="2"))
        store.put_rollout(rollout)
        data = store.read_aggregates(rollout, NOW)
        requests = data.requests[0, Arm.CANDIDATE]
        found.append((requests.errors, requests.fallbacks, data.bad_units[Kind.ERRORS]))

    assert found == [
        (1, 1, {(0, Arm.CANDIDATE): 1}),
        (1, 1, {(0, Arm.CANDIDATE): 1}),
        (2, 2, {(0, Arm.CANDIDATE): 2}),
    ]


def read(store: SqlStore, record: Build) -> Aggregates:
    """The aggregates of r1, its record put if it was not."""
    rollout = read_rollout("r1", record())
    store.put_rollout(rollout)
    return store.read_aggregates(rollout, NOW)


def test_a_bad_unit_counts_once_where_it_turned_bad(
    store: SqlStore, exposure: Build, record: Build
) -> None:
    """A unit that failed as stable's is not the candidate's when it moves there and fails again."""
    send(store, exposure(arm="stable", code=500, at="2026-01-01T00:01:00Z"))
    send(store, exposure(inferenceId="i2", step=1, code=500, at="2026-01-01T00:02:00Z"))
    send(store, exposure(inferenceId="i3", step=1, durationMs=900, at="2026-01-01T00:03:00Z"))

    data = read(store, record)

    assert data.bad_units[Kind.ERRORS] == {(0, Arm.STABLE): 1}
    assert data.bad_units[Kind.SLOW] == {(1, Arm.CANDIDATE): 1}
    assert data.requests[1, Arm.CANDIDATE].errors == 1


def test_the_earliest_bad_request_decides_though_it_comes_late(
    store: SqlStore, exposure: Build, record: Build
) -> None:
    """An earlier failure that arrives later moves its unit to the step in which it turned bad."""
    send(store, exposure(step=1, code=500, at="2026-01-01T00:02:00Z"))
    late = exposure(inferenceId="i2", arm="stable", code=500, at="2026-01-01T00:01:00Z")
    send(store, late)
    fine = exposure(inferenceId="i3", arm="stable", at="2026-01-01T00:00:00Z")
    send(store, late, fine)

    assert read(store, record).bad_units[Kind.ERRORS] == {(0, Arm.STABLE): 1}


def test_where_each_request_is_a_unit_bad_units_are_bad_requests(
    store: SqlStore, exposure: Build, record: Build
) -> None:
    """With the unit `request` the guardrail counts requests, all of them."""
    ids = [f"i{n}" for n in range(30)]
    send(store, *(exposure(inferenceId=i, unit=i, code=500) for i in ids))

    data = read(store, record)

    assert data.bad_units[Kind.ERRORS] == {(0, Arm.CANDIDATE): 30}
    assert data.requests[0, Arm.CANDIDATE].errors == 30


REQUEST = st.fixed_dictionaries(
    {
        "unit": st.sampled_from([None, "a", "b", "c"]),
        "arm": st.sampled_from(["stable", "candidate"]),
        "step": st.integers(0, 2),
        "at": st.integers(0, 3).map(lambda s: f"2026-01-01T00:00:0{s}Z"),
        "code": st.sampled_from([0, 200, 422, 500]),
        "attempts": st.sampled_from([1, 1, 2]),
        "durationMs": st.sampled_from([1.0, 200.0, 300.0]),
        "version": st.sampled_from([None, "3", "4"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(sent=st.lists(REQUEST, min_size=1, max_size=25), data=st.data())
def test_each_unit_is_bad_once_by_its_earliest_bad_request(
    sent: list[dict[str, Any]], data: st.DataObject
) -> None:
    """In any order, in any batches, replayed, with a late record: the tables a plain rule gives."""
    items = [{"inferenceId": f"i{n}", "rollout": "r1", **item} for n, item in enumerate(sent)]
    replayed = items + data.draw(st.lists(st.sampled_from(items), max_size=5))
    arrived = data.draw(st.permutations(replayed))
    size = data.draw(st.integers(1, len(arrived)))
    recorded = data.draw(st.integers(0, len(arrived)))
    guardrails = {"errors": {"margin": 0.25}, "latency": {"slowerThan": 0.2, "margin": 0.25}}
    rollout = read_rollout("r1", {**RECORD, "guardrails": guardrails})

    engine = open_engine("sqlite://")
    migrate(engine)
    store = SqlStore(engine)
    for place in range(0, len(arrived), size):
        if place <= recorded < place + size:
            store.put_rollout(rollout)
        send(store, *arrived[place : place + size])
    store.put_rollout(rollout)
    found = store.read_aggregates(rollout, NOW)
    engine.dispose()

    assert found.bad_units == {kind: first_bad(items, kind) for kind in Kind}


def first_bad(items: list[dict[str, Any]], kind: Kind) -> dict[tuple[int, str], int]:
    """Bad units per step and arm, by the rule as it is told."""

    def is_bad(item: dict[str, Any]) -> bool:
        if kind is Kind.SLOW:
            return bool(item["code"] and item["durationMs"] > 200)
        own = {"stable": "3", "candidate": "4"}[item["arm"]]
        stood_in = item["version"] not in (None, own)
        return item["code"] in (0, 500) or item["attempts"] > 1 or stood_in

    first: dict[str, dict[str, Any]] = {}
    for item in sorted(items, key=lambda item: (item["at"], item["inferenceId"])):
        if item["unit"] is not None and is_bad(item):
            first.setdefault(item["unit"], item)
    return dict(Counter((item["step"], item["arm"]) for item in first.values()))


def test_returning_units_are_paired_across_steps(
    store: SqlStore, exposure: Build, outcome: Build, record: Build
) -> None:
    """Products across steps are those of the units' distances, about each arm's own mean."""
    given = {("a", 0): 1.0, ("b", 0): 3.0, ("a", 1): 2.0, ("b", 1): 8.0, ("c", 1): 2.0}
    for (unit, step), value in given.items():
        key = f"{unit}{step}"
        send(store, exposure(inferenceId=key, unit=unit, step=step))
        send(store, outcome(inferenceId=key, value=value + 1e6))
    rollout = read_rollout("r1", record())
    store.put_rollout(rollout)

    data = store.read_aggregates(rollout, NOW)

    assert data.moments[1].candidate.mean[0] == pytest.approx(1e6 + 4)
    assert data.moments[1].candidate.comoments[0][0] == pytest.approx(24)
    assert [units.comoments[0][0] for units in data.shared] == [
        pytest.approx((1 - 2) * (2 - 4) + 1 * 4)
    ]
    assert data.units[1, Arm.CANDIDATE].new == 1


@pytest.mark.parametrize("value", [5e-324, 1e-200, 1e100, -1e100])
def test_the_smallest_and_largest_values_are_analysed(
    store: SqlStore, exposure: Build, outcome: Build, record: Build, value: float
) -> None:
    """A value whose square no double can hold does not stop a rollout's analysis."""
    for step, unit in itertools.product((0, 1), "abc"):
        key = f"{unit}{step}"
        send(store, exposure(inferenceId=key, unit=unit, step=step))
        send(store, outcome(inferenceId=key, value=value * (unit != "c")))

    data = read(store, record)

    assert data.moments[0].candidate.n == 3
    assert data.moments[0].candidate.mean[0] == pytest.approx(value * 2 / 3)
    assert len(data.shared) == 1


def test_rollouts_are_listed_by_start(store: SqlStore, record: Build) -> None:
    """The latest start comes first, and a model's are told from others'."""
    store.put_rollout(read_rollout("r1", record()))
    store.put_rollout(read_rollout("r2", record(startedAt="2026-02-01T00:00:00Z")))
    store.put_rollout(read_rollout("r3", record(model="other")))

    assert [r.id for r in store.list_rollouts("flight-delay")] == ["r2", "r1"]
    assert len(store.list_rollouts(None)) == 3
    assert store.get_rollout("r1") == read_rollout("r1", record())


def test_outcomes_table_keeps_one_row_a_key(
    store: SqlStore, engine: Engine, outcome: Build
) -> None:
    """Two values for one key in one batch leave one row, the one observed last."""
    late = outcome(value=2, observedAt="2026-01-01T00:06:00Z")
    assert send(store, late, outcome(value=1)) == Counts(1, 1)

    with engine.connect() as connection:
        assert [row.value for row in connection.execute(select(OUTCOMES))] == [2.0]


def test_writers_side_by_side_count_once(
    store: SqlStore, engine: Engine, exposure: Build, outcome: Build
) -> None:
    """Four writers with the same items at once: each counts once, none is refused."""
    items = [exposure(inferenceId=f"i{n}", unit=f"u{n % 7}") for n in range(200)]
    found = [outcome(inferenceId=f"i{n}", value=1) for n in range(200)]

    def write(_number: int) -> int:
        return send(store, *items).accepted + send(store, *found).accepted

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(write, range(4))) == 400

    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(EXPOSURES)) == 200
        assert sum(connection.scalars(select(UNIT_OUTCOMES.c.total))) == 200.0

"""What units say about an objective: the store's sums against the rule, told unit by unit."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from fairlead_experiments.adapters import details
from fairlead_experiments.adapters.database import migrate, open_engine
from fairlead_experiments.adapters.schema import METADATA
from fairlead_experiments.adapters.sql import SqlStore
from fairlead_experiments.app.validation import read_exposures, read_outcomes, read_rollout
from fairlead_experiments.domain.effect import Arm
from fairlead_experiments.domain.linear import Moments
from fairlead_experiments.domain.records import Aggregates, Rollout, Standing

START = datetime(2026, 1, 1, tzinfo=UTC)
OBJECTIVE = {"outcome": "y", "better": "lower", "minimumEffect": 0.1}
Cell = tuple[str, int, str]
"""(unit, step, arm)"""


def at(minute: float) -> str:
    """A time that many minutes after the start."""
    return (START + timedelta(minutes=minute)).isoformat().replace("+00:00", "Z")


def rollout_with(**objective: Any) -> Rollout:
    """The rollout r1 of the model m with an objective."""
    steps = [{"index": k, "weight": weight} for k, weight in enumerate((100, 1000, 5000))]
    record = {"model": "m", "stable": "3", "candidate": "4", "startedAt": at(0), "state": "running"}
    return read_rollout("r1", {**record, "steps": steps, "objective": OBJECTIVE | objective})


def exposures_of(met: list[tuple[str, int, str, float]]) -> list[dict[str, Any]]:
    """Exposures of (unit, step, arm, minute), with ids in their order."""
    return [
        {
            "inferenceId": f"i{n:03}",
            "rollout": "r1",
            "unit": unit,
            "step": step,
            "arm": arm,
            "version": "4",
            "at": at(minute),
            "code": 200,
            "attempts": 1,
            "durationMs": 1.0,
        }
        for n, (unit, step, arm, minute) in enumerate(met)
    ]


def outcome(value: float, minute: float, name: str = "y", **key: str) -> dict[str, Any]:
    """An outcome of an inference, or of a unit."""
    whose = key if "inferenceId" in key else {**key, "model": "m"}
    return {"outcome": name, "value": value, "observedAt": at(minute), **whose}


def read(
    engine: Engine, rollout: Rollout, met: list[dict[str, Any]], outcomes: list[Any], minute: float
) -> Aggregates:
    """Send it all; answer what the store reads at that minute."""
    store, now = SqlStore(engine), START + timedelta(minutes=minute)
    store.put_rollout(rollout)
    for items, take, keep in (
        (met, read_exposures, store.add_exposures),
        (outcomes, read_outcomes, store.add_outcomes),
    ):
        taken, rejected = take(items, now=now)
        assert not rejected
        keep(taken)
    return store.read_aggregates(rollout, now)


# --- the rule, unit by unit -----------------------------------------------------------------


class Rule:
    """The rule as the documentation tells it."""

    def __init__(
        self, rollout: Rollout, met: list[dict[str, Any]], outcomes: list[Any], minute: float
    ) -> None:
        assert rollout.objective
        self.objective, self.now = rollout.objective, at(minute)
        self.met, self.outcomes = met, outcomes
        self.mixed_since = dict(self._mixed())
        self.cells: dict[Cell, tuple[float, float, float | None]] = {}
        self.waiting: set[Cell] = set()
        self.missing: set[Cell] = set()
        self.capped: set[Cell] = set()
        for cell in sorted({(e["unit"], e["step"], e["arm"]) for e in met}):
            if cell[1] < self.mixed_since.get(cell[0], 99):
                self._enter(cell)

    def _mixed(self) -> Iterator[tuple[str, int]]:
        for unit in {e["unit"] for e in self.met}:
            steps = {
                arm: {e["step"] for e in self.met if (e["unit"], e["arm"]) == (unit, arm)}
                for arm in Arm
            }
            late = [
                k
                for k in steps[Arm.STABLE]
                if steps[Arm.CANDIDATE] and k >= min(steps[Arm.CANDIDATE])
            ]
            if late:
                yield unit, min(late)

    def _belongs(self, found: dict[str, Any]) -> str | None:
        if "inferenceId" in found:
            return found["inferenceId"]
        before = [
            (e["at"], e["inferenceId"])
            for e in self.met
            if e["unit"] == found["unit"] and e["at"] <= found["observedAt"]
        ]
        return max(before)[1] if before else None

    def _enter(self, cell: Cell) -> None:
        mine = [e for e in self.met if (e["unit"], e["step"], e["arm"]) == cell]
        due = self._due(min(e["at"] for e in mine))
        ids = {e["inferenceId"] for e in mine}
        found = [o for o in self.outcomes if self._belongs(o) in ids]
        if due is not None:
            found = [o for o in found if o["observedAt"] <= due]
        y = [o["value"] for o in found if o["outcome"] == "y"]
        m = [o["value"] for o in found if o["outcome"] == self.objective.denominator]
        if self.objective.kind == "binary":
            y = [value for value in y if value in (0, 1)]
        if (due is None and not y + m) or (due is not None and due > self.now):
            self.waiting.add(cell)
            return
        if not y + m:
            self.missing.add(cell)
            if self.objective.missing == "ignore":
                return
        value = sum(y) if self.objective.is_ratio else float(np.mean(y or [0.0]))
        if self.objective.cap is not None and abs(value) > self.objective.cap:
            self.capped.add(cell)
        self.cells[cell] = self._cap(value), sum(m), self._covariate(cell[0])

    def _due(self, first: str) -> str | None:
        if self.objective.window is None:
            return None
        moment = datetime.fromisoformat(first) + timedelta(seconds=self.objective.window)
        return moment.isoformat().replace("+00:00", "Z")

    def _cap(self, value: float) -> float:
        cap = self.objective.cap
        return value if cap is None else max(-cap, min(cap, value))

    def _covariate(self, unit: str) -> float | None:
        first = min(e["at"] for e in self.met if e["unit"] == unit)
        found = [
            o["value"]
            for o in self.outcomes
            if o.get("unit") == unit
            and o["outcome"] == self.objective.covariate
            and o["observedAt"] < first
        ]
        if not found:
            return None
        mean = float(np.mean(found))
        return self._cap(mean) if self.objective.covariate == "y" else mean

    def vectors(self) -> dict[Cell, np.ndarray]:
        """(y, m, x) of every measured unit; one without a covariate is at the others' mean."""
        known = [v[2] for v in self.cells.values() if v[2] is not None]
        centre = float(np.mean(known)) if known else 0.0
        return {
            cell: np.array([v[0], v[1], 0.0 if v[2] is None else v[2] - centre])
            for cell, v in self.cells.items()
        }

    def standing(self, step: int, arm: str) -> Standing:
        """How the units of a step and arm stand."""
        covered = {c for c, v in self.cells.items() if v[2] is not None}
        sets = (set(self.cells), self.waiting, self.missing, self.capped, covered)
        return Standing(*(sum(c[1:] == (step, arm) for c in cells) for cells in sets))

    def unresolved(self, arm: str) -> tuple[int, int]:
        """Units of an arm without an outcome in any step: that wait, and that miss it."""
        silent = self.waiting | self.missing
        told = {c[0] for c in self.cells if c[2] == arm and c not in silent}
        told |= {c[0] for c in self.waiting if c[2] == arm and self.early(c)}
        waiting = {c[0] for c in self.waiting if c[2] == arm} - told
        missing = {c[0] for c in self.missing if c[2] == arm} - told - waiting
        return len(waiting), len(missing)

    def early(self, cell: Cell) -> bool:
        """Whether a waiting unit has an outcome already."""
        ids = {e["inferenceId"] for e in self.met if (e["unit"], e["step"], e["arm"]) == cell}
        due = self._due(min(e["at"] for e in self.met if e["inferenceId"] in ids))
        names = {"y", self.objective.denominator}
        return any(
            self._belongs(o) in ids
            and o["outcome"] in names
            and o["observedAt"] <= (due or "9")
            and (self.objective.kind != "binary" or o["value"] in (0, 1))
            for o in self.outcomes
        )


def check(data: Aggregates, rule: Rule) -> None:
    """Assert that the store read what the rule says."""
    vectors = rule.vectors()
    cells = {key: [v for c, v in vectors.items() if c[1:] == key] for key in product(range(3), Arm)}
    means = {key: np.mean(found, axis=0) for key, found in cells.items() if found}
    known = {
        (s.index, arm): m
        for s in data.moments
        for arm, m in zip(Arm, (s.stable, s.candidate), strict=True)
    }
    for key, found in cells.items():
        assert_moments(known.get(key, Moments()), found)
    for key in data.standing.keys() | {c[1:] for c in rule.cells}:
        assert data.standing[key] == rule.standing(*key)
    for arm, standing in data.standing_distinct.items():
        assert (standing.waiting, standing.missing) == rule.unresolved(arm)
    shared: dict[Any, Any] = {}
    for (a, v), (b, w) in combinations(sorted(vectors.items(), key=lambda item: item[0]), 2):
        if a[0] == b[0] and a[1] != b[1]:
            products = np.outer(v - means[a[1:]], w - means[b[1:]])
            shared[a[1:] + b[1:]] = shared.get(a[1:] + b[1:], 0) + products
    assert {(u.first, u.first_arm, u.second, u.second_arm) for u in data.shared} == set(shared)
    for units in data.shared:
        key = units.first, units.first_arm, units.second, units.second_arm
        np.testing.assert_allclose(units.comoments, shared[key], rtol=1e-6, atol=1e-6)
    counts = {
        k: len(
            {
                e["unit"]
                for e in rule.met
                if e["step"] == k and rule.mixed_since.get(e["unit"], 99) <= k
            }
        )
        for k in range(3)
    }
    assert data.mixed == {k: n for k, n in counts.items() if n}
    assert data.mixed_distinct == len(rule.mixed_since)


def assert_moments(found: Moments, vectors: list[np.ndarray]) -> None:
    """Assert n, means and comoments."""
    assert found.n == len(vectors)
    if vectors:
        away = np.array(vectors) - np.mean(vectors, axis=0)
        np.testing.assert_allclose(found.mean, np.mean(vectors, axis=0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.comoments, away.T @ away, rtol=1e-6, atol=1e-6)


# --- properties -----------------------------------------------------------------------------

MINUTES = st.integers(-40, 60)
MET = st.lists(
    st.tuples(
        st.sampled_from("abcd"), st.integers(0, 2), st.sampled_from(list(Arm)), st.integers(0, 30)
    ),
    min_size=1,
    max_size=14,
)
OUTCOMES = st.lists(
    st.tuples(
        st.sampled_from(["i000", "i001", "i002", "i003", "i004", "a", "b", "c", "d"]),
        st.sampled_from(["y", "y", "z"]),
        st.sampled_from([-3.0, 0.0, 0.5, 1.0, 1.0, 7.0]),
        MINUTES,
    ),
    max_size=20,
    unique_by=lambda o: (o[0], o[1], o[3] if len(o[0]) == 1 else 0),
)
OBJECTIVES = st.sampled_from(
    [
        {},
        {"kind": "binary"},
        {"kind": "binary", "window": 600, "missing": "zero"},
        {"kind": "ratio", "denominator": "z"},
        {"kind": "ratio", "denominator": "z", "window": 600, "cap": 1.0, "covariate": "y"},
        {"window": 600},
        {"window": 600, "missing": "zero", "cap": 2.0},
        {"cap": 0.75, "covariate": "y"},
        {"covariate": "z"},
    ]
)


@settings(max_examples=100, deadline=None)
@given(MET, OUTCOMES, OBJECTIVES, st.integers(0, 60), st.randoms(use_true_random=False))
def test_sums_are_those_of_the_rule(
    met: list[Any], outcomes: list[Any], objective: dict[str, Any], minute: int, order: Any
) -> None:
    """Any history, in any order of arrival, at any time: the sums are what the rule tells."""
    exposures = exposures_of(met)
    told = [
        outcome(value, observed, name, **{"unit" if len(key) == 1 else "inferenceId": key})
        for key, name, value, observed in outcomes
    ]
    known = {e["inferenceId"] for e in exposures}
    told = [o for o in told if o.get("inferenceId", "i000") in known]
    rollout = rollout_with(**objective)
    rule = Rule(rollout, exposures, told, minute)
    arriving = order.sample(exposures, len(exposures)), order.sample(told, len(told))
    data = read(emptied(), rollout, *arriving, minute)

    check(data, rule)


@cache
def prepared() -> Engine:
    """One database for all examples: making its tables takes longer than an example."""
    engine = open_engine("sqlite://")
    migrate(engine)
    return engine


def emptied() -> Engine:
    """That database without any rows."""
    with prepared().begin() as connection:
        for table in METADATA.sorted_tables:
            connection.execute(delete(table))
    return prepared()


# --- each feature, on both databases --------------------------------------------------------

UNITS = [
    ("a", 0, "stable", 0),
    ("b", 0, "stable", 1),
    ("c", 0, "candidate", 2),
    ("d", 0, "candidate", 8),
]


@pytest.mark.parametrize(
    ("objective", "means", "standing"),
    [
        pytest.param({}, (2.0, 6.5), Standing(2), id="mean"),
        pytest.param({"kind": "binary"}, (1.0, 1.0), Standing(1, waiting=1), id="binary"),
        pytest.param({"cap": 4}, (2.0, 2.5), Standing(2, capped=1), id="cap"),
        pytest.param({"window": 300}, (1.0, 1.0), Standing(1, waiting=1), id="window"),
        pytest.param(
            {"window": 90}, (1.0, None), Standing(0, missing=2), id="a window that is too short"
        ),
        pytest.param(
            {"window": 90, "missing": "zero"},
            (0.5, 0.0),
            Standing(2, missing=2),
            id="what is missing is zero",
        ),
        pytest.param({"kind": "ratio", "denominator": "z"}, (2.0, 6.5), Standing(2), id="ratio"),
        pytest.param({"covariate": "y"}, (2.0, 6.5), Standing(2, covered=1), id="covariate"),
    ],
)
def test_each_kind_of_objective_on_each_database(
    engine: Engine, objective: dict[str, Any], means: tuple[float, float | None], standing: Standing
) -> None:
    """Means of both arms and how the candidate's units stand, ten minutes after the start."""
    outcomes = [
        outcome(1.0, 1, inferenceId="i000"),
        outcome(3.0, 7, inferenceId="i001"),
        outcome(1.0, 5, inferenceId="i002"),
        outcome(12.0, 9.9, inferenceId="i003"),
        outcome(2.0, 1, "z", inferenceId="i000"),
        outcome(4.0, -5, unit="c"),
    ]
    data = read(engine, rollout_with(**objective), exposures_of(UNITS), outcomes, 10)

    (step,) = data.moments
    found = [m.mean[0] if m.n else None for m in (step.stable, step.candidate)]
    assert found == [pytest.approx(means[0]), means[1] and pytest.approx(means[1])]
    assert data.standing[0, Arm.CANDIDATE] == standing


def test_the_same_values_far_from_zero_have_the_same_moments(engine: Engine) -> None:
    """An offset of a billion in value, denominator and covariate leaves the products as they are."""
    found = []
    kind = {"kind": "ratio", "denominator": "z", "covariate": "y"}
    for offset in (0.0, 1e9):
        outcomes = [
            outcome(offset + value, 5, name, inferenceId=key)
            for name in "yz"
            for key, value in (("i000", 1.0), ("i001", 3.0), ("i002", 2.0), ("i003", 7.0))
        ]
        before = [outcome(offset + n, -5, unit=unit) for n, unit in enumerate("abcd")]
        data = read(engine, rollout_with(**kind), exposures_of(UNITS), outcomes + before, 10)
        found.append(data.moments[0].candidate)

    np.testing.assert_allclose(found[0].comoments, found[1].comoments, rtol=1e-6)
    assert found[1].mean[0] == pytest.approx(found[0].mean[0] + 1e9)
    assert found[1].mean[2] == pytest.approx(found[0].mean[2])


def test_a_refused_value_is_counted_by_arm(engine: Engine) -> None:
    """Outcomes of a binary objective that are neither 0 nor 1 are counted, and leave no trace."""
    outcomes = [outcome(2.0, 5, inferenceId="i000"), outcome(1.0, 5, inferenceId="i001")]
    data = read(engine, rollout_with(kind="binary"), exposures_of(UNITS), outcomes, 10)

    assert data.refused == {Arm.STABLE: 1}
    assert data.moments[0].stable.n == 1


def test_the_analysis_is_of_the_time_it_is_asked(engine: Engine) -> None:
    """A unit waits to the last microsecond of its window, and is measured from then on."""
    rollout = rollout_with(window=600)
    outcomes = [outcome(1.0, 5, inferenceId="i000")]
    early = read(engine, rollout, exposures_of(UNITS), outcomes, 10 - 1e-6 / 60)
    late = read(engine, rollout, exposures_of(UNITS), outcomes, 10)

    assert early.standing[0, Arm.STABLE] == Standing(0, waiting=2)
    assert late.standing[0, Arm.STABLE] == Standing(1, waiting=1)


def instructions_of_a_look(units: int, **objective: Any) -> int:
    """How many instructions SQLite runs for an analysis of units that nothing happens to."""
    engine, rollout, ran = emptied(), rollout_with(**objective), 0
    met = exposures_of([(f"u{n}", n % 3, "stable", n % 7) for n in range(units)])
    outcomes = [outcome(float(n), 8, inferenceId=f"i{n:03}") for n in range(units)]
    read(engine, rollout, met, outcomes, 600)
    connection = engine.raw_connection().driver_connection
    assert connection is not None

    def count() -> None:
        nonlocal ran
        ran += 1

    connection.set_progress_handler(count, 1)
    try:
        SqlStore(engine).read_aggregates(rollout, START + timedelta(minutes=601))
    finally:
        connection.set_progress_handler(None, 1)
    return ran


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param({}, id="mean"),
        pytest.param({"kind": "binary"}, id="binary"),
        pytest.param({"window": 300}, id="window"),
        pytest.param({"window": 300, "covariate": "x"}, id="window and covariate"),
    ],
)
def test_an_analysis_reads_no_unit_that_nothing_happened_to(
    monkeypatch: pytest.MonkeyPatch, objective: dict[str, Any]
) -> None:
    """Ten times the units are as quick to analyse: what is read are sums."""
    monkeypatch.setattr(details, "AT_ONCE", 0)  # Windows that have ended are counted at once.
    few, many = (instructions_of_a_look(units, **objective) for units in (30, 300))

    assert 0 < many < 1.2 * few

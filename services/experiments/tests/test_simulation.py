"""Thousands of seeded experiments: what the promises about error rates rest on.

Measured with the seeds below, 500 runs a cell, alpha 5 %: identical versions told apart in 2.6 %
(10 % events), 2.0 % (1 %), 0.6 % and 0.4 % (log-normal, s = 1 and 2), 1.2 % and 1.0 % (95:5, 10 %
and 1 %); over a 1-10-50 ramp whose units come back 0.6 % (1.8 % with the independent formula),
over a ramp that repeats its weight 0.4 % (11.0 %). 10 % against 12 %: found at a median of 3,950.

numpy draws the traffic and adds it up; every decision is the production functions', look by look.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from fairlead_experiments.domain import sequential, srm
from fairlead_experiments.domain.analysis import Finding, State, judge_guardrails
from fairlead_experiments.domain.effect import (
    BURN_IN,
    Arm,
    Overlap,
    StepSummary,
    Summary,
    combine,
)
from fairlead_experiments.domain.records import (
    FULL_WEIGHT,
    Aggregates,
    ErrorGuardrail,
    Kind,
    Requests,
    Rollout,
    RolloutStep,
)

pytestmark = pytest.mark.simulation

ALPHA = 0.05
BAR = -math.log(ALPHA)
RUNS, LOOKS, LOOK = 500, 100, 100

Moments = tuple[np.ndarray, np.ndarray, np.ndarray]
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
"""Sums and sums of squares of `n` values, one for each run."""


def bernoulli(rate: float) -> Draw:
    """Events of one rate."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        events = rng.binomial(n, rate, RUNS).astype(float)
        return events, events

    return draw


def lognormal(sigma: float) -> Draw:
    """Heavy-tailed values of mean 1."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        values = np.exp(sigma * rng.standard_normal((RUNS, n)) - sigma**2 / 2)
        return values.sum(axis=1), (values * values).sum(axis=1)

    return draw


def moments(rng: np.random.Generator, draw: Draw, per_look: int, looks: int) -> Moments:
    """Cumulative n, mean and M2: one row a run, one column a look."""
    parts = [draw(rng, per_look) for _ in range(looks)]
    total = np.cumsum([part[0] for part in parts], axis=0).T
    square = np.cumsum([part[1] for part in parts], axis=0).T
    n = np.arange(1, looks + 1) * per_look
    return np.broadcast_to(n, total.shape), total / n, np.maximum(square - total**2 / n, 0.0)


def first_decisions(stable: Moments, candidate: Moments, minimum_effect: float) -> Iterator[int]:
    """The look at which each run is decided, or -1."""
    tau = sequential.tau_from(minimum_effect, ALPHA)
    for run in range(stable[1].shape[0]):
        decided = -1
        for look in range(stable[1].shape[1]):
            arms = [
                Summary(int(n[run, look]), mean[run, look], m2[run, look])
                for n, mean, m2 in (stable, candidate)
            ]
            if min(arm.n for arm in arms) < BURN_IN:
                continue
            estimate = combine([StepSummary(0, arms[0], arms[1])])
            if (
                estimate
                and estimate.se
                and (sequential.log_evalue(estimate.effect, estimate.se, tau) >= BAR)
            ):
                decided = look
                break
        yield decided


@pytest.mark.parametrize(
    ("draw", "minimum_effect", "stable_weight"),
    [
        pytest.param(bernoulli(0.10), 0.02, 1, id="10 %"),
        pytest.param(bernoulli(0.01), 0.005, 1, id="1 %"),
        pytest.param(lognormal(1.0), 0.05, 1, id="log-normal s=1"),
        pytest.param(lognormal(2.0), 0.20, 1, id="log-normal s=2"),
        pytest.param(bernoulli(0.10), 0.02, 19, id="10 %, 95:5"),
        pytest.param(bernoulli(0.01), 0.005, 19, id="1 %, 95:5"),
    ],
)
def test_identical_versions_are_told_apart_in_at_most_five_percent(
    draw: Draw, minimum_effect: float, stable_weight: int
) -> None:
    """A/A under 100 looks ever decides in at most alpha of the runs."""
    rng = np.random.default_rng(20261121)
    stable = moments(rng, draw, LOOK * stable_weight, LOOKS)
    candidate = moments(rng, draw, LOOK, LOOKS)

    decided = np.array(list(first_decisions(stable, candidate, minimum_effect)))

    rate = float(np.mean(decided >= 0))
    assert rate <= ALPHA


def test_a_real_effect_is_found_as_soon_as_measured() -> None:
    """10 % against 12 % is found at a median of 3,800 units an arm, within 15 %."""
    rng = np.random.default_rng(20261121)
    stable = moments(rng, bernoulli(0.10), LOOK, 200)
    candidate = moments(rng, bernoulli(0.12), LOOK, 200)

    decided = np.array(list(first_decisions(stable, candidate, 0.02)))

    needed = np.where(decided >= 0, (decided + 1) * LOOK, np.inf)
    assert np.median(needed) == pytest.approx(3800, rel=0.15)
    assert np.mean(decided >= 0) >= 0.98


# --- a ramp whose units come back -----------------------------------------------------------


class Ramp:
    """Runs of one ramp: the same units come back in every step.

    A unit's value is its own level (strong), the hour's level (drifting up) and noise. In each
    look some of the units make one request, those of a high level more often; a unit is a
    candidate if its hash is below the step's weight, so candidates stay candidates.
    """

    def __init__(self, rng: np.random.Generator, runs: int, units: int) -> None:
        self.rng, self.runs, self.units = rng, runs, units
        self.hash = rng.random((runs, units))
        self.level = rng.standard_normal((runs, units))
        self.activity = 0.6 / (1.0 + np.exp(-self.level))
        self.steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.hours = 0

    def begin(self, weight: float) -> None:
        """Start a step."""
        shape = (self.runs, self.units)
        self.steps.append((self.hash < weight, np.zeros(shape), np.zeros(shape)))

    def look(self) -> None:
        """Let some of the units make a request."""
        _, n, total = self.steps[-1]
        active = self.rng.random(n.shape) < self.activity
        self.hours += 1
        noise = 0.5 * self.rng.standard_normal(n.shape)
        n += active
        total += active * (self.level + 0.1 * self.hours + noise)

    def read(self) -> list[tuple[list[StepSummary], list[Overlap], tuple[int, int]]]:
        """What the store would answer for each run."""
        cells = []
        for k, (is_candidate, n, total) in enumerate(self.steps):
            mean = total / np.maximum(n, 1)
            for arm, member in ((Arm.STABLE, ~is_candidate), (Arm.CANDIDATE, is_candidate)):
                chosen = member & (n > 0)
                count = chosen.sum(axis=1)
                average = (mean * chosen).sum(axis=1) / np.maximum(count, 1)
                distance = (mean - average[:, None]) * chosen
                cells.append((k, arm, chosen, count, average, distance))
        return [self._run(run, cells) for run in range(self.runs)]

    def _run(self, run: int, cells: list) -> tuple:
        summaries: dict = {}
        for k, arm, _, count, average, distance in cells:
            m2 = float(distance[run] @ distance[run])
            summaries[k, arm] = Summary(int(count[run]), float(average[run]), m2)
        overlaps = [
            Overlap(a[0], a[1], b[0], b[1], float(a[5][run] @ b[5][run]))
            for i, a in enumerate(cells)
            for b in cells[i + 1 :]
            if a[0] < b[0]
        ]
        steps = [
            StepSummary(k, summaries[k, Arm.STABLE], summaries[k, Arm.CANDIDATE])
            for k in range(len(self.steps))
        ]
        distinct = tuple(
            int(np.any([c[2][run] for c in cells if c[1] is arm], axis=0).sum()) for arm in Arm
        )
        return steps, overlaps, distinct


def share_decided(weights: list[float], looks: int, runs: int, units: int) -> tuple[float, float]:
    """How many A/A ramps are ever decided: as built, and with the independent formula."""
    ramp = Ramp(np.random.default_rng(20261121), runs, units)
    tau = sequential.tau_from(0.1, ALPHA)
    decided, naive = np.zeros(runs, bool), np.zeros(runs, bool)
    for weight in weights:
        ramp.begin(weight)
        for _ in range(looks):
            ramp.look()
            for run, (steps, overlaps, distinct) in enumerate(ramp.read()):
                if min(distinct) < BURN_IN:
                    continue
                for hits, given in ((decided, overlaps), (naive, [])):
                    estimate = combine(steps, given)
                    if estimate and not hits[run]:
                        log_e = sequential.log_evalue(estimate.effect, estimate.se, tau)
                        hits[run] = log_e >= BAR
    return float(decided.mean()), float(naive.mean())


def test_a_ramp_with_returning_units_holds_its_level() -> None:
    """A/A over a 1-10-50 ramp, drifting level, the same units in every step: at most alpha."""
    decided, _naive = share_decided([0.01, 0.10, 0.50], looks=12, runs=500, units=6000)

    assert decided <= ALPHA


def test_the_independent_formula_would_not_hold_its_level() -> None:
    """Where the weight stays for several steps, ignoring returning units breaks the promise."""
    decided, naive = share_decided([0.10, 0.50, 0.50, 0.50, 0.50], looks=5, runs=500, units=2000)

    assert decided <= ALPHA
    assert naive > ALPHA


# --- sample ratio ---------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.10, 0.50])
def test_correct_shares_raise_no_alarm(share: float) -> None:
    """Units split as they should raise an alarm in far less than 1 % of runs."""
    rng = np.random.default_rng(20261121)
    candidates = np.cumsum(rng.binomial(LOOK, share, (RUNS, LOOKS)), axis=1)

    alarms = [
        any(
            srm.log_evalue(srm.NewUnits(share, (look + 1) * LOOK - int(n), int(n)))
            >= math.log(srm.THRESHOLD)
            for look, n in enumerate(run)
        )
        for run in candidates
    ]

    assert np.mean(alarms) <= 0.004


def test_lost_units_raise_an_alarm() -> None:
    """A candidate that loses a tenth of its units at 50:50 is found out within 15,000 units."""
    rng = np.random.default_rng(20261121)
    candidates = rng.binomial(15_000, 0.45 / 0.95, RUNS)

    alarms = [
        srm.log_evalue(srm.NewUnits(0.5, 15_000 - int(n), int(n))) >= math.log(srm.THRESHOLD)
        for n in candidates
    ]

    assert np.mean(alarms) >= 0.9


# --- guardrails -----------------------------------------------------------------------------

Failing = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
"""How many of the requests (a row a look, a column a unit) fail; where they are the candidate's."""

RAMP = (0.01, 0.10, 0.50)
RECORD: dict[str, Any] = {
    "id": "r1",
    "model": "flight-delay",
    "stable": "3",
    "candidate": "4",
    "started_at": datetime(2026, 1, 1, tzinfo=UTC),
    "decided_at": None,
    "state": "running",
    "reason": "",
    "objective": None,
    "errors": ErrorGuardrail(0.25),
    "latency": None,
}


def independently(base: float, ratio: float = 1.0) -> Failing:
    """Each request fails by itself, at a rate that drifts by half of itself."""

    def fail(
        rng: np.random.Generator, requests: np.ndarray, is_candidate: np.ndarray
    ) -> np.ndarray:
        drift = base * (1 + 0.5 * np.sin(np.arange(len(requests)) / 20))
        return rng.binomial(requests, drift[:, None] * np.where(is_candidate, ratio, 1.0))

    return fail


def some_units(share: float) -> Failing:
    """A share of the units always fails, the others never do."""

    def fail(
        rng: np.random.Generator, requests: np.ndarray, _is_candidate: np.ndarray
    ) -> np.ndarray:
        return requests * (rng.random(requests.shape[1]) < share)

    return fail


def in_bursts(chance: float, looks: int) -> Failing:
    """Now and then a unit begins to fail, and does so for some looks."""

    def fail(
        rng: np.random.Generator, requests: np.ndarray, _is_candidate: np.ndarray
    ) -> np.ndarray:
        begins = rng.random(requests.shape) < chance
        begun = np.cumsum(begins, axis=0)
        ended = np.zeros_like(begun)
        ended[looks:] = begun[:-looks]
        return requests * (begun > ended)

    return fail


def broken(_rng: np.random.Generator, requests: np.ndarray, is_candidate: np.ndarray) -> np.ndarray:
    """Every request of the candidate fails, and no other."""
    return requests * is_candidate


def judge(weights: tuple[float, ...], data: Aggregates) -> Finding:
    """The guardrail on errors, with a margin of 25 %."""
    steps = tuple(RolloutStep(k, round(w * FULL_WEIGHT)) for k, w in enumerate(weights))
    return judge_guardrails(Rollout(steps=steps, **RECORD), data)[0]


def is_worse(finding: Finding) -> bool:
    """Whether it aborts the rollout, by its evidence or by the ceiling."""
    return finding.state is State.WORSE


@dataclass(frozen=True)
class Fleet:
    """Units that come back, in visits of some requests, while the weight grows."""

    units: int = 4000
    visits: float = 0.05
    requests: int = 5
    looks: int = 15
    weights: tuple[float, ...] = RAMP
    is_sticky: bool = True
    counts_requests: bool = False

    def watch(self, rng: np.random.Generator, failing: Failing) -> Iterator[Aggregates]:
        """What the store answers after each look: cumulative, per step and arm."""
        step = np.repeat(np.arange(len(self.weights)), self.looks)
        share = np.array(self.weights)[step]
        visits = rng.random((len(step), self.units)) < self.visits
        requests = visits * self.requests
        hashes = rng.random(self.units if self.is_sticky else requests.shape)
        is_candidate = hashes < share[:, None]
        bad = failing(rng, requests, is_candidate)
        turned = (bad > 0) & (np.cumsum(bad > 0, axis=0) == 1)
        evidence = bad if self.counts_requests else turned
        made: dict[tuple[int, str], Requests] = {}
        units: dict[tuple[int, str], int] = {}
        for look, index in enumerate(step.tolist()):
            for arm in Arm:
                mine = is_candidate[look] == (arm is Arm.CANDIDATE)
                n, errors = int(requests[look] @ mine), int(bad[look] @ mine)
                key = index, str(arm)
                made[key] = made.get(key, Requests()).plus(Requests(n, n, errors))
                units[key] = units.get(key, 0) + int((evidence[look] * mine).sum())
            yield Aggregates(requests=made, bad_units={Kind.ERRORS: units})

    def flagged(
        self,
        failing: Failing,
        runs: int = RUNS,
    ) -> float:
        """How many of the rollouts are ever flagged, looked at after every look."""
        rng = np.random.default_rng(20261121)
        flags = sum(
            any(is_worse(judge(self.weights, data)) for data in self.watch(rng, failing))
            for _ in range(runs)
        )
        return flags / runs


SINGLE = Fleet(
    units=1000,
    visits=1.0,
    requests=1,
    looks=150,
    weights=(0.05,),
    is_sticky=False,
    counts_requests=True,
)
"""The unit `request`, 1,000 a look."""


@pytest.mark.parametrize(
    ("fleet", "failing"),
    [
        pytest.param(SINGLE, independently(0.001), id="requests, 0.1 %"),
        pytest.param(SINGLE, independently(0.01), id="requests, 1 %"),
        pytest.param(SINGLE, independently(0.01, 1.25), id="requests, 1 %, at the margin"),
        pytest.param(Fleet(), independently(0.001), id="ramp, 0.1 %"),
        pytest.param(Fleet(), independently(0.01), id="ramp, 1 %"),
        pytest.param(Fleet(), independently(0.01, 1.25), id="ramp, 1 %, at the margin"),
        pytest.param(Fleet(), some_units(0.01), id="ramp, 1 % of units always fail"),
        pytest.param(Fleet(), in_bursts(0.002, 5), id="ramp, bursts"),
        pytest.param(Fleet(), independently(0.2), id="ramp, every unit fails some day"),
        pytest.param(Fleet(), independently(0.2, 0.5), id="ramp, better, every unit fails"),
    ],
)
def test_identical_releases_are_flagged_in_at_most_one_percent(
    fleet: Fleet, failing: Failing
) -> None:
    """A guardrail looked at after every look flags a release within the margin in <= 1 %."""
    assert fleet.flagged(failing) <= 0.01


def test_units_hold_the_level_however_many_always_fail() -> None:
    """With one unit in ten always failing, <= 1 % of identical releases are flagged."""
    assert Fleet().flagged(some_units(0.10)) <= 0.01


def test_counting_requests_would_flag_identical_releases() -> None:
    """Where some units make all the bad requests, counting each one breaks the promise."""
    assert Fleet(counts_requests=True).flagged(some_units(0.01)) > 0.01


@pytest.mark.parametrize(
    ("fleet", "at_least"),
    [
        pytest.param(replace(SINGLE, looks=50), 0.99, id="requests"),
        pytest.param(
            Fleet(units=10_000, visits=0.1, requests=1, looks=50, weights=(0.05,)),
            0.95,
            id="10,000 units, five requests each",
        ),
        pytest.param(
            Fleet(units=10_000, visits=0.02, looks=50, weights=(0.05,)),
            0.95,
            id="10,000 units, one visit of five requests each",
        ),
    ],
)
def test_a_release_four_times_as_bad_is_flagged(fleet: Fleet, at_least: float) -> None:
    """Four times the errors of a 1 % base are flagged within 50,000 requests at 5 %.

    Where each request is a unit, as surely as ever; where units come back, a unit that fails
    twice is one: they are fewer, and 95 % is asked for.
    """
    assert fleet.flagged(independently(0.01, 4.0), runs=200) >= at_least


@pytest.mark.parametrize("share", RAMP)
def test_a_broken_candidate_is_flagged_at_the_first_look(share: float) -> None:
    """A candidate whose every request fails is found by the time it has had 50."""
    rng = np.random.default_rng(20261121)
    fleet = Fleet(looks=40, weights=(share,), visits=0.05 if share < 0.1 else 0.005)
    for _ in range(RUNS // 5):
        looks = fleet.watch(rng, broken)
        enough = next(d for d in looks if d.requests[0, Arm.CANDIDATE].requests >= 50)
        assert is_worse(judge(fleet.weights, enough))

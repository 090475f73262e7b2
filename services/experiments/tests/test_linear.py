"""Ratios and covariates as one number a unit: against numpy, and what must hold for every input."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_experiments.domain.effect import Arm, Estimate, Overlap, StepSummary, combine
from fairlead_experiments.domain.linear import (
    RATIO_CELL,
    Linear,
    Matrix,
    Moments,
    Shared,
    StepMoments,
    Vector,
    entered_steps,
    linearise,
)

Units = np.ndarray
"""A row a unit: value, denominator, covariate."""


def moments(units: Units) -> Moments:
    """The moments of vectors, by numpy."""
    if not len(units):
        return Moments()
    away = units - units.mean(axis=0)
    return Moments(len(units), vector(units.mean(axis=0)), matrix(away.T @ away))


def vector(row: np.ndarray) -> Vector:
    """Three floats."""
    a, b, c = map(float, row)
    return a, b, c


def matrix(rows: np.ndarray) -> Matrix:
    """Three rows of them."""
    a, b, c = map(vector, rows)
    return a, b, c


def shared(first: int, a: Units, second: int, b: Units, arm: Arm) -> Shared:
    """The products of one arm whose units are the rows of both."""
    products = (a - a.mean(axis=0)).T @ (b - b.mean(axis=0))
    return Shared(first, arm, second, arm, matrix(products))


def estimate(steps: list[StepMoments], *overlaps: Shared, is_ratio: bool = False) -> Estimate:
    """The effect of steps that have one."""
    linear = linearise(steps, overlaps, is_ratio=is_ratio)
    found = combine(linear.steps, linear.overlaps)
    assert found
    return found


@st.composite
def rollouts(draw: st.DrawFn) -> list[dict[Arm, Units]]:
    """Two steps of units that come back, with values tied to covariates and denominators."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = {arm: draw(st.integers(RATIO_CELL, 60)) for arm in Arm}
    offset, tie = draw(st.floats(-100, 100)), draw(st.floats(-2, 2))
    steps: list[dict[Arm, Units]] = [{}, {}]
    for arm in Arm:
        x, level = rng.standard_normal((2, n[arm]))
        for step in steps:
            m = rng.integers(1, 6, n[arm])
            y = offset + tie * x + level + 0.5 * m + 0.3 * rng.standard_normal(n[arm])
            step[arm] = np.stack([y, m, x], axis=1)
    return steps


def gathered(steps: list[dict[Arm, Units]]) -> tuple[list[StepMoments], list[Shared]]:
    """What the store would read."""
    found = [
        StepMoments(k, moments(step[Arm.STABLE]), moments(step[Arm.CANDIDATE]))
        for k, step in enumerate(steps)
    ]
    return found, [shared(0, steps[0][arm], 1, steps[1][arm], arm) for arm in Arm]


@given(rollouts(), st.booleans())
def test_moments_of_vectors_are_moments_of_each_units_number(
    steps: list[dict[Arm, Units]], is_ratio: bool
) -> None:
    """Projecting the sums is the same as projecting every unit and summing then."""
    linear = linearise(*gathered(steps), is_ratio=is_ratio)

    numbers = [{arm: _numbers(step[arm], linear, is_ratio) for arm in Arm} for step in steps]
    for summary, step in zip(linear.steps, numbers, strict=True):
        for found, (result, away) in zip(
            (summary.stable, summary.candidate), (step[arm] for arm in Arm), strict=True
        ):
            assert found.mean == pytest.approx(result, rel=1e-9, abs=1e-9)
            assert found.m2 == pytest.approx(float(away @ away), rel=1e-6, abs=1e-9)
    for overlap in linear.overlaps:
        a, b = (numbers[k][overlap.first_arm][1] for k in (0, 1))
        assert overlap.comoment == pytest.approx(float(a @ b), rel=1e-6, abs=1e-6)


def _numbers(units: Units, linear: Linear, is_ratio: bool) -> tuple[float, np.ndarray]:
    """An arm's result, and each unit's distance from it by its influence."""
    y, m, x = units.T
    if is_ratio:
        ratio = y.mean() / m.mean()
        away = (y - ratio * m) / m.mean() - linear.theta * (x - x.mean())
        return float(ratio - linear.theta * x.mean()), away
    adjusted = y - linear.theta * x
    return float(adjusted.mean()), adjusted - adjusted.mean()


@given(rollouts())
def test_a_ratios_variance_is_the_delta_methods(steps: list[dict[Arm, Units]]) -> None:
    """`(v_y - 2 R c_ym + R^2 v_m) / (m^2 n)`, without a covariate."""
    found, _ = gathered([{arm: units * [1, 1, 0] for arm, units in s.items()} for s in steps])
    linear = linearise(found[:1], (), is_ratio=True)

    y, m, _ = steps[0][Arm.STABLE].T
    c, ratio = np.cov(y, m), y.mean() / m.mean()
    wanted = (c[0, 0] - 2 * ratio * c[0, 1] + ratio**2 * c[1, 1]) / (m.mean() ** 2 * len(y))
    summary = linear.steps[0].stable
    assert summary.mean == pytest.approx(ratio)
    assert summary.variance / summary.n == pytest.approx(wanted, rel=1e-6)


@given(rollouts(), st.floats(0.1, 100))
def test_a_ratio_over_a_constant_is_the_mean(
    steps: list[dict[Arm, Units]], constant: float
) -> None:
    """Where every unit has the same denominator, a ratio is the mean in another unit."""
    given_m = [
        {
            arm: np.column_stack([u[:, 0], np.full(len(u), constant), u[:, 2]])
            for arm, u in s.items()
        }
        for s in steps
    ]
    found, overlaps = gathered(given_m)

    mean, ratio = estimate(found, *overlaps), estimate(found, *overlaps, is_ratio=True)

    assert ratio.effect == pytest.approx(mean.effect / constant, rel=1e-6, abs=1e-9)
    assert ratio.se == pytest.approx(mean.se / constant, rel=1e-6)


@given(rollouts(), st.booleans())
def test_a_covariate_that_never_varies_changes_nothing(
    steps: list[dict[Arm, Units]], is_ratio: bool
) -> None:
    """With theta 0 the result is the plain one."""
    flat = [{arm: u * [1, 1, 0] + [0, 0, 3] for arm, u in s.items()} for s in steps]
    none = [{arm: u * [1, 1, 0] for arm, u in s.items()} for s in steps]

    a, b = (estimate(m, *o, is_ratio=is_ratio) for m, o in map(gathered, (flat, none)))

    assert linearise(gathered(flat)[0], (), is_ratio=is_ratio).theta == 0.0
    assert (a.effect, a.se) == (pytest.approx(b.effect), pytest.approx(b.se))


def test_theta_is_that_of_both_arms_covariances() -> None:
    """In one step: (cov_S + cov_C) / (var_S + var_C)."""
    rng = np.random.default_rng(7)
    step = {
        arm: rng.standard_normal((n, 3)).cumsum(axis=1) for arm, n in zip(Arm, (40, 9), strict=True)
    }
    found, _ = gathered([step, step])

    covariances = [np.cov(units[:, 0], units[:, 2]) for units in step.values()]
    wanted = sum(c[0, 1] for c in covariances) / sum(c[1, 1] for c in covariances)
    assert linearise(found[:1], (), is_ratio=False).theta == pytest.approx(wanted)


@given(rollouts(), st.booleans(), st.floats(-50, 50), st.floats(0.01, 100))
def test_the_covariates_scale_and_zero_do_not_matter(
    steps: list[dict[Arm, Units]], is_ratio: bool, shift: float, factor: float
) -> None:
    """A covariate in another unit or from another point explains as much."""
    moved = [{arm: u * [1, 1, factor] + [0, 0, shift] for arm, u in s.items()} for s in steps]

    a, b = (estimate(m, *o, is_ratio=is_ratio) for m, o in map(gathered, (steps, moved)))

    assert (a.effect, a.se) == (pytest.approx(b.effect, abs=1e-7), pytest.approx(b.se, rel=1e-6))


@given(rollouts(), st.booleans(), st.floats(0.01, 100))
def test_the_values_scale_is_the_effects(
    steps: list[dict[Arm, Units]], is_ratio: bool, factor: float
) -> None:
    """Cents for dollars: effect and error a hundred times as large."""
    scaled = [{arm: u * [factor, 1, 1] for arm, u in s.items()} for s in steps]

    a, b = (estimate(m, *o, is_ratio=is_ratio) for m, o in map(gathered, (steps, scaled)))

    assert b.effect == pytest.approx(factor * a.effect, rel=1e-6, abs=1e-9)
    assert b.se == pytest.approx(factor * a.se, rel=1e-6)


@given(rollouts(), st.floats(-1e6, 1e6))
def test_a_common_offset_leaves_a_difference_of_means(
    steps: list[dict[Arm, Units]], offset: float
) -> None:
    """All values moved by as much: the same effect, the same error."""
    moved = [{arm: u + np.array([offset, 0, 0]) for arm, u in s.items()} for s in steps]

    a, b = (estimate(m, *o) for m, o in map(gathered, (steps, moved)))

    assert (b.effect, b.se) == (pytest.approx(a.effect, abs=1e-7), pytest.approx(a.se, rel=1e-6))


@given(rollouts(), st.booleans())
def test_the_arms_are_symmetric(steps: list[dict[Arm, Units]], is_ratio: bool) -> None:
    """With the versions changed over the effect changes its sign, and nothing else."""
    swapped = [{Arm.STABLE: s[Arm.CANDIDATE], Arm.CANDIDATE: s[Arm.STABLE]} for s in steps]

    a, b = (estimate(m, *o, is_ratio=is_ratio) for m, o in map(gathered, (steps, swapped)))

    assert b.effect == pytest.approx(-a.effect, rel=1e-9, abs=1e-9)
    assert b.se == pytest.approx(a.se, rel=1e-9)


@given(rollouts(), st.booleans())
def test_the_order_of_steps_does_not_matter(steps: list[dict[Arm, Units]], is_ratio: bool) -> None:
    """Steps and overlaps may be read in any order."""
    found, overlaps = gathered(steps)

    a = estimate(found, *overlaps, is_ratio=is_ratio)
    b = estimate(found[::-1], *overlaps[::-1], is_ratio=is_ratio)

    assert (b.effect, b.se) == (pytest.approx(a.effect, rel=1e-9), pytest.approx(a.se, rel=1e-9))


@given(rollouts())
def test_a_covariate_takes_away_what_it_explains(steps: list[dict[Arm, Units]]) -> None:
    """In one step with arms of one size, theta gives the smallest variance of all coefficients."""
    n = min(len(units) for units in steps[0].values())
    found, _ = gathered([{arm: units[:n] for arm, units in s.items()} for s in steps])
    best = linearise(found[:1], (), is_ratio=False).steps[0]

    def welch(step: StepSummary) -> float:
        return step.stable.variance / n + step.candidate.variance / n

    for theta in (-1.0, 0.0, 0.5, 2.0):
        by_hand = [units[:n, 0] - theta * units[:n, 2] for units in steps[0].values()]
        assert welch(best) <= sum(v.var(ddof=1) / n for v in by_hand) + 1e-9


STEP = StepMoments(
    0,
    Moments(40, (20.0, 5.0, 0.0), ((9.0, 1.0, 0.0), (1.0, 4.0, 0.0), (0.0, 0.0, 0.0))),
    Moments(40, (21.0, 5.0, 0.0), ((9.0, 1.0, 0.0), (1.0, 4.0, 0.0), (0.0, 0.0, 0.0))),
)


@pytest.mark.parametrize(
    "candidate",
    [
        pytest.param({"n": RATIO_CELL - 1}, id="too few units"),
        pytest.param({"n": 0}, id="none"),
        pytest.param({"mean": (21.0, 0.0, 0.0)}, id="no denominator"),
        pytest.param({"mean": (21.0, -1.0, 0.0)}, id="a negative denominator"),
        pytest.param({"mean": (1e100, 1e-300, 0.0)}, id="beyond what a double holds"),
    ],
)
def test_a_step_without_a_ratio_does_not_enter(candidate: dict[str, Any]) -> None:
    """A step enters with enough units and a positive denominator in each arm."""
    step = replace(STEP, candidate=replace(STEP.candidate, **candidate))

    assert entered_steps([STEP], is_ratio=True) == {0}
    assert entered_steps([step], is_ratio=True) == frozenset()
    assert linearise([step], (), is_ratio=True).steps[0].candidate.n == 0


def test_a_mean_needs_two_units_an_arm() -> None:
    """A step of a mean enters with two, and its overlaps with it."""
    two = replace(STEP, candidate=replace(STEP.candidate, n=2))

    assert entered_steps([two], is_ratio=False) == {0}
    assert entered_steps([replace(two, stable=Moments())], is_ratio=False) == frozenset()


def test_overlaps_of_a_step_without_a_ratio_are_nothing() -> None:
    """Units that come back from a step that does not enter add nothing."""
    empty = replace(STEP, index=1, candidate=Moments())
    units = Shared(0, Arm.STABLE, 1, Arm.CANDIDATE, STEP.stable.comoments)

    linear = linearise([STEP, empty], [units], is_ratio=True)

    assert linear.overlaps == (Overlap(0, Arm.STABLE, 1, Arm.CANDIDATE, 0.0),)


@given(st.floats(1e-3, 1e3), st.floats(1e-6, 1e6))
def test_a_huge_offset_leaves_a_ratio_its_digits(scale: float, m: float) -> None:
    """A ratio of exactly one number a unit has no error worth the name, and no negative one."""
    rng = np.random.default_rng(1)
    denominators = m * (1e3 + rng.standard_normal(50))
    units = np.column_stack([scale * denominators, denominators, np.zeros(50)])
    linear = linearise([StepMoments(0, moments(units), moments(units))], (), is_ratio=True)

    assert linear.steps[0].stable.mean == pytest.approx(scale)
    assert 0.0 <= linear.steps[0].stable.m2 <= 1e-18 * scale**2 * 50

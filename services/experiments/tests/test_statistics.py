"""The tests' formulas: against references, and what must hold for every input."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import betaln
from scipy.stats import norm

from fairlead_experiments.domain import guardrails, sequential, srm
from fairlead_experiments.domain.effect import Arm, Overlap, StepSummary, Summary, combine

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)
effects = st.floats(-1e3, 1e3)
scales = st.floats(1e-3, 1e3)


def summarise(sample: list[float]) -> Summary:
    """The summary of values, by numpy."""
    return Summary(len(sample), float(np.mean(sample)), float(np.var(sample) * len(sample)))


def test_tau_is_a_little_above_the_minimum_effect() -> None:
    """At alpha 0.05 and power 0.8, tau is 1.006 times the smallest effect worth finding."""
    assert sequential.tau_from(1.0, 0.05) == pytest.approx(1.006, abs=5e-4)


@given(st.floats(-6, 6), st.floats(0.1, 10), st.floats(0.1, 10))
def test_evalue_is_the_mixture_integrated(z: float, se: float, tau: float) -> None:
    """The e-value is the likelihood ratio averaged over effects drawn from the mixture."""

    def weighted(effect: float) -> float:
        return float(norm.pdf(z * se, effect, se) * norm.pdf(effect, 0.0, tau))

    top = z * se * tau**2 / (tau**2 + se**2)
    reach = 12 * se * tau / math.hypot(se, tau)
    total, _ = quad(weighted, top - reach, top + reach)

    wanted = total / norm.pdf(z * se, 0.0, se)
    assert math.exp(sequential.log_evalue(z * se, se, tau)) == pytest.approx(wanted, rel=1e-5)


@given(effects, scales, scales, st.floats(0.001, 0.5), st.floats(-3, 3))
def test_sequence_is_the_effects_that_are_not_rejected(
    effect: float, se: float, tau: float, alpha: float, place: float
) -> None:
    """A true effect is inside exactly when the test against it has not reached 1 / alpha."""
    assume(abs(abs(place) - 1) > 1e-6)
    supposed = effect + place * sequential.radius(se, tau, alpha)

    is_rejected = sequential.log_evalue(effect - supposed, se, tau) >= -math.log(alpha)

    assert is_rejected == (abs(place) > 1)


@given(effects, scales, scales)
def test_evalue_does_not_know_which_arm_is_which(effect: float, se: float, tau: float) -> None:
    """Swapping the arms leaves the two-sided e-value as it is."""
    assert sequential.log_evalue(effect, se, tau) == sequential.log_evalue(-effect, se, tau)


@given(effects, scales, scales, st.floats(1e-3, 1e3))
def test_evalue_does_not_know_the_unit_of_measure(
    effect: float, se: float, tau: float, factor: float
) -> None:
    """Milliseconds or seconds: the same e-value."""
    assert sequential.log_evalue(effect * factor, se * factor, tau * factor) == pytest.approx(
        sequential.log_evalue(effect, se, tau), rel=1e-6, abs=1e-9
    )


@given(effects, scales, scales, st.floats(0.001, 0.5))
def test_sequence_excludes_zero_exactly_when_the_evalue_says_so(
    effect: float, se: float, tau: float, alpha: float
) -> None:
    """The confidence sequence leaves out 0 if and only if E reaches 1 / alpha."""
    log_e = sequential.log_evalue(effect, se, tau)
    assume(abs(log_e + math.log(alpha)) > 1e-9)

    excludes = abs(effect) > sequential.radius(se, tau, alpha)

    assert excludes == (log_e >= -math.log(alpha))


@given(st.floats(-1e300, 1e300), st.floats(1e-300, 1e300), st.floats(1e-300, 1e300))
def test_evalues_stay_finite(effect: float, se: float, tau: float) -> None:
    """No input overflows, and what goes into a document is a number JSON has."""
    assume(abs(effect / se) < 1e150)
    assert 0.0 <= sequential.finite(sequential.log_evalue(effect, se, tau)) <= sequential.LARGEST
    assert sequential.radius(se, tau, 0.05) > 0.0


@given(values, values, values)
def test_merging_summaries_is_associative(a: list, b: list, c: list) -> None:
    """However parts are merged, the summary is that of all the values."""
    left = summarise(a).merge(summarise(b)).merge(summarise(c))
    right = summarise(a).merge(summarise(b).merge(summarise(c)))
    whole = summarise(a + b + c)

    for merged in (left, right):
        assert merged.n == whole.n
        assert merged.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-6)
        assert merged.m2 == pytest.approx(whole.m2, rel=1e-6, abs=1e-3)


def test_guard_takes_the_larger_variance() -> None:
    """A candidate without a single event is not believed to have no variance."""
    step = StepSummary(0, Summary(1900, 0.01, 18.81), Summary(100, 0.0, 0.0))
    pooled = step.stable.merge(step.candidate).variance

    assert step.guarded_variance == pytest.approx(pooled * (1 / 1900 + 1 / 100))
    assert step.guarded_variance > step.stable.variance / 1900


def test_steps_are_combined_by_their_counts() -> None:
    """Two steps are weighed by n_S n_C / (n_S + n_C), whatever their values are."""
    steps = [
        StepSummary(0, Summary(90, 1.0, 90.0), Summary(10, 2.0, 1e-9)),
        StepSummary(1, Summary(50, 5.0, 50.0), Summary(50, 5.5, 50.0)),
    ]
    estimate = combine(steps)

    assert estimate is not None
    assert estimate.effect == pytest.approx((9 * 1.0 + 25 * 0.5) / 34)


@pytest.mark.parametrize(
    ("second_arm", "comoment", "grows"),
    [
        pytest.param(Arm.CANDIDATE, 40.0, True, id="the same arm again"),
        pytest.param(Arm.STABLE, 40.0, False, id="from candidate to stable: no discount"),
        pytest.param(Arm.CANDIDATE, 0.0, False, id="nobody came back"),
    ],
)
def test_returning_units_only_ever_widen(second_arm: Arm, comoment: float, grows: bool) -> None:
    """Units measured in two steps add their covariance; it never makes the error smaller."""
    steps = [StepSummary(k, Summary(50, 0.0, 50.0), Summary(50, 0.0, 50.0)) for k in (0, 1)]
    alone = combine(steps)
    linked = combine(steps, [Overlap(0, Arm.CANDIDATE, 1, second_arm, comoment)])

    assert alone is not None
    assert linked is not None
    assert linked.se >= alone.se
    assert (linked.se > alone.se) == grows


def test_combined_error_is_the_cluster_robust_one() -> None:
    """With the same units in both steps, the variance is that of the units' own sums."""
    rng = np.random.default_rng(1)
    level = rng.standard_normal(400)
    y = np.stack([level + 0.1 * rng.standard_normal(400) for _ in range(2)])
    arms = {Arm.STABLE: slice(0, 200), Arm.CANDIDATE: slice(200, 400)}
    steps = [StepSummary(k, *(summarise(list(y[k, s])) for s in arms.values())) for k in (0, 1)]
    overlaps = [
        Overlap(0, arm, 1, arm, float((y[0, s] - y[0, s].mean()) @ (y[1, s] - y[1, s].mean())))
        for arm, s in arms.items()
    ]

    both = y.mean(axis=0)
    wanted = sum(both[s].var(ddof=1) / 200 for s in arms.values())
    estimate = combine(steps, overlaps)

    assert estimate is not None
    assert estimate.se**2 == pytest.approx(wanted, rel=0.02)


def test_steps_with_a_lonely_unit_do_not_enter() -> None:
    """A step enters with two units in each arm; without one there is no estimate."""
    assert combine([StepSummary(0, Summary(9, 1.0, 1.0), Summary(1, 9.0, 0.0))]) is None


def test_srm_evalue_agrees_with_the_reference() -> None:
    """The Dirichlet-multinomial e-value agrees with scipy's beta function."""
    wanted = betaln(95 + 900, 5 + 60) - betaln(95, 5) - 900 * math.log(0.95) - 60 * math.log(0.05)

    assert srm.log_evalue(srm.NewUnits(0.05, 900, 60)) == pytest.approx(wanted)


def test_srm_evalue_is_one_on_average() -> None:
    """Over all splits of 30 units, weighted by their chance, the e-value is exactly 1."""
    total = sum(
        math.comb(30, n)
        * 0.1**n
        * 0.9 ** (30 - n)
        * math.exp(srm.log_evalue(srm.NewUnits(0.1, 30 - n, n)))
        for n in range(31)
    )

    assert total == pytest.approx(1.0)


def test_srm_leaves_out_steps_for_one_arm() -> None:
    """A step that gives everything to one arm says nothing about shares."""
    assert srm.total_log_evalue([srm.NewUnits(0.0, 5, 0), srm.NewUnits(1.0, 0, 5)]) == 0.0


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("null", [1.0, 1.25])
def test_guardrail_evalue_is_one_on_average_at_its_null(share: float, null: float) -> None:
    """At the margin, or as bad as stable, over all sides bad units can take, it is exactly 1."""
    theta = null * share / (1 - share + null * share)
    total = sum(
        math.comb(12, bad)
        * theta**bad
        * (1 - theta) ** (12 - bad)
        * math.exp(guardrails.log_evalue([guardrails.BadUnits(share, 12 - bad, bad)], 0.25, null))
        for bad in range(13)
    )

    assert total == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0.0001, 0.9999), st.booleans()), max_size=40))
def test_guardrail_evalue_of_one_step_is_that_of_its_units(units: list) -> None:
    """Each unit may be a step of its own: the evidence is in the sequence, not in the table."""
    alone = [guardrails.BadUnits(w, int(not bad), int(bad)) for w, bad in units]
    summed = [
        guardrails.BadUnits(
            w,
            sum(not bad for share, bad in units if share == w),
            sum(bad for share, bad in units if share == w),
        )
        for w in {share for share, _ in units}
    ]

    assert guardrails.log_evalue(alone, 0.25) == pytest.approx(
        guardrails.log_evalue(summed, 0.25), abs=1e-9
    )


@given(st.floats(0.001, 0.999), st.floats(0, 2), st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_bad_unit_speaks_against_its_arm(share: float, margin: float, a: int, b: int) -> None:
    """One more bad unit of the candidate raises the e-value, one more of stable lowers it."""
    now = guardrails.log_evalue([guardrails.BadUnits(share, a, b)], margin)

    assert guardrails.log_evalue([guardrails.BadUnits(share, a, b + 1)], margin) > now
    assert guardrails.log_evalue([guardrails.BadUnits(share, a + 1, b)], margin) < now


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(guardrails.BadUnits(1.0, 0, 50), id="nothing to compare with"),
        pytest.param(guardrails.BadUnits(0.0, 50, 0), id="no candidate"),
        pytest.param(guardrails.BadUnits(0.5, 0, 0), id="nothing bad"),
    ],
)
def test_steps_that_cannot_tell_say_nothing(step: guardrails.BadUnits) -> None:
    """A step for one arm only, or without anything bad, leaves the e-value at 1."""
    assert guardrails.log_evalue([step], 0.25) == pytest.approx(0.0)


def test_guardrail_grid_spans_the_ratios() -> None:
    """12 ratios from 1.1 to 20 times the margin."""
    grid = guardrails.ratios(0.25)

    assert len(grid) == 12
    assert (grid[0], grid[-1]) == (pytest.approx(1.375), pytest.approx(25.0))


@pytest.mark.parametrize(
    ("bad", "requests", "stable_bad", "units", "above"),
    [
        pytest.param(10, 20, 0, 5, True, id="half of twenty"),
        pytest.param(10, 21, 0, 5, False, id="less than half"),
        pytest.param(19, 19, 0, 5, False, id="too few requests"),
        pytest.param(20, 20, 0, 4, False, id="too few units"),
        pytest.param(20, 20, 60, 5, False, id="stable fails too"),
    ],
)
def test_ceiling(bad: int, requests: int, stable_bad: int, units: int, above: bool) -> None:
    """Half of twenty requests of five units failing is an outage, unless stable fails as much."""
    current = guardrails.Traffic(100, requests, stable_bad, bad)

    assert guardrails.is_above_ceiling(current, units) == above

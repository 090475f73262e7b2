"""From vectors of a unit to one number of a unit: ratios and covariates by their influence.

A measured unit of a step is a vector `v = (value, denominator, covariate)`; what an objective
does not have is 0. An arm's result is a smooth function `f` of the means of these vectors, and to
first order (the delta method) `f(mean v) - f(mu) = mean of g . (v_i - mu)` with `g` the gradient of
`f`. So each unit counts with the single number `g . v`, and everything that `effect.combine` asks
for follows from sums of products of the vectors, without going back to the units:

- the summed squared distance of an arm in a step is `g' M g`, with M the arm's comoments;
- the product across two steps of a returning unit is `g_j' S g_k`, with S the comoments of the
  units the two cells share.

That is what carries the weights by counts, the guard and the cluster-robust products over from
means to all kinds of objectives.

| objective | result of an arm | gradient |
|---|---|---|
| mean, binary | `y` | `(1, 0, 0)` |
| ratio | `R = y / m` | `(1 / m, -R / m, 0)` |
| with a covariate | less `theta x` | third place `-theta` |

For a ratio `g' M g / (n (n - 1))` is `(v_y - 2 R c_ym + R^2 v_m) / (m^2 n)` (Deng, Knoblich, Lu,
"Applying the delta method in metric analytics", KDD 2018).

**Covariate (CUPED).** `theta = (cov_S + cov_C) / (var_S + var_C)`, covariances of a unit's number
with its covariate (Deng, Xu, Kohavi, Walker, "Improving the sensitivity of online controlled
experiments by utilizing pre-experiment data", WSDM 2013); over several steps numerator and
denominator are weighted as the steps are. One theta for both arms and all steps: what it takes
away has the same expectation in both arms, because the covariate is older than the assignment.

**Small steps.** A ratio is no linear function, and bends most where few units make its
denominator: a step enters with `RATIO_CELL` units in each arm, where a mean needs two. That rule
knows counts only. A step in which an arm's denominators sum to nothing (or less) has no ratio.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead_experiments.domain.effect import Arm, Overlap, StepSummary, Summary, harmonic

Vector = tuple[float, float, float]
"""(value, denominator, covariate); what an objective does not have is 0."""

Matrix = tuple[Vector, Vector, Vector]

NOTHING: Vector = (0.0, 0.0, 0.0)
NO_PRODUCTS: Matrix = (NOTHING, NOTHING, NOTHING)

RATIO_CELL = 30
"""Units each arm needs in a step before the step's ratio enters the effect."""


@dataclass(frozen=True, slots=True)
class Moments:
    """The measured units of one step and arm.

    Attributes:
        n: How many.
        mean: Their mean vector. The covariate is measured from any one point, the same in all
            cells; a unit without one counts as that point.
        comoments: Sums over the units of products of distances from `mean`; symmetric. Not sums
            of products: large offsets would cancel in those.
    """

    n: int = 0
    mean: Vector = NOTHING
    comoments: Matrix = NO_PRODUCTS


@dataclass(frozen=True, slots=True)
class StepMoments:
    """The measured units of one step, for each arm."""

    index: int
    stable: Moments
    candidate: Moments


@dataclass(frozen=True, slots=True)
class Shared:
    """Units measured in two different steps.

    Attributes:
        first: Index of one step.
        first_arm: The units' arm in it.
        second: Index of the other step.
        second_arm: The units' arm there.
        comoments: Sums over those units of products of distances from the two cells' means; a row
            for each component in the first step, a column for each in the second.
    """

    first: int
    first_arm: Arm
    second: int
    second_arm: Arm
    comoments: Matrix


@dataclass(frozen=True, slots=True)
class Linear:
    """One number a unit: what `effect.combine` takes, and the covariate's coefficient."""

    steps: tuple[StepSummary, ...]
    overlaps: tuple[Overlap, ...]
    theta: float


def linearise(steps: Sequence[StepMoments], shared: Sequence[Shared], *, is_ratio: bool) -> Linear:
    """Answer the moments of each unit's single number.

    A cell without a result (nobody measured, or a ratio without a denominator) is empty.
    """
    theta = _theta(steps, is_ratio=is_ratio)
    gradients: dict[tuple[int, Arm], Vector] = {}
    summaries: dict[tuple[int, Arm], Summary] = {}
    for step in steps:
        for arm, moments in ((Arm.STABLE, step.stable), (Arm.CANDIDATE, step.candidate)):
            gradients[step.index, arm] = g = _gradient(moments, theta, is_ratio=is_ratio)
            summaries[step.index, arm] = _summary(moments, g, theta, is_ratio=is_ratio)
    return Linear(
        tuple(
            StepSummary(s.index, summaries[s.index, Arm.STABLE], summaries[s.index, Arm.CANDIDATE])
            for s in steps
        ),
        tuple(_overlap(units, gradients) for units in shared),
        theta,
    )


def entered_steps(steps: Sequence[StepMoments], *, is_ratio: bool) -> frozenset[int]:
    """Answer the indices of the steps that enter the effect."""
    linear = linearise(steps, (), is_ratio=is_ratio)
    return frozenset(step.index for step in linear.steps if step.is_comparable)


def _theta(steps: Sequence[StepMoments], *, is_ratio: bool) -> float:
    """The covariate's coefficient; 0 where it never varies."""
    covariance = variance = 0.0
    for step in steps:
        if min(step.stable.n, step.candidate.n) < 2:  # noqa: PLR2004 - a variance needs two
            continue
        weight = harmonic(step.stable.n, step.candidate.n)
        for arm in (step.stable, step.candidate):
            g = _gradient(arm, 0.0, is_ratio=is_ratio)
            scale = weight / (arm.n - 1)
            covariance += scale * sum(a * row[2] for a, row in zip(g, arm.comoments, strict=True))
            variance += scale * arm.comoments[2][2]
    theta = covariance / variance if variance > 0.0 else 0.0
    return theta if math.isfinite(theta) else 0.0


def _gradient(moments: Moments, theta: float, *, is_ratio: bool) -> Vector:
    if not is_ratio:
        return 1.0, 0.0, -theta
    value, denominator, _ = moments.mean
    if moments.n < RATIO_CELL or denominator <= 0.0:
        return NOTHING
    return 1.0 / denominator, -value / denominator / denominator, -theta


def _summary(moments: Moments, gradient: Vector, theta: float, *, is_ratio: bool) -> Summary:
    value, denominator, covariate = moments.mean
    if not moments.n or gradient == NOTHING:
        return Summary()
    result = (value / denominator if is_ratio else value) - theta * covariate
    m2 = _product(gradient, moments.comoments, gradient)
    if not (math.isfinite(result) and math.isfinite(m2)):
        return Summary()
    return Summary(moments.n, result, max(0.0, m2))


def _overlap(units: Shared, gradients: dict[tuple[int, Arm], Vector]) -> Overlap:
    first = gradients[units.first, units.first_arm]
    second = gradients[units.second, units.second_arm]
    product = _product(first, units.comoments, second)
    return Overlap(units.first, units.first_arm, units.second, units.second_arm, product)


def _product(left: Vector, matrix: Matrix, right: Vector) -> float:
    """Answer `left' matrix right`, without the places that are 0."""
    return sum(
        a * b * m
        for a, row in zip(left, matrix, strict=True)
        if a
        for b, m in zip(right, row, strict=True)
        if b
    )

"""Tests that may be looked at as often as one likes.

An e-value is a number whose expectation is at most one when there is no effect, at every
moment at once (Ville's inequality), so "stop when it reaches 1/alpha" errs with probability
alpha at most, however often it is looked at. With an estimate `d`, its standard error `se`
and a normal prior of scale `tau` on the effect, `z = d / se` and `r = tau^2 / se^2`:

- two-sided, `ln E = (z^2 r / (1 + r) - ln(1 + r)) / 2`;
- the confidence sequence is every effect this does not reject,
  `d +- se sqrt((1 + r) / r (ln(1 + r) + 2 ln(1 / alpha)))`.

Sources: Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric, nonasymptotic
confidence sequences", Ann. Statist. 49(2) 2021, propositions 4 and 5; Waudby-Smith, Arbour,
Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences", Ann. Statist. 52(6) 2024; Johari, Koomen, Pekelis, Walsh, "Always valid inference:
continuous monitoring of A/B tests", Operations Research 2022.
"""

import math
from statistics import NormalDist

LARGEST = 1e300
"""The largest e-value written into a document: JSON has no infinity."""

_LARGEST_RATIO = 1e150  # Its square is still a float.


def information_ratio(se: float, tau: float) -> float:
    """Answer `r = tau^2 / se^2`, kept finite."""
    return min(tau / se, _LARGEST_RATIO) ** 2


def log_evalue(effect: float, se: float, tau: float) -> float:
    """Answer the two-sided log e-value against "no effect".

    Args:
        effect: The estimated difference, candidate minus stable.
        se: Its standard error, above 0.
        tau: The scale of the normal mixture, above 0; see `tau_from`.
    """
    r = information_ratio(se, tau)
    z = effect / se
    return 0.5 * (z * z * (r / (1.0 + r)) - math.log1p(r))


def radius(se: float, tau: float, alpha: float) -> float:
    """Answer half the width of the confidence sequence at level `1 - alpha`."""
    r = information_ratio(se, tau)
    if r == 0.0:
        return math.inf
    return se * math.sqrt((1.0 + r) / r * (math.log1p(r) - 2.0 * math.log(alpha)))


def proportion_bounds(hits: int, n: int, alpha: float) -> tuple[float, float]:
    """Answer the confidence sequence of a share at level `1 - alpha`.

    It holds every share `p` that `ln E(p) = ln B(hits + 1/2, n - hits + 1/2) - ln B(1/2, 1/2) -
    hits ln p - (n - hits) ln(1 - p)` does not reject: the beta-binomial mixture, which is the
    multinomial one of `srm` for two categories and an unknown share.

    Args:
        hits: How often it was.
        n: Of how many, at least 1.
        alpha: The probability that a bound is ever wrong.
    """
    limit = -math.log(alpha)
    middle, edge = hits / n, 1e-12
    low = 0.0 if hits == 0 else _crossing(hits, n, limit, edge, middle)
    high = 1.0 if hits == n else _crossing(hits, n, limit, 1.0 - edge, middle)
    return low, high


def _crossing(hits: int, n: int, limit: float, rejected: float, kept: float) -> float:
    """Find where `ln E` reaches the limit, between a share that is rejected and one that is not.

    Halving stops where floats do. Errs towards the rejected side: the bounds are never too narrow.
    """
    for _ in range(60):
        middle = (rejected + kept) / 2
        if log_evalue_of_share(hits, n, middle) >= limit:
            rejected = middle
        else:
            kept = middle
    return rejected


def log_evalue_of_share(hits: int, n: int, share: float) -> float:
    """Answer the log e-value against a share, strictly between 0 and 1; see `proportion_bounds`."""
    misses = n - hits
    mixture = log_beta(hits + 0.5, misses + 0.5) - log_beta(0.5, 0.5)
    given = hits * math.log(share) if hits else 0.0
    return mixture - given - (misses * math.log1p(-share) if misses else 0.0)


def log_beta(a: float, b: float) -> float:
    """Answer the logarithm of the beta function."""
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def tau_from(minimum_effect: float, alpha: float, power: float = 0.8) -> float:
    """Answer the mixture's scale for the smallest effect worth finding.

    The boundary is tightest at `r* = -2 ln(alpha) + ln(1 - 2 ln(alpha))`. We place that where
    a fixed test of the wanted power would stop, so
    `tau = minimum_effect sqrt(r*) / (z_{1 - alpha / 2} + z_power)`: 1.006 times the minimum
    effect at alpha 0.05 and power 0.8. A tau wrong by a factor of 2 costs at most 20 % of the
    sample, never validity.
    """
    tightest = -2.0 * math.log(alpha) + math.log1p(-2.0 * math.log(alpha))
    quantile = NormalDist().inv_cdf
    return minimum_effect * math.sqrt(tightest) / (quantile(1.0 - alpha / 2.0) + quantile(power))


def finite(log_e: float) -> float:
    """Answer the e-value of a log e-value, at most `LARGEST`."""
    return math.exp(min(log_e, math.log(LARGEST)))

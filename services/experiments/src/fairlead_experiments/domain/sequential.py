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

"""Guardrails: does the candidate fail (or dawdle) more than the margin allows?

A unit is bad from its first bad request, in the step in which that happened, under the arm it
had then, and counts once in a rollout. The hash places units without knowing which are going to
be bad, so between identical releases each newly bad unit of a step of weight `w` is the
candidate's with probability `w`, however its requests fail together. Where the candidate turns
units bad `r` times as often it is `theta_r = r w / (1 - w + r w)`. Against "at most `r_0` times as
bad", with `theta_0` at `r_0` and products over the steps' newly bad units:

`E = mean over a grid of r of prod (theta_r / theta_0)^bad_C ((1 - theta_r) / (1 - theta_0))^bad_S`

a binomial e-process (Lindon and Malek, "Anytime-valid inference for multinomial count data",
NeurIPS 2022) in the sequence of newly bad units. The hash is all it rests on: base rates may move
and requests may fail in bursts. The grid: 12 ratios, log-spaced from 1.1 to 20 times `1 + margin`,
weighted as a normal in the logarithm around 3.2 times `1 + margin`: ratios far above are found at
once whatever is bet on them, those near it need the bet.

**Two bars.** A guardrail speaks when `E` against the margin (`r_0 = 1 + margin`) reaches 20 and `E`
against being as bad as stable (`r_0 = 1`) reaches 100. So a release within the margin is flagged
with probability at most 5 %, and one no worse than stable with at most 1 %, whatever the margin is.
Asking for 100 of the margin itself would hold nobody safer who is no worse, and find a release of
four times the errors later: after 3,150 candidate requests instead of 1,900 (median, base 0.1 %,
5 % candidate).

Identical releases over a 1-10-50 ramp are flagged in < 1 % of 500 rollouts, whether requests fail
by themselves, in bursts, or are all those of one unit in a hundred (counting requests: 20.2 %).

Units that move to the candidate as the weight grows need no rule of their own: one that was bad
before is not counted again, and one that was not takes the side its hash gives it now.

**Order.** A unit's earliest bad request by the time it was made decides, also if it arrives after
a later one, so that the counts do not depend on the order of arrival. That can move a unit to
another step; at each look the counts are still a fair draw of the hash.

**Power.** With few heavy units and a high base rate every unit gets bad sooner or later, whatever
serves it, and units tell little. The remedy is `unit: request`, which makes this a test of
requests. Counting requests throughout would find
such candidates sooner, at the false alarms above: being right came first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

THRESHOLD = 20.0
"""What the evidence against the margin must reach."""

EQUAL_THRESHOLD = 100.0
"""What the evidence against "no worse than stable" must reach."""

CEILING_SHARE = 0.5
CEILING_REQUESTS = 20
CEILING_UNITS = 5
"""Half of at least 20 requests of at least 5 units failing is an outage: nothing else is waited for.

A few units that always fail, and send many requests, are no outage: without asking for five
the ceiling alone flagged identical releases in 2.8 % of rollouts where one unit in ten always fails.
"""

ENOUGH_REQUESTS = 50
"""Candidate requests in the current step below which a guardrail has not really looked."""

_RATIOS = 12
_NEAREST, _FARTHEST = 1.1, 20.0
_LIKELIEST, _SPREAD = 3.2, 0.5


@dataclass(frozen=True, slots=True)
class BadUnits:
    """Units that turned bad in one step, and the share of units the candidate was given."""

    share: float
    stable: int
    candidate: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests and bad requests of both arms."""

    stable_requests: int
    candidate_requests: int
    stable_bad: int
    candidate_bad: int


def ratios(margin: float) -> tuple[float, ...]:
    """Answer the grid of true ratios the e-process bets on."""
    span = math.log(_FARTHEST / _NEAREST)
    return tuple(
        (1.0 + margin) * _NEAREST * math.exp(span * i / (_RATIOS - 1)) for i in range(_RATIOS)
    )


def log_evalue(steps: Sequence[BadUnits], margin: float, null: float | None = None) -> float:
    """Answer the log e-value against "at most `null` times as bad as stable".

    Steps that give all to one arm say nothing.

    Args:
        steps: Newly bad units, a step each.
        margin: How much worse may be accepted; it places the grid.
        null: From 1 to `1 + margin`, which is the default.
    """
    against = 1.0 + margin if null is None else null
    told = [step for step in steps if 0.0 < step.share < 1.0]
    sums = [
        sum(_log_ratio(step, against, r) for step in told) + bet
        for r, bet in zip(ratios(margin), _log_bets(), strict=True)
    ]
    top = max(sums)
    return top + math.log(sum(math.exp(s - top) for s in sums))


@cache
def _log_bets() -> tuple[float, ...]:
    """The logarithms of the grid's weights, which sum to 1; they are the same for every margin."""
    distances = [math.log(r / _LIKELIEST) / _SPREAD for r in ratios(0.0)]
    total = math.log(sum(math.exp(-0.5 * d * d) for d in distances))
    return tuple(-0.5 * d * d - total for d in distances)


def _log_ratio(step: BadUnits, null: float, r: float) -> float:
    """The log likelihood ratio of one step's newly bad units at a ratio of the grid.

    theta_r / theta_0 = (r / null) (1 - w + null w) / (1 - w + r w), and for its complement the
    same without (r / null).
    """
    rest, share = 1.0 - step.share, step.share
    both = math.log((rest + null * share) / (rest + r * share))
    return step.candidate * math.log(r / null) + (step.stable + step.candidate) * both


def is_above_ceiling(current: Traffic, bad_units: int) -> bool:
    """Answer whether the candidate is simply broken in the current step.

    Where stable fails as much, whatever is wrong is not the candidate.

    Args:
        current: Requests of the current step.
        bad_units: Units that turned bad with the candidate in the rollout.
    """
    is_stable_out = _is_outage(current.stable_bad, current.stable_requests)
    is_candidate_out = _is_outage(current.candidate_bad, current.candidate_requests)
    return is_candidate_out and bad_units >= CEILING_UNITS and not is_stable_out


def _is_outage(bad: int, requests: int) -> bool:
    return requests >= CEILING_REQUESTS and bad >= CEILING_SHARE * requests

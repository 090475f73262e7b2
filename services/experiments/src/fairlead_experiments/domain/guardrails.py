"""Guardrails: does the candidate fail (or dawdle) more than the margin allows?

In each bucket of time, given its bad requests, the candidate's share of them is binomial with
`theta_r = r n_C / (n_S + r n_C)` if it is `r` times as bad as stable. Against `r <= 1 + margin`:

`E = mean over a grid of r of prod (theta_r / theta_0)^bad_C ((1 - theta_r) / (1 - theta_0))^bad_S`

a conditional-binomial e-process (Lindon and Malek, "Anytime-valid inference for multinomial count
data", NeurIPS 2022). Every bucket is conditioned on its own counts, so a base rate and a weight
that change from bucket to bucket leave it valid; it is exact for Poisson counts, and careful for
requests that fail independently (Hoeffding, JASA 58 1963, theorem 4). The grid: 12 ratios,
log-spaced from 1.1 to 20 times `1 + margin`. Identical releases are flagged in 0.7 % of rollouts;
the plain rule "rate above 1.25 x baseline" flags 75 %.

**Limit.** Requests are counted, units are assigned: where a few units make all the bad requests,
whichever arm they fall to looks bad. If one unit in a hundred always fails and the others never
do, identical releases are flagged in 4.5 % of rollouts (one request a bucket; 24 % with five).
Counting each unit's first bad request only would hold there too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

THRESHOLD = 100.0
"""A false alarm in one of a hundred rollouts and guardrails, at most."""

CEILING_SHARE = 0.5
CEILING_REQUESTS = 20
"""Half of at least 20 requests failing is an outage: no comparison is waited for."""

ENOUGH_REQUESTS = 50
"""Candidate requests in the current step below which a guardrail has not really looked."""

_RATIOS = 12
_NEAREST, _FARTHEST = 1.1, 20.0


@dataclass(frozen=True, slots=True)
class Increment:
    """Requests and bad requests of both arms in one bucket of time."""

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


class LogProcess:
    """The e-process of one guardrail, fed bucket by bucket."""

    def __init__(self, margin: float) -> None:
        self._null = 1.0 + margin
        self._grid = ratios(margin)
        self._sums = [0.0] * len(self._grid)

    def add(self, part: Increment) -> None:
        """Take one bucket."""
        has_both = part.stable_requests and part.candidate_requests
        if has_both and (part.stable_bad or part.candidate_bad):
            terms = _terms(part, self._null, self._grid)
            self._sums = [total + term for total, term in zip(self._sums, terms, strict=True)]

    @property
    def log_evalue(self) -> float:
        """The log of the mean over the grid, so far."""
        top = max(self._sums)
        return top + math.log(sum(math.exp(s - top) for s in self._sums) / len(self._sums))


def log_evalue(increments: Sequence[Increment], margin: float) -> float:
    """Answer the log e-value against "at most `1 + margin` times as bad as stable"."""
    process = LogProcess(margin)
    for part in increments:
        process.add(part)
    return process.log_evalue


def _terms(part: Increment, null: float, grid: Sequence[float]) -> list[float]:
    """The log likelihood ratio of one bucket at each ratio of the grid.

    theta_r / theta_0 = (r / null) (n_S + null n_C) / (n_S + r n_C), and for its complement the
    same without (r / null).
    """
    stable, candidate = part.stable_requests, part.candidate_requests
    bad = part.stable_bad + part.candidate_bad
    base = stable + null * candidate
    return [
        part.candidate_bad * math.log(r / null) + bad * math.log(base / (stable + r * candidate))
        for r in grid
    ]


def is_above_ceiling(current: Increment) -> bool:
    """Answer whether the candidate is simply broken in the current step.

    Where stable fails as much, whatever is wrong is not the candidate.
    """
    return _is_outage(current.candidate_bad, current.candidate_requests) and not _is_outage(
        current.stable_bad, current.stable_requests
    )


def _is_outage(bad: int, requests: int) -> bool:
    return requests >= CEILING_REQUESTS and bad >= CEILING_SHARE * requests

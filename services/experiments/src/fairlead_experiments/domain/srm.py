"""Sample-ratio mismatch: do the arms have the shares of units they were given?

If units are missing from one arm, what is left of it is no longer comparable, and no other
number can be trusted. The e-value is Dirichlet-multinomial against the known shares (Lindon and
Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022):

`ln E = ln B(k p_S + n_S, k p_C + n_C) - ln B(k p_S, k p_C) - n_S ln p_S - n_C ln p_C`

with `k = 100`. A unit counts once, in the first step that met it: given that, the hash places
each new unit in the candidate with the step's weight, independently of all others, while the
units that come back in later steps repeat what is known. The steps' e-values are multiplied,
each with a prior of its own. A chi-square test at p < 0.01 looked at as often gives 12.8 % false
alarms against 0.4 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead_experiments.domain.sequential import log_beta

THRESHOLD = 1000.0
"""An alarm in one of a thousand correct rollouts, at most."""

_CONCENTRATION = 100.0


@dataclass(frozen=True, slots=True)
class NewUnits:
    """Units met for the first time in one step, and the share the candidate was given."""

    share: float
    stable: int
    candidate: int


def log_evalue(units: NewUnits, concentration: float = _CONCENTRATION) -> float:
    """Answer the log e-value of one step against its share, strictly between 0 and 1."""
    p, q = units.share, 1.0 - units.share
    return (
        log_beta(concentration * q + units.stable, concentration * p + units.candidate)
        - log_beta(concentration * q, concentration * p)
        - units.stable * math.log(q)
        - units.candidate * math.log(p)
    )


def total_log_evalue(steps: Sequence[NewUnits]) -> float:
    """Answer the log of the product over steps; steps that give all to one arm say nothing."""
    return sum(log_evalue(step) for step in steps if 0.0 < step.share < 1.0)

"""Lanes: equal parts of the units, one for each of several candidates on trial beside each other.

A unit's lane does not follow from what places it in a split (contracts, "TrafficPlan"). So nothing
but its own rollout moves a unit of a candidate, whatever becomes of the others.
"""

from dataclasses import dataclass, replace

from fairlead_rollout.domain.shares import TOTAL_WEIGHT
from fairlead_rollout.domain.spec import ServedModelSpec


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One of several equal parts of the units.

    Attributes:
        index: Which one, from 0.
        of: How many there are; a rollout keeps it, also when others end before it.
    """

    index: int
    of: int

    @property
    def start(self) -> int:
        """Return the first place inside, of 10,000."""
        return TOTAL_WEIGHT * self.index // self.of

    @property
    def end(self) -> int:
        """Return the first place behind it."""
        return TOTAL_WEIGHT * (self.index + 1) // self.of


def lane_salt(name: str) -> str:
    """Return the salt by which the units of a ServedModel are in its lanes."""
    return f"lane:{name}"


def spec_in(spec: ServedModelSpec, lane: Lane | None) -> ServedModelSpec:
    """Return the spec as it is for one of several candidates: they share alpha.

    Each gets an equal part, which is Bonferroni's method: the chance that any of equal versions is
    promoted or aborted is at most the sum of theirs, however their numbers depend on each other.
    """
    objective = spec.rollout.objective
    if lane is None or objective is None:
        return spec
    part = replace(objective, alpha=objective.alpha / lane.of)
    return replace(spec, rollout=replace(spec.rollout, objective=part))

"""Which arm a unit belongs to: the same answer as Envoy's, in one pure function."""

import xxhash

from fairlead_gateway.domain.eligibility import BUCKETS
from fairlead_gateway.domain.plan import TOTAL_WEIGHT, ArmName, TrafficPlan


def bucket_of(salt: str, unit: str) -> int:
    """Return the unit's place in 0 to 9,999, fixed by the salt alone."""
    return xxhash.xxh64_intdigest(f"{salt}:{unit}".encode()) % TOTAL_WEIGHT


def outside_of(plan: TrafficPlan, unit: str) -> str | None:
    """Return why a unit is not eligible for the candidate; None if it is."""
    for each in plan.eligible:
        bucket = xxhash.xxh64_intdigest(unit.encode(), seed=each.seed) % BUCKETS
        if not each.start <= bucket < each.end:
            return each.reason
    return None


def assign(plan: TrafficPlan, unit: str | None) -> ArmName:
    """Assign a unit to an arm.

    Args:
        plan: The split.
        unit: The unit as Envoy saw it; where the plan's unit is each request, the inference id.

    Returns:
        The first arm whose cumulative weight exceeds the unit's bucket; stable for a unit that
        is absent, empty or not eligible.
    """
    if not unit or outside_of(plan, unit) is not None:
        return ArmName.STABLE
    bucket = bucket_of(plan.salt, unit)
    reached = 0
    for arm in plan.arms:
        reached += arm.weight
        if bucket < reached:
            return arm.arm
    return ArmName.STABLE  # Unreachable: the weights sum to the number of buckets.

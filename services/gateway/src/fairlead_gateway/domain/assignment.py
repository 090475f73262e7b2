"""Which arm a unit belongs to: the same answer as Envoy's, in one pure function."""

import xxhash

from fairlead_gateway.domain.plan import TOTAL_WEIGHT, ArmName, TrafficPlan


def bucket_of(salt: str, unit: str) -> int:
    """Return the unit's place in 0 to 9,999, fixed by the salt alone."""
    return xxhash.xxh64_intdigest(f"{salt}:{unit}".encode()) % TOTAL_WEIGHT


def assign(plan: TrafficPlan, unit: str | None) -> ArmName:
    """Assign a unit to an arm.

    Args:
        plan: The split.
        unit: The unit as Envoy saw it; where the plan's unit is each request, the inference id.

    Returns:
        The first arm whose cumulative weight exceeds the unit's bucket; stable for a unit that
        is absent or empty.
    """
    if not unit:
        return ArmName.STABLE
    bucket = bucket_of(plan.salt, unit)
    reached = 0
    for arm in plan.arms:
        reached += arm.weight
        if bucket < reached:
            return arm.arm
    return ArmName.STABLE  # Unreachable: the weights sum to the number of buckets.

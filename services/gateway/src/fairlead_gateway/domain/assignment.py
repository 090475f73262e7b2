"""Which arm a unit belongs to: the same answer as Envoy's, in one pure function."""

import xxhash

from fairlead_gateway.domain.eligibility import BUCKETS, Range
from fairlead_gateway.domain.plan import LANES, TOTAL_WEIGHT, Arm, ArmName, TrafficPlan


def bucket_of(salt: str, unit: str) -> int:
    """Return the unit's place in 0 to 9,999, fixed by the salt alone."""
    return xxhash.xxh64_intdigest(f"{salt}:{unit}".encode()) % TOTAL_WEIGHT


def _holds(each: Range, unit: str) -> bool:
    bucket = xxhash.xxh64_intdigest(unit.encode(), seed=each.seed) % BUCKETS
    return each.start <= bucket < each.end


def outside_of(plan: TrafficPlan, unit: str) -> str | None:
    """Return why a unit is not eligible for any candidate; None if it is."""
    for each in plan.eligible:
        if not _holds(each, unit):
            return each.reason
    if plan.lanes and trial_of(plan, unit) is None:
        return LANES
    return None


def trial_of(plan: TrafficPlan, unit: str) -> TrafficPlan | None:
    """Return what a unit is routed by: its lane's plan, None in no lane; the plan without lanes."""
    if not plan.lanes:
        return plan
    return next((plan.in_lane(lane) for lane in plan.lanes if _holds(lane.range, unit)), None)


def assign(plan: TrafficPlan, unit: str | None) -> ArmName:
    """Assign a unit to the name of an arm; see `assign_arm`."""
    return assign_arm(plan, unit).arm


def assign_arm(plan: TrafficPlan, unit: str | None) -> Arm:
    """Assign a unit to an arm.

    Args:
        plan: The split.
        unit: The unit as Envoy saw it; where the plan's unit is each request, the inference id.

    Returns:
        The first arm, of the unit's lane if there are lanes, whose cumulative weight exceeds the
        unit's bucket; stable for a unit that is absent, empty or not eligible.
    """
    trial = trial_of(plan, unit) if unit and outside_of(plan, unit) is None else None
    if not unit or trial is None:
        return plan.stable
    bucket = bucket_of(trial.salt, unit)
    reached = 0
    for arm in trial.arms:
        reached += arm.weight
        if bucket < reached:
            return arm
    return trial.stable  # Unreachable: the weights sum to the number of buckets.

"""A status in the few words of a table's row."""

from dataclasses import dataclass

from fairlead_rollout.domain.status import ConditionType, Rollout, Status
from fairlead_rollout.domain.traffic import lanes_in


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The columns that `fairlead get` and `kubectl get servedmodels` show.

    Attributes:
        stable: The version that serves; empty before there is one.
        candidate: The version on trial now, or the versions; empty outside a rollout.
        weight: Its share of all units, such as `10 %`, or their shares; empty outside a rollout.
        state: Where the rollout is, and why.
    """

    stable: str
    candidate: str
    weight: str
    state: str


def summary_of(status: Status) -> Summary:
    """Sum a status up."""
    trials = status.trials
    if not trials:
        return Summary(stable=status.stable or "", candidate="", weight="", state=_state(status))
    return Summary(
        stable=status.stable or "",
        candidate=", ".join(rollout.candidate for rollout in trials),
        weight=", ".join(_share(status, rollout) for rollout in trials),
        state=_state(status),
    )


def weight_of(status: Status, rollout: Rollout | None = None) -> int:
    """Return the candidate's weight in the plan, of 10,000.

    Args:
        status: Whose plan.
        rollout: Whose candidate, and the weight in its lane; None is the weight of a rollout alone.
    """
    arms = status.traffic["arms"] if status.traffic else ()
    if rollout is not None and rollout.lane is not None:
        lanes = lanes_in(status.traffic)
        arms = [arm for lane in lanes if lane["rollout"] == rollout.id for arm in lane["arms"]]
    return sum(arm["weight"] for arm in arms if arm["arm"] == "candidate")


def candidates_weight(status: Status) -> float:
    """Return what all candidates together get in the plan, of 10,000."""
    return weight_of(status) + sum(_of_all(status, r) for r in status.trials if r.lane)


def _of_all(status: Status, rollout: Rollout) -> float:
    """Return a candidate's weight of all units, of 10,000."""
    return weight_of(status, rollout) / (rollout.lane.of if rollout.lane else 1)


def _share(status: Status, rollout: Rollout) -> str:
    return f"{_of_all(status, rollout) / 100:.4g} %"


def _state(status: Status) -> str:
    stalled = status.condition(ConditionType.STALLED)
    if stalled is not None:
        return f"stalled: {stalled.reason}"
    rollout = status.rollout
    if rollout is not None:
        word = "paused" if rollout.paused else rollout.state.value
        return f"{word}: {rollout.reason}"
    return "serving" if status.stable else "waiting"

"""A status in the few words of a table's row."""

from dataclasses import dataclass

from fairlead_rollout.domain.status import ConditionType, Status


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The columns that `fairlead get` and `kubectl get servedmodels` show.

    Attributes:
        stable: The version that serves; empty before there is one.
        candidate: The version on trial now; empty outside a rollout.
        weight: Its share, such as `10 %`; empty outside a rollout.
        state: Where the rollout is, and why.
    """

    stable: str
    candidate: str
    weight: str
    state: str


def summary_of(status: Status) -> Summary:
    """Sum a status up."""
    rollout = status.rollout if status.rollout and status.rollout.is_active else None
    if rollout is None:
        return Summary(stable=status.stable or "", candidate="", weight="", state=_state(status))
    return Summary(
        stable=status.stable or "",
        candidate=rollout.candidate,
        weight=f"{weight_of(status) / 100:g} %",
        state=_state(status),
    )


def weight_of(status: Status) -> int:
    """Return the candidate's weight in the plan, of 10,000."""
    arms = status.traffic["arms"] if status.traffic else ()
    return sum(arm["weight"] for arm in arms if arm["arm"] == "candidate")


def _state(status: Status) -> str:
    stalled = status.condition(ConditionType.STALLED)
    if stalled is not None:
        return f"stalled: {stalled.reason}"
    rollout = status.rollout
    if rollout is not None:
        word = "paused" if rollout.paused else rollout.state.value
        return f"{word}: {rollout.reason}"
    return "serving" if status.stable else "waiting"

"""Parts of the sentences in which a decision is told."""

from collections.abc import Sequence
from datetime import timedelta

from fairlead_rollout.domain.ruling import Context
from fairlead_rollout.domain.snapshot import Workload
from fairlead_rollout.domain.spec import Step, Until
from fairlead_rollout.domain.status import Rollout

ENDINGS = {
    Until.DECIDED: "the objective has decided",
    Until.STOPPED: "a person ends it with 'fairlead promote' or 'fairlead abort'",
    Until.APPROVED: "a person approves what comes next",
}


def versions(rollouts: Sequence[Rollout]) -> str:
    """Name the candidates of some rollouts."""
    names = ", ".join(r.candidate for r in rollouts)
    return f"version {names}" if len(rollouts) == 1 else f"versions {names}"


def because(workload: Workload | None) -> str:
    """Return the end of a sentence: why a version does not start, where that is known."""
    failure = workload.failure if workload else None
    return f": {failure.reason}" if failure else ""


def percent(weight: int) -> str:
    """Write a weight (of 10,000) as people do."""
    return f"{weight / 100:g} %"


def share_of(step: Step, rollout: Rollout) -> str:
    """Return the words for what the candidate gets in a step."""
    if step.shadow:
        return f"copies of {percent(step.shadow)}"
    return f"{percent(step.weight)} of its lane" if rollout.lane else percent(step.weight)


def current_share(context: Context) -> str:
    """Return the words for what the candidate gets in the step the rollout is at."""
    return share_of(context.spec.rollout.steps[context.rollout.step or 0], context.rollout)


def time_left(context: Context, rollout: Rollout) -> timedelta | None:
    """Return how long the step's weight is still to be held; None when no time ends it."""
    duration = context.spec.rollout.steps[rollout.step or 0].duration
    if duration is None or rollout.step_started_at is None:
        return None
    return rollout.step_started_at + duration - context.now


def held(context: Context, rollout: Rollout) -> str:
    """Return the words for a weight that is held, and until when."""
    remaining = time_left(context, rollout)
    step = context.spec.rollout.steps[rollout.step or 0]
    share = share_of(step, rollout)
    if remaining is None:
        return f"{share} until {ENDINGS[step.until or Until.DECIDED]}"
    # Not how long: a message that changes with every pass would be a write with every pass.
    return f"{share} until {context.now + remaining:%Y-%m-%d %H:%M:%S} UTC at least"

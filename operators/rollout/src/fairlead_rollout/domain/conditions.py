"""Conditions, derived from what was seen and decided; they are never a state of their own."""

from dataclasses import replace
from datetime import datetime

from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.ruling import Context, Ruling
from fairlead_rollout.domain.status import Condition, ConditionType, RolloutState, Status
from fairlead_rollout.domain.words import versions

STALLING = frozenset({Reason.FIRST_VERSION_FAILED, Reason.INVALID_SPEC})
AGAINST = frozenset(
    {
        Reason.GUARDRAIL_WORSE,
        Reason.SHADOW_WORSE,
        Reason.OBJECTIVE_WORSE,
        Reason.SAMPLE_RATIO_MISMATCH,
        Reason.CANDIDATE_FAILED,
        Reason.PROGRESS_DEADLINE_EXCEEDED,
        Reason.ABORTED_BY_PERSON,
    }
)

TROUBLES = frozenset(
    {
        ConditionType.STALLED,
        ConditionType.REGISTRY_UNAVAILABLE,
        ConditionType.EXPERIMENTS_UNAVAILABLE,
    }
)

Seen = tuple[ConditionType, str, str, str]


def with_conditions(status: Status, context: Context, ruling: Ruling) -> Status:
    """Return the status with its conditions and its observed generation."""
    seen = (
        _ready(status, context, ruling),
        _candidate_available(status, context),
        _traffic_applied(status, context),
        *_present_while_true(status, context, ruling),
    )
    conditions = tuple(_carried_over(context.status, item, context.now) for item in seen)
    generation = context.snapshot.generation
    return replace(status, conditions=conditions, observed_generation=generation)


def noted(status: Status, seen: Seen, generation: int, now: datetime) -> Status:
    """Return the status with one trouble noted, as nothing else could be looked at."""
    others = tuple(c for c in status.conditions if c.type not in TROUBLES)
    conditions = (*others, _carried_over(status, seen, now))
    return replace(status, conditions=conditions, observed_generation=generation)


def stalled(status: Status, before: Status, seen: Seen, now: datetime) -> Status:
    """Return a decided status with the trouble that carrying it out met."""
    others = tuple(c for c in status.conditions if c.type != ConditionType.STALLED)
    return replace(status, conditions=(*others, _carried_over(before, seen, now)))


def registry_away(problem: str | None) -> Seen:
    """Word the outage of MLflow."""
    message = f"{problem or 'MLflow does not answer'}; traffic stays as it is"
    return ConditionType.REGISTRY_UNAVAILABLE, "True", Reason.REGISTRY_UNREACHABLE, message


def experiments_away(problem: str | None) -> Seen:
    """Word the outage of the experiments service."""
    message = f"{problem or 'the experiments service does not answer'}; weights stay as they are"
    return ConditionType.EXPERIMENTS_UNAVAILABLE, "True", Reason.ANALYSIS_UNAVAILABLE, message


def _carried_over(before: Status, seen: Seen, now: datetime) -> Condition:
    kind, status, reason, message = seen
    old = before.condition(kind)
    since = old.last_transition_time if old is not None and old.status == status else now
    return Condition(
        type=kind, status=status, reason=str(reason), message=message, last_transition_time=since
    )


def _ready(status: Status, context: Context, ruling: Ruling) -> Seen:
    if status.stable is None:
        unknown = ruling.reason == Reason.STARTING_FIRST_VERSION
        return (
            ConditionType.READY,
            "Unknown" if unknown else "False",
            ruling.reason,
            ruling.message,
        )
    workload = context.snapshot.workload(status.stable)
    ready = workload.ready if workload else 0
    message = f"version {status.stable} serves with {ready} of {context.spec.replicas} processes"
    return ConditionType.READY, "True" if ready else "False", Reason.SERVING, message


def _candidate_available(status: Status, context: Context) -> Seen:
    kind, trials = ConditionType.CANDIDATE_AVAILABLE, status.trials
    if not trials:
        return kind, "False", Reason.NO_CANDIDATE, "no version is on trial"
    missing = [r for r in trials if not context.is_available(r.candidate)]
    if not missing:
        are = "is" if len(trials) == 1 else "are"
        message = f"{versions(trials)} {are} ready and healthy in the gateway"
        return kind, "True", Reason.CANDIDATE_AVAILABLE, message
    rollout = missing[0]
    starting = rollout.state is RolloutState.PENDING
    reason = Reason.STARTING_CANDIDATE if starting else Reason.CANDIDATE_UNAVAILABLE
    message = f"version {rollout.candidate} has no ready process"
    return kind, "Unknown" if starting else "False", reason, message


def _traffic_applied(status: Status, context: Context) -> Seen:
    kind, applied = ConditionType.TRAFFIC_APPLIED, context.snapshot.applied
    if status.traffic is None:
        return kind, "Unknown", Reason.APPLYING_TRAFFIC, "there is no plan yet"
    if applied is None:
        return kind, "Unknown", Reason.APPLYING_TRAFFIC, "the gateway's agent does not answer"
    behind, all_of = applied.behind(status.traffic), len(applied.digests)
    if not behind:
        message = f"{all_of} of {all_of} gateway replicas route by the newest plan"
        return kind, "True", Reason.TRAFFIC_APPLIED, message
    done = f"{all_of - len(behind)} of {all_of} gateway replicas route by the newest plan"
    message = f"{done}; not yet: {', '.join(behind)}"
    return kind, "False", Reason.APPLYING_TRAFFIC, message


def _newcomer(status: Status) -> str:
    """Return what a version that arrived during the trial is to expect."""
    if status.waiting is not None:
        return f"; version {status.waiting} waits until this is decided"
    return f"; version {status.settled} was refused" if status.settled is not None else ""


def _present_while_true(status: Status, context: Context, ruling: Ruling) -> tuple[Seen, ...]:
    seen: list[Seen] = []
    rollout = status.rollout
    if rollout is not None and rollout.is_active:
        message = ruling.message + _newcomer(status)
        seen.append((ConditionType.PROGRESSING, "True", ruling.reason, message))
    if ruling.reason in STALLING:
        seen.append((ConditionType.STALLED, "True", ruling.reason, ruling.message))
    if context.snapshot.registry is None:
        seen.append(registry_away(context.snapshot.registry_problem))
    is_needed = rollout is not None and rollout.is_active
    if is_needed and context.snapshot.experiments_problem is not None:
        seen.append(experiments_away(context.snapshot.experiments_problem))
    if rollout is not None and rollout.state in {RolloutState.ABORTED, RolloutState.INVALID}:
        seen.append((ConditionType.ABORTED, "True", rollout.reason, rollout.message))
    return tuple(seen)

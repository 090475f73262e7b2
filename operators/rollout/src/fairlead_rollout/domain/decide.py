"""The rollout decision: one snapshot and the time in; status, actions and when to look again out.

A chain of small named checks changes the *state* of the rollout; the first that speaks wins.
Traffic, processes and conditions are then derived from the state alone (wanted.py, conditions.py),
so that they cannot disagree with it, and a pass that is repeated after a crash decides the same again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import NAMESPACE_URL, uuid5

from fairlead_rollout.domain import conditions, rebuild
from fairlead_rollout.domain.actions import Action
from fairlead_rollout.domain.durations import format_duration
from fairlead_rollout.domain.news import events, is_moved
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.ruling import (
    ANALYSIS_EVERY,
    AT_ONCE,
    IDLE,
    SELDOM,
    SOON,
    Context,
    Ruling,
)
from fairlead_rollout.domain.snapshot import Analysis, Snapshot, Verb, Verdict, Workload
from fairlead_rollout.domain.spec import OnAbort, OnInconclusive
from fairlead_rollout.domain.status import (
    ConditionType,
    Rollout,
    RolloutState,
    Status,
    Writeback,
    with_history,
)
from fairlead_rollout.domain.wanted import (
    full_replicas,
    retired,
    traffic_plan,
    trial_replicas,
    until_removal,
    workload_actions,
)
from fairlead_rollout.domain.writebacks import (
    numbers_of,
    production_moved,
    record_of,
    report_of,
    tags_of,
)

ROLLOUTS = uuid5(NAMESPACE_URL, "https://fairlead.dev/rollouts")


Check = Callable[[Context], Ruling | None]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to write, what to do before, and when to look again."""

    status: Status
    actions: tuple[Action, ...]
    requeue_after: timedelta


def decide(snapshot: Snapshot, now: datetime) -> Decision:
    """Decide what happens next to one served model. Pure.

    Args:
        snapshot: Everything that may be known.
        now: The time; the only clock there is.
    """
    status = snapshot.status or rebuild.rebuild_status(snapshot)
    status = _record_again(_observe(status, snapshot), snapshot)
    context = Context(snapshot=snapshot, status=status, now=now)
    ruling = _first_ruling(context)
    status = retired(replace(ruling.status, traffic=traffic_plan(snapshot, ruling.status)), context)
    status = conditions.with_conditions(status, context, ruling)
    return Decision(
        status=status,
        actions=(*workload_actions(status, context), *events(status, context, ruling)),
        requeue_after=AT_ONCE
        if is_moved(context.status, status)
        else min(ruling.requeue_after, until_removal(status, context)),
    )


def _observe(status: Status, snapshot: Snapshot) -> Status:
    """Take over what was seen of the registry; forget a settled version once it has moved on."""
    if snapshot.registry is None:
        return status
    production = snapshot.registry.production
    settled = status.settled if status.settled == production else None
    return replace(status, production=production, settled=settled)


def _record_again(status: Status, snapshot: Snapshot) -> Status:
    """Queue the record of a running rollout that the experiments service has lost."""
    if not snapshot.is_record_lost or status.rollout is None or not status.rollout.is_active:
        return status
    return _tell(status, record_of(snapshot.name, snapshot.spec, status.rollout))


def _first_ruling(context: Context) -> Ruling:
    chain = WITHOUT_ROLLOUT
    if context.status.stable is None:
        chain = FIRST_VERSION
    elif context.active:
        chain = IN_ROLLOUT
    return next(ruling for check in chain if (ruling := check(context)))


# ------------------------------------------------------------------ no version serves yet


def _no_version(context: Context) -> Ruling | None:
    if context.status.production is not None:
        return None
    pointer, model = context.spec.production, context.spec.model
    message = f"waiting for a version of {model!r} at {pointer} in MLflow"
    return context.rule(Reason.WAITING_FOR_VERSION, message, IDLE)


def _first_version_failed(context: Context) -> Ruling | None:
    workload = context.snapshot.workload(context.status.production)
    if workload is None or not workload.has_failed or workload.failure is None:
        return None
    message = f"version {workload.version} does not start: {workload.failure.reason}"
    return context.rule(Reason.FIRST_VERSION_FAILED, message, IDLE)


def _first_version_starting(context: Context) -> Ruling | None:
    version = context.status.production
    if version is not None and context.is_available(version):
        return None
    message = f"version {version} is starting{_because(context.snapshot.workload(version))}"
    return context.rule(Reason.STARTING_FIRST_VERSION, message, SOON)


def _first_version_serves(context: Context) -> Ruling:
    status = replace(context.status, stable=context.status.production)
    message = f"version {status.stable} serves"
    return Ruling(status=status, reason=Reason.SERVING, message=message, requeue_after=AT_ONCE)


# ------------------------------------------------------------------ nothing on trial


def _going(context: Context) -> Ruling | None:
    return _serving(context, IDLE) if context.snapshot.is_deleted else None


def _request_without_rollout(context: Context) -> Ruling | None:
    request, rollout = context.request, context.status.rollout
    if request is None:
        return None
    settled = context.status.settled
    if request.verb is Verb.RETRY and rollout is not None and request.rollout == rollout.id:
        settled = None
    status = replace(context.status, settled=settled, handled_request=request.id)
    return _serving(replace(context, status=status), AT_ONCE)


def _nothing_new(context: Context) -> Ruling | None:
    status = context.status
    if context.snapshot.registry is None or status.production in {None, status.stable}:
        return _serving(context, IDLE)
    return _serving(context, IDLE) if status.production == status.settled else None


def _serving(context: Context, requeue_after: timedelta) -> Ruling:
    status, applied = context.status, context.snapshot.applied
    message = f"version {status.stable} serves"
    if status.production is None:
        message += f"; {context.spec.production} names no version in MLflow"
        return context.rule(Reason.PRODUCTION_MISSING, message, requeue_after)
    if status.settled is not None:
        message += f"; version {status.settled} was aborted and stays out until it is promoted again or retried"
    is_settled = applied is not None and applied.has(status.traffic)
    wait = requeue_after if is_settled else min(requeue_after, _until_gateway(context))
    return context.rule(Reason.SERVING, message, wait)


def _until_gateway(context: Context) -> timedelta:
    """Return when to look at the gateway again: the longer it has been behind, the later."""
    waiting = context.status.condition(ConditionType.TRAFFIC_APPLIED)
    if waiting is None or waiting.status == "True":
        return SOON
    return max(SOON, min((context.now - waiting.last_transition_time) / 10, SELDOM))


def _start(context: Context) -> Ruling:
    status = context.status
    assert status.production is not None
    assert status.stable is not None
    number = status.attempts + 1
    rollout = Rollout(
        id=str(uuid5(ROLLOUTS, f"{context.snapshot.uid}/{status.production}/{number}")),
        candidate=status.production,
        baseline=status.stable,
        state=RolloutState.PENDING,
        started_at=context.now,
        rules=context.spec.rollout.fingerprint,
        reason=Reason.STARTING_CANDIDATE,
        message=f"version {status.production} is starting",
    )
    status = replace(status, attempts=number, rollout=rollout)
    status = _tell(status, record_of(context.snapshot.name, context.spec, rollout))
    status = _tell(status, tags_of(context.spec, rollout))
    return Ruling(
        status=status, reason=rollout.reason, message=rollout.message, requeue_after=AT_ONCE
    )


# ------------------------------------------------------------------ a candidate is on trial


def _deleted(context: Context) -> Ruling | None:
    if not context.snapshot.is_deleted:
        return None
    message = "the ServedModel was deleted"
    return _end(context, RolloutState.ABORTED, Reason.SERVED_MODEL_DELETED, message)


def _request_in_rollout(context: Context) -> Ruling | None:
    request, rollout = context.request, context.rollout
    if request is None:
        return None
    context = replace(context, status=replace(context.status, handled_request=request.id))
    by = f" by {request.by}" if request.by else ""
    if request.rollout != rollout.id:
        return context.rule(Reason(rollout.reason), rollout.message, AT_ONCE)
    if request.verb is Verb.ABORT:
        return _end(context, RolloutState.ABORTED, Reason.ABORTED_BY_PERSON, f"aborted{by}")
    if request.verb is Verb.PROMOTE:
        return _promote(context, Reason.PROMOTED_BY_PERSON, f"promoted{by}")
    if request.verb in {Verb.PAUSE, Verb.RESUME}:
        paused = request.verb is Verb.PAUSE
        message = f"paused{by}" if paused else f"resumed{by}"
        reason = Reason.PAUSED if paused else Reason.STEP_HOLDING
        return context.keep(replace(rollout, paused=paused), reason, message, AT_ONCE)
    return context.rule(Reason(rollout.reason), rollout.message, AT_ONCE)


def _production_moved(context: Context) -> Ruling | None:
    status, candidate = context.status, context.rollout.candidate
    if context.snapshot.registry is None or status.production in {candidate, None}:
        return None
    if status.production == status.stable:
        message = f"{context.spec.production} names version {status.stable} again"
        return _end(context, RolloutState.ABORTED, Reason.PRODUCTION_MOVED_BACK, message)
    message = f"version {status.production} arrived"
    return _end(context, RolloutState.SUPERSEDED, Reason.SUPERSEDED, message)


def _rules_changed(context: Context) -> Ruling | None:
    rollout, request = context.rollout, context.request
    if rollout.rules == context.spec.rollout.fingerprint:
        return None
    if request and request.verb is Verb.ABORT and request.rollout == rollout.id:
        return None  # a person ends it: there is nothing to start over
    message = "spec.rollout was changed; exposures under other rules cannot be judged together"
    return _end(context, RolloutState.SUPERSEDED, Reason.RULES_CHANGED, message)


def _candidate_failed(context: Context) -> Ruling | None:
    workload = context.snapshot.workload(context.rollout.candidate)
    if workload is None or not workload.has_failed or workload.failure is None:
        return None
    message = f"version {workload.version} cannot serve: {workload.failure.reason}"
    return _end(context, RolloutState.ABORTED, Reason.CANDIDATE_FAILED, message)


def _deadline_exceeded(context: Context) -> Ruling | None:
    rollout, deadline = context.rollout, context.spec.rollout.progress_deadline
    late = context.now - rollout.started_at >= deadline
    if rollout.state is not RolloutState.PENDING or not late:
        return None
    message = f"version {rollout.candidate} was not ready within {format_duration(deadline)}"
    message += _because(context.snapshot.workload(rollout.candidate))
    return _end(context, RolloutState.ABORTED, Reason.PROGRESS_DEADLINE_EXCEEDED, message)


def _analysis_against(context: Context) -> Ruling | None:
    analysis = context.snapshot.analysis
    if analysis is None:
        return None
    if analysis.verdict is Verdict.INVALID:
        reason = Reason.SAMPLE_RATIO_MISMATCH
        return _end(context, RolloutState.INVALID, reason, analysis.reason)
    if analysis.verdict is Verdict.WORSE:
        guardrail = any(g.get("state") == Verdict.WORSE for g in analysis.guardrails)
        reason = Reason.GUARDRAIL_WORSE if guardrail else Reason.OBJECTIVE_WORSE
        return _end(context, RolloutState.ABORTED, reason, analysis.reason)
    return None


def _promoting(context: Context) -> Ruling | None:
    rollout, wanted = context.rollout, full_replicas(context.snapshot, context.status)
    if not rollout.promoting:
        return None
    if not context.is_available(rollout.candidate, at_least=wanted):
        message = (
            f"version {rollout.candidate} is being scaled to {wanted} before it takes all traffic"
        )
        return context.rule(Reason.PROMOTING, message, SOON)
    return _end(context, RolloutState.PROMOTED, Reason(rollout.reason), rollout.message)


def _candidate_starting(context: Context) -> Ruling | None:
    rollout = context.rollout
    if rollout.state is not RolloutState.PENDING:
        return None
    if not context.is_available(rollout.candidate, at_least=trial_replicas(context.spec)):
        message = f"version {rollout.candidate} is starting"
        message += _because(context.snapshot.workload(rollout.candidate))
        return context.rule(Reason.STARTING_CANDIDATE, message, SOON)
    waiting = {(item.kind, item.rollout) for item in context.status.writeback}
    if ("record", rollout.id) in waiting:
        message = "the experiments service has not taken the rollout's record yet"
        return context.rule(Reason.ANALYSIS_UNAVAILABLE, message, SOON)
    return _set_step(context, 0)


def _traffic_pending(context: Context) -> Ruling | None:
    rollout, applied = context.rollout, context.snapshot.applied
    if applied is None or not applied.has(context.status.traffic):
        weight = _percent(context.spec.rollout.steps[rollout.step or 0].weight)
        message = f"the gateway is applying {weight} for version {rollout.candidate}"
        return context.rule(Reason.APPLYING_TRAFFIC, message, SOON)
    if rollout.step_started_at is None:
        started = replace(rollout, step_started_at=context.now)
        return context.keep(started, Reason.STEP_HOLDING, _held(context, started), AT_ONCE)
    return None


def _too_long(context: Context) -> Ruling | None:
    rules, rollout = context.spec.rollout, context.rollout
    if context.now - rollout.started_at < rules.max_duration:
        return None
    message = f"no decision within {format_duration(rules.max_duration)}"
    if rules.on_inconclusive is OnInconclusive.PROMOTE and _is_seen_enough(context):
        return _promote(context, Reason.INCONCLUSIVE, message)
    return _end(context, RolloutState.ABORTED, Reason.INCONCLUSIVE, message)


def _paused(context: Context) -> Ruling | None:
    if not context.rollout.paused:
        return None
    message = f"paused at {_weight(context)}; 'fairlead resume' goes on"
    return context.rule(Reason.PAUSED, message, ANALYSIS_EVERY)


def _analysis_missing(context: Context) -> Ruling | None:
    if context.snapshot.analysis is not None:
        return None
    message = f"the experiments service does not answer; the weight stays at {_weight(context)}"
    return context.rule(Reason.ANALYSIS_UNAVAILABLE, message, ANALYSIS_EVERY)


def _step_holding(context: Context) -> Ruling | None:
    rollout = context.rollout
    remaining = _remaining(context, rollout)
    if remaining is None or remaining <= AT_ONCE:
        return None
    message = _held(context, rollout)
    return context.rule(Reason.STEP_HOLDING, message, min(remaining, ANALYSIS_EVERY))


def _requests_seen(context: Context) -> int:
    analysis = context.snapshot.analysis
    counts = analysis.steps.get(context.rollout.step or 0) if analysis else None
    return counts.candidate if counts else 0


def _is_seen_enough(context: Context) -> bool:
    known = context.snapshot.analysis is not None
    return known and _requests_seen(context) >= context.spec.rollout.minimum_requests


def _not_enough_requests(context: Context) -> Ruling | None:
    if _is_seen_enough(context):
        return None
    seen, needed = _requests_seen(context), context.spec.rollout.minimum_requests
    who = f"version {context.rollout.candidate}"
    message = f"{who} got {seen} of {needed} requests needed at {_weight(context)}"
    return context.rule(Reason.NOT_ENOUGH_DATA, message, ANALYSIS_EVERY)


def _objective_open(context: Context) -> Ruling | None:
    steps, analysis = context.spec.rollout.steps, context.snapshot.analysis
    assert analysis is not None
    if steps[context.rollout.step or 0].duration is not None:
        return None
    if analysis.verdict is Verdict.BETTER:
        return _promote(context, Reason.OBJECTIVE_BETTER, analysis.reason)
    waiting = analysis.verdict is Verdict.INSUFFICIENT
    reason = Reason.NOT_ENOUGH_DATA if waiting else Reason.UNDECIDED
    return context.rule(reason, analysis.reason, ANALYSIS_EVERY)


def _step_over(context: Context) -> Ruling:
    step, steps = context.rollout.step or 0, context.spec.rollout.steps
    if step + 1 < len(steps):
        return _set_step(context, step + 1)
    return _promote(context, Reason.GUARDRAILS_HELD, "every step passed, all guardrails held")


FIRST_VERSION: tuple[Check, ...] = (
    _no_version,  # nothing to serve
    _first_version_failed,  # a person must act
    _first_version_starting,  # its processes are not ready
    _first_version_serves,
)
WITHOUT_ROLLOUT: tuple[Check, ...] = (
    _going,  # nothing is started any more
    _request_without_rollout,  # a person wants an aborted version on trial again
    _nothing_new,  # the registry names what serves, or what was aborted, or is away
    _start,
)
IN_ROLLOUT: tuple[Check, ...] = (
    _deleted,  # there is nothing left to decide for
    _rules_changed,  # what was counted so far does not fit the new rules
    _request_in_rollout,  # people come next
    _production_moved,  # the registry no longer asks for this candidate
    _candidate_failed,  # it will never serve
    _deadline_exceeded,  # it takes too long to start
    _analysis_against,  # the numbers say stop
    _promoting,  # decided: only scaling is left
    _candidate_starting,  # before the first weight
    _traffic_pending,  # the step's time runs from when the gateway has applied it
    _too_long,  # no decision in time
    _paused,  # a person holds it
    _analysis_missing,  # without numbers nothing moves
    _step_holding,  # the step's time is not over
    _not_enough_requests,  # too little seen to go on
    _objective_open,  # the last step holds until the objective has decided
    _step_over,
)


# ------------------------------------------------------------------ changes of state


def _set_step(context: Context, step: int) -> Ruling:
    weight = _percent(context.spec.rollout.steps[step].weight)
    rollout = replace(
        context.rollout,
        state=RolloutState.RUNNING,
        step=step,
        step_started_at=None,
        reason=Reason.APPLYING_TRAFFIC,
        message=f"version {context.rollout.candidate} gets {weight}",
    )
    ruling = context.keep(rollout, Reason.APPLYING_TRAFFIC, rollout.message, AT_ONCE)
    status = _tell(ruling.status, record_of(context.snapshot.name, context.spec, rollout))
    return replace(ruling, status=_tell(status, tags_of(context.spec, rollout)))


def _promote(context: Context, reason: Reason, message: str) -> Ruling:
    rollout = replace(
        context.rollout,
        promoting=True,
        paused=False,
        reason=reason,
        message=message,
        numbers=numbers_of(context.snapshot.analysis),  # those it was decided on
    )
    status = replace(context.status, rollout=rollout)
    scaling = f"version {rollout.candidate} is to take all traffic; it is scaled first"
    return Ruling(status=status, reason=Reason.PROMOTING, message=scaling, requeue_after=AT_ONCE)


def _end(context: Context, state: RolloutState, reason: Reason, message: str) -> Ruling:
    """End the rollout: its place in the history, the new stable version, and who is told."""
    analysis, promoted = context.snapshot.analysis, state is RolloutState.PROMOTED
    rollout = replace(
        context.rollout,
        state=state,
        reason=reason,
        message=message,
        decided_at=context.now,
        paused=False,
        promoting=False,
        numbers=context.rollout.numbers if promoted else numbers_of(analysis),
    )
    status = with_history(context.status, rollout)
    if promoted:
        status = replace(status, stable=rollout.candidate, settled=None)
    elif state in {RolloutState.ABORTED, RolloutState.INVALID}:
        status = replace(status, settled=_settled(status, rollout))
    for item in _announcements(context, rollout, analysis):
        status = _tell(status, item)
    return Ruling(status=status, reason=reason, message=message, requeue_after=AT_ONCE)


def _settled(status: Status, rollout: Rollout) -> str | None:
    return rollout.candidate if status.production == rollout.candidate else None


def _announcements(
    context: Context, rollout: Rollout, analysis: Analysis | None
) -> tuple[Writeback, ...]:
    name, spec = context.snapshot.name, context.spec
    items = (
        record_of(name, spec, rollout),
        tags_of(spec, rollout),
        report_of(name, rollout, analysis),
    )
    ended_against = rollout.state in {RolloutState.ABORTED, RolloutState.INVALID}
    still_asked_for = (
        context.status.production == rollout.candidate and not context.snapshot.is_deleted
    )
    if ended_against and still_asked_for and spec.on_abort is OnAbort.REVERT:
        return (*items, production_moved(rollout))
    return items


def _tell(status: Status, item: Writeback) -> Status:
    """Queue a writeback; a newer one replaces an untold older one of the same kind."""
    key = (item.kind, item.rollout)
    others = tuple(i for i in status.writeback if (i.kind, i.rollout) != key)
    return replace(status, writeback=(*others, item))


# ------------------------------------------------------------------ words


def _because(workload: Workload | None) -> str:
    failure = workload.failure if workload else None
    return f": {failure.reason}" if failure else ""


def _percent(weight: int) -> str:
    return f"{weight / 100:g} %"


def _weight(context: Context) -> str:
    return _percent(context.spec.rollout.steps[context.rollout.step or 0].weight)


def _remaining(context: Context, rollout: Rollout) -> timedelta | None:
    duration = context.spec.rollout.steps[rollout.step or 0].duration
    if duration is None or rollout.step_started_at is None:
        return None
    return rollout.step_started_at + duration - context.now


def _held(context: Context, rollout: Rollout) -> str:
    remaining = _remaining(context, rollout)
    weight = _percent(context.spec.rollout.steps[rollout.step or 0].weight)
    if remaining is None:
        return f"{weight} until the objective has decided"
    # Not how long: a message that changes with every pass would be a write with every pass.
    return f"{weight} until {context.now + remaining:%Y-%m-%d %H:%M:%S} UTC at least"

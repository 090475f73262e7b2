"""Checks while a candidate is on trial; the first that speaks wins."""

from dataclasses import replace

from fairlead_rollout.domain.approval import (
    approval_awaited,
    approval_needed,
    approve_by_request,
)
from fairlead_rollout.domain.candidates import candidate_moved, other_promoted, other_promoting
from fairlead_rollout.domain.changes import end_rollout, promote, set_step
from fairlead_rollout.domain.durations import format_duration
from fairlead_rollout.domain.gate import shadow_gate
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.ruling import ANALYSIS_EVERY, AT_ONCE, SOON, Check, Context, Ruling
from fairlead_rollout.domain.snapshot import Analysis, Request, Verb, Verdict
from fairlead_rollout.domain.spec import OnInconclusive, Until
from fairlead_rollout.domain.status import RolloutState
from fairlead_rollout.domain.wanted import full_replicas, trial_replicas
from fairlead_rollout.domain.words import because, current_share, held, time_left


def _deleted(context: Context) -> Ruling | None:
    if not context.snapshot.is_deleted:
        return None
    message = "the ServedModel was deleted"
    return end_rollout(context, RolloutState.ABORTED, Reason.SERVED_MODEL_DELETED, message)


def _request_in_rollout(context: Context) -> Ruling | None:
    request, rollout = context.request, context.rollout
    if request is None:
        return None
    context = replace(context, status=replace(context.status, handled_request=request.id))
    followed = _follow(context, request) if request.rollout == rollout.id else None
    return followed or context.rule(Reason(rollout.reason), rollout.message, AT_ONCE)


def _follow(context: Context, request: Request) -> Ruling | None:
    """Do what a person asks of this rollout; None where that means nothing now."""
    by = f" by {request.by}" if request.by else ""
    match request.verb:
        case Verb.ABORT:
            reason = Reason.ABORTED_BY_PERSON
            return end_rollout(context, RolloutState.ABORTED, reason, f"aborted{by}")
        case Verb.PROMOTE:
            return promote(context, Reason.PROMOTED_BY_PERSON, f"promoted{by}")
        case Verb.APPROVE:
            return approve_by_request(context, request)
        case Verb.PAUSE:
            paused = replace(context.rollout, paused=True)
            return context.keep(paused, Reason.PAUSED, f"paused{by}", AT_ONCE)
        case Verb.RESUME:
            resumed = replace(context.rollout, paused=False)
            return context.keep(resumed, Reason.STEP_HOLDING, f"resumed{by}", AT_ONCE)
    return None


def _production_moved(context: Context) -> Ruling | None:
    if context.rollout.alias:
        return candidate_moved(context)
    status, candidate = context.status, context.rollout.candidate
    if context.snapshot.registry is None or status.production in {candidate, None}:
        return None
    if status.production == status.stable:
        message = f"{context.spec.production} names version {status.stable} again"
        return end_rollout(context, RolloutState.ABORTED, Reason.PRODUCTION_MOVED_BACK, message)
    if status.production in {status.waiting, status.settled}:
        return None  # it waits for its turn, or stays out
    message = f"version {status.production} arrived"
    return end_rollout(context, RolloutState.SUPERSEDED, Reason.SUPERSEDED, message)


def _rules_changed(context: Context) -> Ruling | None:
    rollout, request = context.rollout, context.request
    if rollout.rules == context.spec.rollout.fingerprint:
        return None
    if request and request.verb is Verb.ABORT and request.rollout == rollout.id:
        return None  # a person ends it: there is nothing to start over
    message = "spec.rollout was changed; exposures under other rules cannot be judged together"
    return end_rollout(context, RolloutState.SUPERSEDED, Reason.RULES_CHANGED, message)


def _candidate_failed(context: Context) -> Ruling | None:
    workload = context.snapshot.workload(context.rollout.candidate)
    if workload is None or not workload.has_failed or workload.failure is None:
        return None
    message = f"version {workload.version} cannot serve: {workload.failure.reason}"
    return end_rollout(context, RolloutState.ABORTED, Reason.CANDIDATE_FAILED, message)


def _deadline_exceeded(context: Context) -> Ruling | None:
    rollout, deadline = context.rollout, context.spec.rollout.progress_deadline
    late = context.now - rollout.started_at >= deadline
    if rollout.state is not RolloutState.PENDING or not late:
        return None
    is_compared = context.spec.rollout.guardrails.shadow is not None
    wanted = 1 if is_compared else trial_replicas(context.spec, rollout.lane)
    if context.is_available(rollout.candidate, at_least=wanted):
        return None  # it has started, and is compared, or was held by a person
    message = f"version {rollout.candidate} was not ready within {format_duration(deadline)}"
    message += because(context.snapshot.workload(rollout.candidate))
    return end_rollout(context, RolloutState.ABORTED, Reason.PROGRESS_DEADLINE_EXCEEDED, message)


def _analysis_against(context: Context) -> Ruling | None:
    analysis = context.snapshot.analysis
    if analysis is None:
        return None
    if analysis.verdict is Verdict.INVALID:
        reason = Reason.SAMPLE_RATIO_MISMATCH
        return end_rollout(context, RolloutState.INVALID, reason, analysis.reason)
    if analysis.verdict is not Verdict.WORSE:
        return None
    reason = _what_is_worse(analysis)
    if reason is Reason.OBJECTIVE_WORSE and context.spec.rollout.is_split:
        return None  # the objective is reported; a person decides
    return end_rollout(context, RolloutState.ABORTED, reason, analysis.reason)


def _what_is_worse(analysis: Analysis) -> Reason:
    if analysis.shadow and analysis.shadow["state"] == Verdict.WORSE:
        return Reason.SHADOW_WORSE
    if any(g.get("state") == Verdict.WORSE for g in analysis.guardrails):
        return Reason.GUARDRAIL_WORSE
    return Reason.OBJECTIVE_WORSE


def _promoting(context: Context) -> Ruling | None:
    rollout, wanted = context.rollout, full_replicas(context.snapshot, context.status)
    if not rollout.promoting:
        return None
    if not context.is_available(rollout.candidate, at_least=wanted):
        message = (
            f"version {rollout.candidate} is being scaled to {wanted} before it takes all traffic"
        )
        return context.rule(Reason.PROMOTING, message, SOON)
    return end_rollout(context, RolloutState.PROMOTED, Reason(rollout.reason), rollout.message)


def _candidate_starting(context: Context) -> Ruling | None:
    rollout = context.rollout
    if rollout.state is not RolloutState.PENDING:
        return None
    if not context.is_available(
        rollout.candidate, at_least=trial_replicas(context.spec, rollout.lane)
    ):
        message = f"version {rollout.candidate} is starting"
        message += because(context.snapshot.workload(rollout.candidate))
        return context.rule(Reason.STARTING_CANDIDATE, message, SOON)
    waiting = {(item.kind, item.rollout) for item in context.status.writeback}
    if ("record", rollout.id) in waiting:
        message = "the experiments service has not taken the rollout's record yet"
        return context.rule(Reason.ANALYSIS_UNAVAILABLE, message, SOON)
    return shadow_gate(context) or _paused_at_start(context) or set_step(context, 0)


def _paused_at_start(context: Context) -> Ruling | None:
    """Hold a candidate back that a person paused before its first step."""
    if not context.rollout.paused:
        return None
    message = f"paused before version {context.rollout.candidate} gets anything; 'fairlead resume' goes on"
    return _too_long(context) or context.rule(Reason.PAUSED, message, ANALYSIS_EVERY)


def _traffic_pending(context: Context) -> Ruling | None:
    rollout, applied = context.rollout, context.snapshot.applied
    if applied is None or not applied.has(context.status.traffic):
        share = current_share(context)
        message = f"the gateway is applying {share} for version {rollout.candidate}"
        return context.rule(Reason.APPLYING_TRAFFIC, message, SOON)
    if rollout.step_started_at is None:
        started = replace(rollout, step_started_at=context.now)
        return context.keep(started, Reason.STEP_HOLDING, held(context, started), AT_ONCE)
    return None


def _too_long(context: Context) -> Ruling | None:
    rules, rollout = context.spec.rollout, context.rollout
    if context.now - rollout.started_at < rules.max_duration:
        return None
    if rules.is_split:
        message = f"the split lasted {format_duration(rules.max_duration)} and nobody promoted it"
        return end_rollout(context, RolloutState.ABORTED, Reason.SPLIT_OVER, message)
    message = f"no decision within {format_duration(rules.max_duration)}"
    if rollout.awaiting:
        message = f"nobody approved it within {format_duration(rules.max_duration)}"
    if rules.on_inconclusive is OnInconclusive.PROMOTE and _is_seen_enough(context):
        return promote(context, Reason.INCONCLUSIVE, message)
    return end_rollout(context, RolloutState.ABORTED, Reason.INCONCLUSIVE, message)


def _paused(context: Context) -> Ruling | None:
    if not context.rollout.paused:
        return None
    message = f"paused at {current_share(context)}; 'fairlead resume' goes on"
    return context.rule(Reason.PAUSED, message, ANALYSIS_EVERY)


def _analysis_missing(context: Context) -> Ruling | None:
    if context.snapshot.analysis is not None:
        return None
    message = (
        f"the experiments service does not answer; the weight stays at {current_share(context)}"
    )
    return context.rule(Reason.ANALYSIS_UNAVAILABLE, message, ANALYSIS_EVERY)


def _step_holding(context: Context) -> Ruling | None:
    rollout = context.rollout
    remaining = time_left(context, rollout)
    if remaining is None or remaining <= AT_ONCE:
        return None
    message = held(context, rollout)
    return context.rule(Reason.STEP_HOLDING, message, min(remaining, ANALYSIS_EVERY))


def _requests_seen(context: Context) -> int:
    analysis = context.snapshot.analysis
    counts = analysis.steps.get(context.rollout.step or 0) if analysis else None
    return counts.candidate if counts else 0


def _has_weight(context: Context) -> bool:
    return context.spec.rollout.steps[context.rollout.step or 0].weight > 0


def _is_seen_enough(context: Context) -> bool:
    known = context.snapshot.analysis is not None
    enough = _requests_seen(context) >= context.spec.rollout.minimum_requests
    return known and enough and _has_weight(context)


def _not_enough_requests(context: Context) -> Ruling | None:
    if _is_seen_enough(context) or not _has_weight(context):
        return None
    seen, needed = _requests_seen(context), context.spec.rollout.minimum_requests
    who = f"version {context.rollout.candidate}"
    message = f"{who} got {seen} of {needed} requests needed at {current_share(context)}"
    return context.rule(Reason.NOT_ENOUGH_DATA, message, ANALYSIS_EVERY)


def _not_ready_for_weight(context: Context) -> Ruling | None:
    """Hold a candidate back that has broken where no exposure could count against it."""
    candidate = context.rollout.candidate
    wanted = trial_replicas(context.spec, context.rollout.lane)
    if _has_weight(context) or context.is_available(candidate, at_least=wanted):
        return None
    message = f"version {candidate} has not {wanted} ready processes for its first weight"
    message += because(context.snapshot.workload(candidate))
    return context.rule(Reason.CANDIDATE_UNAVAILABLE, message, SOON)


def _objective_open(context: Context) -> Ruling | None:
    steps, analysis = context.spec.rollout.steps, context.snapshot.analysis
    assert analysis is not None
    if steps[context.rollout.step or 0].until is not Until.DECIDED:
        return None
    if analysis.verdict is Verdict.BETTER:
        better = promote(context, Reason.OBJECTIVE_BETTER, analysis.reason)
        return approval_needed(context) or better
    waiting = analysis.verdict is Verdict.INSUFFICIENT
    reason = Reason.NOT_ENOUGH_DATA if waiting else Reason.UNDECIDED
    return context.rule(reason, analysis.reason, ANALYSIS_EVERY)


def _split_holding(context: Context) -> Ruling | None:
    if context.spec.rollout.steps[context.rollout.step or 0].until is not Until.STOPPED:
        return None
    # Without the numbers: they change with every request for weeks, and each would be a write.
    return context.rule(Reason.SPLIT_HOLDING, held(context, context.rollout), ANALYSIS_EVERY)


def _step_over(context: Context) -> Ruling:
    step, steps = context.rollout.step or 0, context.spec.rollout.steps
    if step + 1 < len(steps):
        return set_step(context, step + 1)
    return promote(context, Reason.GUARDRAILS_HELD, "every step passed, all guardrails held")


IN_ROLLOUT: tuple[Check, ...] = (
    _deleted,  # there is nothing left to decide for
    other_promoted,  # another of several candidates has won
    _rules_changed,  # what was counted so far does not fit the new rules
    _request_in_rollout,  # people come next
    _production_moved,  # the registry no longer asks for this candidate
    _candidate_failed,  # it will never serve
    _deadline_exceeded,  # it takes too long to start
    _analysis_against,  # the numbers say stop
    _promoting,  # decided: only scaling is left
    other_promoting,  # another of several candidates is being scaled
    _candidate_starting,  # before the first weight
    _traffic_pending,  # the step's time runs from when the gateway has applied it
    _too_long,  # no decision in time
    _paused,  # a person holds it
    _analysis_missing,  # without numbers nothing moves
    approval_awaited,  # a person was asked, and has not answered yet
    _step_holding,  # the step's time is not over
    _not_enough_requests,  # too little seen to go on
    _not_ready_for_weight,  # copies alone have not shown that it can serve
    _objective_open,  # the last step holds until the objective has decided
    _split_holding,  # a fixed split: only a person ends it
    approval_needed,  # a person is asked
    _step_over,
)

"""The gate before the first step: what a candidate predicts as a shadow must let it answer."""

from fairlead_rollout.domain.changes import end_rollout
from fairlead_rollout.domain.durations import format_duration
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.ruling import ANALYSIS_EVERY, Context, Ruling
from fairlead_rollout.domain.snapshot import Verdict
from fairlead_rollout.domain.status import RolloutState


def shadow_gate(context: Context) -> Ruling | None:
    """Hold an available candidate that gets copies until the comparison lets it answer."""
    guardrail, shadow = context.spec.rollout.guardrails.shadow, _shadow_of(context)
    if guardrail is None:
        return None
    who, limit = f"version {context.rollout.candidate}", f"{guardrail.max_disagreement:.4g}"
    longest = context.spec.rollout.max_duration
    if context.now - context.rollout.started_at >= longest:
        message = (
            f"{who} was not told from a disagreement of {limit} within {format_duration(longest)}"
        )
        return end_rollout(context, RolloutState.ABORTED, Reason.INCONCLUSIVE, message)
    if context.rollout.paused:
        message = f"paused while {who} gets copies; 'fairlead resume' goes on"
        return context.rule(Reason.PAUSED, message, ANALYSIS_EVERY)
    if shadow == Verdict.HOLDING:
        return None
    if shadow is None:
        message = f"the experiments service does not answer; {who} gets copies and answers nobody"
        return context.rule(Reason.ANALYSIS_UNAVAILABLE, message, ANALYSIS_EVERY)
    # Without the numbers: they change with every request, and each would be a write.
    message = f"{who} gets copies until it is known to disagree on a share of {limit} at most"
    return context.rule(Reason.COMPARING_SHADOW, message, ANALYSIS_EVERY)


def _shadow_of(context: Context) -> str | None:
    analysis = context.snapshot.analysis
    return analysis.shadow["state"] if analysis and analysis.shadow else None

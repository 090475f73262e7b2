"""A person's approval of what comes after a step: when it is asked for, and what counts as one.

An approval counts for one step of one rollout, and only after it was asked for. A request names
both. A tag in MLflow carries no time: one that is there when first looked for is an old one, and one
that has counted is overwritten.
"""

from dataclasses import replace

from fairlead_rollout.domain.changes import promote, set_step, tell
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.ruling import ANALYSIS_EVERY, AT_ONCE, Context, Ruling
from fairlead_rollout.domain.snapshot import Request
from fairlead_rollout.domain.words import current_share, share_of
from fairlead_rollout.domain.writebacks import APPROVE_TAG, approval_counted, tags_of

ANY_ROLLOUT = "true"
"""What the tag may hold instead of the rollout's id."""


def approval_needed(context: Context) -> Ruling | None:
    """Ask a person, once all else that the step waits for has come."""
    if not context.spec.rollout.is_approved_after(context.rollout.step or 0):
        return None
    awaiting = replace(context.rollout, awaiting=True, approval_seen=None)
    ruling = context.keep(awaiting, Reason.AWAITING_APPROVAL, _question(context), AT_ONCE)
    assert ruling.status.rollout is not None
    status = tell(ruling.status, tags_of(context.spec, ruling.status.rollout))
    return replace(ruling, status=status)


def approval_awaited(context: Context) -> Ruling | None:
    """Wait for the approval that was asked for; what the step waited for has come for good."""
    rollout, registry = context.rollout, context.snapshot.registry
    if not rollout.awaiting:
        return None
    tag = registry.approval if registry else None
    question = _question(context)
    if tag is None or tag == rollout.approval_seen:
        return context.rule(Reason.AWAITING_APPROVAL, question, ANALYSIS_EVERY)
    is_new = rollout.approval_seen is not None
    if is_new and tag.strip().lower() in {ANY_ROLLOUT, rollout.id}:
        return _approve(_with_tag_counted(context), f"by the tag {APPROVE_TAG}")
    seen = replace(rollout, approval_seen=tag)
    return context.keep(seen, Reason.AWAITING_APPROVAL, question, ANALYSIS_EVERY)


def approve_by_request(context: Context, request: Request) -> Ruling | None:
    """Follow a person's approval of the step that waits for one; None if none does."""
    rollout = context.rollout
    if not rollout.awaiting or rollout.paused or request.step != rollout.step:
        return None
    return _approve(context, f"by {request.by}" if request.by else "by a person")


def _approve(context: Context, by: str) -> Ruling:
    step, steps = context.rollout.step or 0, context.spec.rollout.steps
    if step + 1 < len(steps):
        return set_step(context, step + 1, f", approved {by}")
    return promote(context, Reason.APPROVED_BY_PERSON, f"approved {by}; {_grounds(context)}")


def _with_tag_counted(context: Context) -> Context:
    return replace(context, status=tell(context.status, approval_counted(context.rollout)))


def _grounds(context: Context) -> str:
    analysis = context.snapshot.analysis
    if context.spec.rollout.objective is None or analysis is None:
        return "every step passed, all guardrails held"
    return analysis.reason


def _question(context: Context) -> str:
    """Return what is asked, and how to answer; it does not change while it is waited for."""
    rollout, steps = context.rollout, context.spec.rollout.steps
    step = rollout.step or 0
    wanted = "its promotion"
    if step + 1 < len(steps):
        wanted = f"{share_of(steps[step + 1], rollout)} for it"
    which = f" --candidate {rollout.candidate}" if rollout.lane else ""
    return (
        f"version {rollout.candidate} has passed at {current_share(context)}; a person has to "
        f"approve {wanted}: 'fairlead approve {context.snapshot.name}{which}', or the tag {APPROVE_TAG} "
        f"with the value {ANY_ROLLOUT} on version {rollout.candidate} in MLflow"
    )

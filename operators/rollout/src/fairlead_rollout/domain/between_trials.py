"""Checks while a version serves and none is on trial; the first that speaks wins."""

from dataclasses import replace
from datetime import timedelta

from fairlead_rollout.domain.candidates import candidates_named
from fairlead_rollout.domain.changes import start_rollout, tell
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.rollback import version_before
from fairlead_rollout.domain.ruling import AT_ONCE, IDLE, SELDOM, SOON, Check, Context, Ruling
from fairlead_rollout.domain.snapshot import Verb
from fairlead_rollout.domain.status import ConditionType, Rollout, RolloutState, Status
from fairlead_rollout.domain.writebacks import production_moved


def _going(context: Context) -> Ruling | None:
    return _serving(context, IDLE) if context.snapshot.is_deleted else None


def _request_without_rollout(context: Context) -> Ruling | None:
    request, rollout = context.request, context.status.rollout
    if request is None:
        return None
    status = context.status
    if request.verb is Verb.RETRY and rollout is not None and request.rollout == rollout.id:
        status = replace(status, turned_away=())
        status = _with_another_trial(status, rollout)
    if request.verb is Verb.ROLLBACK and rollout is not None and request.rollout == rollout.id:
        status = _pointer_moved_back(status, rollout)
    status = replace(status, handled_request=request.id)
    return _serving(replace(context, status=status), AT_ONCE)


def _with_another_trial(status: Status, rollout: Rollout) -> Status:
    """Let a version that was turned away be put on trial again."""
    if rollout.alias:
        return status  # MLflow is yet to name the promoted one
    if rollout.state is RolloutState.PROMOTED:
        return replace(status, settled=None)
    return _with_pointer_kept(status)


def _pointer_moved_back(status: Status, rollout: Rollout) -> Status:
    """Have MLflow name the version before; that it does so is what the next passes follow."""
    before, left = version_before(status), status.production
    if before is None or left is None:
        return status
    if _waits_for_pointer(status):  # MLflow may have moved it to stable since it was looked at
        left, status = rollout.candidate, _with_pointer_kept(status)
    return tell(status, production_moved(rollout, left=left, to=before))


def _with_pointer_kept(status: Status) -> Status:
    """Take back that production is to be moved: what it still names is asked for again."""
    left = tuple(item for item in status.writeback if item.kind != "production")
    return replace(status, settled=None, writeback=left)


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
    if _waits_for_pointer(status):
        message += f"; {context.spec.production} names version {status.production} until MLflow has moved it"
    elif status.settled is not None:
        message += f"; version {status.settled} was {_turned_away(status)} and stays out until it is promoted again or retried"
    if status.turned_away:
        message += f"; {_out(status.turned_away)} out until an alias is moved or 'fairlead retry'"
    is_settled = applied is not None and applied.has(status.traffic)
    wait = requeue_after if is_settled else min(requeue_after, _until_gateway(context))
    return context.rule(Reason.SERVING, message, wait)


def _out(turned_away: tuple[str, ...]) -> str:
    names = ", ".join(turned_away)
    return f"version {names} stays" if len(turned_away) == 1 else f"versions {names} stay"


def _waits_for_pointer(status: Status) -> bool:
    """Say whether production names the version that a candidate of an alias has replaced."""
    rollout = status.rollout
    is_alias_s = rollout is not None and rollout.alias and rollout.candidate == status.stable
    return bool(is_alias_s) and rollout is not None and status.settled == rollout.baseline


def _turned_away(status: Status) -> str:
    rollout = status.rollout
    return "aborted" if rollout and rollout.candidate == status.settled else "refused"


def _until_gateway(context: Context) -> timedelta:
    """Return when to look at the gateway again: the longer it has been behind, the later."""
    waiting = context.status.condition(ConditionType.TRAFFIC_APPLIED)
    if waiting is None or waiting.status == "True":
        return SOON
    return max(SOON, min((context.now - waiting.last_transition_time) / 10, SELDOM))


WITHOUT_ROLLOUT: tuple[Check, ...] = (
    _going,  # nothing is started any more
    _request_without_rollout,  # a person wants an aborted version on trial again
    candidates_named,  # aliases name versions that are to be tried beside each other
    _nothing_new,  # the registry names what serves, or what was aborted, or is away
    start_rollout,
)

"""What people are told of a change, as events."""

from collections.abc import Iterable

from fairlead_rollout.domain import conditions
from fairlead_rollout.domain.actions import Action, EmitEvent
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.ruling import Context, Ruling
from fairlead_rollout.domain.status import ConditionType, Status

STARTING = frozenset({Reason.STARTING_FIRST_VERSION, Reason.STARTING_CANDIDATE})
TOLD_BY = frozenset({ConditionType.READY, ConditionType.PROGRESSING})  # the pass's own message


def events(status: Status, context: Context, ruling: Ruling) -> tuple[Action, ...]:
    """Tell people of what has changed, once."""
    before = context.snapshot.status or Status()
    return (*_newcomers(before, status), *_changes(status, context, ruling))


def _changes(status: Status, context: Context, ruling: Ruling) -> tuple[Action, ...]:
    """Tell of a change of reason, of step or of why a version does not start."""
    before = context.snapshot.status
    outages = tuple(_outages(before or Status(), status, context))
    told = _without_troubles if outages else _headline  # an outage is news of its own
    if before is not None and told(before) == told(status):
        return outages
    rollout = status.rollout.id if status.rollout else context.snapshot.uid
    step = status.rollout.step if status.rollout else None
    event = f"{rollout}/{step}/{status.attempts}/{status.handled_request}/{ruling.reason}"
    if ruling.reason in STARTING:
        event += f"/{ruling.message}"  # one for each cause
    change = _event(event, ruling.reason, ruling.message, is_warning=_is_bad(ruling, context))
    return (*outages, change)


def _is_bad(ruling: Ruling, context: Context) -> bool:
    if ruling.reason not in STARTING:
        return ruling.reason in conditions.STALLING | conditions.AGAINST
    rollout = ruling.status.rollout
    is_trial = rollout is not None and rollout.is_active
    version = rollout.candidate if is_trial and rollout else ruling.status.production
    workload = context.snapshot.workload(version)
    return workload is not None and workload.failure is not None


def _outages(before: Status, status: Status, context: Context) -> Iterable[Action]:
    """Tell that a system we need has gone away."""
    for kind in (ConditionType.REGISTRY_UNAVAILABLE, ConditionType.EXPERIMENTS_UNAVAILABLE):
        outage = status.condition(kind)
        if outage is not None and before.condition(kind) is None:
            event = f"{context.snapshot.uid}/{outage.last_transition_time.isoformat()}/{kind}"
            yield _event(event, outage.reason, outage.message, is_warning=True)


def _newcomers(before: Status, status: Status) -> Iterable[Action]:
    """Tell of a version that arrived during a trial and waits, or stays out."""
    rollout = status.rollout
    if rollout is None or not rollout.is_active:
        return
    if status.waiting not in {None, before.waiting}:
        message = f"version {status.waiting} waits until version {rollout.candidate} is decided"
        event = f"{rollout.id}/{status.waiting}/{Reason.QUEUED}"
        yield _event(event, Reason.QUEUED, message, is_warning=False)
    if status.settled not in {None, before.settled}:
        message = f"version {status.settled} stays out: version {rollout.candidate} is on trial"
        event = f"{rollout.id}/{status.settled}/{Reason.REFUSED}"
        yield _event(event, Reason.REFUSED, message, is_warning=True)


def _event(event: str, reason: str, message: str, *, is_warning: bool) -> EmitEvent:
    kind = "Warning" if is_warning else "Normal"
    return EmitEvent(id=event, type=kind, reason=reason, message=message)


def _headline(status: Status) -> tuple[object, ...]:
    troubles = {c.type for c in status.conditions if c.type in conditions.TROUBLES}
    return (*_without_troubles(status), troubles)


def _without_troubles(status: Status) -> tuple[object, ...]:
    rollout = status.rollout
    return (
        status.stable,
        [(r.id, r.state, r.step, r.reason) for r in (rollout, *status.beside) if r],
        {c.message for c in status.conditions if c.reason in STARTING and c.type in TOLD_BY},
    )


def is_moved(before: Status, after: Status) -> bool:
    """Say whether a pass has changed what the next one decides on."""
    return _headline(before) != _headline(after) or before.traffic != after.traffic

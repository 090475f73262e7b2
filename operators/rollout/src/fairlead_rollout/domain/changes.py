"""Changes of a rollout's state: it starts, goes on, is decided, ends; and who is told of it."""

from collections.abc import Mapping
from dataclasses import replace
from uuid import NAMESPACE_URL, uuid5

from fairlead_rollout.domain.lanes import Lane, spec_in
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.rollback import is_immediate
from fairlead_rollout.domain.ruling import AT_ONCE, Context, Ruling
from fairlead_rollout.domain.snapshot import Analysis
from fairlead_rollout.domain.spec import OnAbort
from fairlead_rollout.domain.status import Rollout, RolloutState, Status, Writeback, with_history
from fairlead_rollout.domain.words import share_of, versions
from fairlead_rollout.domain.writebacks import (
    description_of,
    numbers_of,
    page_of,
    production_moved,
    record_of,
    report_of,
    tags_of,
)

ROLLOUTS = uuid5(NAMESPACE_URL, "https://fairlead.dev/rollouts")


def start_rollout(context: Context) -> Ruling:
    """Put the production version on trial."""
    status = context.status
    assert status.production is not None
    rollout = _new_rollout(context, status.production)
    if is_immediate(status, context.spec, status.production):
        why = f"back to version {status.production}, which was stable before"
        rollout = replace(rollout, promoting=True, reason=Reason.ROLLED_BACK, message=why)
    status = _started(context, rollout)
    return Ruling(
        status=status, reason=rollout.reason, message=rollout.message, requeue_after=AT_ONCE
    )


def start_candidates(context: Context, aliases: Mapping[str, str]) -> Ruling:
    """Put the versions that aliases name on trial, each in a lane of its own if they are several.

    Args:
        context: What is seen.
        aliases: The alias of each version.
    """
    status, started = context.status, []
    for index, version in enumerate(sorted(aliases, key=int)):
        lane = Lane(index=index, of=len(aliases)) if len(aliases) > 1 else None
        one = in_lane(replace(context, status=status), lane)
        rollout = replace(_new_rollout(one, version), alias=aliases[version], lane=lane)
        started.append(rollout)
        status = _started(one, rollout)
    status = replace(status, rollout=started[0], beside=tuple(started[1:]))
    verb = "is" if len(started) == 1 else "are"
    message = f"{versions(started)} {verb} starting"
    return Ruling(status=status, reason=started[0].reason, message=message, requeue_after=AT_ONCE)


def in_lane(context: Context, lane: Lane | None) -> Context:
    """Return the context of a rollout, whose rules depend on how many run beside each other."""
    spec = spec_in(context.snapshot.spec, lane)
    return replace(context, snapshot=replace(context.snapshot, spec=spec))


def _new_rollout(context: Context, version: str) -> Rollout:
    status = context.status
    assert status.stable is not None
    number = status.attempts + 1
    return Rollout(
        id=str(uuid5(ROLLOUTS, f"{context.snapshot.uid}/{version}/{number}")),
        candidate=version,
        baseline=status.stable,
        state=RolloutState.PENDING,
        started_at=context.now,
        rules=context.spec.rollout.fingerprint,
        reason=Reason.STARTING_CANDIDATE,
        message=f"version {version} is starting",
    )


def _started(context: Context, rollout: Rollout) -> Status:
    """Return the status with a rollout that begins, and others told."""
    number = context.status.attempts + 1
    status = replace(context.status, attempts=number, rollout=rollout, waiting=None)
    status = tell(status, record_of(context.snapshot.name, context.spec, rollout))
    return tell(status, tags_of(context.spec, rollout))


def set_step(context: Context, step: int, why: str = "") -> Ruling:
    """Go to a step: its weight is what the gateway is to apply next."""
    share = share_of(context.spec.rollout.steps[step], context.rollout)
    rollout = replace(
        context.rollout,
        state=RolloutState.RUNNING,
        step=step,
        step_started_at=None,
        awaiting=False,
        approval_seen=None,
        reason=Reason.APPLYING_TRAFFIC,
        message=f"version {context.rollout.candidate} gets {share}{why}",
    )
    ruling = context.keep(rollout, Reason.APPLYING_TRAFFIC, rollout.message, AT_ONCE)
    status = tell(ruling.status, record_of(context.snapshot.name, context.spec, rollout))
    return replace(ruling, status=tell(status, tags_of(context.spec, rollout)))


def promote(context: Context, reason: Reason, message: str) -> Ruling:
    """Decide for the candidate; it takes all traffic once it is scaled."""
    rollout = replace(
        context.rollout,
        promoting=True,
        paused=False,
        awaiting=False,
        reason=reason,
        message=message,
        numbers=numbers_of(context.snapshot.analysis),  # those it was decided on
    )
    status = replace(context.status, rollout=rollout)
    scaling = f"version {rollout.candidate} is to take all traffic; it is scaled first"
    return Ruling(status=status, reason=Reason.PROMOTING, message=scaling, requeue_after=AT_ONCE)


def end_rollout(context: Context, state: RolloutState, reason: Reason, message: str) -> Ruling:
    """End the rollout: its place in the history, the new stable version, and who is told."""
    analysis, promoted = context.snapshot.analysis, state is RolloutState.PROMOTED
    rollout = replace(
        context.rollout,
        state=state,
        reason=reason,
        message=message,
        decided_at=context.now,
        paused=False,
        awaiting=False,
        promoting=False,
        numbers=context.rollout.numbers if promoted else numbers_of(analysis),
    )
    status = with_history(context.status, rollout)
    if promoted:
        status = _with_stable(status, rollout)
    elif rollout.alias and state in {RolloutState.ABORTED, RolloutState.INVALID}:
        status = replace(status, turned_away=(*status.turned_away, rollout.candidate))
    elif state in {RolloutState.ABORTED, RolloutState.INVALID}:
        status = replace(status, settled=_settled(status, rollout))
    for item in _announcements(context, rollout, analysis):
        status = tell(status, item)
    return Ruling(status=status, reason=reason, message=message, requeue_after=AT_ONCE)


def _with_stable(status: Status, rollout: Rollout) -> Status:
    """Return the status with a promoted candidate as stable.

    Where an alias of its own named it and production still names the version that it replaces, MLflow
    is told to let production name it; until that is seen, the replaced version stays out.
    """
    status = replace(status, stable=rollout.candidate)
    if not rollout.alias or status.production != rollout.baseline:
        return status
    moved = production_moved(rollout, left=rollout.baseline, to=rollout.candidate)
    return tell(replace(status, settled=rollout.baseline), moved)


def _settled(status: Status, rollout: Rollout) -> str | None:
    return rollout.candidate if status.production == rollout.candidate else status.settled


def _announcements(
    context: Context, rollout: Rollout, analysis: Analysis | None
) -> tuple[Writeback, ...]:
    name, spec = context.snapshot.name, context.spec
    items = (
        record_of(name, spec, rollout),
        tags_of(spec, rollout),
        description_of(name, rollout),
        report_of(name, rollout, analysis),
        page_of(rollout),
    )
    ended_against = rollout.state in {RolloutState.ABORTED, RolloutState.INVALID}
    still_asked_for = (
        context.status.production == rollout.candidate and not context.snapshot.is_deleted
    )
    if ended_against and still_asked_for and spec.on_abort is OnAbort.REVERT:
        back = production_moved(rollout, left=rollout.candidate, to=rollout.baseline)
        return (*items, back)
    return items


def tell(status: Status, item: Writeback) -> Status:
    """Queue a writeback; a newer one replaces an untold older one of its kind and version."""
    key = (item.kind, item.rollout, item.version)
    others = tuple(i for i in status.writeback if (i.kind, i.rollout, i.version) != key)
    return replace(status, writeback=(*others, item))

"""Rollouts beside each other: the chain of checks for one is run for each, as if it were alone.

Each sees its own analysis and requests, and the others as `status.beside`. What one leads to is what
the next one sees: when one is promoted, the others end in the same pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fairlead_rollout.domain.candidates import precedence
from fairlead_rollout.domain.changes import in_lane, tell
from fairlead_rollout.domain.lanes import spec_in
from fairlead_rollout.domain.ruling import Check, Context, Ruling
from fairlead_rollout.domain.snapshot import Request, Sight, Snapshot
from fairlead_rollout.domain.status import Rollout, RolloutState, Status
from fairlead_rollout.domain.writebacks import record_of


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a pass has decided for one rollout.

    Attributes:
        context: What was seen, by this rollout.
        ruling: The word of the check that spoke; its status has this rollout as the current one.
    """

    context: Context
    ruling: Ruling

    def alone(self, status: Status) -> Status:
        """Return what a pass leads to, with this rollout as the only one."""
        return replace(status, rollout=self.ruling.status.rollout, beside=())


def first_ruling(context: Context, chain: Sequence[Check]) -> Ruling:
    """Return the word of the first check that speaks."""
    return next(
        replace(ruling, check=check.__name__.strip("_"))
        for check in chain
        if (ruling := check(context))
    )


def look_at_each(context: Context, chain: Sequence[Check]) -> tuple[Status, tuple[Look, ...]]:
    """Run a chain for each rollout on trial.

    Returns:
        What all of them lead to, and each one's part, by lane.
    """
    status, trials = context.status, context.status.trials
    after, looks = {r.id: r for r in trials}, dict[str, Look]()
    for rollout in _in_order(context):
        others = tuple(r for r in after.values() if r.id != rollout.id and r.is_active)
        alone = replace(context, status=replace(status, rollout=rollout, beside=others))
        alone = replace(alone, snapshot=_snapshot_for(rollout, context))
        alone = in_lane(alone, rollout.lane)
        ruling = first_ruling(alone, chain)
        assert ruling.status.rollout is not None
        status, after[rollout.id] = ruling.status, ruling.status.rollout
        looks[rollout.id] = Look(context=alone, ruling=ruling)
    together = _together(status, tuple(after.values()))
    return together, tuple(looks[r.id] for r in trials)


def started_looks(context: Context, ruling: Ruling) -> tuple[Look, ...]:
    """Return the parts of a pass that has put several versions on trial."""
    status = ruling.status
    return tuple(
        Look(
            context=in_lane(context, rollout.lane),
            ruling=replace(
                ruling,
                status=replace(status, rollout=rollout, beside=()),
                message=rollout.message,
            ),
        )
        for rollout in status.trials
    )


def combined(looks: Sequence[Look]) -> Ruling:
    """Return the word for all of them: what each says, while any of them goes on."""
    first = looks[0].ruling
    if len(looks) == 1:
        return first
    going = [look.ruling for look in looks if _rollout(look).is_active] or [first]
    return replace(
        going[0],
        message="; ".join(dict.fromkeys(ruling.message for ruling in going)),
        requeue_after=min(look.ruling.requeue_after for look in looks),
    )


def record_again(status: Status, snapshot: Snapshot) -> Status:
    """Queue the records of running rollouts that the experiments service has lost."""
    for rollout in status.trials:
        if _sight(rollout, snapshot).is_record_lost:
            spec = spec_in(snapshot.spec, rollout.lane)
            status = tell(status, record_of(snapshot.name, spec, rollout))
    return status


def _together(status: Status, rollouts: Sequence[Rollout]) -> Status:
    """Put the rollouts that run into their places; when none does, the promoted one or the last."""
    running = [r for r in rollouts if r.is_active]
    promoted = [r for r in rollouts if r.state is RolloutState.PROMOTED]
    current = (running or promoted or [rollouts[-1]])[0]
    return replace(status, rollout=current, beside=tuple(running[1:]))


def _rollout(look: Look) -> Rollout:
    assert look.ruling.status.rollout is not None
    return look.ruling.status.rollout


def _in_order(context: Context) -> list[Rollout]:
    effects = {r.id: _effect(r, context) for r in context.status.trials}
    return sorted(context.status.trials, key=lambda r: precedence(r, effects))


def _effect(rollout: Rollout, context: Context) -> float:
    """Return the estimated effect, larger where better."""
    analysis, objective = _sight(rollout, context.snapshot).analysis, context.spec.rollout.objective
    if analysis is None or analysis.objective is None or objective is None:
        return 0.0
    effect = float(analysis.objective.get("effect") or 0.0)
    return effect if objective.better == "higher" else -effect


def _sight(rollout: Rollout, snapshot: Snapshot) -> Sight:
    """Return what was seen of one rollout."""
    if rollout.id in snapshot.beside:
        return snapshot.beside[rollout.id]
    approval = snapshot.registry.approval if snapshot.registry else None
    return Sight(
        analysis=snapshot.analysis, is_record_lost=snapshot.is_record_lost, approval=approval
    )


def _snapshot_for(rollout: Rollout, context: Context) -> Snapshot:
    """Return the snapshot as one rollout sees it."""
    snapshot, sight = context.snapshot, _sight(rollout, context.snapshot)
    registry, before = snapshot.registry, snapshot.status
    return replace(
        snapshot,
        analysis=sight.analysis,
        is_record_lost=sight.is_record_lost,
        registry=registry and replace(registry, approval=sight.approval),
        request=_request_for(rollout, context),
        status=before and replace(before, rollout=_as_it_was(rollout, before), beside=()),
    )


def _request_for(rollout: Rollout, context: Context) -> Request | None:
    """Return a person's request; one that is meant for none of them is the first one's to drop."""
    request, trials = context.snapshot.request, context.status.trials
    meant = [r.id for r in trials if request and r.id == request.rollout] or [trials[0].id]
    return request if rollout.id in meant else None


def _as_it_was(rollout: Rollout, before: Status) -> Rollout:
    return next((r for r in before.trials if r.id == rollout.id), rollout)

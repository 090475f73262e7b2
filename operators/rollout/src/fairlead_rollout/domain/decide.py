"""The rollout decision: one snapshot and the time in; status, actions and when to look again out.

A chain of small named checks (first_version.py, between_trials.py, trial.py) changes the *state* of
the rollout (changes.py); the first that speaks wins.
Traffic, processes and conditions are then derived from the state alone (wanted.py, conditions.py),
so that they cannot disagree with it, and a pass that is repeated after a crash decides the same again.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fairlead_rollout.domain import conditions, rebuild
from fairlead_rollout.domain.actions import Action
from fairlead_rollout.domain.between_trials import WITHOUT_ROLLOUT
from fairlead_rollout.domain.changes import tell
from fairlead_rollout.domain.decisions import with_decision
from fairlead_rollout.domain.first_version import FIRST_VERSION
from fairlead_rollout.domain.newcomers import with_newcomer
from fairlead_rollout.domain.news import events, is_moved
from fairlead_rollout.domain.ruling import AT_ONCE, Context, Ruling
from fairlead_rollout.domain.snapshot import Snapshot
from fairlead_rollout.domain.status import Status
from fairlead_rollout.domain.trial import IN_ROLLOUT
from fairlead_rollout.domain.wanted import retired, traffic_plan, until_removal, workload_actions
from fairlead_rollout.domain.writebacks import record_of


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
    status = with_newcomer(status, snapshot)
    context = Context(snapshot=snapshot, status=status, now=now)
    ruling = _first_ruling(context)
    status = retired(replace(ruling.status, traffic=traffic_plan(snapshot, ruling.status)), context)
    status = conditions.with_conditions(status, context, ruling)
    status, looks = with_decision(status, context, ruling)
    return Decision(
        status=status,
        actions=(*workload_actions(status, context), *events(status, context, ruling), *looks),
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
    return tell(status, record_of(snapshot.name, snapshot.spec, status.rollout))


def _first_ruling(context: Context) -> Ruling:
    chain = WITHOUT_ROLLOUT
    if context.status.stable is None:
        chain = FIRST_VERSION
    elif context.active:
        chain = IN_ROLLOUT
    return next(
        replace(ruling, check=check.__name__.strip("_"))
        for check in chain
        if (ruling := check(context))
    )

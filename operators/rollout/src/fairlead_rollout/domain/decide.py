"""The rollout decision: one snapshot and the time in; status, actions and when to look again out.

A chain of small named checks (first_version.py, between_trials.py, trial.py) changes the *state* of
the rollout (changes.py); the first that speaks wins. Of several rollouts beside each other, each has
its own word (side_by_side.py).
Traffic, processes and conditions are then derived from the state alone (wanted.py, conditions.py),
so that they cannot disagree with it, and a pass that is repeated after a crash decides the same again.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fairlead_rollout.domain import conditions, rebuild
from fairlead_rollout.domain.actions import Action
from fairlead_rollout.domain.between_trials import WITHOUT_ROLLOUT
from fairlead_rollout.domain.candidates import with_candidates, with_registry
from fairlead_rollout.domain.decisions import with_decision
from fairlead_rollout.domain.first_version import FIRST_VERSION
from fairlead_rollout.domain.newcomers import with_newcomer
from fairlead_rollout.domain.news import events, is_moved
from fairlead_rollout.domain.ruling import AT_ONCE, Check, Context
from fairlead_rollout.domain.side_by_side import (
    Look,
    combined,
    first_ruling,
    look_at_each,
    record_again,
    started_looks,
)
from fairlead_rollout.domain.snapshot import Snapshot
from fairlead_rollout.domain.status import Status
from fairlead_rollout.domain.trial import IN_ROLLOUT
from fairlead_rollout.domain.wanted import retired, traffic_plan, until_removal, workload_actions


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
    status = record_again(_observe(status, snapshot), snapshot)
    status = with_candidates(with_newcomer(status, snapshot), snapshot)
    context = Context(snapshot=snapshot, status=status, now=now)
    status, looks = _look(context)
    ruling = combined(looks)
    status = retired(replace(status, traffic=traffic_plan(snapshot, status)), context)
    status = conditions.with_conditions(status, context, ruling)
    status, told = _told(status, looks)
    return Decision(
        status=status,
        actions=(*workload_actions(status, context), *told),
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
    status = replace(status, production=production, settled=settled)
    return with_registry(status, snapshot.registry)


def _look(context: Context) -> tuple[Status, tuple[Look, ...]]:
    """Run the chain that is due: for each rollout, if several run beside each other."""
    if context.active and (context.status.beside or context.rollout.lane):
        return look_at_each(context, IN_ROLLOUT)
    ruling = first_ruling(context, _chain(context))
    if ruling.status.beside:
        return ruling.status, started_looks(context, ruling)
    return ruling.status, (Look(context=context, ruling=ruling),)


def _chain(context: Context) -> tuple[Check, ...]:
    if context.status.stable is None:
        return FIRST_VERSION
    return IN_ROLLOUT if context.active else WITHOUT_ROLLOUT


def _told(status: Status, looks: tuple[Look, ...]) -> tuple[Status, tuple[Action, ...]]:
    """Note what was decided for each rollout, and tell people of it."""
    news: list[Action] = []
    kept: list[Action] = []
    for look in looks:
        alone = look.alone(status)
        news.extend(events(alone, look.context, look.ruling))
        noted, looked = with_decision(alone, look.context, look.ruling)
        status = replace(status, writeback=noted.writeback)
        kept.extend(looked)
    return status, (*news, *kept)

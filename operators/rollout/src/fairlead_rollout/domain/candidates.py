"""Several candidates: which versions aliases name, and what the trials beside each other mean for one."""

from collections.abc import Mapping
from dataclasses import replace

from fairlead_rollout.domain.changes import end_rollout, start_candidates, tell
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.ruling import SOON, Context, Ruling
from fairlead_rollout.domain.snapshot import RegistryView, Snapshot
from fairlead_rollout.domain.spec import OnNewVersion, ServedModelSpec
from fairlead_rollout.domain.status import Rollout, RolloutState, Status
from fairlead_rollout.domain.writebacks import turn_of


def aliases_of(registry: RegistryView, spec: ServedModelSpec) -> dict[str, str]:
    """Return each version that a candidates' alias names, with its first alias."""
    aliases: dict[str, str] = {}
    for alias in spec.candidates:
        if alias in registry.candidates:
            aliases.setdefault(registry.candidates[alias], alias)
    return aliases


def newcomers(status: Status, snapshot: Snapshot) -> dict[str, str]:
    """Return the versions, with their aliases, that are neither on trial nor stable nor turned away."""
    if snapshot.registry is None:
        return {}
    known = {status.stable, *status.turned_away, *(r.candidate for r in status.trials)}
    named = aliases_of(snapshot.registry, snapshot.spec)
    return {version: alias for version, alias in named.items() if version not in known}


def with_registry(status: Status, registry: RegistryView) -> Status:
    """Forget who was turned away and is named no more: named again, it is put on trial again."""
    named = registry.candidates.values()
    return replace(status, turned_away=tuple(v for v in status.turned_away if v in named))


def with_candidates(status: Status, snapshot: Snapshot) -> Status:
    """Have versions that arrive by alias during trials stay out, where they are refused."""
    refuses = snapshot.spec.rollout.on_new_version is OnNewVersion.REFUSE
    if not refuses or not status.trials or nobody_met_one(status):
        return status
    for version in newcomers(status, snapshot):
        why = f"{Reason.REFUSED}: other versions were on trial; retry, or move the alias and back"
        turned_away = replace(status, turned_away=(*status.turned_away, version))
        status = tell(turned_away, turn_of(version, status.trials[0], "refused", why))
    return status


def nobody_met_one(status: Status) -> bool:
    """Say whether all trials are still before their first step."""
    return all(r.step is None and not r.promoting for r in status.trials)


# ------------------------------------------------------------------ checks


def candidates_named(context: Context) -> Ruling | None:
    """Put the versions that aliases name on trial, unless production names another one first."""
    status = context.status
    if status.production not in {None, status.stable, status.settled}:
        return None
    named = newcomers(status, context.snapshot)
    return start_candidates(context, named) if named else None


def candidate_moved(context: Context) -> Ruling | None:
    """End the trial of a candidate that its alias names no more, or that newer ones take over from."""
    status, rollout, registry = context.status, context.rollout, context.snapshot.registry
    if registry is None:
        return None
    if status.production not in {None, status.stable, status.settled, status.waiting}:
        message = f"version {status.production} arrived at {context.spec.production}"
        return end_rollout(context, RolloutState.SUPERSEDED, Reason.SUPERSEDED, message)
    # What this pass has ended for the same reason is no newcomer to those that it looks at later.
    just_ended = {r.candidate for r in status.history if r.decided_at == context.now}
    found = newcomers(status, context.snapshot)
    arrived = {version: alias for version, alias in found.items() if version not in just_ended}
    restarts = context.spec.rollout.on_new_version is OnNewVersion.RESTART
    if arrived and (restarts or nobody_met_one(status)):
        names = ", ".join(f"version {v} at alias {a}" for v, a in arrived.items())
        message = f"{names} arrived"
        return end_rollout(context, RolloutState.SUPERSEDED, Reason.SUPERSEDED, message)
    named = registry.candidates.get(rollout.alias)
    if named == rollout.candidate or named in {*arrived, *status.turned_away}:
        return None  # or the newer one waits for its turn, or stays out
    now = f"version {named}" if named else "no version"
    message = f"alias {rollout.alias} names {now}"
    return end_rollout(context, RolloutState.ABORTED, Reason.CANDIDATE_WITHDRAWN, message)


def other_promoted(context: Context) -> Ruling | None:
    """End the trial of a candidate when another one has become stable."""
    stable = context.status.stable
    if not context.rollout.alias or context.rollout.baseline == stable:
        return None
    message = f"version {stable} was promoted"
    return end_rollout(context, RolloutState.ABORTED, Reason.OTHER_PROMOTED, message)


def other_promoting(context: Context) -> Ruling | None:
    """Hold a candidate while another one is scaled: if that one fails, this one goes on."""
    others = [r for r in context.status.beside if r.promoting]
    if not others:
        return None
    message = f"version {others[0].candidate} is to be promoted; version {context.rollout.candidate} holds"
    return context.rule(Reason.OTHER_PROMOTED, message, SOON)


def precedence(rollout: Rollout, effects: Mapping[str, float]) -> tuple[bool, float]:
    """Sort the one that is promoted first, then by the estimated effect, the largest first.

    Args:
        rollout: One of several on trial.
        effects: The estimated effects by rollout, larger where better.
    """
    return not rollout.promoting, -effects.get(rollout.id, 0.0)

"""A lost status, rebuilt from what exists before anything is changed.

What serves is told by the processes that run and by the experiments' rollout records. What cannot
be told holds at the version that is serving; no rollout is invented.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fairlead_rollout.domain.snapshot import Snapshot
from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import Rollout, RolloutState, Status, parse_time, with_history
from fairlead_rollout.domain.writebacks import record_of

UNKNOWN_RULES = "unknown"  # equal to no fingerprint: the trial starts over


def rebuild_status(snapshot: Snapshot) -> Status:
    """Return a status for a ServedModel that has none: a new one, or a rebuilt one."""
    status = Status()
    for record in snapshot.records or ():
        status = _replay(status, _rollout(record, snapshot))
    if status.stable is None:
        return replace(status, stable=_serving_version(snapshot))
    return _resume(status, snapshot)


def records_of(
    records: tuple[Mapping[str, Any], ...], spec: ServedModelSpec
) -> tuple[Mapping[str, Any], ...]:
    """Return the records of rollouts of the spec's registered model.

    An earlier ServedModel of the same name may have served another one; its versions' numbers mean
    other versions.
    """
    return tuple(r for r in records if r.get("registeredModel") in {None, spec.model})


def _replay(status: Status, rollout: Rollout) -> Status:
    status = replace(status, stable=rollout.baseline, attempts=status.attempts + 1, settled=None)
    if rollout.is_active:
        return replace(status, rollout=rollout)
    status = with_history(status, rollout)
    if rollout.state is RolloutState.PROMOTED:
        return replace(status, stable=rollout.candidate)
    if rollout.state in {RolloutState.ABORTED, RolloutState.INVALID}:
        return replace(status, settled=rollout.candidate)
    return status


def _rollout(record: Mapping[str, Any], snapshot: Snapshot) -> Rollout:
    decided_at = record.get("decidedAt")
    rollout = Rollout(
        id=record["id"],
        candidate=record["candidate"],
        baseline=record["stable"],
        state=RolloutState(record["state"]),
        started_at=parse_time(record["startedAt"]),
        decided_at=parse_time(decided_at) if decided_at else None,
        reason="StatusRebuilt",
        message=record.get("reason") or "rebuilt from the experiments' record",
        rules=UNKNOWN_RULES,
    )
    written = record_of(snapshot.name, snapshot.spec, rollout).content
    if all(record.get(key) == written[key] for key in ("steps", "objective", "guardrails")):
        return replace(rollout, rules=snapshot.spec.rollout.fingerprint)
    return rollout


def _resume(status: Status, snapshot: Snapshot) -> Status:
    """Put a running rollout back on the step whose requests came last; a pending one starts over."""
    rollout, analysis = status.rollout, snapshot.analysis
    if rollout is None or rollout.state is not RolloutState.RUNNING:
        return status
    steps = analysis.steps.items() if analysis else ()
    reached = max((i for i, seen in steps if seen.stable + seen.candidate), default=0)
    step = min(reached, len(snapshot.spec.rollout.steps) - 1)
    return replace(status, rollout=replace(rollout, step=step))


def _serving_version(snapshot: Snapshot) -> str | None:
    """Return the version that must be serving: there was never a rollout.

    That is the production version if it is ready, else the newest ready one that is not a shadow.
    """
    registry = snapshot.registry
    production = registry.production if registry else None
    shadow = registry.shadow if registry else None
    ready = {w.version for w in snapshot.workloads if w.ready}
    if production in ready:
        return production
    return max(ready - {shadow}, key=int, default=None)

"""A lost status, rebuilt from what exists before anything is changed.

What serves is told by the processes that run and by the experiments' rollout records. What cannot
be told holds at the version that is serving; no rollout is invented.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fairlead_rollout.domain.snapshot import Snapshot
from fairlead_rollout.domain.status import Rollout, RolloutState, Status, parse_time, with_history


def rebuild_status(snapshot: Snapshot) -> Status:
    """Return a status for a ServedModel that has none: a new one, or a rebuilt one."""
    status = Status()
    for record in snapshot.records or ():
        status = _replay(status, record)
    if status.stable is None:
        return replace(status, stable=_serving_version(snapshot))
    return _resume(status, snapshot)


def _replay(status: Status, record: Mapping[str, Any]) -> Status:
    rollout = _rollout(record)
    status = replace(status, stable=rollout.baseline, attempts=status.attempts + 1, settled=None)
    if rollout.is_active:
        return replace(status, rollout=rollout)
    status = with_history(status, rollout)
    if rollout.state is RolloutState.PROMOTED:
        return replace(status, stable=rollout.candidate)
    if rollout.state in {RolloutState.ABORTED, RolloutState.INVALID}:
        return replace(status, settled=rollout.candidate)
    return status


def _rollout(record: Mapping[str, Any]) -> Rollout:
    decided_at = record.get("decidedAt")
    return Rollout(
        id=record["id"],
        candidate=record["candidate"],
        baseline=record["stable"],
        state=RolloutState(record["state"]),
        started_at=parse_time(record["startedAt"]),
        decided_at=parse_time(decided_at) if decided_at else None,
        reason="StatusRebuilt",
        message=record.get("reason") or "rebuilt from the experiments' record",
    )


def _resume(status: Status, snapshot: Snapshot) -> Status:
    """Put a running rollout back on the step whose requests came last; a pending one starts over."""
    rollout, analysis = status.rollout, snapshot.analysis
    if rollout is None or rollout.state is not RolloutState.RUNNING:
        return status
    reached = max(analysis.steps, default=0) if analysis else 0
    step = min(reached, len(snapshot.spec.rollout.steps) - 1)
    return replace(status, rollout=replace(rollout, step=step))


def _serving_version(snapshot: Snapshot) -> str | None:
    """Return the version with ready processes, if there is exactly one."""
    ready = [w.version for w in snapshot.workloads if w.ready]
    return ready[0] if len(ready) == 1 else None

"""A lost status, rebuilt from what exists before anything is changed.

What serves is told by the processes that run and by the experiments' rollout records. What cannot
be told holds at the version that is serving; no rollout is invented.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from typing import Any

from fairlead_rollout.domain.candidates import aliases_of
from fairlead_rollout.domain.lanes import Lane, spec_in
from fairlead_rollout.domain.snapshot import Snapshot
from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import Rollout, RolloutState, Status, parse_time, with_history
from fairlead_rollout.domain.wanted import traffic_plan
from fairlead_rollout.domain.writebacks import record_of

UNKNOWN_RULES = "unknown"  # equal to no fingerprint: the trial starts over


def rebuild_status(snapshot: Snapshot) -> Status:
    """Return a status for a ServedModel that has none: a new one, or a rebuilt one."""
    status = Status()
    for together in _together(snapshot.records or ()):
        status = _replay_all(status, together, snapshot)
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


def _together(
    records: tuple[Mapping[str, Any], ...],
) -> Iterable[tuple[Mapping[str, Any], ...]]:
    """Group the records of rollouts that began together: they ran beside each other, by lane."""
    for _, group in groupby(records, key=lambda r: r["startedAt"]):
        yield tuple(sorted(group, key=lambda r: int(r["candidate"])))


def _replay_all(
    status: Status, records: tuple[Mapping[str, Any], ...], snapshot: Snapshot
) -> Status:
    """Take over rollouts that began together; the one that was promoted last, as it was."""
    of = len(records)
    lanes = [Lane(index=i, of=of) if of > 1 else None for i in range(of)]
    rollouts = [_rollout(r, lane, snapshot) for r, lane in zip(records, lanes, strict=True)]
    for rollout in sorted(rollouts, key=lambda r: r.state is RolloutState.PROMOTED):
        status = _replay(status, rollout)
    running = tuple(r for r in rollouts if r.is_active)
    current = running[0] if running else status.rollout
    return replace(status, rollout=current, beside=running[1:])


def _replay(status: Status, rollout: Rollout) -> Status:
    turned_away = tuple(v for v in status.turned_away if v != rollout.candidate)
    status = replace(status, turned_away=turned_away)
    status = replace(status, stable=rollout.baseline, attempts=status.attempts + 1, settled=None)
    if rollout.is_active:
        return replace(status, rollout=rollout)
    status = with_history(status, rollout)
    if rollout.state is RolloutState.PROMOTED:
        return replace(status, stable=rollout.candidate)
    if rollout.state in {RolloutState.ABORTED, RolloutState.INVALID}:
        if rollout.alias:
            return replace(status, turned_away=(*turned_away, rollout.candidate))
        return replace(status, settled=rollout.candidate)
    return status


def _rollout(record: Mapping[str, Any], lane: Lane | None, snapshot: Snapshot) -> Rollout:
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
        alias=_alias_of(record["candidate"], snapshot),
        lane=lane,
    )
    spec = spec_in(snapshot.spec, lane)
    written = record_of(snapshot.name, spec, rollout).content
    if all(record.get(key) == written[key] for key in ("steps", "objective", "guardrails")):
        return replace(rollout, rules=spec.rollout.fingerprint)
    return rollout


def _alias_of(candidate: str, snapshot: Snapshot) -> str:
    """Return the alias that names a candidate now; the record does not tell which did."""
    if snapshot.registry is None or snapshot.registry.production == candidate:
        return ""
    return aliases_of(snapshot.registry, snapshot.spec).get(candidate, "")


def _resume(status: Status, snapshot: Snapshot) -> Status:
    """Put running rollouts back on the step whose requests came last; pending ones start over."""
    rollout = status.rollout and _resumed(status.rollout, snapshot)
    return replace(
        status, rollout=rollout, beside=tuple(_resumed(r, snapshot) for r in status.beside)
    )


def _resumed(rollout: Rollout, snapshot: Snapshot) -> Rollout:
    if rollout.state is not RolloutState.RUNNING:
        return rollout
    sight = snapshot.beside.get(rollout.id)
    analysis = sight.analysis if sight else snapshot.analysis
    steps = analysis.steps.items() if analysis else ()
    reached = max((i for i, seen in steps if seen.stable + seen.candidate), default=0)
    step = min(reached, len(snapshot.spec.rollout.steps) - 1)
    return replace(rollout, step=step)


def _serving_version(snapshot: Snapshot) -> str | None:
    """Return the version that must be serving: there was never a rollout.

    That is the ready one to which the gateway still routes; if that cannot be told, the production
    version if it is ready, else the newest ready one that is not a shadow.
    """
    registry = snapshot.registry
    production = registry.production if registry else None
    shadow = registry.shadow if registry else None
    ready = {w.version for w in snapshot.workloads if w.ready}
    routed = [version for version in ready if _is_routed(version, production, snapshot)]
    if routed:
        return routed[0]
    if production in ready:
        return production
    return max(ready - {shadow}, key=int, default=None)


def _is_routed(version: str, production: str | None, snapshot: Snapshot) -> bool:
    """Say whether the gateway follows the plan of a version alone, or with a trial that begins.

    A trial gets no weight before it has a record; but its processes may be ready by then.
    """
    serving = Status(stable=version)
    statuses = [serving]
    if production not in {None, version}:
        trial = Rollout(
            id="",
            candidate=str(production),
            baseline=version,
            state=RolloutState.PENDING,
            started_at=datetime.min,  # noqa: DTZ901 -- no plan tells it
        )
        statuses.append(replace(serving, rollout=trial))
    plans = [plan for status in statuses if (plan := traffic_plan(snapshot, status))]
    # Kubernetes has whole seconds as a whole number, and the agent's digest is of that.
    plans += [{**plan, "timeout": int(plan["timeout"])} for plan in plans]
    applied = snapshot.applied
    return applied is not None and any(applied.has(plan) for plan in plans)

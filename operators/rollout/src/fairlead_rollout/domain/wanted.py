"""What is wanted, derived from the state alone: the traffic plan, and each version's processes."""

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from fairlead_rollout.domain.actions import Action, EnsureWorkload, RemoveWorkload
from fairlead_rollout.domain.lanes import Lane
from fairlead_rollout.domain.ruling import SOON, Context
from fairlead_rollout.domain.shares import TOTAL_WEIGHT
from fairlead_rollout.domain.snapshot import Snapshot
from fairlead_rollout.domain.spec import ServedModelSpec, Step
from fairlead_rollout.domain.status import Retiring, Rollout, RolloutState, Status
from fairlead_rollout.domain.traffic import Plan, build_lane, build_plan, versions_in

RETIRE_AFTER = timedelta(seconds=5)  # at least; requests under way have ended by then


def traffic_plan(snapshot: Snapshot, status: Status) -> Plan | None:
    """Return the plan that the gateways are to follow; None before a version serves."""
    if status.stable is None:
        return None
    plan = _newest_plan(snapshot, status, status.stable)
    # Its store may have written 5.0 as 5, as Kubernetes does: the gateway digests what it reads.
    return status.traffic if plan == status.traffic else plan


def _newest_plan(snapshot: Snapshot, status: Status, stable: str) -> Plan:
    shadows, lanes = _shadows(snapshot, status), _lanes(snapshot, status)
    rollout = next((r for r in status.trials if r.lane is None), None)
    step = _step(snapshot, rollout)
    if lanes:
        name = snapshot.name
        return build_plan(snapshot.spec, name=name, stable=stable, shadows=shadows, lanes=lanes)
    if rollout is None or step is None or step.weight == 0:
        # No rollout is named, and so nothing counted: a unit counts in the step it is first met in.
        return build_plan(snapshot.spec, name=snapshot.name, stable=stable, shadows=shadows)
    return build_plan(
        snapshot.spec,
        name=snapshot.name,
        stable=stable,
        candidate=rollout.candidate,
        weight=step.weight,
        rollout=rollout.id,
        step=rollout.step,
        shadows=shadows,
    )


def _lanes(snapshot: Snapshot, status: Status) -> tuple[Mapping[str, Any], ...]:
    """Return the lanes whose candidate has a weight; nothing is counted in the others."""
    return tuple(
        build_lane(
            rollout.lane,
            stable=rollout.baseline,
            candidate=rollout.candidate,
            weight=step.weight,
            rollout=rollout.id,
            step=rollout.step or 0,
        )
        for rollout in status.trials
        if rollout.lane and (step := _step(snapshot, rollout)) and step.weight
    )


def _step(snapshot: Snapshot, rollout: Rollout | None) -> Step | None:
    """Return the step a running rollout is at."""
    if rollout is None or rollout.step is None:
        return None
    return snapshot.spec.rollout.steps[rollout.step]


def _shadows(snapshot: Snapshot, status: Status) -> dict[str, int]:
    """Return the versions that get copies: the registry's once it is ready, and candidates."""
    version, shares = _wanted_shadow(snapshot, status), {}
    workload = snapshot.workload(version)
    if version is not None and workload is not None and workload.ready:
        shares[version] = snapshot.spec.shadow_share
    for rollout in status.trials:
        step = _step(snapshot, rollout)
        if step is not None and step.shadow:
            shares[rollout.candidate] = step.shadow
        shares |= _gated_candidate(snapshot, rollout)
    return shares


def _wanted_shadow(snapshot: Snapshot, status: Status) -> str | None:
    """Return the version the registry names as shadow, if it is in no arm."""
    in_an_arm = {status.stable, *(r.candidate for r in status.trials), None}
    named = [snapshot.registry.shadow] if snapshot.registry else _shadows_before(snapshot)
    return next((v for v in named if v not in in_an_arm), None)


def _shadows_before(snapshot: Snapshot) -> list[str]:
    """Return the versions that got copies, without those that got them as candidates on trial."""
    before = snapshot.status or Status()
    on_trial = {rollout.candidate for rollout in before.trials}
    copies = (entry["version"] for entry in (before.traffic or {}).get("shadow", ()))
    return [version for version in copies if version not in on_trial]


def _gated_candidate(snapshot: Snapshot, rollout: Rollout) -> dict[str, int]:
    """Return the candidate that gets copies before the first step, once it is ready."""
    guardrail = snapshot.spec.rollout.guardrails.shadow
    if guardrail is None or rollout.step is not None:
        return {}
    workload = snapshot.workload(rollout.candidate)
    is_ready = workload is not None and workload.ready > 0
    return {rollout.candidate: guardrail.share} if is_ready else {}


def _wanted_workloads(snapshot: Snapshot, status: Status) -> dict[str, int]:
    """Return how many processes each version should have."""
    wanted: dict[str, int] = {}
    if (shadow := _wanted_shadow(snapshot, status)) is not None:
        wanted[shadow] = 1
    if status.stable is None:
        return wanted | ({status.production: snapshot.spec.replicas} if status.production else {})
    for rollout in status.trials:
        full = full_replicas(snapshot, status)
        there = snapshot.workload(rollout.candidate)
        kept = min(full, there.wanted) if there else 0  # of a version that was stable lately
        trial = max(trial_replicas(snapshot.spec, rollout.lane), kept)
        wanted[rollout.candidate] = full if rollout.promoting else trial
    wanted[status.stable] = snapshot.spec.replicas
    return wanted


def full_replicas(snapshot: Snapshot, status: Status) -> int:
    """Return the processes all traffic needs: with autoscaling as many as stable has come to."""
    stable, spec = snapshot.workload(status.stable), snapshot.spec
    if spec.autoscaling is None or stable is None:
        return spec.replicas
    return max(spec.replicas, min(stable.ready, spec.autoscaling.max_replicas))


def trial_replicas(spec: ServedModelSpec, lane: Lane | None) -> int:
    """Return the processes a candidate needs for the largest share it is to get on trial."""
    of = lane.of if lane else 1
    largest = max(max(step.weight / of, step.shadow) for step in spec.rollout.steps)
    return max(1, math.ceil(spec.replicas * largest / TOTAL_WEIGHT))


def retired(status: Status, context: Context) -> Status:
    """Note since when each version that is no longer wanted has been out of the plan."""
    applied = context.snapshot.applied
    if status.traffic is not None and (applied is None or not applied.has(status.traffic)):
        return replace(status, retiring=())  # until the gateway has moved on they get requests
    wanted = _wanted_workloads(context.snapshot, status).keys() | versions_in(status.traffic)
    since = {entry.version: entry.since for entry in status.retiring}
    retiring = tuple(
        Retiring(version=w.version, since=since.get(w.version, context.now))
        for w in context.snapshot.workloads
        if w.version not in wanted
    )
    return replace(status, retiring=retiring)


def workload_actions(status: Status, context: Context) -> tuple[Action, ...]:
    """Return what is to be done for the versions' processes."""
    # What is deleted goes as it is: its processes may be on their way out already, and each one
    # made anew would keep a deletion in the foreground from ever ending.
    is_deleted = context.snapshot.is_deleted
    wanted = {} if is_deleted else _wanted_workloads(context.snapshot, status)
    ensure = (EnsureWorkload(version=v, replicas=n) for v, n in wanted.items())
    remove = (
        RemoveWorkload(version=entry.version)
        for entry in status.retiring
        if _removed_at(entry, status, context) <= context.now
    )
    return (*ensure, *remove)


def _removed_at(entry: Retiring, status: Status, context: Context) -> datetime:
    """Return when a version's processes go; those that were stable lately are kept for longer."""
    keep = context.spec.keep
    replaced = [r.baseline for r in status.history if r.state is RolloutState.PROMOTED]
    newest = list(dict.fromkeys(reversed(replaced)))[: keep.versions]
    wait = max(RETIRE_AFTER, context.spec.timeout)
    return entry.since + (max(wait, keep.duration) if entry.version in newest else wait)


def until_removal(status: Status, context: Context) -> timedelta:
    """Return when the next version's processes are due to go."""
    due = (_removed_at(entry, status, context) - context.now for entry in status.retiring)
    return max(SOON, min(due, default=timedelta.max))

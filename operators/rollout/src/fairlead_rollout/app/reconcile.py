"""Reconcile one served model: gather, decide, apply, one status write."""

import logging
from dataclasses import replace
from datetime import timedelta

from fairlead_rollout.app.ports import Ports, ServedModel
from fairlead_rollout.domain import conditions
from fairlead_rollout.domain.actions import Action, EmitEvent, EnsureWorkload, RemoveWorkload
from fairlead_rollout.domain.decide import SOON, decide
from fairlead_rollout.domain.errors import NotFoundError, UnavailableError
from fairlead_rollout.domain.snapshot import Analysis, Snapshot
from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import Status, Writeback

log = logging.getLogger(__name__)

AFTER_MENDING = timedelta(seconds=2)


def reconcile(name: str, ports: Ports) -> timedelta | None:
    """Bring one served model a step nearer to what is wanted.

    Level-based and idempotent: killed anywhere and run again, it ends in the same state.

    Returns:
        When to look again; None when the ServedModel is gone.
    """
    served = ports.store.read(name)
    if served is None:
        return None
    if served.spec is None:
        return _stall(served, ports)
    snapshot = gather(served, served.spec, ports)
    if snapshot is None:
        return SOON
    decision = decide(snapshot, ports.clock.now())
    for action in decision.actions:
        apply(action, served.name, served.spec, ports)
    told = _tell(snapshot, ports) if decision.status.traffic == _traffic(snapshot) else ()
    left = tuple(item for item in decision.status.writeback if item not in told)
    status = replace(decision.status, writeback=left)
    if status != snapshot.status:
        ports.store.write_status(name, status)
    return min(decision.requeue_after, timedelta(seconds=1)) if left else decision.requeue_after


def gather(served: ServedModel, spec: ServedModelSpec, ports: Ports) -> Snapshot | None:
    """Read all that `decide` may know; writes nothing.

    Returns:
        None while a missing status cannot be told from a lost one: that needs the experiments'
        records and the registry.
    """
    records = None
    if served.status is None:
        records = ports.experiments.records(served.name)
        if records is None:
            return None
    registry = ports.registry.view(spec)
    if served.status is None and registry is None:
        return None
    rollout = _rollout_to_analyse(served.status, records)
    analysis, is_record_lost = _analysis(rollout, ports)
    return Snapshot(
        name=served.name,
        uid=served.uid,
        generation=served.generation,
        spec=spec,
        status=served.status,
        registry=registry,
        workloads=ports.cluster.workloads(served.name),
        applied=ports.gateway.applied(served.name),
        analysis=analysis,
        is_record_lost=is_record_lost,
        records=records,
        request=served.request,
    )


def _analysis(rollout: str | None, ports: Ports) -> tuple[Analysis | None, bool]:
    if rollout is None:
        return None, False
    try:
        return ports.experiments.analysis(rollout), False
    except NotFoundError:
        return None, True


def _rollout_to_analyse(status: Status | None, records: tuple[object, ...] | None) -> str | None:
    if status is None:
        newest = records[-1] if records else None
        return newest["id"] if isinstance(newest, dict) else None
    rollout = status.rollout
    return (
        rollout.id
        if rollout is not None and rollout.is_active and rollout.step is not None
        else None
    )


def apply(action: Action, name: str, spec: ServedModelSpec, ports: Ports) -> None:
    """Carry out one action."""
    match action:
        case EnsureWorkload(version=version, replicas=replicas):
            ports.cluster.ensure(name, spec, version, replicas)
        case RemoveWorkload(version=version):
            ports.cluster.remove(name, version)
        case EmitEvent():
            log.info("%s: %s: %s", name, action.reason, action.message)
            ports.store.emit(name, action, ports.clock.now())


def _traffic(snapshot: Snapshot) -> object:
    return snapshot.status.traffic if snapshot.status else None


def _tell(snapshot: Snapshot, ports: Ports) -> tuple[Writeback, ...]:
    """Tell what an earlier pass decided and wrote down; a change of traffic is never kept waiting.

    Returns:
        What has been told.
    """
    waiting = snapshot.status.writeback if snapshot.status else ()
    return tuple(item for item in waiting if _is_told(item, snapshot, ports))


def _is_told(item: Writeback, snapshot: Snapshot, ports: Ports) -> bool:
    try:
        if item.kind == "record":
            ports.experiments.put_record(item)
            return True
        if snapshot.registry is None:
            return False
        ports.registry.write(snapshot.spec, item)
    except UnavailableError as error:
        log.warning("%s: %s of rollout %s waits: %s", snapshot.name, item.kind, item.rollout, error)
        return False
    return True


def _stall(served: ServedModel, ports: Ports) -> timedelta:
    """Say that a person must mend the spec; what serves goes on serving."""
    before = served.status or Status()
    status = conditions.stalled(before, served.problem, served.generation, ports.clock.now())
    if status != served.status and served.status is not None:
        ports.store.write_status(served.name, status)
    return AFTER_MENDING

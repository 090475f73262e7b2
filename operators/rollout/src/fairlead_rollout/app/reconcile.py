"""Reconcile one served model: gather, decide, apply, one status write."""

import logging
from dataclasses import replace
from datetime import timedelta

from fairlead_rollout.app.ports import Ports, ServedModel
from fairlead_rollout.domain import conditions
from fairlead_rollout.domain.actions import Action, EmitEvent, EnsureWorkload, RemoveWorkload
from fairlead_rollout.domain.decide import SOON, decide
from fairlead_rollout.domain.errors import NotFoundError, NotLookedYetError, UnavailableError
from fairlead_rollout.domain.snapshot import Analysis, Snapshot
from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import ConditionType, Status, Writeback

log = logging.getLogger(__name__)

AFTER_MENDING = timedelta(seconds=2)


def reconcile(key: str, ports: Ports) -> timedelta | None:
    """Bring one served model a step nearer to what is wanted.

    Level-based and idempotent: killed anywhere and run again, it ends in the same state.

    Returns:
        When to look again; None when the ServedModel is gone.
    """
    served = ports.store.read(key)
    if served is None:
        return None
    if served.spec is None:
        return _stall(served, ports)
    spec = served.spec
    if served.status is not None and served.status.condition(ConditionType.READY) is None:
        served = replace(served, status=None)  # it was stalled from the start: nothing is known
    snapshot = gather(served, spec, ports)
    if snapshot is None:
        return SOON
    decision = decide(snapshot, ports.clock.now())
    for action in decision.actions:
        apply(action, served, ports)
    told = _tell(snapshot, ports) if decision.status.traffic == _traffic(snapshot) else ()
    left = tuple(item for item in decision.status.writeback if item not in told)
    status = replace(decision.status, writeback=left)
    if status != snapshot.status:
        ports.store.write_status(key, status)
    return min(decision.requeue_after, timedelta(seconds=1)) if left else decision.requeue_after


def gather(served: ServedModel, spec: ServedModelSpec, ports: Ports) -> Snapshot | None:
    """Read all that `decide` may know; writes nothing.

    Returns:
        None while a missing status cannot be told from a lost one: that needs the experiments'
        records and the registry; or while the registry is about to be asked for the first time.
    """
    records = None
    if served.status is None:
        records = ports.experiments.records(served.name)
        if records is None:
            return None
    try:
        registry = ports.registry.view(spec)
    except NotLookedYetError:
        return None
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
        workloads=ports.cluster.workloads(served),
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


def apply(action: Action, served: ServedModel, ports: Ports) -> None:
    """Carry out one action."""
    match action:
        case EnsureWorkload(version=version, replicas=replicas):
            ports.cluster.ensure(served, version, replicas)
        case RemoveWorkload(version=version):
            ports.cluster.remove(served, version)
        case EmitEvent():
            log.info("%s: %s: %s", served.key, action.reason, action.message)
            ports.store.emit(served.key, action, ports.clock.now())


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
    """Say that a person must act; what serves goes on serving."""
    before, now = served.status or Status(), ports.clock.now()
    status = conditions.stalled(before, served.reason, served.problem, served.generation, now)
    if status != served.status:
        ports.store.write_status(served.key, status)
        event = f"{served.uid}/{served.generation}/{served.reason}"
        news = EmitEvent(id=event, type="Warning", reason=served.reason, message=served.problem)
        ports.store.emit(served.key, news, now)
    return AFTER_MENDING

"""Reconcile one served model: gather, decide, apply, one status write."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from fairlead_rollout.app.ports import Ports, ServedModel
from fairlead_rollout.domain import conditions
from fairlead_rollout.domain.actions import (
    Action,
    EmitEvent,
    EnsureWorkload,
    KeepLook,
    RemoveWorkload,
)
from fairlead_rollout.domain.decide import decide
from fairlead_rollout.domain.errors import (
    NotFoundError,
    NotLookedYetError,
    RefusedError,
    UnavailableError,
)
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.rebuild import records_of
from fairlead_rollout.domain.ruling import IDLE, SELDOM, SOON
from fairlead_rollout.domain.snapshot import Analysis, Sight, Snapshot
from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import ConditionType, Rollout, Status, Writeback
from fairlead_rollout.domain.writebacks import FILES, with_decisions, with_page

log = logging.getLogger(__name__)

AFTER_MENDING = timedelta(seconds=2)
WRITEBACK_EVERY = timedelta(seconds=1)
FAREWELL = timedelta(seconds=60)  # for others to be told that a deleted ServedModel's rollout ended


@dataclass(frozen=True)
class Obstacle:
    """What keeps a ServedModel from being looked at; None is no news yet."""

    seen: conditions.Seen | None


def reconcile(key: str, ports: Ports) -> timedelta | None:
    """Bring one served model a step nearer to what is wanted.

    Level-based and idempotent: killed anywhere and run again, it ends in the same state.

    Returns:
        When to look again; None when the ServedModel is gone.

    Raises:
        UnavailableError: Not all could be carried out; what was decided is written all the same.
    """
    served = ports.store.read(key)
    if served is None:
        return None
    if served.spec is None:
        return _stall(served, ports)
    snapshot = gather(served, served.spec, ports)
    if isinstance(snapshot, Obstacle):
        return _wait(served, snapshot, ports)
    decision = decide(snapshot, ports.clock.now())
    refusal, outage = _apply_all(decision.actions, served, ports)
    told = _tell(snapshot, ports) if decision.status.traffic == _traffic(snapshot) else ()
    left = tuple(item for item in decision.status.writeback if item not in told)
    status = replace(decision.status, writeback=left)
    if refusal is not None:
        seen = (ConditionType.STALLED, "True", Reason.INVALID_SPEC, refusal)
        status = conditions.stalled(status, snapshot.status or Status(), seen, ports.clock.now())
    if status != snapshot.status:
        ports.store.write_status(key, status)
    _hold(served, status, ports)
    if outage is not None:
        raise outage
    wait = decision.requeue_after if refusal is None else _after_refusal(status)
    return min(wait, WRITEBACK_EVERY) if left else wait


def _after_refusal(status: Status) -> timedelta:
    """Return when to try again: nobody tells of a quota raised, and a trial must be guarded on."""
    return AFTER_MENDING if status.trials else SELDOM


def _hold(served: ServedModel, status: Status, ports: Ports) -> None:
    """Keep a ServedModel from going while others still hold its rollout for a running one."""
    is_owed = bool(status.trials or status.writeback)
    if served.deleted_at is not None:  # no hold can be laid on it any more
        is_late = ports.clock.now() - served.deleted_at > FAREWELL
        is_owed = is_owed and served.is_held and not is_late
    if is_owed != served.is_held:
        ports.store.hold(served.key, held=is_owed)


def gather(served: ServedModel, spec: ServedModelSpec, ports: Ports) -> Snapshot | Obstacle:
    """Read all that `decide` may know; writes nothing.

    Returns:
        An obstacle while a missing status cannot be told from a lost one: that needs the
        experiments' records and the registry; or while the registry is about to be asked for the
        first time.
    """
    status, records = _known(served), None
    if status is None:
        records = ports.experiments.records(served.name)
        if records is None:
            return Obstacle(conditions.experiments_away(ports.experiments.problem))
        records = records_of(records, spec)
    trials = status.trials if status else ()
    try:
        registry = ports.registry.view(spec, _approval_of(trials[:1], spec))
    except NotLookedYetError:
        return Obstacle(None)
    if status is None and registry is None:
        return Obstacle(conditions.registry_away(ports.registry.problem))
    approval = registry.approval if registry else None
    sights = _gather_sights(status, spec, records, approval, ports)
    first = next(iter(sights.values()), Sight())
    return Snapshot(
        name=served.name,
        uid=served.uid,
        generation=served.generation,
        spec=spec,
        status=status,
        registry=registry,
        workloads=ports.cluster.workloads(served),
        applied=ports.gateway.applied(served.name),
        analysis=first.analysis,
        is_record_lost=first.is_record_lost,
        records=records,
        request=served.request,
        is_deleted=served.deleted_at is not None,
        registry_problem=ports.registry.problem,
        experiments_problem=ports.experiments.problem,
        beside=sights if len(sights) > 1 else {},
    )


def _gather_sights(
    status: Status | None,
    spec: ServedModelSpec,
    records: tuple[Mapping[str, Any], ...] | None,
    approval: str | None,
    ports: Ports,
) -> dict[str, Sight]:
    """Read what `decide` may know of each rollout on trial, by id.

    Without a status they are those of the newest records. The first one's approval is known.
    """
    if status is None:
        newest = (records or ({},))[-1].get("startedAt")
        ids = [str(r["id"]) for r in records or () if r["startedAt"] == newest]
        return {i: _sight(i, ports, is_met=True) for i in ids}
    sights: dict[str, Sight] = {}
    for rollout in status.trials:
        told = _approval(rollout, spec, ports) if sights else approval
        sight = _sight(rollout.id, ports, is_met=_is_met(rollout, status, spec))
        sights[rollout.id] = replace(sight, approval=told)
    return sights


def _approval(rollout: Rollout, spec: ServedModelSpec, ports: Ports) -> str | None:
    """Read what a candidate's tag of approval holds, where a person may have to approve it."""
    view = ports.registry.view(spec, _approval_of((rollout,), spec))
    return view.approval if view else None


def _sight(rollout: str, ports: Ports, *, is_met: bool) -> Sight:
    """Read the analysis of a rollout that anybody has met."""
    analysis, is_record_lost = _analysis(rollout if is_met else None, ports)
    return Sight(analysis=analysis, is_record_lost=is_record_lost)


def _is_met(rollout: Rollout, status: Status, spec: ServedModelSpec) -> bool:
    is_told = all((i.kind, i.rollout) != ("record", rollout.id) for i in status.writeback)
    is_gated = spec.rollout.guardrails.shadow is not None and is_told
    return rollout.step is not None or is_gated


def _approval_of(rollouts: tuple[Rollout, ...], spec: ServedModelSpec) -> str | None:
    """Return the candidate that a person may have to approve; looked at before it is asked."""
    return next((r.candidate for r in rollouts if spec.rollout.asks_a_person), None)


def _known(served: ServedModel) -> Status | None:
    """Return the status, or None where it only says why nothing could be decided yet."""
    status = served.status
    return status if status and status.condition(ConditionType.READY) else None


def _analysis(rollout: str | None, ports: Ports) -> tuple[Analysis | None, bool]:
    if rollout is None:
        return None, False
    try:
        return ports.experiments.analysis(rollout), False
    except NotFoundError:
        return None, True


def _apply_all(
    actions: tuple[Action, ...], served: ServedModel, ports: Ports
) -> tuple[str | None, UnavailableError | None]:
    """Carry out the actions, each by itself: one that fails keeps no other from its turn.

    Returns:
        Why one was refused, or None; what could not be done just now, or None.
    """
    refusal, outage = None, None
    for action in actions:
        try:
            apply(action, served, ports)
        except RefusedError as error:
            refusal = str(error)
        except UnavailableError as error:
            outage = error
    if refusal is not None:
        event = f"{served.uid}/{served.generation}/refused/{refusal}"
        news = EmitEvent(id=event, type="Warning", reason=Reason.INVALID_SPEC, message=refusal)
        ports.store.emit(served.key, news, ports.clock.now())
    return refusal, outage


def apply(action: Action, served: ServedModel, ports: Ports) -> None:
    """Carry out one action."""
    match action:
        case EnsureWorkload(version=version, replicas=replicas):
            ports.cluster.ensure(served, version, replicas)
        case RemoveWorkload(version=version):
            ports.cluster.remove(served, version)
        case KeepLook(item=item):
            _keep_look(item, ports)
        case EmitEvent():
            log.info("%s: %s: %s", served.key, action.reason, action.message)
            ports.store.emit(served.key, action, ports.clock.now())


def _keep_look(item: Writeback, ports: Ports) -> None:
    """Keep a look if that can be done just now: it decided nothing, and the next one is like it."""
    try:
        ports.experiments.put_decision(item)
    except UnavailableError as error:
        log.info("a look at rollout %s is not kept: %s", item.rollout, error)


def _traffic(snapshot: Snapshot) -> object:
    return snapshot.status.traffic if snapshot.status else None


def _tell(snapshot: Snapshot, ports: Ports) -> tuple[Writeback, ...]:
    """Tell what an earlier pass decided and wrote down; a change of traffic is never kept waiting.

    Returns:
        What has been told.
    """
    waiting = snapshot.status.writeback if snapshot.status else ()
    told: list[Writeback] = []
    left: list[Writeback] = []
    for place, item in enumerate(waiting):
        must_wait = _is_newer(item, left) or _must_wait(item, (*left, *waiting[place:]))
        is_told = not must_wait and _is_told(item, snapshot, ports)
        (told if is_told else left).append(item)
    return tuple(told)


def _is_newer(item: Writeback, left: Sequence[Writeback]) -> bool:
    """Say whether an earlier word on the same is still to be told: after this one, it would stay."""
    return item.kind not in {"record", "decision"} and _subject(item) in map(_subject, left)


def _subject(item: Writeback) -> tuple[str, str]:
    """Return what of MLflow an item is about: a version, or the one pointer of all versions."""
    return item.kind, "" if item.kind == "production" else item.version


def _must_wait(item: Writeback, waiting: Sequence[Writeback]) -> bool:
    """Say whether others come first: a file shows what the experiments service has been told."""
    others = {("record", item.rollout), ("decision", item.rollout)}
    return item.kind in FILES and not others.isdisjoint((i.kind, i.rollout) for i in waiting)


def _is_told(item: Writeback, snapshot: Snapshot, ports: Ports) -> bool:
    try:
        if item.kind == "record":
            ports.experiments.put_record(item)
        elif item.kind == "decision":
            ports.experiments.put_decision(item)
        elif snapshot.registry is None:
            return False
        else:
            ports.registry.write(snapshot.spec, _as_written(item, ports))
    except UnavailableError as error:
        log.warning("%s: %s of rollout %s waits: %s", snapshot.name, item.kind, item.rollout, error)
        return False
    return True


def _as_written(item: Writeback, ports: Ports) -> Writeback:
    """Return what MLflow is told: a file gets what the experiments service knows only now."""
    try:
        if item.kind == "report":
            return with_decisions(item, ports.experiments.decisions(item.rollout))
        if item.kind == "page":
            return with_page(item, ports.experiments.report(item.rollout))
    except NotFoundError:
        # Its database was lost meanwhile: what the status knows is told all the same.
        return with_decisions(item, ()) if item.kind == "report" else item
    return item


def _wait(served: ServedModel, obstacle: Obstacle, ports: Ports) -> timedelta:
    """Say what keeps a ServedModel from being looked at; nothing else of it is touched."""
    if served.deleted_at is not None:
        _hold(served, Status(), ports)
    if obstacle.seen is None:
        return SOON
    _note(served, obstacle.seen, ports)
    return AFTER_MENDING


def _stall(served: ServedModel, ports: Ports) -> timedelta:
    """Say that a person must act; what serves goes on serving."""
    if served.deleted_at is not None:
        _hold(served, Status(), ports)
    _note(served, (ConditionType.STALLED, "True", served.reason, served.problem), ports)
    return IDLE


def _note(served: ServedModel, seen: conditions.Seen, ports: Ports) -> None:
    before, now = served.status or Status(), ports.clock.now()
    status = conditions.noted(before, seen, served.generation, now)
    if status == served.status:
        return
    ports.store.write_status(served.key, status)
    _, _, reason, message = seen
    event = f"{served.uid}/{served.generation}/{reason}/{now.isoformat()}"
    news = EmitEvent(id=event, type="Warning", reason=reason, message=message)
    ports.store.emit(served.key, news, now)

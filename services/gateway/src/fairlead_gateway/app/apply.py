"""Bring Envoy to what is wanted, make before break, one small step at a time.

`Applier.step` is level-based: it looks at what is wanted, at the files and at what Envoy has
taken of them, does the next thing that is due, and returns. Called again and again it goes

1. clusters with their endpoints, the new ones too; 2. the listener; 3. the routes of models in a
rollout, which are few and change often; 4. the scopes, with the routes of all others; 5. after a
grace, away with the clusters no route names any more.

Each file is written only after Envoy has taken the one before, but an Envoy that does not listen
yet finds its routes when it begins to. While Envoy is down all are written at once: it will read
them together.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from fairlead_gateway.app.ports import (
    Applied,
    Clock,
    Configuration,
    Envoy,
    EnvoyStatus,
    Health,
    Memory,
    Part,
    Snapshot,
    Source,
    Validator,
)
from fairlead_gateway.domain.bootstrap import render_static
from fairlead_gateway.domain.endpoints import VersionKey
from fairlead_gateway.domain.plan import TOTAL_WEIGHT, Arm, TrafficPlan, Unit, plan_digest
from fairlead_gateway.domain.render.clusters import cluster_name, needed_versions, render_cluster
from fairlead_gateway.domain.render.endpoints import fallbacks_of, priorities_of
from fairlead_gateway.domain.render.listener import ListenerSettings, render_listener, routes_from
from fairlead_gateway.domain.render.routes import (
    NO_MODEL,
    render_model_routes,
    render_rollouts,
    render_scope,
    render_shared_scope,
)
from fairlead_gateway.domain.render.shared import JSON
from fairlead_gateway.domain.render.units import units_of

_log = logging.getLogger(__name__)

_POLL = 0.05  # Seconds between two looks at a source where nothing happens.
_SOON = 0.005  # ... while Envoy is about to follow.
_HASTE = 0.05  # ... within which Envoy follows a file, as a rule; it is not asked why not.
_BATCH = 100  # Models checked together: bounds the memory of the Envoy that checks them.
_RESYNC = 2.0  # ... between two full comparisons although nothing has changed.

Plans = Mapping[str, TrafficPlan]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplierSettings:
    """How the applier works.

    Attributes:
        listener: Where Envoy listens and logs.
        scopes: The file of the scopes.
        rollouts: The file of the rollouts' routes.
        grace: Seconds between the last route to a cluster and the cluster's removal.
        patience: Seconds Envoy may take to follow a file before it counts as rejected.
    """

    listener: ListenerSettings
    scopes: str
    rollouts: str
    grace: float = 5.0
    patience: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplierPorts:
    """What the applier works with."""

    source: Source
    files: Configuration
    envoy: Envoy
    validator: Validator
    memory: Memory
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Where things stand, for others to read.

    Attributes:
        ready: Whether Envoy has followed a full configuration.
        applied: The plan of each model that Envoy follows.
        problems: What keeps it from more, by model or file.
        snapshot: What was wanted last.
        rejected: How many configurations were refused.
    """

    ready: bool = False
    applied: Mapping[str, Applied] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    rejected: int = 0


@dataclass(slots=True, kw_only=True)
class _Written:
    """A file Envoy has not been seen to follow yet."""

    version: str
    rejected_before: int
    since: float
    taken: bool = False
    offered: float = 0.0  # When it was last written again, as Envoy did not follow it.


class Applier:
    """Keeps Envoy at what is wanted.

    Args:
        settings: How to work.
        ports: What to work with.
    """

    def __init__(self, settings: ApplierSettings, ports: ApplierPorts) -> None:
        self._settings = settings
        self._ports = ports
        self._good: dict[str, Applied] = dict(ports.memory.load())
        self._saved = self._good
        self._confirmed: dict[str, Applied] = {}
        self._refused: dict[str, tuple[str, str]] = {}
        self._valid: Plans = {}
        self._written: dict[str, _Written] = {}
        self._rejections: Mapping[str, int] = {}
        self._shared = frozenset(ports.files.shared_scopes())
        # Envoy's routes ask for the units of the plans followed last until others have come.
        self._units: frozenset[Unit] = units_of(applied.plan for applied in self._good.values())
        self._unused_since: dict[str, float] = {}
        self._blockage = ""
        self._rejected = 0
        self._seen: Snapshot | None = None
        self._due = 0.0
        self.report = Report()

    def step(self) -> float:
        """Do what is due.

        Returns:
            Seconds to wait before the next step.
        """
        snapshot = self._ports.source.read()
        now = self._ports.clock.monotonic()
        if snapshot is self._seen and now < self._due:
            return _POLL
        settled = False
        # A source that is not whole yet is no reason to forget what was served before.
        if snapshot.complete:
            settled = self._advance(snapshot, now)
        self._seen = snapshot
        self._due = now + (_RESYNC if settled else _POLL if self._unused_since else 0.0)
        self.report = Report(
            ready=self.report.ready or bool(self._written.get("scopes") and settled),
            applied=dict(self._confirmed),
            problems=self._problems(snapshot),
            snapshot=snapshot,
            rejected=self._rejected,
        )
        self._remember()
        return _POLL if settled else _SOON

    def _advance(self, snapshot: Snapshot, now: float) -> bool:
        status = self._ports.envoy.status()
        self._notice_rejection(snapshot, status, now)
        plans = self._validate(self._wanted(snapshot), snapshot)
        self._units |= units_of(plans.values())
        for write in (
            self._make_clusters,
            self._make_listener,
            self._make_rollouts,
            self._make_scopes,
        ):
            if write == self._make_listener and not _listens(status):
                # It would not wait for routes that are no JSON yet, and answer 404 meanwhile.
                self._make_rollouts(plans, snapshot)
                self._make_scopes(plans, snapshot)
            kind, version = write(plans, snapshot)
            self._note(kind, version, status, now)
            if status is not None and not _has_taken(status, kind, version):
                return False
        if status is None:
            return False
        shared = self._shared
        self._confirm(plans)
        # Routes that no scope shares any more go with the next step.
        return self._break(plans, snapshot, now) and shared <= self._shared

    # What is wanted

    def _wanted(self, snapshot: Snapshot) -> dict[str, TrafficPlan]:
        """Take the wanted plans, but the last good one where a plan is bad or was refused."""
        wanted: dict[str, TrafficPlan] = {}
        for model in self._refused.keys() - snapshot.plans.keys():
            del self._refused[model]
        for model, plan in snapshot.plans.items():
            refused = self._refused.get(model)
            if refused is not None and refused[0] == plan_digest(plan):
                wanted |= self._last_good(model)
            else:
                self._refused.pop(model, None)
                wanted[model] = plan
        for model in snapshot.problems:
            wanted = self._last_good(model) | wanted
        return wanted

    def _last_good(self, model: str) -> dict[str, TrafficPlan]:
        good = self._good.get(model)
        return {} if good is None else {model: good.plan}

    def _problems(self, snapshot: Snapshot) -> dict[str, str]:
        refused = {model: reason for model, (_, reason) in self._refused.items()}
        blocked = {"envoy": self._blockage} if self._blockage else {}
        return {**blocked, **refused, **snapshot.workload_problems, **snapshot.problems}

    # Validation

    def _validate(self, plans: dict[str, TrafficPlan], snapshot: Snapshot) -> Plans:
        """Let Envoy check the models with a new structure; leave out those it would refuse.

        Models share nothing that one could break for another, so each new one is checked alone.
        """
        new = sorted(model for model, plan in plans.items() if not self._is_valid(plan))
        if not new:
            self._valid = plans
            return plans
        accepted = {model: plan for model, plan in plans.items() if self._is_valid(plan)}
        for start in range(0, len(new), _BATCH):
            batch = {model: plans[model] for model in new[start : start + _BATCH]}
            accepted |= self._vet(batch, snapshot)
        self._valid = accepted
        return accepted

    def _vet(self, new: dict[str, TrafficPlan], snapshot: Snapshot) -> dict[str, TrafficPlan]:
        """Return the plans Envoy would take, and the last good one where it would not."""
        reason = self._check(new, snapshot)
        if reason is None:
            return new
        if len(new) == 1:
            ((model, plan),) = new.items()
            self._refuse(model, plan, reason)
            return self._last_good(model)
        vetted: dict[str, TrafficPlan] = {}
        for model, plan in new.items():
            vetted |= self._vet({model: plan}, snapshot)
        return vetted

    def _is_valid(self, plan: TrafficPlan) -> bool:
        """Tell whether Envoy would take a plan because it takes one of the same structure."""
        known = self._valid.get(plan.model)
        if known is None:
            return False
        return known is plan or _structure(known) == _structure(plan)

    def _check(self, plans: Plans, snapshot: Snapshot) -> str | None:
        units = units_of(plans.values())
        keys = needed_versions(plans.values(), ())
        clusters = [part.render() for part in _clusters(keys, plans, snapshot)]
        routes: JSON = {}
        for plan in plans.values():
            routes |= render_model_routes(plan)
        # The certificate is Envoy's alone to read; the agent may not see it. And an Envoy that only
        # checks opens the log all the same: made anew by it, after a rotation that was cut short,
        # the log would be taken for the one that the serving Envoy has gone on to.
        plain = replace(self._settings.listener, certificate="", access_log=os.devnull)
        listener = render_listener(plain, units, {"route_config": render_rollouts(units, routes)})
        return self._ports.validator.check(render_static(listener, clusters))

    def _good_plan(self, model: str) -> TrafficPlan | None:
        good = self._good.get(model)
        return None if good is None else good.plan

    def _refuse(self, model: str, plan: TrafficPlan, reason: str) -> None:
        self._refused[model] = (plan_digest(plan), reason)
        self._rejected += 1
        _log.error(
            "Envoy refuses the plan of a model; the last good one stays",
            extra={"model": model, "reason": reason},
        )

    # Make

    def _make_clusters(self, plans: Plans, snapshot: Snapshot) -> tuple[str, str]:
        keys = self._keys(plans, snapshot, self._ports.files.clusters())
        parts = _clusters(keys, plans, snapshot)
        return "clusters", self._ports.files.write_clusters(parts)

    def _make_listener(self, _: Plans, __: Snapshot) -> tuple[str, str]:
        # Units once found stay found: routes may still ask for one that no plan names any more.
        source = routes_from(self._settings.scopes, self._settings.rollouts)
        listener = render_listener(self._settings.listener, self._units, source)
        return "listeners", self._ports.files.write_listener(listener)

    def _make_rollouts(self, plans: Plans, _: Snapshot) -> tuple[str, str]:
        """Write the routes of models in a rollout, and of those whose scope still points here.

        So the end of a rollout takes effect as fast as a weight does.
        """
        parts = [
            Part(name=model, inputs=(plan,), render=partial(render_model_routes, plan))
            for model, plan in sorted(plans.items())
            if plan.is_on_trial or model in self._shared
        ]
        wrap = partial(render_rollouts, self._units)
        return "rollouts", self._ports.files.write_rollouts(parts, wrap)

    def _make_scopes(self, plans: Plans, _: Snapshot) -> tuple[str, str]:
        shared = Part(
            name=NO_MODEL, inputs=(NO_MODEL,), render=partial(render_shared_scope, NO_MODEL)
        )
        parts = [self._scope(plan) for _, plan in sorted(plans.items())]
        return "scopes", self._ports.files.write_scopes([shared, *parts])

    def _scope(self, plan: TrafficPlan) -> Part:
        if plan.is_on_trial:
            name = plan.model
            return Part(name=name, inputs=(name,), render=partial(render_shared_scope, name))
        render = partial(render_scope, self._units, plan)
        return Part(name=plan.model, inputs=(self._units, plan), render=render)

    def _keys(
        self, plans: Plans, snapshot: Snapshot, clusters: Iterable[str] = ()
    ) -> set[VersionKey]:
        kept = {(model, version) for model, _, version in (n.rpartition("-v") for n in clusters)}
        return needed_versions(plans.values(), snapshot.endpoints) | kept

    def _note(self, kind: str, version: str, status: EnvoyStatus | None, now: float) -> None:
        written = self._written.get(kind)
        if written is not None and written.version == version:
            return
        if status is not None and not (written and written.taken):
            self._count_rejections()
        rejected = self._rejections.get(kind, 0)
        self._written[kind] = _Written(version=version, rejected_before=rejected, since=now)

    # Rejections

    def _notice_rejection(self, snapshot: Snapshot, status: EnvoyStatus | None, now: float) -> None:
        """Give up what Envoy refused, and say what it has not followed for too long."""
        if status is None:
            return
        self._blockage = ""
        waiting: dict[str, _Written] = {}
        for kind, written in self._written.items():
            written.taken = _has_taken(status, kind, written.version)
            if written.taken:
                written.since = now
            elif now - written.since > _HASTE:
                waiting[kind] = written
        if waiting and self._count_rejections():
            self._judge(waiting, snapshot, now)

    def _count_rejections(self) -> bool:
        found = self._ports.envoy.rejections()
        self._rejections = self._rejections if found is None else found
        return found is not None

    def _judge(self, waiting: Mapping[str, _Written], snapshot: Snapshot, now: float) -> None:
        """Blame whoever is behind a file that was refused, or say that one is not followed."""
        for kind, written in waiting.items():
            count = self._rejections.get(kind, 0)
            if count > written.rejected_before:
                self._blame(kind, snapshot)
            elif now - written.since > self._settings.patience:
                self._blockage = f"Envoy does not follow the {kind}; its log says why"
                self._offer_again(kind, written, now)
            written.rejected_before = count  # It falls when Envoy is started again.

    def _offer_again(self, kind: str, written: _Written, now: float) -> None:
        """Write a file again: Envoy tries once to read it, or to listen at a port that is taken."""
        if now - max(written.since, written.offered) > self._settings.patience:
            written.offered = now
            self._ports.files.renew(kind)

    def _blame(self, kind: str, snapshot: Snapshot) -> None:
        """Blame the models whose plans were new in what Envoy refused.

        A refusal on the way to the first configuration is rather about the port to listen at.
        """
        wanted = self._wanted(snapshot)
        new = [model for model, plan in wanted.items() if plan != self._good_plan(model)]
        if not new or (kind not in ("rollouts", "scopes") and not self.report.ready):
            self._rejected += 1
            _log.error("Envoy refuses a configuration", extra={"kind": kind})
            return
        for model in new:
            self._refuse(model, wanted[model], f"Envoy rejected the {kind}")

    # Settle

    def _confirm(self, plans: Plans) -> None:
        """Remember the plans Envoy is now seen to follow."""
        now = self._ports.clock.now()
        confirmed: dict[str, Applied] = {}
        for model, plan in plans.items():
            good = self._good.get(model)
            same = good is not None and (good.plan is plan or good.plan == plan)
            confirmed[model] = good if good and same else Applied(plan=plan, at=now)
        self._confirmed = confirmed
        self._shared = frozenset(model for model, plan in plans.items() if plan.is_on_trial)
        if confirmed != self._good:
            self._good = confirmed

    def _remember(self) -> None:
        """Save what Envoy follows: last, as all else goes on where there is no room for it."""
        if self._saved is not self._good:
            self._ports.memory.save(self._good)
            self._saved = self._good

    def _break(self, plans: Plans, snapshot: Snapshot, now: float) -> bool:
        """Remove the clusters that have had no use for the whole grace."""
        written = self._ports.files.clusters()
        keys = self._keys(plans, snapshot)
        needed = {cluster_name(*key) for key in keys}
        unused = {name: self._unused_since.get(name, now) for name in set(written) - needed}
        expired = {name for name, since in unused.items() if now - since >= self._settings.grace}
        self._unused_since = {k: since for k, since in unused.items() if k not in expired}
        if expired:
            keys = self._keys(plans, snapshot, set(written) - expired)
            self._ports.files.write_clusters(_clusters(keys, plans, snapshot))
            return False
        return not unused


def _clusters(keys: Iterable[VersionKey], plans: Plans, snapshot: Snapshot) -> list[Part]:
    fallbacks = fallbacks_of(plans.values())
    parts: list[Part] = []
    for key in sorted(keys):
        name = cluster_name(*key)
        priorities = priorities_of(key, snapshot.endpoints, fallbacks.get(key))
        render = partial(render_cluster, name, priorities)
        parts.append(Part(name=name, inputs=priorities, render=render))
    return parts


def _listens(status: EnvoyStatus | None) -> bool:
    return status is not None and bool(status.versions.get("listeners"))


def _has_taken(status: EnvoyStatus, kind: str, version: str) -> bool:
    return status.versions.get(kind) == version


def _structure(plan: TrafficPlan) -> TrafficPlan:
    """Reduce a plan to what Envoy could refuse: a weight or a step changes nothing there."""
    lanes = tuple(replace(lane, step=0, arms=_evened(lane.arms)) for lane in plan.lanes)
    step = None if plan.rollout is None else 0
    return replace(plan, step=step, arms=_evened(plan.arms), lanes=lanes)


def _evened(arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
    weights = [0] * (len(arms) - 1) + [TOTAL_WEIGHT]
    return tuple(replace(arm, weight=weight) for arm, weight in zip(arms, weights, strict=True))


def health_of(snapshot: Snapshot, healthy: Mapping[str, int]) -> dict[str, dict[str, Health]]:
    """Tell how many endpoints each version has, and how many of them Envoy can use.

    Args:
        snapshot: What is wanted, with every version's endpoints.
        healthy: The usable endpoints of each cluster.
    """
    keys = needed_versions(snapshot.plans.values(), snapshot.endpoints)
    found: dict[str, dict[str, Health]] = {}
    for model, version in sorted(keys):
        endpoints = snapshot.endpoints.get((model, version), ())
        ready = sum(endpoint.ready for endpoint in endpoints)
        usable = min(healthy.get(cluster_name(model, version), 0), ready)
        found.setdefault(model, {})[version] = Health(healthy=usable, total=len(endpoints))
    return found

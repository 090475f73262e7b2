"""A small world for the controller: real stores in a folder, the outside in memory.

The outside (MLflow, the gateway, experiments, the machine that runs processes) is moved by hand or
by `settle`, and every write can be made the controller's last.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fairlead_rollout.adapters import folder_store
from fairlead_rollout.adapters.files import read_json, write_json
from fairlead_rollout.adapters.folder_cluster import FolderCluster
from fairlead_rollout.adapters.folder_store import FolderStore
from fairlead_rollout.adapters.home import Home
from fairlead_rollout.adapters.schema import read_spec
from fairlead_rollout.app.ports import Ports, ServedModel
from fairlead_rollout.app.reconcile import reconcile
from fairlead_rollout.domain.actions import EmitEvent
from fairlead_rollout.domain.decisions import HOLD, changes
from fairlead_rollout.domain.description import with_block
from fairlead_rollout.domain.errors import NotFoundError, RefusedError, UnavailableError
from fairlead_rollout.domain.names import workload_name
from fairlead_rollout.domain.snapshot import (
    Analysis,
    Applied,
    RegistryView,
    Request,
    StepCounts,
    Verb,
    Verdict,
    Workload,
)
from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import Rollout, Status, Writeback, parse_time
from fairlead_rollout.domain.traffic import plan_digest

NAME = "flight-delay"
MODEL = "Flight Delay (EU) – 2026.v1"
NO_REQUESTS = StepCounts(stable=0, candidate=0)
START = datetime(2026, 1, 1, tzinfo=UTC)


def manifest(**spec: Any) -> dict[str, Any]:
    """Build a ServedModel document with an objective and short steps."""
    rollout = {
        "steps": [{"weight": 10, "for": "30s"}, {"weight": 50, "until": "decided"}],
        "objective": {"outcome": "squared_error", "better": "lower", "minimumEffect": 0.01},
        "maxDuration": "1h",
    }
    return {
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": "ServedModel",
        "metadata": {"name": NAME},
        "spec": {
            "model": MODEL,
            "rollout": rollout,
            "server": {"replicas": 2, "keep": {"versions": 0}},
            **spec,
        },
    }


class KilledError(BaseException):
    """The controller was killed here; nothing may catch it."""


@dataclass
class World:
    """The outside of one controller."""

    home: Home
    time: datetime = START
    production: str | None = "1"
    shadow: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    approvals: dict[str, str] = field(default_factory=dict)
    registry_up: bool = True
    gateway_up: bool = True
    experiments_up: bool = True
    verdict: Verdict = Verdict.INSUFFICIENT
    why: str = "not enough units yet"
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # of versions, other than `verdict`
    effects: dict[str, float] = field(default_factory=dict)  # of versions
    guardrails: tuple[Mapping[str, Any], ...] = ()
    shadow_state: str | None = None
    requests: int = 1_000
    is_record_lost: bool = False
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)
    records_: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    reports: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    pages: dict[str, str | None] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    decisions_: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    routed: Mapping[str, Any] | None = None
    refused: dict[str, str] = field(default_factory=dict)
    is_held: bool = False
    deleted_at: datetime | None = None
    writes: int = 0
    kill_at: int | None = None
    kill_after: bool = False

    def __post_init__(self) -> None:
        """Put the real stores into the folder."""
        self.store_ = FolderStore(self.home)
        self.cluster_ = FolderCluster(self.home)

    # -- the controller's side

    @property
    def ports(self) -> Ports:
        """Return the world as ports."""
        return Ports(
            store=self, registry=self, cluster=self, gateway=self, experiments=self, clock=self
        )

    def run(self, passes: int = 1, every: float = 0.0) -> None:
        """Let the outside settle and reconcile, some times."""
        for _ in range(passes):
            self.settle()
            reconcile(NAME, self.ports)
            self.time += timedelta(seconds=every)

    def run_until(self, condition: Callable[[], bool], every: float = 0.25) -> None:
        """Go on until something is so; fails after ten simulated minutes."""
        for _ in range(2_400):
            if condition():
                return
            self.run(every=every)
        raise AssertionError(f"still not so: {self.status}")

    @property
    def status(self) -> Status:
        """Return the status as it is stored."""
        served = self.store_.read(NAME)
        assert served is not None
        return served.status or Status()

    @property
    def rollout(self) -> Rollout:
        """Return the current or last rollout."""
        assert self.status.rollout is not None
        return self.status.rollout

    @property
    def weight(self) -> int:
        """Return the candidate's weight in the plan, of 10,000."""
        arms = (self.status.traffic or {"arms": ()})["arms"]
        return sum(arm["weight"] for arm in arms if arm["arm"] == "candidate")

    @property
    def lanes(self) -> dict[str, tuple[int, int, int]]:
        """Return where the lane of each candidate is in the plan, and its weight there."""
        lanes = (self.status.traffic or {}).get("lanes", {"trials": ()})["trials"]
        return {
            lane["arms"][0]["version"]: (lane["from"], lane["to"], lane["arms"][0]["weight"])
            for lane in lanes
        }

    def trial(self, version: str) -> Rollout:
        """Return the newest rollout of a version, whether it runs or not."""
        found = (*self.status.history, *self.status.trials)
        return next(r for r in reversed(found) if r.candidate == version)

    @property
    def is_gone(self) -> bool:
        """Say whether the ServedModel was deleted and is held by nobody."""
        return self.deleted_at is not None and not self.is_held

    @property
    def running(self) -> tuple[Workload, ...]:
        """Return the workloads there are."""
        served = self.store_.read(NAME)
        assert served is not None
        return self.cluster_.workloads(served)

    def ask(
        self,
        verb: Verb,
        request: str = "request-1",
        step: int | None = None,
        rollout: str | None = None,
    ) -> None:
        """Ask as a person would, of the current rollout unless another is named."""
        of = rollout or self.rollout.id
        wanted = Request(id=request, verb=verb, rollout=of, by="ada", step=step)
        self.store_.ask(NAME, wanted)

    # -- the outside

    def settle(self) -> None:
        """Start and stop the processes that are wanted; let the gateway take the newest plan."""
        for folder in self.home.workloads.glob("*"):
            spec = read_json(folder / "spec.json")
            if spec is None:
                (folder / "status.json").unlink(missing_ok=True)
                folder.rmdir()
            else:
                write_json(folder / "status.json", self._process_status(spec))
        if self.gateway_up:
            served = self.store_.read(NAME)
            if served and served.status and served.status.traffic:
                self.routed = served.status.traffic

    def _process_status(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        code, reason = self.broken.get(spec["version"], (0, ""))
        ends = [{"address": "127.0.0.1", "port": n, "ready": True} for n in range(spec["replicas"])]
        failure = {"exitCode": code, "reason": reason} if reason else None
        return {"endpoints": [] if reason else ends, "restarts": 0, "failure": failure}

    def _write(self, action: Callable[[], Any]) -> Any:
        """Count a write, and end the controller at the chosen one: before it, or right after."""
        self.writes += 1
        if self.writes == self.kill_at and not self.kill_after:
            raise KilledError
        result = action()
        if self.writes == self.kill_at:
            raise KilledError
        return result

    # -- ports

    def now(self) -> datetime:
        """See Clock."""
        return self.time

    def read(self, name: str) -> Any:
        """See Store."""
        served = self.store_.read(name)
        if served is None or self.is_gone:
            return None
        return replace(served, is_held=self.is_held, deleted_at=self.deleted_at)

    def write_status(self, name: str, status: Status) -> None:
        """See Store."""
        self._write(lambda: self.store_.write_status(name, status))

    def hold(self, key: str, *, held: bool) -> None:
        """See Store."""
        self._write(lambda: setattr(self, "is_held", held))

    @property
    def problem(self) -> str | None:
        """See Registry and Experiments."""
        return None

    def emit(self, name: str, event: EmitEvent, at: datetime) -> None:
        """See Store."""
        self._write(lambda: self.store_.emit(name, event, at))

    def view(self, spec: ServedModelSpec, approval_of: str | None = None) -> RegistryView | None:
        """See Registry."""
        if not self.registry_up:
            return None
        approval = self.approvals.get(approval_of, "") if approval_of else None
        return RegistryView(
            production=self.production,
            shadow=self.shadow,
            approval=approval,
            candidates={a: v for a, v in self.aliases.items() if a in spec.candidates},
        )

    def write(self, spec: ServedModelSpec, item: Writeback) -> None:
        """See Registry."""
        if not self.registry_up:
            raise UnavailableError("MLflow is away")
        self._write(lambda: self._take(item))

    def _take(self, item: Writeback) -> None:
        if item.kind == "tags":
            self.tags.setdefault(item.version, {}).update(item.content)
        elif item.kind == "approval":
            self.approvals[item.version] = item.content["rollout.approve"]
        elif item.kind == "report":
            self.reports[item.rollout] = json.loads(item.content["rollout.json"])
        elif item.kind == "page":
            self.pages |= {item.rollout: item.content.get("rollout.html")}
        elif item.kind == "description":
            before = self.descriptions.get(item.version, "")
            after = with_block(before, item.content["summary"], item.content["why"])
            self.descriptions[item.version] = after or before
        elif item.kind == "production" and self.production == item.content["candidate"]:
            self.production = item.version

    def workloads(self, served: ServedModel) -> Any:
        """See Cluster."""
        return self.cluster_.workloads(served)

    def ensure(self, served: ServedModel, version: str, replicas: int) -> None:
        """See Cluster."""
        assert served.spec is not None
        if version in self.refused:
            raise RefusedError(self.refused[version])
        workload = workload_name(served.name, served.spec.model, version)
        before = read_json(self.home.workloads / workload / "spec.json")
        if before is None or before["replicas"] != replicas:
            self._write(lambda: self.cluster_.ensure(served, version, replicas))

    def remove(self, served: ServedModel, version: str) -> None:
        """See Cluster."""
        self._write(lambda: self.cluster_.remove(served, version))

    def applied(self, name: str) -> Applied | None:
        """See Gateway."""
        if not self.gateway_up:
            return None
        healthy = {w.version: w.ready for w in self.running}
        digest = plan_digest(dict(self.routed)) if self.routed else None
        return Applied(digests={"gateway": digest}, healthy=healthy)

    def analysis(self, rollout: str) -> Analysis | None:
        """See Experiments."""
        if not self.experiments_up:
            return None
        if self.is_record_lost:
            raise NotFoundError(rollout)
        counts = StepCounts(stable=self.requests, candidate=self.requests)
        steps = len(self.records_[rollout]["steps"])  # all of the record's, as the service does
        candidate = self.records_[rollout]["candidate"]
        lanes = (self.routed or {}).get("lanes", {"trials": ()})["trials"]
        routed = next((lane for lane in lanes if lane["rollout"] == rollout), self.routed or {})
        reached = routed.get("step") or 0
        return Analysis(
            verdict=self.verdicts.get(candidate, self.verdict),
            reason=self.why,
            at=self.time,
            steps={n: counts if n <= reached else NO_REQUESTS for n in range(steps)},
            objective={
                "outcome": "squared_error",
                "effect": self.effects.get(candidate, -0.013),
                "ciLow": -0.02,
                "ciHigh": -0.005,
                "evalue": 54.0,
            },
            guardrails=self.guardrails,
            shadow=self.shadow_state and {"state": self.shadow_state, "reason": "compared"},
            arms={"stable": {"units": 900}, "candidate": {"units": 880}},
            last_decision_at=max((parse_time(d["at"]) for d in self._kept(rollout)), default=None),
        )

    def records(self, name: str) -> tuple[Mapping[str, Any], ...] | None:
        """See Experiments."""
        if not self.experiments_up:
            return None
        ours = ({**r, "id": i} for i, r in self.records_.items() if r["model"] == name)
        return tuple(sorted(ours, key=lambda r: str(r["startedAt"])))

    def put_record(self, item: Writeback) -> None:
        """See Experiments."""
        if not self.experiments_up:
            raise UnavailableError("experiments is away")
        self._write(lambda: self.records_.update({item.rollout: item.content}))
        self.is_record_lost = False

    def put_decision(self, item: Writeback) -> None:
        """See Experiments."""
        if not self.experiments_up:
            raise UnavailableError("experiments is away")
        kept = self.decisions_.setdefault(item.rollout, {})
        if item.content["verdict"] == HOLD:  # a look: no news, and nothing depends on it
            kept[item.content["id"]] = item.content
        else:
            self._write(lambda: kept.update({item.content["id"]: item.content}))

    def decisions(self, rollout: str) -> tuple[Mapping[str, Any], ...]:
        """See Experiments."""
        if not self.experiments_up:
            raise UnavailableError("experiments is away")
        if rollout not in self.records_:
            raise NotFoundError(rollout)
        return tuple(sorted(self._kept(rollout), key=lambda d: str(d["at"])))

    def report(self, rollout: str) -> str:
        """See Experiments."""
        if not self.experiments_up:
            raise UnavailableError("experiments is away")
        if rollout not in self.records_:
            raise NotFoundError(rollout)
        return f"<title>{self.records_[rollout]['state']}</title>"

    def _kept(self, rollout: str) -> tuple[Mapping[str, Any], ...]:
        return tuple(self.decisions_.get(rollout, {}).values())


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., World]:
    """Return a maker of worlds, each in a folder of its own."""
    made = iter(range(10_000))

    def make(document: Mapping[str, Any] | None = None) -> World:
        world = World(home=Home(tmp_path / str(next(made))))
        world.store_.apply(document or manifest(), START)
        return world

    return make


def _outcome(world: World) -> Any:
    status = world.status
    history = [(r.id, r.candidate, r.baseline, r.state, r.reason) for r in status.history]
    tags = {v: {k: t for k, t in kept.items() if "_at" not in k} for v, kept in world.tags.items()}
    records = {i: (r["state"], r["candidate"]) for i, r in world.records_.items()}
    decisions = {
        i: [(d["verdict"], d["reason"], d["to"]) for d in changes(world.decisions(i))]
        for i in world.records_
    }
    return (
        status.stable,
        status.settled,
        status.traffic,
        history,
        tags,
        records,
        decisions,
        world.reports.keys(),
        world.production,
    )


def _check_served(world: World) -> None:
    """Check that everything the gateway routes to has processes: made before, removed after."""
    routed = {arm["version"] for arm in (world.routed or {"arms": ()})["arms"] if arm["weight"]}
    assert routed <= {workload.version for workload in world.running}


def _run_story_killed_at(world: World, story: Callable[[World], None], write: int) -> bool:
    """Play a story with a controller that is killed at one write and started again."""
    reconcile_once, world.kill_at = world.run, write
    was_killed = []

    def run(passes: int = 1, every: float = 0.0) -> None:
        try:
            reconcile_once(passes, every)
        except KilledError:
            was_killed.append(True)
            world.kill_at = None
            world.time += timedelta(seconds=1)  # until it has been started again
        _check_served(world)

    world.run = run  # type: ignore[method-assign]
    story(world)
    return bool(was_killed)


def _set_uid(world: World, uid: str) -> None:
    path = world.home.served_models / NAME / "manifest.json"
    document = read_json(path)
    document["metadata"]["uid"] = uid
    write_json(path, document)


@pytest.fixture
def specs_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each manifest checked against the schema once: it is most of what a pass costs here."""
    read: dict[str, ServedModelSpec] = {}

    def read_once(manifest: Any) -> ServedModelSpec:
        key = json.dumps(manifest, sort_keys=True)
        if key not in read:
            read[key] = read_spec(manifest)
        return read[key]

    monkeypatch.setattr(folder_store, "read_spec", read_once)


@pytest.fixture
def kill_everywhere(make_world: Callable[..., World], specs_read_once: None) -> Callable[..., None]:
    """Return a check: killed at any write of a story, the controller ends it the same."""

    def check(story: Callable[[World], None], *, after: bool, document: Any = None) -> None:
        whole = make_world(document)
        served = whole.store_.read(NAME)
        assert served is not None
        story(whole)
        for write in range(1, whole.writes + 1):
            world = make_world(document)
            _set_uid(world, served.uid)
            world.kill_after = after
            assert _run_story_killed_at(world, story, write)
            assert _outcome(world) == _outcome(whole)

    return check


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """Return a world with one ServedModel that has not been looked at yet."""
    return make_world()


@pytest.fixture
def serving(world: World) -> World:
    """Return a world in which version 1 serves."""
    world.run_until(lambda: world.status.stable == "1")
    return world


@pytest.fixture
def on_trial(serving: World) -> World:
    """Return a world in which version 2 is on trial at its first step."""
    serving.production = "2"
    serving.run_until(lambda: serving.weight == 1_000)
    return serving


@pytest.fixture(scope="session")
def build_manifest() -> Callable[..., dict[str, Any]]:
    """Return the builder of ServedModel documents."""
    return manifest


@pytest.fixture
def changed() -> Callable[..., Any]:
    """Return `dataclasses.replace`."""
    return replace


@pytest.fixture
def killed() -> type[BaseException]:
    """Return what ends a controller at a chosen write."""
    return KilledError

"""What `gather` saw: one frozen picture of the world for `decide`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import Status
from fairlead_rollout.domain.traffic import Plan, plan_digest

LOAD_FAILED = 3  # exit code of a serving process whose model can never load
FETCH_FAILED = 4  # ... whose model could not be fetched just now; the deadline bounds the waiting
MAX_RESTARTS = 3


class Verdict(StrEnum):
    """What the numbers say."""

    INSUFFICIENT = "insufficient"
    HOLDING = "holding"
    BETTER = "better"
    WORSE = "worse"
    INVALID = "invalid"


class Verb(StrEnum):
    """What a person can ask of a rollout."""

    PROMOTE = "promote"
    ABORT = "abort"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    APPROVE = "approve"
    ROLLBACK = "rollback"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A person's request; it is meant for one rollout and dealt with once.

    Attributes:
        rollout: Id of the rollout it was asked of; another one is not touched by it.
        step: Index of the step whose end is approved; only for that verb.
    """

    id: str
    verb: Verb
    rollout: str
    by: str = ""
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class RegistryView:
    """Where the registry's pointers stand for one registered model; None is nowhere.

    Attributes:
        candidates: The versions that the aliases of `spec.registry.candidates` name, by alias.
        approval: What the candidate's tag `rollout.approve` holds, empty where it has none; None
            while nobody has looked.
    """

    production: str | None
    shadow: str | None = None
    approval: str | None = None
    candidates: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a process of a version ended that should not have."""

    exit_code: int | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The processes of one version, as observed.

    Attributes:
        wanted: Processes asked for.
        ready: Processes that answer their readiness probe.
        restarts: Starts after the first since the workload was last ready.
        failure: How the last process ended, until one is ready again.
    """

    name: str
    version: str
    wanted: int
    ready: int
    restarts: int = 0
    failure: Failure | None = None

    @property
    def has_failed(self) -> bool:
        """Say whether waiting longer is of no use."""
        if self.failure is None or self.ready:
            return False
        if self.failure.exit_code == FETCH_FAILED:
            return False
        return self.failure.exit_code == LOAD_FAILED or self.restarts >= MAX_RESTARTS


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What the gateway's replicas route by.

    Attributes:
        digests: Digest of the plan each replica has applied, None before its first.
        healthy: Healthy endpoints per version, in the eyes of the replica that sees the fewest.
    """

    digests: Mapping[str, str | None]
    healthy: Mapping[str, int] = field(default_factory=dict)

    def has(self, plan: Plan | None) -> bool:
        """Say whether every replica has applied a plan."""
        return bool(self.digests) and not self.behind(plan)

    def behind(self, plan: Plan | None) -> tuple[str, ...]:
        """Return the replicas that have not applied a plan."""
        wanted = plan_digest(plan) if plan is not None else ""
        return tuple(sorted(r for r, digest in self.digests.items() if digest != wanted))


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """Requests each arm got in one step."""

    stable: int
    candidate: int


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What the numbers of a rollout say.

    Attributes:
        steps: Requests per arm by step index.
        objective: The objective's part of the analysis document, None without an objective.
        guardrails: The guardrails' part.
        srm: The sample-ratio part.
        shadow: How the candidate compares as a shadow, None where no guardrail asks for it.
        at: When it was computed.
        last_decision_at: When the newest decision that the service keeps was taken.
    """

    verdict: Verdict
    reason: str
    at: datetime
    steps: Mapping[int, StepCounts] = field(default_factory=dict)
    objective: Mapping[str, Any] | None = None
    guardrails: tuple[Mapping[str, Any], ...] = ()
    srm: Mapping[str, Any] | None = None
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    last_decision_at: datetime | None = None
    shadow: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What was seen of a rollout beside the first; see `Snapshot` and `RegistryView`."""

    analysis: Analysis | None = None
    is_record_lost: bool = False
    approval: str | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything `decide` may know.

    Attributes:
        uid: The ServedModel's own id; ids of rollouts derive from it.
        registry: None while MLflow does not answer.
        applied: None while the gateway does not answer.
        analysis: None without a rollout, or while experiments does not answer.
        records: The experiments' rollout records, newest last; read only when the status is lost.
        status: None when there is none: a new ServedModel or a lost status.
        is_deleted: The ServedModel is to go.
        registry_problem: Why MLflow does not answer.
        experiments_problem: Why the experiments service does not answer.
        is_record_lost: The experiments service answers, and knows nothing of the rollout.
        beside: What was seen of the rollouts beside the first, by their ids.
    """

    name: str
    uid: str
    generation: int
    spec: ServedModelSpec
    status: Status | None
    registry: RegistryView | None
    workloads: tuple[Workload, ...] = ()
    applied: Applied | None = None
    analysis: Analysis | None = None
    is_record_lost: bool = False
    records: tuple[Mapping[str, Any], ...] | None = None
    request: Request | None = None
    is_deleted: bool = False
    registry_problem: str | None = None
    experiments_problem: str | None = None
    beside: Mapping[str, Sight] = field(default_factory=dict)

    def workload(self, version: str | None) -> Workload | None:
        """Return the observed workload of a version."""
        return next((w for w in self.workloads if w.version == version), None)

"""The status of a ServedModel: all the state a rollout has, and how it is written as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from fairlead_rollout.domain.lanes import Lane
from fairlead_rollout.domain.traffic import Plan

MAX_HISTORY = 50
SPARSE = {"sparse": True}  # of a field: not written while it says nothing


class RolloutState(StrEnum):
    """Where a rollout is; the same words as the MLflow tag `rollout.status`."""

    PENDING = "pending"
    RUNNING = "running"
    PROMOTED = "promoted"
    ABORTED = "aborted"
    INVALID = "invalid"
    SUPERSEDED = "superseded"


ACTIVE_STATES = frozenset({RolloutState.PENDING, RolloutState.RUNNING})


class ConditionType(StrEnum):
    """Conditions; the first three are always there, the others only while True."""

    READY = "Ready"
    CANDIDATE_AVAILABLE = "CandidateAvailable"
    TRAFFIC_APPLIED = "TrafficApplied"
    PROGRESSING = "Progressing"
    STALLED = "Stalled"
    REGISTRY_UNAVAILABLE = "RegistryUnavailable"
    EXPERIMENTS_UNAVAILABLE = "ExperimentsUnavailable"
    ABORTED = "Aborted"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One observation, by the Kubernetes API conventions."""

    type: str
    status: str
    reason: str
    message: str
    last_transition_time: datetime


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What the analysis said when the rollout was decided; None is not known.

    Attributes:
        effect: Candidate's mean minus stable's, in the outcome's unit.
        ci_low: Lower end of the confidence sequence.
        ci_high: Upper end of the confidence sequence.
    """

    effect: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    evalue: float | None = None
    units_stable: int | None = None
    units_candidate: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One rollout, running or ended.

    Attributes:
        step: Index of the step whose weight the plan has; None before the first.
        step_started_at: When the gateway was first seen to have applied that weight.
        rules: Fingerprint of the rules it began with; empty when they are not known any more.
        awaiting: A person was asked to approve what comes after the step.
        approval_seen: The tag `rollout.approve` that was there when first looked for since then;
            it approves nothing. None before that look.
        promoting: The decision to promote is taken and the candidate is being scaled.
        reason: Why it is as it is, or why it ended.
        alias: The alias that names the candidate; empty if the production pointer does.
        lane: Its units, where others run beside it; None is all.
    """

    id: str
    candidate: str
    baseline: str
    state: RolloutState
    started_at: datetime
    step: int | None = None
    step_started_at: datetime | None = None
    decided_at: datetime | None = None
    rules: str = ""
    paused: bool = False
    awaiting: bool = False
    approval_seen: str | None = None
    promoting: bool = False
    reason: str = ""
    message: str = ""
    numbers: Numbers = field(default_factory=Numbers)
    alias: str = field(default="", metadata=SPARSE)
    lane: Lane | None = field(default=None, metadata=SPARSE)

    @property
    def is_active(self) -> bool:
        """Say whether the rollout is still to be decided or carried out."""
        return self.state in ACTIVE_STATES


@dataclass(frozen=True, kw_only=True)
class Retiring:
    """A version that has left the plan and whose processes are to be removed."""

    version: str
    since: datetime


@dataclass(frozen=True, kw_only=True)
class Writeback:
    """Something to tell another system, kept until it has been told.

    Attributes:
        kind: `record` or `decision` (experiments); `tags`, `approval`, `description`,
            `production`, `report` or `page` (MLflow).
        content: What to write; its shape depends on the kind.
    """

    kind: str
    rollout: str
    version: str
    content: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Status:
    """All the state of one ServedModel.

    Attributes:
        production: The version the registry's pointer named when last seen.
        settled: A production version that is not to be put on trial (again): it was aborted, or
            refused as it arrived during another one's trial.
        waiting: A production version that waits until the one on trial has been decided.
        attempts: Rollouts started so far; makes their ids unique and repeatable.
        handled_request: Id of the last request of a person that was dealt with.
        beside: The rollouts that run beside `rollout`, by lane.
        turned_away: Versions that an alias names and that are not to be put on trial (again).
    """

    observed_generation: int = 0
    production: str | None = None
    stable: str | None = None
    settled: str | None = None
    waiting: str | None = None
    attempts: int = 0
    rollout: Rollout | None = None
    traffic: Plan | None = None
    retiring: tuple[Retiring, ...] = ()
    writeback: tuple[Writeback, ...] = ()
    handled_request: str = ""
    conditions: tuple[Condition, ...] = ()
    history: tuple[Rollout, ...] = ()
    beside: tuple[Rollout, ...] = field(default=(), metadata=SPARSE)
    turned_away: tuple[str, ...] = field(default=(), metadata=SPARSE)

    @property
    def trials(self) -> tuple[Rollout, ...]:
        """Return the rollouts that run, by lane."""
        current = () if self.rollout is None else (self.rollout,)
        return tuple(r for r in (*current, *self.beside) if r.is_active)

    def condition(self, kind: ConditionType) -> Condition | None:
        """Return the condition of a type, if it is there."""
        return next((c for c in self.conditions if c.type == kind), None)


def with_history(status: Status, rollout: Rollout) -> Status:
    """Return the status with an ended rollout as its current and as its newest history entry."""
    earlier = tuple(entry for entry in status.history if entry.id != rollout.id)
    return replace(status, rollout=rollout, history=(*earlier, rollout)[-MAX_HISTORY:])


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word.title() for word in tail)


def format_time(moment: datetime) -> str:
    """Write a moment as RFC 3339 in UTC with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """Read what `format_time` wrote."""
    return datetime.fromisoformat(text)


def to_document(value: Any) -> Any:
    """Turn a status, or any part of one, into JSON values with camelCase keys."""
    if is_dataclass(value):
        given = {f: getattr(value, f.name) for f in fields(value)}
        said = {f: v for f, v in given.items() if v != f.default or not f.metadata.get("sparse")}
        return {_camel(f.name): to_document(v) for f, v in said.items()}
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple | list):
        return [to_document(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_document(item) for key, item in value.items()}
    return value


def from_document(document: Mapping[str, Any]) -> Status:
    """Read a status that `to_document` wrote.

    Raises:
        KeyError, TypeError, ValueError: The document is not one of ours; the caller treats the
            status as lost.
    """
    status: Status = _read(
        Status,
        document,
        rollout=lambda d: _rollout(d) if d else None,
        retiring=_each(lambda d: _read(Retiring, d, since=parse_time)),
        writeback=_each(lambda d: _read(Writeback, d)),
        conditions=_each(lambda d: _read(Condition, d, last_transition_time=parse_time)),
        history=_each(_rollout),
        beside=_each(_rollout),
        turned_away=tuple,
    )
    return status


def _optional_time(text: str | None) -> datetime | None:
    return parse_time(text) if text else None


def _rollout(document: Mapping[str, Any]) -> Rollout:
    rollout: Rollout = _read(
        Rollout,
        document,
        state=RolloutState,
        started_at=parse_time,
        step_started_at=_optional_time,
        decided_at=_optional_time,
        numbers=lambda d: _read(Numbers, d),
        lane=lambda d: _read(Lane, d) if d else None,
    )
    return rollout


def _each(read: Any) -> Any:
    return lambda items: tuple(read(item) for item in items)


def _read(kind: Any, document: Mapping[str, Any], **readers: Any) -> Any:
    values = {f.name: document[_camel(f.name)] for f in fields(kind) if _camel(f.name) in document}
    return kind(**{k: readers[k](v) if k in readers else v for k, v in values.items()})

"""What comes in and what is kept: exposures, outcomes, rollouts and their aggregates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from fairlead_experiments.domain.effect import Overlap, StepSummary

FULL_WEIGHT = 10_000


class Kind(StrEnum):
    """What makes a request bad."""

    ERRORS = "errors"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Exposure:
    """One unit met one arm. Times are microseconds since 1970, UTC."""

    inference_id: str
    rollout: str
    step: int
    arm: str
    version: str | None
    unit: str | None
    at: int
    code: int
    attempts: int
    duration_ms: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A number reported later, for one inference or for one unit of a model.

    Attributes:
        subject: `inference:{id}` or `unit:{model}:{unit}`.
        moment: Part of what makes it unique: 0 for an inference, `observed_at` for a unit.
    """

    subject: str
    outcome: str
    moment: int
    value: float
    observed_at: int
    inference_id: str | None = None
    model: str | None = None
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How many items of a batch were new (or changed), and how many were known already."""

    accepted: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """One step of a rollout; the weight is of 10,000."""

    index: int
    weight: int


@dataclass(frozen=True, slots=True)
class Objective:
    """The outcome that decides."""

    outcome: str
    better: str
    minimum_effect: float
    alpha: float


@dataclass(frozen=True, slots=True)
class ErrorGuardrail:
    """How many times as many errors as stable are too many, less one."""

    margin: float


@dataclass(frozen=True, slots=True)
class LatencyGuardrail:
    """How many times as many slow answers as stable are too many, less one."""

    slower_than: float
    margin: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """The record of a rollout, as the controller keeps it here."""

    id: str
    model: str
    stable: str
    candidate: str
    started_at: datetime
    decided_at: datetime | None
    state: str
    reason: str
    steps: tuple[RolloutStep, ...]
    objective: Objective | None
    errors: ErrorGuardrail | None
    latency: LatencyGuardrail | None
    registered_model: str | None = None


@dataclass(frozen=True, slots=True)
class Requests:
    """Counters of requests: of one arm, in a step or summed."""

    requests: int = 0
    answered: int = 0
    errors: int = 0
    slow: int = 0
    fallbacks: int = 0
    retried: int = 0

    def plus(self, other: "Requests") -> "Requests":
        """Answer the sum of both."""
        return Requests(
            self.requests + other.requests,
            self.answered + other.answered,
            self.errors + other.errors,
            self.slow + other.slow,
            self.fallbacks + other.fallbacks,
            self.retried + other.retried,
        )


@dataclass(frozen=True, slots=True)
class UnitCounts:
    """Units of one step and arm.

    Attributes:
        units: Distinct units exposed, mixed ones included.
        new: Of these, the ones no earlier step had met, without the mixed ones.
    """

    units: int = 0
    new: int = 0


@dataclass(frozen=True, slots=True)
class Aggregates:
    """Everything the analysis of one rollout reads.

    Attributes:
        requests: Requests per step and arm.
        bad_units: Per kind of bad request, units whose first one fell into a step and arm.
        units: Unit counts per step and arm.
        mixed: Per step, units that met both arms in it.
        distinct: Distinct units per arm, over all steps.
        outcomes: Outcomes of the objective per arm.
        measured: What the units say about the objective, per step.
        overlaps: Units measured in several steps.
        measured_distinct: Distinct measured units per arm, over all comparable steps.
        unassigned: Requests without a unit; they all go to stable, so they are no comparison.
    """

    requests: Mapping[tuple[int, str], Requests] = field(default_factory=dict)
    bad_units: Mapping[Kind, Mapping[tuple[int, str], int]] = field(default_factory=dict)
    units: Mapping[tuple[int, str], UnitCounts] = field(default_factory=dict)
    mixed: Mapping[int, int] = field(default_factory=dict)
    distinct: Mapping[str, int] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)
    measured: tuple[StepSummary, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    measured_distinct: Mapping[str, int] = field(default_factory=dict)
    unassigned: int = 0

"""What comes in and what is kept: exposures, outcomes, rollouts and their aggregates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from fairlead_experiments.domain.linear import Shared, StepMoments

FULL_WEIGHT = 10_000


class Kind(StrEnum):
    """What makes a request bad."""

    ERRORS = "errors"
    SLOW = "slow"


class ObjectiveKind(StrEnum):
    """What a unit's outcomes are made into."""

    MEAN = "mean"
    BINARY = "binary"
    RATIO = "ratio"


class Missing(StrEnum):
    """What a unit counts as whose window is over and who has no outcome."""

    IGNORE = "ignore"
    ZERO = "zero"


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
    """What became of a batch.

    Attributes:
        accepted: How many items were new, or changed something.
        duplicates: How many were known already.
        closed: The places in the batch, from 0, of those that belong to a closed rollout.
    """

    accepted: int
    duplicates: int
    closed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """One step of a rollout; the weight is of 10,000."""

    index: int
    weight: int


@dataclass(frozen=True, slots=True)
class Objective:
    """The outcome that decides.

    Attributes:
        outcome: Its name; the numerator's of a ratio.
        better: `higher` or `lower`.
        minimum_effect: The smallest effect worth finding, in the objective's unit.
        alpha: The probability of deciding for either side when both are equal.
        kind: `mean` and `binary`: a unit's value in a step is the mean of its outcomes there;
            `binary` leaves out every outcome that is neither 0 nor 1. `ratio`: the sum of all
            units' outcomes over the sum of their denominators.
        denominator: The outcome a ratio divides by; None for the other kinds.
        cap: A unit's value (a ratio's: its numerator) beyond this counts as this, on both sides of
            0; None caps nothing.
        window: Seconds from a unit's first request in a step until its outcome is due; None is
            no window: a unit enters with its first outcome.
        missing: What a unit counts as that has none by then.
        covariate: The outcome, sent by unit and model, of the time before a unit's first request
            in the rollout that explains part of its value; None is none.
    """

    outcome: str
    better: str
    minimum_effect: float
    alpha: float
    kind: ObjectiveKind = ObjectiveKind.MEAN
    denominator: str | None = None
    cap: float | None = None
    window: float | None = None
    missing: Missing = Missing.IGNORE
    covariate: str | None = None

    @property
    def is_ratio(self) -> bool:
        """Whether sums are divided by sums."""
        return self.kind is ObjectiveKind.RATIO


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
class ShadowGuardrail:
    """What lets a candidate that got copies pass on to answering.

    Attributes:
        max_disagreement: The largest share of requests that may disagree, above 0.
        tolerance: How far numbers may differ and agree, in the prediction's unit.
        minimum_pairs: How many pairs are needed at least.
    """

    max_disagreement: float
    tolerance: float
    minimum_pairs: int


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
    shadow: ShadowGuardrail | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of a rollout, as the controller took it.

    Attributes:
        id: Made of its content: the same decision sent again is the same one.
        at: When it was taken, in microseconds since 1970 (UTC).
        document: What was sent, with its id (contracts, "Decisions of a rollout").
    """

    id: str
    rollout: str
    at: int
    document: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Closing:
    """How far a rollout is that takes nothing more.

    Attributes:
        at: When it was closed, in microseconds since 1970 (UTC).
        analysis: The last analysis, as JSON; None until it is made. Before that no row is removed.
    """

    at: int
    analysis: str | None


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
        new: Of these, the ones no earlier step had met, without those that met both arms in it.
    """

    units: int = 0
    new: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of the objective of one arm's units: in a step, or over all of them.

    Mixed units are in none of these numbers.

    Attributes:
        measured: Units whose value enters the comparison.
        waiting: Units whose window is not over; without a window, units without an outcome.
        missing: Units whose window is over and who have no outcome.
        capped: Values that were beyond the cap and count as the cap.
        covered: Measured units that have a covariate.
    """

    measured: int = 0
    waiting: int = 0
    missing: int = 0
    capped: int = 0
    covered: int = 0


@dataclass(frozen=True, slots=True)
class Aggregates:
    """Everything the analysis of one rollout reads.

    A unit is *mixed* from the first step in which it met stable although it had met the candidate
    in that step or before. From that step on it is left out of the objective.

    Attributes:
        requests: Requests per step and arm.
        bad_units: Per kind of bad request, units whose first one fell into a step and arm.
        units: Unit counts per step and arm.
        mixed: Per step, units that were seen in it and mixed by then.
        mixed_distinct: Distinct mixed units.
        distinct: Distinct units per arm, over all steps.
        outcomes: Outcomes of the objective per arm.
        moments: What the measured units say about the objective, per step with any.
        shared: Units measured in several steps, for each pair of steps and arms that has some.
        standing: Per step and arm, how its units stand.
        standing_distinct: Per arm, distinct units over all steps. `measured` and `covered`:
            measured in a step that enters the effect (`linear.entered_steps`). `waiting` and
            `missing`: without an outcome in any step; they wait as long as they wait in one.
            `capped`: values, summed over steps.
        refused: Per arm, outcomes of a binary objective that are neither 0 nor 1.
        unassigned: Requests without a unit; they all go to stable, so they are no comparison.
    """

    requests: Mapping[tuple[int, str], Requests] = field(default_factory=dict)
    bad_units: Mapping[Kind, Mapping[tuple[int, str], int]] = field(default_factory=dict)
    units: Mapping[tuple[int, str], UnitCounts] = field(default_factory=dict)
    mixed: Mapping[int, int] = field(default_factory=dict)
    mixed_distinct: int = 0
    distinct: Mapping[str, int] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)
    moments: tuple[StepMoments, ...] = ()
    shared: tuple[Shared, ...] = ()
    standing: Mapping[tuple[int, str], Standing] = field(default_factory=dict)
    standing_distinct: Mapping[str, Standing] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    unassigned: int = 0

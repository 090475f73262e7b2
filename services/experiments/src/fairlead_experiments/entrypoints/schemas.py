# ruff: noqa: N815 - the names of the contract, which is JSON
"""What the published OpenAPI document says about bodies. Reading them is `app.validation`'s."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_ID = r"^[A-Za-z0-9._:-]{1,64}$"
_OUTCOME = r"^[A-Za-z0-9_.-]{1,64}$"
_TIME = "RFC 3339 with a zone, at most a day ahead of the server's clock."
_ROLLOUT_ID = "5f0c2f0e-8f4d-5b53-9a0e-2b4f6f9f7c11"
_INFERENCE_ID = "5b2e7d0c-2f63-4a53-8d4e-0a5f1f1f9b21"

State = Literal["insufficient", "holding", "better", "worse", "invalid"]
ArmName = Literal["stable", "candidate"]


def _example(**example: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class ExposureBody(BaseModel):
    """One unit met one arm. Counted once by its inference id, however often it comes."""

    model_config = _example(
        inferenceId=_INFERENCE_ID,
        rollout=_ROLLOUT_ID,
        step=1,
        arm="candidate",
        version="4",
        unit="N14228",
        at="2026-01-01T00:00:00.123Z",
        code=200,
        attempts=1,
        durationMs=12.3,
    )
    inferenceId: str = Field(pattern=_ID)
    rollout: str = Field(pattern=_ID)
    step: int = Field(ge=0, le=999)
    arm: ArmName = Field(description="The assigned arm, whoever answered.")
    version: str | None = Field(
        default=None, max_length=64, description="The version that answered; null if none did."
    )
    unit: str | None = Field(
        default=None, max_length=256, description="Null for a request without one."
    )
    at: str = Field(json_schema_extra={"format": "date-time"}, description=_TIME)
    code: int = Field(ge=0, le=599, description="HTTP status code; 0 for no answer.")
    attempts: int = Field(ge=0, le=1000)
    durationMs: float = Field(ge=0, le=1e9)


class ExposureBatch(BaseModel):
    """At most 10,000 exposures; each stands alone."""

    exposures: list[ExposureBody] = Field(min_length=1, max_length=10_000)


class OutcomeBody(BaseModel):
    """A number reported later, by `inferenceId`, or by `unit` and `model`.

    An outcome of a unit and model belongs to the unit's latest exposure, at or before `observedAt`,
    in any rollout of the model. Of several with one key, the one observed last counts.
    """

    model_config = _example(
        inferenceId=_INFERENCE_ID,
        outcome="squared_error",
        value=0.04,
        observedAt="2026-01-01T00:05:00Z",
    )
    inferenceId: str | None = Field(default=None, pattern=_ID)
    unit: str | None = Field(default=None, max_length=256)
    model: str | None = Field(default=None, max_length=63)
    outcome: str = Field(pattern=_OUTCOME)
    value: float | bool = Field(description="A number within 1e100; true is 1, false is 0.")
    observedAt: str = Field(json_schema_extra={"format": "date-time"}, description=_TIME)


class OutcomeBatch(BaseModel):
    """At most 10,000 outcomes; each stands alone."""

    outcomes: list[OutcomeBody] = Field(min_length=1, max_length=10_000)


class PredictionBody(BaseModel):
    """What one version predicted for one compared request.

    Of several rows one is reported, the same one by every version. Without `prediction` it could
    not be read, or there was none.
    """

    model_config = _example(
        inferenceId=_INFERENCE_ID,
        model="flight-delay",
        version="5",
        shadow=True,
        at="2026-01-01T00:00:00.123Z",
        code=200,
        durationMs=3.2,
        rows=1,
        prediction=0.42,
    )
    inferenceId: str = Field(pattern=_ID)
    model: str = Field(max_length=63)
    version: str = Field(max_length=64)
    shadow: bool = Field(description="Whether the request was a copy, whose answer nobody got.")
    at: str = Field(json_schema_extra={"format": "date-time"}, description=_TIME)
    code: int = Field(ge=0, le=599, description="HTTP status code; 499 if the caller had left.")
    durationMs: float = Field(ge=0, le=1e9)
    rows: int = Field(ge=0, le=10_000_000)
    prediction: str | float | bool | None = Field(
        default=None, description="A text has at most 100 characters, a number is within 1e100."
    )


class PredictionBatch(BaseModel):
    """At most 10,000 predictions; each stands alone."""

    predictions: list[PredictionBody] = Field(min_length=1, max_length=10_000)


class RejectionBody(BaseModel):
    """An item that was not taken; it is never repeated here."""

    index: int
    field: str
    reason: str


class ReceiptBody(BaseModel):
    """What became of a batch."""

    model_config = _example(
        accepted=1,
        duplicates=0,
        rejected=[{"index": 3, "field": "arm", "reason": "must be stable or candidate"}],
    )
    accepted: int
    duplicates: int
    rejected: list[RejectionBody]


class ErrorBody(BaseModel):
    """Why a request was refused; the payload is never repeated."""

    model_config = _example(
        error_code="INVALID_PARAMETER_VALUE", message="steps: is missing", field="steps"
    )
    error_code: str
    message: str
    field: str | None


class StepBody(BaseModel):
    """One step; its weight is of 10,000."""

    index: int = Field(ge=0, le=999)
    weight: int = Field(ge=0, le=10_000)


class ObjectiveBody(BaseModel):
    """The outcome that decides."""

    outcome: str = Field(pattern=_OUTCOME, description="The numerator of a ratio.")
    kind: Literal["mean", "binary", "ratio"] = Field(
        default="mean",
        description="`binary`: outcomes that are neither 0 nor 1 are left out and counted.",
    )
    denominator: str | None = Field(
        default=None, pattern=_OUTCOME, description="What a ratio divides by; for no other kind."
    )
    better: Literal["higher", "lower"]
    minimumEffect: float = Field(gt=0, description="The smallest effect worth finding, absolute.")
    alpha: float = Field(default=0.05, ge=1e-6, le=0.5)
    cap: float | None = Field(
        default=None, gt=0, description="A unit's value beyond it, or below its negative, is it."
    )
    window: float | None = Field(
        default=None,
        gt=0,
        description="Seconds from a unit's first request in a step until its outcome is due.",
    )
    missing: Literal["ignore", "zero"] = Field(
        default="ignore", description="What a unit counts as that has no outcome when it is due."
    )
    covariate: str | None = Field(
        default=None,
        pattern=_OUTCOME,
        description="An outcome of units and the model, of before their first request in the "
        "rollout, that explains part of the objective.",
    )


class ErrorGuardrailBody(BaseModel):
    """Errors may be `1 + margin` times stable's."""

    margin: float = Field(ge=0, le=1000)


class LatencyGuardrailBody(BaseModel):
    """Answers slower than `slowerThan` seconds may be `1 + margin` times stable's."""

    slowerThan: float = Field(ge=0)
    margin: float = Field(ge=0, le=1000)


class ShadowGuardrailBody(BaseModel):
    """What a candidate must keep as a shadow before it answers."""

    maxDisagreement: float = Field(
        gt=0, le=1, description="The largest share of requests on which it may disagree."
    )
    tolerance: float = Field(
        ge=0, le=1e100, description="How far numbers may differ and agree, in their own unit."
    )
    minimumPairs: int = Field(ge=1, le=10_000)


class GuardrailsBody(BaseModel):
    """What must not get worse."""

    errors: ErrorGuardrailBody | None = None
    latency: LatencyGuardrailBody | None = None
    shadow: ShadowGuardrailBody | None = None


_RECORD: dict[str, Any] = {
    "model": "flight-delay",
    "registeredModel": "Flight Delay (EU)",
    "stable": "3",
    "candidate": "4",
    "startedAt": "2026-01-01T00:00:00Z",
    "decidedAt": "2026-01-01T06:00:00Z",
    "state": "promoted",
    "reason": "version 4 is better",
    "steps": [{"index": 0, "weight": 100}, {"index": 1, "weight": 1000}],
    "objective": {
        "outcome": "squared_error",
        "kind": "mean",
        "denominator": None,
        "better": "lower",
        "minimumEffect": 0.01,
        "alpha": 0.05,
        "cap": None,
        "window": None,
        "missing": "ignore",
        "covariate": None,
    },
    "guardrails": {"errors": {"margin": 0.25}, "latency": {"slowerThan": 0.2, "margin": 0.25}},
}


class RolloutRecord(BaseModel):
    """The record of a rollout, as the controller keeps it here."""

    model_config = _example(**_RECORD)
    model: str = Field(max_length=63)
    registeredModel: str | None = Field(default=None, max_length=256)
    stable: str = Field(max_length=64)
    candidate: str = Field(max_length=64)
    startedAt: str = Field(json_schema_extra={"format": "date-time"})
    decidedAt: str | None = Field(default=None, json_schema_extra={"format": "date-time"})
    state: str = Field(max_length=64)
    reason: str = Field(default="", max_length=5000)
    steps: list[StepBody]
    objective: ObjectiveBody | None = None
    guardrails: GuardrailsBody | None = None


class RolloutDocument(RolloutRecord):
    """The record of a rollout with its id."""

    model_config = _example(id=_ROLLOUT_ID, **_RECORD)
    id: str = Field(pattern=_ID)


class RolloutList(BaseModel):
    """Rollouts, the latest start first."""

    rollouts: list[RolloutDocument]


_DECISION: dict[str, Any] = {
    "at": "2026-01-01T06:00:00.000Z",
    "check": "objective_open",
    "verdict": "promoting",
    "reason": "ObjectiveBetter",
    "message": "version 4 is better: squared_error -0.013",
    "summary": "Version 4 is to be promoted: version 4 is better: squared_error -0.013.",
    "from": {"state": "running", "step": 2, "weight": 5000},
    "to": {"state": "running", "step": 2, "weight": 5000},
    "rules": "0123456789ab",
    "thresholds": {"minimumRequests": 50, "objective": {"outcome": "squared_error"}},
    "inputs": {"production": "4", "analysis": {"verdict": "better"}},
}


class PlaceBody(BaseModel):
    """Where a rollout is; the weight is of 10,000."""

    state: str
    step: int | None
    weight: int


class DecisionBody(BaseModel):
    """One decision: what was decided, by which check, on which inputs and thresholds.

    `hold` is a look that moved nothing; looks are kept ever more seldom. All others moved the rollout.
    """

    model_config = _example(**_DECISION)
    at: str = Field(json_schema_extra={"format": "date-time"})
    check: str = Field(max_length=64, description="The check that spoke.")
    verdict: str = Field(
        max_length=64,
        description="What was decided: started, step, awaiting (a person is to approve), hold, paused, "
        "resumed, promoting, or how the rollout ended.",
    )
    reason: str = Field(max_length=64, description="One word for why.")
    message: str = Field(max_length=5000, description="One sentence for why.")
    summary: str = Field(max_length=5000, description="The decision in plain words.")
    from_: PlaceBody | None = Field(
        default=None, alias="from", description="Null where the rollout starts."
    )
    to: PlaceBody
    rules: str = Field(default="", description="Fingerprint of the rules.")
    thresholds: dict[str, Any] = Field(description="What the numbers were held against.")
    inputs: dict[str, Any] = Field(description="What was seen.")


class DecisionDocument(DecisionBody):
    """A decision with its id."""

    model_config = _example(id="0123456789abcdef", **_DECISION)
    id: str = Field(pattern=_ID)


class DecisionList(BaseModel):
    """A rollout's decisions, the earliest first."""

    rollout: str
    decisions: list[DecisionDocument]


class ArmDocument(BaseModel):
    """What one arm has seen. `outcomes` counts the objective's (without one: all)."""

    requests: int
    units: int
    errors: int
    slow: int
    fallbacks: int
    retried: int
    outcomes: int


class ArmsDocument(BaseModel):
    """Both arms."""

    stable: ArmDocument
    candidate: ArmDocument


class StepArmDocument(BaseModel):
    """One arm in one step.

    Mixed units are in `units` alone. `waiting`: units whose window is not over (without a window:
    without an outcome). `missing`: units whose window is over and who have none. `mean` and
    `variance` are of what a unit counts with: of a ratio, and less what a covariate explains.
    """

    requests: int
    units: int
    measured: int
    waiting: int
    missing: int
    mean: float | None
    variance: float | None


class StepDocument(BaseModel):
    """One step. `mixed`: its units that met stable after the candidate, in it or before it.

    The objective leaves them out from that step on.
    """

    index: int
    weight: int | None
    stable: StepArmDocument
    candidate: StepArmDocument
    effect: float | None
    standardError: float | None
    mixed: int


class ObjectiveDocument(BaseModel):
    """What the objective says, over all steps.

    `units...` are measured in a step that enters; `waiting...` and `missing...` have no outcome in
    any step, and still wait for one or not. `capped...` are values that count as the cap,
    `refused...` outcomes that are neither 0 nor 1, `covered...` measured units with a covariate.
    """

    outcome: str
    kind: Literal["mean", "binary", "ratio"]
    better: Literal["higher", "lower"]
    state: State
    effect: float | None
    ciLow: float | None
    ciHigh: float | None
    evalue: float | None
    threshold: float
    unitsStable: int
    unitsCandidate: int
    unitsNeeded: int
    waitingStable: int
    waitingCandidate: int
    missingStable: int
    missingCandidate: int
    cappedStable: int
    cappedCandidate: int
    refusedStable: int
    refusedCandidate: int
    coveredStable: int
    coveredCandidate: int
    theta: float | None = Field(description="The covariate's coefficient.")
    reason: str


class RatioDocument(BaseModel):
    """Whether the arms got the shares of units they were given.

    `mixed`: units that met stable after the candidate; `mixedShare`: of the candidate's units.
    """

    state: State
    evalue: float | None
    threshold: float
    expected: float | None
    observed: float | None
    mixed: int
    mixedShare: float | None
    reason: str


class GuardrailDocument(BaseModel):
    """What one guardrail says.

    Units decide, each from its first bad request on; `stableBad` and `candidateBad` are requests.
    `evalue` is against the margin, `equalEvalue` against being no worse than stable: both must
    reach their thresholds.
    """

    name: Literal["errors", "latency"]
    state: State
    evalue: float
    threshold: float
    equalEvalue: float
    equalThreshold: float
    stableBad: int
    candidateBad: int
    stableBadUnits: int
    candidateBadUnits: int
    stableRequests: int
    candidateRequests: int
    currentStep: int
    currentCandidateRequests: int
    requestsNeeded: int
    reason: str


class UnpairedDocument(BaseModel):
    """Reports of the last five minutes, older than 30 seconds, whose other half has not come."""

    stable: int
    shadow: int


class PairErrorsDocument(BaseModel):
    """Pairs in which a side failed (a code of 400 or above, but 499 and 503)."""

    stable: int
    shadow: int = Field(description="Only the shadow: these count as disagreement.")
    both: int


class UnlikeDocument(BaseModel):
    """Pairs that disagree as the answers are of another form."""

    rows: int
    types: int


class ClassesDocument(BaseModel):
    """The confusion matrix: rows are the answer's class, columns the shadow's."""

    names: list[str]
    counts: list[list[int]]
    folded: int = Field(description="Classes that the last name, `other`, stands for.")


class NumbersDocument(BaseModel):
    """Differences, shadow less stable, in the prediction's unit."""

    pairs: int
    mean: float
    quantiles: dict[str, float] = Field(description="By percent: 1, 5, 25, 50, 75, 95, 99.")
    beyond: float = Field(description="The share that differs by more than the tolerance.")


class DurationDocument(BaseModel):
    """Milliseconds of one side, over the pairs that both answered."""

    median: float
    p95: float
    p99: float


class DurationsDocument(BaseModel):
    """Both sides' times."""

    stable: DurationDocument | None
    shadow: DurationDocument | None


class ComparisonBody(BaseModel):
    """What pairs of predictions for the same requests say."""

    pairs: int = Field(description="All pairs there were.")
    sampled: int = Field(description="A uniform sample of them: what all else is about.")
    firstAt: str | None = Field(json_schema_extra={"format": "date-time"})
    lastAt: str | None = Field(json_schema_extra={"format": "date-time"})
    unpaired: UnpairedDocument
    tolerance: float
    compared: int = Field(description="Pairs that agree or disagree.")
    disagreed: int
    disagreement: float | None
    disagreementLow: float | None = Field(description="Holds at all moments at once with 95 %.")
    disagreementHigh: float | None
    errors: PairErrorsDocument
    unlike: UnlikeDocument
    noRoom: int = Field(description="Pairs left out: a side was too busy, or the caller left.")
    unread: int = Field(description="Pairs left out: a prediction could not be read.")
    classes: ClassesDocument | None
    numbers: NumbersDocument | None
    durationMs: DurationsDocument


class ComparisonDocument(ComparisonBody):
    """A shadow beside the version that answers."""

    model: str
    stable: str
    shadow: str


class ComparisonList(BaseModel):
    """A model's comparisons, the latest first, five at most."""

    comparisons: list[ComparisonDocument]


class ShadowDocument(ComparisonBody):
    """Whether what a candidate predicted as a shadow lets it answer."""

    state: State
    maxDisagreement: float
    minimumPairs: int
    reason: str


class AnalysisDocument(BaseModel):
    """What the numbers of a rollout say."""

    rollout: str
    model: str
    at: str = Field(json_schema_extra={"format": "date-time"})
    verdict: State
    reason: str
    arms: ArmsDocument
    steps: list[StepDocument]
    objective: ObjectiveDocument | None
    srm: RatioDocument
    guardrails: list[GuardrailDocument]
    shadow: ShadowDocument | None
    unassigned: int = Field(description="Requests without a unit: no part of any comparison.")
    lastDecisionAt: str | None = Field(
        json_schema_extra={"format": "date-time"}, description="When the newest decision was taken."
    )
    closedAt: str | None = Field(
        json_schema_extra={"format": "date-time"},
        description="When the rollout was closed: this is its last analysis.",
    )

"""Reasons: one word for why something is as it is, the same in conditions, events and tags."""

from enum import StrEnum


class Reason(StrEnum):
    """Why; each member's comment is its documentation."""

    SERVING = "Serving"  # The stable version serves and nothing is on trial.
    WAITING_FOR_VERSION = "WaitingForVersion"  # The registry's pointer names no version yet.
    PRODUCTION_MISSING = "ProductionMissing"  # The pointer is gone; what serves goes on serving.
    STARTING_FIRST_VERSION = "StartingFirstVersion"  # The first version's processes are starting.
    FIRST_VERSION_FAILED = (
        "FirstVersionFailed"  # The first version does not start; a person must act.
    )
    INVALID_SPEC = "InvalidSpec"  # The ServedModel is wrong; a person must act.
    ROUTE_CONFLICT = "RouteConflict"  # An older ServedModel of another namespace has the same name.
    REGISTRY_UNREACHABLE = "RegistryUnreachable"  # MLflow does not answer; traffic stays as it is.
    STATUS_REBUILT = "StatusRebuilt"  # A lost status was rebuilt from what exists.
    COMPARING_SHADOW = "ComparingShadow"  # The candidate gets copies until it is known to agree.
    STARTING_CANDIDATE = "StartingCandidate"  # The candidate's processes are starting.
    CANDIDATE_AVAILABLE = "CandidateAvailable"  # The candidate is ready and healthy in the gateway.
    CANDIDATE_UNAVAILABLE = "CandidateUnavailable"  # No process of the candidate is ready.
    NO_CANDIDATE = "NoCandidate"  # No version is on trial.
    APPLYING_TRAFFIC = "ApplyingTraffic"  # The gateway has not applied the newest plan yet.
    TRAFFIC_APPLIED = "TrafficApplied"  # The gateway routes by the newest plan.
    STEP_HOLDING = "StepHolding"  # The step's time is not over.
    NOT_ENOUGH_DATA = "NotEnoughData"  # Too few requests or units: the weight holds.
    UNDECIDED = "Undecided"  # The objective has enough data to look, and has not decided.
    AWAITING_APPROVAL = "AwaitingApproval"  # A person is asked to approve what comes next.
    SPLIT_HOLDING = "SplitHolding"  # A fixed split: the weight holds until a person ends it.
    ANALYSIS_UNAVAILABLE = "AnalysisUnavailable"  # Experiments does not answer: the weight holds.
    PAUSED = "Paused"  # A person holds the rollout.
    PROMOTING = "Promoting"  # The candidate is scaled to become stable.
    OBJECTIVE_BETTER = "ObjectiveBetter"  # The objective found the candidate better.
    SHADOW_WORSE = "ShadowWorse"  # As a shadow, the candidate disagreed with stable too often.
    OBJECTIVE_WORSE = "ObjectiveWorse"  # The objective found the candidate worse.
    GUARDRAIL_WORSE = "GuardrailWorse"  # A guardrail found the candidate worse.
    GUARDRAILS_HELD = "GuardrailsHeld"  # Every step passed with all guardrails holding.
    SAMPLE_RATIO_MISMATCH = "SampleRatioMismatch"  # The arms' sizes do not fit the weights.
    CANDIDATE_FAILED = "CandidateFailed"  # The candidate ended by itself and cannot serve.
    PROGRESS_DEADLINE_EXCEEDED = (
        "ProgressDeadlineExceeded"  # The candidate did not get ready in time.
    )
    INCONCLUSIVE = "Inconclusive"  # `maxDuration` passed without a decision.
    SPLIT_OVER = "SplitOver"  # A fixed split lasted `maxDuration`, and no person promoted.
    OTHER_PROMOTED = "OtherPromoted"  # Another of several candidates is promoted, or was.
    CANDIDATE_WITHDRAWN = "CandidateWithdrawn"  # Its alias names it no more.
    SUPERSEDED = "Superseded"  # A newer version arrived.
    QUEUED = "Queued"  # A newer version waits until the one on trial has been decided.
    REFUSED = "Refused"  # A newer version arrived during a trial, and stays out.
    RULES_CHANGED = "RulesChanged"  # `spec.rollout` was changed; the trial starts over.
    PRODUCTION_MOVED_BACK = "ProductionMovedBack"  # The registry points to stable again.
    SERVED_MODEL_DELETED = "ServedModelDeleted"  # The ServedModel was deleted during the rollout.
    ABORTED_BY_PERSON = "AbortedByPerson"  # A person ended the rollout.
    PROMOTED_BY_PERSON = "PromotedByPerson"  # A person promoted the candidate.
    ROLLED_BACK = "RolledBack"  # Production went back to a version that was stable before.
    APPROVED_BY_PERSON = "ApprovedByPerson"  # A person approved the candidate's promotion.

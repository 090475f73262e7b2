"""Rollout records and decisions as JSON: the form they are kept in, and answered in."""

import json

from fairlead_experiments.app.validation import read_rollout
from fairlead_experiments.domain.analysis import timestamp
from fairlead_experiments.domain.records import Decision, Objective, Rollout


def dump_rollout(rollout: Rollout) -> str:
    """Write a record."""
    return json.dumps(build_rollout(rollout), sort_keys=True)


def load_rollout(document: str) -> Rollout:
    """Read a record that was written here."""
    fields = json.loads(document)
    return read_rollout(fields["id"], fields)


def dump_decision(decision: Decision) -> str:
    """Write a decision."""
    return json.dumps(decision.document)


def load_decision(rollout: str, decision_id: str, at: int, document: str) -> Decision:
    """Read a decision that was written here."""
    return Decision(id=decision_id, rollout=rollout, at=at, document=json.loads(document))


def build_rollout(rollout: Rollout) -> dict[str, object]:
    """Answer the record as the document of contracts.md, with its id."""
    latency, shadow = rollout.latency, rollout.shadow
    return {
        "id": rollout.id,
        "model": rollout.model,
        "registeredModel": rollout.registered_model,
        "stable": rollout.stable,
        "candidate": rollout.candidate,
        "startedAt": timestamp(rollout.started_at),
        "decidedAt": timestamp(rollout.decided_at) if rollout.decided_at else None,
        "state": rollout.state,
        "reason": rollout.reason,
        "steps": [{"index": step.index, "weight": step.weight} for step in rollout.steps],
        "objective": rollout.objective and _build_objective(rollout.objective),
        "guardrails": {
            "errors": rollout.errors and {"margin": rollout.errors.margin},
            "latency": latency and {"slowerThan": latency.slower_than, "margin": latency.margin},
            "shadow": shadow
            and {
                "maxDisagreement": shadow.max_disagreement,
                "tolerance": shadow.tolerance,
                "minimumPairs": shadow.minimum_pairs,
            },
        },
    }


def _build_objective(objective: Objective) -> dict[str, object]:
    return {
        "outcome": objective.outcome,
        "kind": str(objective.kind),
        "denominator": objective.denominator,
        "better": objective.better,
        "minimumEffect": objective.minimum_effect,
        "alpha": objective.alpha,
        "cap": objective.cap,
        "window": objective.window,
        "missing": str(objective.missing),
        "covariate": objective.covariate,
    }

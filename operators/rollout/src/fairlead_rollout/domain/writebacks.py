"""What other systems are told about a rollout: documents for MLflow and for experiments."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fairlead_rollout.domain.snapshot import Analysis
from fairlead_rollout.domain.spec import Objective, RolloutSpec, ServedModelSpec
from fairlead_rollout.domain.status import Numbers, Rollout, Writeback, format_time, to_document

FILES = frozenset({"report", "page"})  # kinds that become files of the training run
MAX_REASON = 1_000  # characters of a reason in the experiments' record
APPROVE_TAG = "rollout.approve"  # set by people, overwritten when it has counted
MAX_TAG = 5_000  # characters MLflow keeps of a tag on every database


def record_of(name: str, spec: ServedModelSpec, rollout: Rollout) -> Writeback:
    """Build the experiments service's record of a rollout."""
    content = {
        "model": name,
        "registeredModel": spec.model,
        "stable": rollout.baseline,
        "candidate": rollout.candidate,
        "startedAt": format_time(rollout.started_at),
        "decidedAt": format_time(rollout.decided_at) if rollout.decided_at else None,
        "state": rollout.state.value,
        "reason": plain(rollout.message),
        "steps": [{"index": i, "weight": s.weight} for i, s in enumerate(spec.rollout.steps)],
        "objective": objective_of(spec.rollout.objective),
        "guardrails": guardrails_of(spec.rollout),
    }
    return Writeback(kind="record", rollout=rollout.id, version=rollout.candidate, content=content)


def objective_of(objective: Objective | None) -> Mapping[str, Any] | None:
    """Build the objective's part of a record."""
    if objective is None:
        return None
    window = objective.window.total_seconds() if objective.window else None
    return {**to_document(replace(objective, window=None)), "window": window}


def guardrails_of(rollout: RolloutSpec) -> Mapping[str, Any]:
    """Build the guardrails' part of a record."""
    guardrails = rollout.guardrails
    errors = {"margin": guardrails.errors_margin} if guardrails.errors_margin is not None else None
    latency = None
    if guardrails.slower_than is not None:
        slower_than = guardrails.slower_than.total_seconds()
        latency = {"slowerThan": slower_than, "margin": guardrails.latency_margin}
    shadow = None
    if guardrails.shadow is not None:
        shadow = {
            "maxDisagreement": guardrails.shadow.max_disagreement,
            "tolerance": guardrails.shadow.tolerance,
            "minimumPairs": guardrails.shadow.minimum_pairs,
        }
    return {"errors": errors, "latency": latency, "shadow": shadow}


def tags_of(spec: ServedModelSpec, rollout: Rollout) -> Writeback:
    """Build the `rollout.*` tags of the candidate's model version."""
    numbers = rollout.numbers
    objective = spec.rollout.objective
    values = {
        "id": rollout.id,
        "status": rollout.state.value,
        "baseline_version": rollout.baseline,
        "started_at": format_time(rollout.started_at),
        "decided_at": format_time(rollout.decided_at) if rollout.decided_at else None,
        "reason": f"{rollout.reason}: {rollout.message}",
        "objective": objective.outcome if objective else None,
        "effect": numbers.effect,
        "ci_low": numbers.ci_low,
        "ci_high": numbers.ci_high,
        "evalue": numbers.evalue,
        "units_stable": numbers.units_stable,
        "units_candidate": numbers.units_candidate,
    }
    tags = {f"rollout.{k}": _tag(v) for k, v in values.items() if v is not None}
    return Writeback(kind="tags", rollout=rollout.id, version=rollout.candidate, content=tags)


def plain(text: str, longest: int = MAX_REASON) -> str:
    """Cut a text and take control characters out: it may be the words of a foreign program.

    PostgreSQL takes no NUL, and no database half a surrogate pair.
    """
    return "".join(c if c.isprintable() else " " for c in text)[:longest]


def _tag(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return plain(text, MAX_TAG)


def description_of(name: str, rollout: Rollout) -> Writeback:
    """Build the block in the description of the candidate's model version."""
    assert rollout.decided_at is not None
    when = f"{rollout.decided_at:%Y-%m-%d %H:%M} UTC"
    content = {
        "summary": f"Rollout {rollout.state.value} on {when}: version {rollout.candidate} "
        f"against version {rollout.baseline} of {name}.",
        "why": plain(f"{rollout.reason}: {rollout.message}"),
    }
    return Writeback(
        kind="description", rollout=rollout.id, version=rollout.candidate, content=content
    )


def report_of(name: str, rollout: Rollout, analysis: Analysis | None) -> Writeback:
    """Build the rollout's part of `rollout.json`; its decisions are added when it is told."""
    content = {
        "servedModel": name,
        "rollout": to_document(rollout),
        "analysis": to_document(analysis) if analysis else None,
    }
    return Writeback(kind="report", rollout=rollout.id, version=rollout.candidate, content=content)


def page_of(rollout: Rollout) -> Writeback:
    """Build the request to log `rollout.html`; the experiments service draws it when it is told."""
    return Writeback(kind="page", rollout=rollout.id, version=rollout.candidate, content={})


def with_decisions(item: Writeback, decisions: Sequence[Mapping[str, Any]]) -> Writeback:
    """Return a report as the file that it becomes.

    Args:
        item: What `report_of` built.
        decisions: The rollout's decisions, the earliest first, as the experiments service has them.
    """
    document = {**item.content, "decisions": list(decisions)}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    return replace(item, content={"rollout.json": text})


def with_page(item: Writeback, page: str) -> Writeback:
    """Return the request of `page_of` as the file that it becomes."""
    return replace(item, content={"rollout.html": page})


def turn_of(version: str, rollout: Rollout, state: str, reason: str) -> Writeback:
    """Build the tags of a version that arrived during a rollout of another one."""
    content = {"rollout.status": state, "rollout.reason": _tag(reason)}
    return Writeback(kind="tags", rollout=rollout.id, version=version, content=content)


def production_moved(rollout: Rollout, *, left: str, to: str) -> Writeback:
    """Build the request to move the production pointer, if it still names what is left."""
    return Writeback(kind="production", rollout=rollout.id, version=to, content={"candidate": left})


def approval_counted(rollout: Rollout) -> Writeback:
    """Build the tag that takes the place of an approval that has counted.

    It is not deleted: MLflow asks for more rights for that than for tagging.
    """
    words = f"counted for step {rollout.step} of rollout {rollout.id}"
    return Writeback(
        kind="approval",
        rollout=rollout.id,
        version=rollout.candidate,
        content={APPROVE_TAG: words},
    )


def numbers_of(analysis: Analysis | None) -> Numbers:
    """Take out of an analysis what is kept of a decided rollout."""
    if analysis is None:
        return Numbers()
    objective = analysis.objective or {}
    arms = analysis.arms

    def units(arm: str, key: str) -> int | None:
        return objective.get(key) or arms.get(arm, {}).get("units")

    return Numbers(
        effect=objective.get("effect"),
        ci_low=objective.get("ciLow"),
        ci_high=objective.get("ciHigh"),
        evalue=objective.get("evalue"),
        units_stable=units("stable", "unitsStable"),
        units_candidate=units("candidate", "unitsCandidate"),
    )

"""Decisions as documents: what was decided, on which inputs, against which thresholds.

Each change of a rollout is kept, and looks that changed nothing ever more seldom. `fairlead explain`,
the experiments API and `rollout.json` show these documents and word nothing anew.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from fairlead_rollout.domain.actions import Action, KeepLook
from fairlead_rollout.domain.durations import format_duration
from fairlead_rollout.domain.ruling import Context, Ruling
from fairlead_rollout.domain.snapshot import Analysis
from fairlead_rollout.domain.spec import RolloutSpec
from fairlead_rollout.domain.status import (
    Rollout,
    RolloutState,
    Status,
    Writeback,
    format_time,
    to_document,
)
from fairlead_rollout.domain.summary import weight_of
from fairlead_rollout.domain.words import percent, share_of
from fairlead_rollout.domain.writebacks import guardrails_of, objective_of, plain

HOLD = "hold"
PROMOTING = "promoting"
AWAITING = "awaiting"
# A look is kept when a fortieth of the rollout's age has passed since the last decision kept, and two
# seconds: every two seconds at first, every 36 minutes after a day. In 14 days that is 430 looks.
LOOKS_PER_AGE = 40
BETWEEN_LOOKS = timedelta(seconds=2)

Document = Mapping[str, Any]


def with_decision(
    status: Status, context: Context, ruling: Ruling
) -> tuple[Status, tuple[Action, ...]]:
    """Note what a pass has decided.

    Args:
        status: The status that the pass leads to.
        context: What it saw.
        ruling: The word of the check that spoke.

    Returns:
        The status, in which a change of the rollout waits to be told; and what is to be done for a
        look that changed nothing: it is kept if that can be done just now.
    """
    rollout, before = status.rollout, context.status.rollout
    if rollout is None:
        return status, ()
    verdict = _verdict(before, rollout)
    if verdict is None or (verdict == HOLD and not _is_look_due(rollout, context)):
        return status, ()
    content = _build(verdict, status, context, ruling)
    item = Writeback(
        kind="decision", rollout=rollout.id, version=rollout.candidate, content=content
    )
    if verdict == HOLD:
        return status, (KeepLook(item=item),)
    return replace(status, writeback=(item, *status.writeback)), ()


def _verdict(before: Rollout | None, after: Rollout) -> str | None:
    """Name what was decided; None where there was nothing to decide."""
    if before is None or before.id != after.id:
        return "started"
    if not after.is_active:
        return after.state.value if before.is_active else None
    if after.promoting and not before.promoting:
        return PROMOTING
    if after.awaiting and not before.awaiting:
        return AWAITING
    if after.paused != before.paused:
        return "paused" if after.paused else "resumed"
    return HOLD if (after.state, after.step) == (before.state, before.step) else "step"


def _is_look_due(rollout: Rollout, context: Context) -> bool:
    analysis = context.snapshot.analysis
    if analysis is None:
        return False
    if analysis.last_decision_at is None:
        return True
    age = context.now - rollout.started_at
    return context.now - analysis.last_decision_at >= between_looks(age)


def between_looks(age: timedelta) -> timedelta:
    """Return how long after a decision a look is kept again, for the age of the rollout."""
    return max(BETWEEN_LOOKS, age / LOOKS_PER_AGE)


def _build(verdict: str, status: Status, context: Context, ruling: Ruling) -> Document:
    rollout = status.rollout
    assert rollout is not None
    is_start = verdict == "started"
    content = {
        "at": format_time(context.now),
        "check": ruling.check,
        "verdict": verdict,
        "reason": str(ruling.reason if verdict == HOLD else rollout.reason),
        "message": plain(ruling.message if verdict == HOLD else rollout.message),
        "summary": plain(word_decision(verdict, rollout, context, ruling)),
        "from": None if is_start else _place(context.status),
        "to": _place(status),
        "rules": rollout.rules,
        "thresholds": thresholds_of(context.spec.rollout),
        "inputs": _inputs(rollout, context),
    }
    return {"id": _digest(content), **content}


def _digest(content: Document) -> str:
    """Name a decision by its content: told twice, it is the same one."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _place(status: Status) -> Document:
    rollout = status.rollout
    assert rollout is not None
    weight = weight_of(status, rollout)
    return {"state": rollout.state.value, "step": rollout.step, "weight": weight}


def thresholds_of(rules: RolloutSpec) -> Document:
    """Build what the numbers were held against; durations are in seconds, weights of 10,000."""
    steps = [
        {
            "index": i,
            "weight": step.weight,
            "shadow": step.shadow,
            "for": step.duration.total_seconds() if step.duration else None,
            "until": step.until.value if step.until else None,
        }
        for i, step in enumerate(rules.steps)
    ]
    objective = rules.objective
    return {
        "steps": steps,
        "minimumRequests": rules.minimum_requests,
        "maxDuration": rules.max_duration.total_seconds(),
        "progressDeadline": rules.progress_deadline.total_seconds(),
        "onInconclusive": rules.on_inconclusive.value,
        "objective": objective
        and {**(objective_of(objective) or {}), "evalue": 1 / objective.alpha},
        "guardrails": guardrails_of(rules),
    }


def _inputs(rollout: Rollout, context: Context) -> Document:
    snapshot, request = context.snapshot, context.request
    workload, applied = snapshot.workload(rollout.candidate), snapshot.applied
    candidate = workload and {
        "wanted": workload.wanted,
        "ready": workload.ready,
        "healthy": applied.healthy.get(rollout.candidate, 0) if applied else None,
        "restarts": workload.restarts,
        "failure": plain(workload.failure.reason) if workload.failure else None,
    }
    return {
        "production": context.status.production,
        "request": request and {"verb": request.verb.value, "by": plain(request.by)},
        "candidate": candidate,
        "trafficApplied": applied.has(context.status.traffic) if applied else None,
        "analysis": _analysis(snapshot.analysis, context.status.rollout),
    }


def _analysis(analysis: Analysis | None, before: Rollout | None) -> Document | None:
    if analysis is None:
        return None
    step = before.step if before else None
    seen = analysis.steps.get(step) if step is not None else None
    return {
        "at": format_time(analysis.at),
        "verdict": analysis.verdict.value,
        "reason": analysis.reason,
        "stepRequests": to_document(seen),
        "arms": to_document(analysis.arms),
        "objective": to_document(analysis.objective),
        "guardrails": to_document(analysis.guardrails),
        "srm": to_document(analysis.srm),
    }


# ------------------------------------------------------------------ words


def word_decision(verdict: str, rollout: Rollout, context: Context, ruling: Ruling) -> str:
    """Word a decision in one sentence; every place that shows it shows this one."""
    who = f"Version {rollout.candidate}"
    weight = percent(weight_of(context.status, rollout)) + (" of its lane" if rollout.lane else "")
    if verdict == "started":
        return f"{who} is put on trial against version {rollout.baseline}."
    if verdict == "step":
        return f"{who} gets {_step_words(rollout, context)}."
    if verdict == HOLD:
        return f"{who} stays at {weight}: {ruling.message} ({ruling.reason})."
    does = {
        AWAITING: f"waits for a person at {weight}",
        PROMOTING: "is to take all traffic",
        RolloutState.PROMOTED: "has all traffic",
    }
    ends = f"is {verdict} at {weight}" if rollout.is_active else f"is out, {verdict} at {weight}"
    return f"{who} {does.get(verdict, ends)}: {rollout.message} ({rollout.reason})."


def _step_words(rollout: Rollout, context: Context) -> str:
    rules, step, before = context.spec.rollout, rollout.step or 0, context.rollout.step
    share = share_of(rules.steps[step], rollout)
    why = rollout.message.removeprefix(f"version {rollout.candidate} gets {share}")
    gets = f"{share}{why} (step {step + 1} of {len(rules.steps)})"
    if before is None:
        return f"{gets}: its processes are ready and healthy in the gateway"
    held, analysis = rules.steps[before].duration, context.snapshot.analysis
    seen = analysis.steps.get(before) if analysis else None
    parts = [
        f"step {before + 1} was held for {format_duration(held)}" if held else "",
        f"{seen.candidate:,} of {rules.minimum_requests:,} requests needed were seen"
        if seen
        else "",
        f"nothing is against it ({analysis.reason})" if analysis else "",
    ]
    return f"{gets}: {', '.join(part for part in parts if part)}"


# ------------------------------------------------------------------ what was decided


def changes(decisions: Sequence[Document]) -> tuple[Document, ...]:
    """Return the decisions that changed the rollout, the earliest first."""
    return tuple(d for d in decisions if d["verdict"] != HOLD)


def deciding(decisions: Sequence[Document]) -> Document | None:
    """Return the decision that a rollout's end was taken by; None while it runs.

    For a promotion that is not the last one: then its processes were only being scaled.
    """
    ends = {s.value for s in RolloutState if s not in {RolloutState.PENDING, RolloutState.RUNNING}}
    moves = changes(decisions)
    if not moves or moves[-1]["verdict"] not in ends:
        return None
    if moves[-1]["verdict"] != RolloutState.PROMOTED:
        return moves[-1]
    return next((d for d in reversed(moves) if d["verdict"] == PROMOTING), moves[-1])

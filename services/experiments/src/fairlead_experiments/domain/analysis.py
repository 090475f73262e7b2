"""What the numbers of a rollout say: aggregates in, the analysis document out.

Three judges look, each with states of its own; the verdict is the first that applies of
`invalid` (sample-ratio mismatch), `worse` (a guardrail or the objective), `better` (the
objective), `insufficient` (a judge has too little to look at), `holding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fairlead_experiments.domain import guardrails, sequential, srm
from fairlead_experiments.domain.effect import BURN_IN, Arm, Estimate, StepSummary, combine
from fairlead_experiments.domain.records import (
    FULL_WEIGHT,
    Aggregates,
    Objective,
    Requests,
    Rollout,
    UnitCounts,
)

Document = dict[str, object]
Totals = dict[tuple[int, Arm], Requests]


class State(StrEnum):
    """What a judge says."""

    INSUFFICIENT = "insufficient"
    HOLDING = "holding"
    BETTER = "better"
    WORSE = "worse"
    INVALID = "invalid"


_PRECEDENCE = (State.INVALID, State.WORSE, State.BETTER, State.INSUFFICIENT)


@dataclass(frozen=True, slots=True)
class Finding:
    """One judge's state, its sentence, and its part of the document."""

    state: State
    reason: str
    numbers: Document

    def document(self) -> Document:
        """Answer the part with its state and reason."""
        return {**self.numbers, "state": str(self.state), "reason": self.reason}


def analyse(rollout: Rollout, data: Aggregates, *, at: datetime) -> Document:
    """Answer the analysis document of a rollout (contracts, "Rollouts at the experiments service").

    Args:
        rollout: Its record.
        data: What was counted for it.
        at: When the data was read.
    """
    mismatch = judge_ratio(rollout, data)
    guards = judge_guardrails(rollout, data)
    objective = judge_objective(rollout, rollout.objective, data) if rollout.objective else None
    findings = [mismatch, *guards, *([objective] if objective else [])]
    verdict, reason = _verdict(findings, objective)
    totals = _totals(data)
    return {
        "rollout": rollout.id,
        "model": rollout.model,
        "at": timestamp(at),
        "verdict": str(verdict),
        "reason": reason,
        "arms": {str(arm): _arm(arm, data, totals) for arm in Arm},
        "steps": _steps(rollout, data, totals),
        "objective": objective.document() if objective else None,
        "srm": mismatch.document(),
        "guardrails": [guard.document() for guard in guards],
        "unassigned": data.unassigned,
    }


def timestamp(moment: datetime) -> str:
    """Write a time (in UTC) as RFC 3339."""
    return moment.replace(tzinfo=None).isoformat() + "Z"


def _verdict(findings: Sequence[Finding], objective: Finding | None) -> tuple[State, str]:
    for state in _PRECEDENCE:
        for finding in findings:
            if finding.state is state:
                return state, finding.reason
    last = objective or findings[-1]
    return State.HOLDING, last.reason


# --- sample ratio ---------------------------------------------------------------------------


def judge_ratio(rollout: Rollout, data: Aggregates) -> Finding:
    """Judge whether the arms got the shares of units they were given."""
    parts = [
        srm.NewUnits(
            step.weight / FULL_WEIGHT,
            _units(data, step.index, Arm.STABLE).new,
            _units(data, step.index, Arm.CANDIDATE).new,
        )
        for step in rollout.steps
    ]
    stable, candidate = sum(p.stable for p in parts), sum(p.candidate for p in parts)
    total = stable + candidate
    log_e = srm.total_log_evalue(parts)
    expected = sum(p.share * (p.stable + p.candidate) for p in parts) / total if total else None
    observed = candidate / total if total else None
    numbers: Document = {
        "evalue": sequential.finite(log_e) if total else None,
        "threshold": srm.THRESHOLD,
        "expected": expected,
        "observed": observed,
        "mixed": sum(data.mixed.values()),
    }
    if expected is None or observed is None:
        return Finding(State.INSUFFICIENT, "no unit has been seen yet", numbers)
    shares = (
        f"the candidate met {candidate:,} of {total:,} units ({observed:.2%}) "
        f"where {expected:.2%} were expected; e-value {_number(sequential.finite(log_e))}"
    )
    if sequential.finite(log_e) >= srm.THRESHOLD:
        reason = f"the arms are not comparable: {shares}, {srm.THRESHOLD:,.0f} is an alarm"
        return Finding(State.INVALID, reason, numbers)
    return Finding(State.HOLDING, f"{shares} of {srm.THRESHOLD:,.0f}", numbers)


def _units(data: Aggregates, step: int, arm: Arm) -> UnitCounts:
    return data.units.get((step, str(arm)), UnitCounts())


# --- guardrails -----------------------------------------------------------------------------


def judge_guardrails(rollout: Rollout, data: Aggregates) -> list[Finding]:
    """Judge what must not get worse: errors, then latency, where the rollout guards them."""
    found = []
    if rollout.errors:
        parts = _increments(data, "errors")
        found.append(_judge_guardrail("errors", rollout, rollout.errors.margin, parts))
    if rollout.latency:
        parts = _increments(data, "latency")
        what = f"slower than {rollout.latency.slower_than:g} s"
        found.append(_judge_guardrail("latency", rollout, rollout.latency.margin, parts, what))
    return found


def _increments(data: Aggregates, name: str) -> list[tuple[int, guardrails.Increment]]:
    def pair(arm: Requests) -> tuple[int, int]:
        return (arm.requests, arm.errors) if name == "errors" else (arm.answered, arm.slow)

    parts = []
    for bucket in data.buckets:
        (stable, stable_bad), (candidate, bad) = pair(bucket.stable), pair(bucket.candidate)
        parts.append((bucket.step, guardrails.Increment(stable, candidate, stable_bad, bad)))
    return parts


def _judge_guardrail(
    name: str,
    rollout: Rollout,
    margin: float,
    parts: Sequence[tuple[int, guardrails.Increment]],
    what: str = "failed",
) -> Finding:
    log_e = guardrails.log_evalue([part for _, part in parts], margin)
    total = _total([part for _, part in parts])
    step = max((index for index, _ in parts), default=0)
    current = _total([part for index, part in parts if index == step])
    evalue = sequential.finite(log_e)
    numbers: Document = {
        "name": name,
        "evalue": evalue,
        "threshold": guardrails.THRESHOLD,
        "stableBad": total.stable_bad,
        "candidateBad": total.candidate_bad,
        "stableRequests": total.stable_requests,
        "candidateRequests": total.candidate_requests,
        "currentStep": step,
        "currentCandidateRequests": current.candidate_requests,
        "requestsNeeded": guardrails.ENOUGH_REQUESTS,
    }
    compared = (
        f"{_share(total.candidate_bad, total.candidate_requests)} of version "
        f"{rollout.candidate}'s requests {what}, "
        f"{_share(total.stable_bad, total.stable_requests)} of version {rollout.stable}'s; "
        f"e-value {_number(evalue)} of {guardrails.THRESHOLD:g}"
    )
    if name == "errors" and guardrails.is_above_ceiling(current):
        reason = (
            f"version {rollout.candidate} is broken: {current.candidate_bad:,} of "
            f"{current.candidate_requests:,} requests in step {step} failed"
        )
        return Finding(State.WORSE, reason, numbers)
    if evalue >= guardrails.THRESHOLD:
        return Finding(State.WORSE, f"version {rollout.candidate} is worse: {compared}", numbers)
    if current.candidate_requests < guardrails.ENOUGH_REQUESTS:
        reason = (
            f"version {rollout.candidate} has had {current.candidate_requests:,} of the "
            f"{guardrails.ENOUGH_REQUESTS} requests needed in step {step} to judge {name}"
        )
        return Finding(State.INSUFFICIENT, reason, numbers)
    return Finding(State.HOLDING, f"{name} within the margin: {compared}", numbers)


def _total(parts: Sequence[guardrails.Increment]) -> guardrails.Increment:
    return guardrails.Increment(
        sum(p.stable_requests for p in parts),
        sum(p.candidate_requests for p in parts),
        sum(p.stable_bad for p in parts),
        sum(p.candidate_bad for p in parts),
    )


# --- objective ------------------------------------------------------------------------------


def judge_objective(rollout: Rollout, objective: Objective, data: Aggregates) -> Finding:
    """Judge the outcome that decides."""
    estimate = combine(data.measured, data.overlaps)
    stable, candidate = (data.measured_distinct.get(arm, 0) for arm in Arm)
    numbers: Document = {
        "outcome": objective.outcome,
        "better": objective.better,
        "effect": estimate.effect if estimate else None,
        "ciLow": None,
        "ciHigh": None,
        "evalue": None,
        "threshold": 1.0 / objective.alpha,
        "unitsStable": stable,
        "unitsCandidate": candidate,
        "unitsNeeded": BURN_IN,
    }
    over = f"over {candidate:,} and {stable:,} units"
    if estimate is None or min(stable, candidate) < BURN_IN:
        reason = (
            f"too little is known of {objective.outcome}: {candidate:,} units of version "
            f"{rollout.candidate} and {stable:,} of version {rollout.stable} measured, "
            f"{BURN_IN} of each needed"
        )
        return Finding(State.INSUFFICIENT, reason, {**numbers, **_interval(estimate, objective)})
    if estimate.se == 0.0:
        reason = f"{objective.outcome} is the same for every unit, {over}"
        return Finding(State.HOLDING, reason, numbers)
    return _decide_objective(rollout, objective, estimate, numbers, over)


def _decide_objective(
    rollout: Rollout, objective: Objective, estimate: Estimate, numbers: Document, over: str
) -> Finding:
    interval = _interval(estimate, objective)
    tau = sequential.tau_from(objective.minimum_effect, objective.alpha)
    log_e = sequential.log_evalue(estimate.effect, estimate.se, tau)
    threshold = 1.0 / objective.alpha
    improves = (estimate.effect > 0) == (objective.better == "higher")
    state = State.HOLDING
    if sequential.finite(log_e) >= threshold:
        state = State.BETTER if improves else State.WORSE
    subject = {
        State.HOLDING: f"versions {rollout.candidate} and {rollout.stable} are not yet told apart",
        State.BETTER: f"version {rollout.candidate} is better",
        State.WORSE: f"version {rollout.candidate} is worse",
    }[state]
    reason = (
        f"{subject}: {objective.outcome} {_signed(estimate.effect)} "
        f"({1 - objective.alpha:.4g} confidence sequence {_signed(interval['ciLow'])} to "
        f"{_signed(interval['ciHigh'])}) {over}; e-value "
        f"{_number(sequential.finite(log_e))} of {threshold:g} needed"
    ).replace("0.95 confidence", "95 % confidence")
    return Finding(state, reason, {**numbers, **interval})


def _interval(estimate: Estimate | None, objective: Objective) -> dict[str, float | None]:
    """The interval and e-value, which are shown from the first units on."""
    if estimate is None or estimate.se == 0.0:
        return {"ciLow": None, "ciHigh": None, "evalue": None}
    tau = sequential.tau_from(objective.minimum_effect, objective.alpha)
    half = sequential.radius(estimate.se, tau, objective.alpha)
    log_e = sequential.log_evalue(estimate.effect, estimate.se, tau)
    return {
        "ciLow": estimate.effect - half,
        "ciHigh": estimate.effect + half,
        "evalue": sequential.finite(log_e),
    }


# --- counts ---------------------------------------------------------------------------------


def _arm(arm: Arm, data: Aggregates, totals: Totals) -> Document:
    total = Requests()
    for (_, of), part in totals.items():
        if of is arm:
            total = total.plus(part)
    return {
        "requests": total.requests,
        "units": data.distinct.get(arm, 0),
        "errors": total.errors,
        "slow": total.slow,
        "fallbacks": total.fallbacks,
        "retried": total.retried,
        "outcomes": data.outcomes.get(arm, 0),
    }


def _totals(data: Aggregates) -> Totals:
    """Requests per step and arm."""
    totals: Totals = {}
    for bucket in data.buckets:
        for arm, part in ((Arm.STABLE, bucket.stable), (Arm.CANDIDATE, bucket.candidate)):
            key = bucket.step, arm
            totals[key] = totals.get(key, Requests()).plus(part)
    return totals


def _steps(rollout: Rollout, data: Aggregates, totals: Totals) -> list[Document]:
    weights = {step.index: step.weight for step in rollout.steps}
    seen = {bucket.step for bucket in data.buckets} | {step for step, _ in data.units}
    measured = {step.index: step for step in data.measured}
    return [
        _step(index, weights.get(index), measured.get(index), data, totals)
        for index in sorted(weights.keys() | seen)
    ]


def _step(
    index: int,
    weight: int | None,
    measured: StepSummary | None,
    data: Aggregates,
    totals: Totals,
) -> Document:
    estimate = combine([measured]) if measured else None
    return {
        "index": index,
        "weight": weight,
        "stable": _step_arm(index, Arm.STABLE, measured, data, totals),
        "candidate": _step_arm(index, Arm.CANDIDATE, measured, data, totals),
        "effect": estimate.effect if estimate else None,
        "standardError": estimate.se if estimate else None,
        "mixed": data.mixed.get(index, 0),
    }


def _step_arm(
    index: int,
    arm: Arm,
    measured: StepSummary | None,
    data: Aggregates,
    totals: Totals,
) -> Document:
    summary = None
    if measured:
        summary = measured.candidate if arm is Arm.CANDIDATE else measured.stable
    n = summary.n if summary else 0
    units = _units(data, index, arm).units
    return {
        "requests": totals.get((index, arm), Requests()).requests,
        "units": units,
        "measured": n,
        "waiting": max(0, units - data.mixed.get(index, 0) - n),
        "mean": summary.mean if summary and n else None,
        "variance": summary.variance if summary and n > 1 else None,
    }


# --- words ----------------------------------------------------------------------------------


def _number(value: float) -> str:
    return f"{value:,.0f}" if 100 <= value < 1e6 else f"{value:.3g}"  # noqa: PLR2004


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.3g}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%} ({part:,} of {whole:,})" if whole else "none (0 of 0)"

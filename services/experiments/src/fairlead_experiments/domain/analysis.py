"""What the numbers of a rollout say: aggregates in, the analysis document out.

Three judges look, each with states of its own; the verdict is the first that applies of
`invalid` (sample-ratio mismatch), `worse` (a guardrail or the objective), `better` (the
objective), `insufficient` (a judge has too little to look at), `holding`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum

from fairlead_experiments.domain import guardrails, sequential, srm
from fairlead_experiments.domain.comparison import (
    Classes,
    Comparison,
    Durations,
    Numbers,
    compare,
)
from fairlead_experiments.domain.comparison import Kind as PairKind
from fairlead_experiments.domain.effect import BURN_IN, Arm, Estimate, StepSummary, combine
from fairlead_experiments.domain.linear import Linear, linearise
from fairlead_experiments.domain.predictions import Seen
from fairlead_experiments.domain.records import (
    FULL_WEIGHT,
    Aggregates,
    Kind,
    Missing,
    Objective,
    Requests,
    Rollout,
    ShadowGuardrail,
    Standing,
    UnitCounts,
)

Document = dict[str, object]


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


def analyse(
    rollout: Rollout, data: Aggregates, *, at: datetime, seen: Seen | None = None
) -> Document:
    """Answer the analysis document of a rollout (contracts, "Rollouts at the experiments service").

    Args:
        rollout: Its record.
        data: What was counted for it.
        at: When the data was read.
        seen: What was seen of the candidate while it was a shadow of stable.
    """
    mismatch = judge_ratio(rollout, data)
    guards = judge_guardrails(rollout, data)
    objective = judge_objective(rollout, rollout.objective, data) if rollout.objective else None
    shadow = judge_shadow(rollout, rollout.shadow, seen) if rollout.shadow and seen else None
    findings = [mismatch, *guards, *([objective] if objective else [])]
    verdict, reason = _verdict(findings, objective)
    if shadow and shadow.state is State.WORSE and verdict is not State.INVALID:
        verdict, reason = shadow.state, shadow.reason
    return {
        "rollout": rollout.id,
        "model": rollout.model,
        "at": timestamp(at),
        "verdict": str(verdict),
        "reason": reason,
        "arms": {str(arm): _arm(arm, data) for arm in Arm},
        "steps": _steps(rollout, data),
        "objective": objective.document() if objective else None,
        "srm": mismatch.document(),
        "guardrails": [guard.document() for guard in guards],
        "shadow": shadow.document() if shadow else None,
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
        "mixed": data.mixed_distinct,
        "mixedShare": _mixed_share(data),
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


def _mixed_share(data: Aggregates) -> float | None:
    """How many of the candidate's units went back to stable; all mixed units are the candidate's."""
    met = data.distinct.get(Arm.CANDIDATE, 0)
    return data.mixed_distinct / met if met else None


# --- guardrails -----------------------------------------------------------------------------


def judge_guardrails(rollout: Rollout, data: Aggregates) -> list[Finding]:
    """Judge what must not get worse: errors, then latency, where the rollout guards them."""
    found = []
    if rollout.errors:
        watched = _Watched("errors", Kind.ERRORS, rollout.errors.margin, "failed")
        found.append(_judge_guardrail(watched, rollout, data))
    if rollout.latency:
        words = f"were slower than {rollout.latency.slower_than:g} s"
        watched = _Watched("latency", Kind.SLOW, rollout.latency.margin, words)
        found.append(_judge_guardrail(watched, rollout, data))
    return found


@dataclass(frozen=True, slots=True)
class _Watched:
    """What one guardrail looks at, and the words for a bad request."""

    name: str
    kind: Kind
    margin: float
    words: str


def _judge_guardrail(watched: _Watched, rollout: Rollout, data: Aggregates) -> Finding:
    units = _bad_units(watched.kind, rollout, data)
    evalue = sequential.finite(guardrails.log_evalue(units, watched.margin))
    equal = sequential.finite(guardrails.log_evalue(units, watched.margin, null=1.0))
    total = _traffic(watched.kind, data)
    step = max((index for index, _ in data.requests), default=0)
    current = _traffic(watched.kind, data, step)
    stable_units, candidate_units = (
        sum(n for (_, of), n in data.bad_units.get(watched.kind, {}).items() if of == arm)
        for arm in Arm
    )
    numbers: Document = {
        "name": watched.name,
        "evalue": evalue,
        "threshold": guardrails.THRESHOLD,
        "equalEvalue": equal,
        "equalThreshold": guardrails.EQUAL_THRESHOLD,
        "stableBad": total.stable_bad,
        "candidateBad": total.candidate_bad,
        "stableBadUnits": stable_units,
        "candidateBadUnits": candidate_units,
        "stableRequests": total.stable_requests,
        "candidateRequests": total.candidate_requests,
        "currentStep": step,
        "currentCandidateRequests": current.candidate_requests,
        "requestsNeeded": guardrails.ENOUGH_REQUESTS,
    }
    subject = f"version {rollout.candidate}"

    def compared(whose: str) -> str:
        return (
            f"{total.candidate_bad:,} of {whose} {total.candidate_requests:,} requests "
            f"{watched.words}{_of_units(candidate_units)}, {total.stable_bad:,} of "
            f"{total.stable_requests:,} of version {rollout.stable}'s{_of_units(stable_units)}; "
            f"e-value {_number(evalue)} of {guardrails.THRESHOLD:g}, and {_number(equal)} of "
            f"{guardrails.EQUAL_THRESHOLD:g} against being no worse"
        )

    if watched.kind is Kind.ERRORS and guardrails.is_above_ceiling(current, candidate_units):
        reason = (
            f"{subject} is broken: {current.candidate_bad:,} of "
            f"{current.candidate_requests:,} requests in step {step} failed"
        )
        return Finding(State.WORSE, reason, numbers)
    if evalue >= guardrails.THRESHOLD and equal >= guardrails.EQUAL_THRESHOLD:
        return Finding(State.WORSE, f"{subject} is worse: {compared('its')}", numbers)
    if current.candidate_requests < guardrails.ENOUGH_REQUESTS:
        reason = (
            f"{subject} has had {current.candidate_requests:,} of the "
            f"{guardrails.ENOUGH_REQUESTS} requests needed in step {step} to judge {watched.name}"
        )
        return Finding(State.INSUFFICIENT, reason, numbers)
    whose = f"{subject}'s"
    reason = f"{watched.name} within the margin: {compared(whose)}"
    return Finding(State.HOLDING, reason, numbers)


def _bad_units(kind: Kind, rollout: Rollout, data: Aggregates) -> list[guardrails.BadUnits]:
    """Newly bad units of the steps whose weight is known."""
    found = data.bad_units.get(kind, {})
    return [
        guardrails.BadUnits(
            step.weight / FULL_WEIGHT,
            found.get((step.index, Arm.STABLE), 0),
            found.get((step.index, Arm.CANDIDATE), 0),
        )
        for step in rollout.steps
    ]


def _traffic(kind: Kind, data: Aggregates, step: int | None = None) -> guardrails.Traffic:
    """Requests that can be bad, and those that are; of all steps, or one."""

    def pair(arm: Arm) -> tuple[int, int]:
        total = _requests(data, arm, step)
        if kind is Kind.ERRORS:
            return total.requests, total.errors
        return total.answered, total.slow

    (stable, stable_bad), (candidate, candidate_bad) = pair(Arm.STABLE), pair(Arm.CANDIDATE)
    return guardrails.Traffic(stable, candidate, stable_bad, candidate_bad)


def _requests(data: Aggregates, arm: Arm, step: int | None = None) -> Requests:
    total = Requests()
    for (index, of), part in data.requests.items():
        if of == arm and step in {None, index}:
            total = total.plus(part)
    return total


# --- shadow ---------------------------------------------------------------------------------


def judge_shadow(rollout: Rollout, rule: ShadowGuardrail, seen: Seen) -> Finding:
    """Judge whether what a candidate predicted as a shadow lets it answer.

    The bounds hold however often one looks, so it may be asked after every request. It is
    `holding` once the whole interval is within the limit, and `worse` once all of it is above.
    """
    comparison = compare(seen.pairs, rule.tolerance)
    numbers: Document = {
        **_comparison(comparison, seen, rule.tolerance),
        "maxDisagreement": rule.max_disagreement,
        "minimumPairs": rule.minimum_pairs,
    }
    subject, n = f"version {rollout.candidate}", comparison.compared
    if comparison.low is None or comparison.high is None or n < rule.minimum_pairs:
        reason = (
            f"{subject} has been compared with version {rollout.stable} on {n:,} of the "
            f"{rule.minimum_pairs:,} requests needed"
        )
        return Finding(State.INSUFFICIENT, reason, numbers)
    if seen.unpaired.stable > seen.unpaired.paired:
        reason = (
            f"{subject} does not keep up: {seen.unpaired.stable:,} of its last "
            f"{seen.unpaired.stable + seen.unpaired.paired:,} copies got no answer"
        )
        return Finding(State.INSUFFICIENT, reason, numbers)
    said = (
        f"disagrees with version {rollout.stable} on {comparison.disagreed:,} of {n:,} requests "
        f"(95 % confidence sequence {comparison.low:.2%} to {comparison.high:.2%})"
    )
    if comparison.low > rule.max_disagreement:
        reason = f"{subject} {said}, more than the {rule.max_disagreement:.2%} allowed"
        return Finding(State.WORSE, reason, numbers)
    if comparison.high <= rule.max_disagreement:
        reason = f"{subject} {said}, within the {rule.max_disagreement:.2%} allowed"
        return Finding(State.HOLDING, reason, numbers)
    reason = f"{subject} {said}, not yet told from the {rule.max_disagreement:.2%} allowed"
    return Finding(State.INSUFFICIENT, reason, numbers)


def build_comparison(seen: Seen, tolerance: float) -> Document:
    """Answer how a shadow compares with what answered (contracts, "Shadows").

    Args:
        seen: What was seen of it.
        tolerance: How far numbers may differ and agree, in the prediction's unit.
    """
    numbers = _comparison(compare(seen.pairs, tolerance), seen, tolerance)
    return {"model": seen.model, "stable": seen.stable, "shadow": seen.shadow, **numbers}


def _comparison(comparison: Comparison, seen: Seen, tolerance: float) -> Document:
    kinds = comparison.kinds
    compared, disagreed = comparison.compared, comparison.disagreed
    return {
        "pairs": seen.total,
        "sampled": len(seen.pairs),
        "firstAt": timestamp(seen.first_at) if seen.first_at else None,
        "lastAt": timestamp(seen.last_at) if seen.last_at else None,
        "unpaired": {"stable": seen.unpaired.stable, "shadow": seen.unpaired.shadow},
        "tolerance": tolerance,
        "compared": compared,
        "disagreed": disagreed,
        "disagreement": disagreed / compared if compared else None,
        "disagreementLow": comparison.low,
        "disagreementHigh": comparison.high,
        "errors": {
            "stable": kinds[PairKind.STABLE_FAILED],
            "shadow": kinds[PairKind.SHADOW_FAILED],
            "both": kinds[PairKind.BOTH_FAILED],
        },
        "unlike": {"rows": kinds[PairKind.ROWS_DIFFER], "types": kinds[PairKind.TYPES_DIFFER]},
        "noRoom": kinds[PairKind.NO_ROOM],
        "unread": kinds[PairKind.UNREAD],
        "classes": _asdict(comparison.classes),
        "numbers": _asdict(comparison.numbers),
        "durationMs": {
            "stable": _asdict(comparison.stable),
            "shadow": _asdict(comparison.shadow),
        },
    }


def _asdict(part: Classes | Numbers | Durations | None) -> Document | None:
    return None if part is None else asdict(part)


# --- objective ------------------------------------------------------------------------------

MIXED_TOLD = 0.01
"""Share of the candidate's units that are mixed from which on the reason says so."""

MIXED_LIMIT = 0.10
"""Share of the candidate's units that are mixed above which the objective does not decide."""


def judge_objective(rollout: Rollout, objective: Objective, data: Aggregates) -> Finding:
    """Judge the outcome that decides."""
    linear = linearise(data.moments, data.shared, is_ratio=objective.is_ratio)
    estimate = combine(linear.steps, linear.overlaps)
    stable, candidate = (_standing(data, arm) for arm in Arm)
    numbers = {
        **_objective_numbers(objective, data, linear),
        "effect": estimate.effect if estimate else None,
        **_interval(estimate, objective),
    }
    notes = _notes(objective, data)
    hindrance = _hindrance(rollout, objective, data, estimate)
    if estimate is None or hindrance:
        return Finding(State.INSUFFICIENT, f"{hindrance}{notes}", numbers)
    over = f"over {candidate.measured:,} and {stable.measured:,} units"
    if estimate.se == 0.0:
        reason = f"{objective.outcome} is the same for every unit, {over}{notes}"
        return Finding(State.HOLDING, reason, numbers)
    state, reason = _decide_objective(rollout, objective, estimate, over)
    return Finding(state, f"{reason}{notes}", numbers)


def _hindrance(
    rollout: Rollout, objective: Objective, data: Aggregates, estimate: Estimate | None
) -> str | None:
    """Answer why the objective must not speak yet, or None."""
    stable, candidate = (_standing(data, arm).measured for arm in Arm)
    if estimate is None or min(stable, candidate) < BURN_IN:
        return (
            f"too little is known of {objective.outcome}: {candidate:,} units of version "
            f"{rollout.candidate} and {stable:,} of version {rollout.stable} measured, "
            f"{BURN_IN} of each needed"
        )
    if (_mixed_share(data) or 0.0) > MIXED_LIMIT:
        return (
            f"more than {MIXED_LIMIT:.0%} of version {rollout.candidate}'s units went back to "
            f"version {rollout.stable}: what is left is no fair comparison of {objective.outcome}"
        )
    return None


def _objective_numbers(objective: Objective, data: Aggregates, linear: Linear) -> Document:
    stable, candidate = (_standing(data, arm) for arm in Arm)
    return {
        "outcome": objective.outcome,
        "kind": str(objective.kind),
        "better": objective.better,
        "threshold": 1.0 / objective.alpha,
        "unitsStable": stable.measured,
        "unitsCandidate": candidate.measured,
        "unitsNeeded": BURN_IN,
        "waitingStable": stable.waiting,
        "waitingCandidate": candidate.waiting,
        "missingStable": stable.missing,
        "missingCandidate": candidate.missing,
        "cappedStable": stable.capped,
        "cappedCandidate": candidate.capped,
        "refusedStable": data.refused.get(Arm.STABLE, 0),
        "refusedCandidate": data.refused.get(Arm.CANDIDATE, 0),
        "coveredStable": stable.covered,
        "coveredCandidate": candidate.covered,
        "theta": linear.theta if objective.covariate else None,
    }


def _standing(data: Aggregates, arm: Arm) -> Standing:
    return data.standing_distinct.get(arm, Standing())


def _notes(objective: Objective, data: Aggregates) -> str:
    """What a reader must know beside the result: who is not in it, and why."""
    stable, candidate = (_standing(data, arm) for arm in Arm)
    notes = []
    if objective.window is not None and stable.waiting + candidate.waiting:
        notes.append(f"{candidate.waiting:,} and {stable.waiting:,} units wait for their outcome")
    if stable.missing + candidate.missing:
        counted = "left out" if objective.missing is Missing.IGNORE else "counted as 0"
        notes.append(
            f"{candidate.missing:,} and {stable.missing:,} had none when it was due and are {counted}"
        )
    refused = sum(data.refused.values())
    if refused:
        notes.append(f"{refused:,} outcomes are neither 0 nor 1 and are left out")
    share = _mixed_share(data) or 0.0
    if share >= MIXED_TOLD:
        notes.append(
            f"{data.mixed_distinct:,} units ({share:.1%} of the candidate's) met both arms "
            "and are left out from then on"
        )
    return "".join(f"; {note}" for note in notes)


def _decide_objective(
    rollout: Rollout, objective: Objective, estimate: Estimate, over: str
) -> tuple[State, str]:
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
        f"{subject}: {_subject(objective)} {_signed(estimate.effect)} "
        f"({100 * (1 - objective.alpha):.6g} % confidence sequence {_signed(interval['ciLow'])} to "
        f"{_signed(interval['ciHigh'])}) {over}; e-value "
        f"{_number(sequential.finite(log_e))} of {threshold:g} needed"
    )
    return state, reason


def _subject(objective: Objective) -> str:
    if objective.is_ratio:
        return f"{objective.outcome} / {objective.denominator}"
    return objective.outcome


def _interval(estimate: Estimate | None, objective: Objective) -> dict[str, float | None]:
    """The interval and e-value, which are shown from the first units on."""
    if estimate is None or estimate.se == 0.0:
        return {"ciLow": None, "ciHigh": None, "evalue": None}
    tau = sequential.tau_from(objective.minimum_effect, objective.alpha)
    half = sequential.radius(estimate.se, tau, objective.alpha)
    log_e = sequential.log_evalue(estimate.effect, estimate.se, tau)
    is_bounded = math.isfinite(half)  # JSON has no infinity: an interval of all numbers is none.
    return {
        "ciLow": estimate.effect - half if is_bounded else None,
        "ciHigh": estimate.effect + half if is_bounded else None,
        "evalue": sequential.finite(log_e),
    }


# --- counts ---------------------------------------------------------------------------------


def _arm(arm: Arm, data: Aggregates) -> Document:
    total = _requests(data, arm)
    return {
        "requests": total.requests,
        "units": data.distinct.get(arm, 0),
        "errors": total.errors,
        "slow": total.slow,
        "fallbacks": total.fallbacks,
        "retried": total.retried,
        "outcomes": data.outcomes.get(arm, 0),
    }


def _steps(rollout: Rollout, data: Aggregates) -> list[Document]:
    weights = {step.index: step.weight for step in rollout.steps}
    seen = {step for step, _ in (*data.requests, *data.units)}
    is_ratio = rollout.objective is not None and rollout.objective.is_ratio
    linear = linearise(data.moments, (), is_ratio=is_ratio)
    measured = {step.index: step for step in linear.steps}
    return [
        _step(index, weights.get(index), measured.get(index), data)
        for index in sorted(weights.keys() | seen)
    ]


def _step(
    index: int,
    weight: int | None,
    measured: StepSummary | None,
    data: Aggregates,
) -> Document:
    estimate = combine([measured]) if measured else None
    return {
        "index": index,
        "weight": weight,
        "stable": _step_arm(index, Arm.STABLE, measured, data),
        "candidate": _step_arm(index, Arm.CANDIDATE, measured, data),
        "effect": estimate.effect if estimate else None,
        "standardError": estimate.se if estimate else None,
        "mixed": data.mixed.get(index, 0),
    }


def _step_arm(
    index: int,
    arm: Arm,
    measured: StepSummary | None,
    data: Aggregates,
) -> Document:
    summary = None
    if measured:
        summary = measured.candidate if arm is Arm.CANDIDATE else measured.stable
    n = summary.n if summary else 0
    standing = data.standing.get((index, str(arm)), Standing())
    return {
        "requests": _requests(data, arm, index).requests,
        "units": _units(data, index, arm).units,
        "measured": standing.measured,
        "waiting": standing.waiting,
        "missing": standing.missing,
        "mean": summary.mean if summary and n else None,
        "variance": summary.variance if summary and n > 1 else None,
    }


# --- words ----------------------------------------------------------------------------------


def _number(value: float) -> str:
    return f"{value:,.0f}" if 100 <= value < 1e6 else f"{value:.3g}"  # noqa: PLR2004


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.3g}"


def _of_units(bad: int) -> str:
    return f" ({bad:,} unit{'s' if bad > 1 else ''})" if bad else ""

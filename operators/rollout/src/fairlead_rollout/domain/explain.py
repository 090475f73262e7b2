"""A served model's state in plain words: what goes on, which numbers decided, what would change it."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from fairlead_rollout.domain.decisions import changes, deciding
from fairlead_rollout.domain.durations import format_duration
from fairlead_rollout.domain.lanes import spec_in
from fairlead_rollout.domain.snapshot import Analysis
from fairlead_rollout.domain.spec import Objective, OnInconclusive, ServedModelSpec
from fairlead_rollout.domain.status import (
    ConditionType,
    Rollout,
    RolloutState,
    Status,
    parse_time,
    to_document,
)
from fairlead_rollout.domain.words import share_of


def explain(  # noqa: PLR0913 -- what is known of a served model, each from a place of its own
    name: str,
    spec: ServedModelSpec,
    status: Status,
    analysis: Analysis | None,
    now: datetime,
    *,
    decisions: Sequence[Mapping[str, Any]] = (),
    comparisons: Sequence[Mapping[str, Any]] = (),
    beside: Mapping[str, tuple[Analysis | None, Sequence[Mapping[str, Any]]]] = MappingProxyType(
        {}
    ),
) -> str:
    """Tell a person how a served model is.

    Args:
        name: The served model's name.
        spec: What was asked for.
        status: Its status.
        analysis: The current or last rollout's analysis, None if it cannot be had.
        now: The time.
        decisions: That rollout's decisions, the earliest first, as the experiments service has them;
            empty if they cannot be had.
        comparisons: How its shadows compare with what answers.
        beside: The analysis and the decisions of the rollouts beside that one, by their ids.
    """
    parts = [_headline(name, spec, status)]
    parts.extend(_troubles(status))
    parts.extend(_newcomers(spec, status))
    parts.extend(_shadows(status, comparisons))
    if status.rollout is not None:
        known = {status.rollout.id: (analysis, decisions), **beside}
        for rollout in (status.rollout, *status.beside):
            numbers, told = known.get(rollout.id, (None, ()))
            rules = spec_in(spec, rollout.lane)
            parts.append(_story(rollout, rules, now))
            parts.extend(_decided(told))
            parts.extend(_numbers(_decided_on(told) or to_document(numbers)))
            parts.append(_what_next(rollout, rules, status))
        parts.append(_waiting(status) if status.beside else "")
    return "\n".join(part for part in parts if part)


def _headline(name: str, spec: ServedModelSpec, status: Status) -> str:
    if status.stable is None:
        waiting = status.condition(ConditionType.READY)
        why = waiting.message if waiting else "the controller has not looked at it yet"
        return f"{name} does not serve yet: {why}."
    pointer = f"{spec.production} of {spec.model!r} names version {status.production or 'none'}"
    return f"{name} serves version {status.stable}; in MLflow {pointer}."


def _troubles(status: Status) -> Iterable[str]:
    for kind in (ConditionType.STALLED, ConditionType.REGISTRY_UNAVAILABLE):
        condition = status.condition(kind)
        if condition is not None:
            yield f"Attention: {condition.message}."


def _newcomers(spec: ServedModelSpec, status: Status) -> Iterable[str]:
    rollout = status.rollout
    if status.waiting is not None and rollout is not None:
        yield f"Version {status.waiting} waits until version {rollout.candidate} is decided."
    if rollout and rollout.alias and status.settled == rollout.baseline != status.stable:
        yield f"MLflow is to let {spec.production} name version {status.stable}."
    elif status.settled is not None and (rollout is None or rollout.candidate != status.settled):
        yield (
            f"Version {status.settled} arrived during a trial and was refused: promote it again "
            "in MLflow, or 'fairlead retry' once nothing is on trial."
        )
    for version in status.turned_away:
        yield (
            f"Version {version} stays out until its alias moves to another version and back, "
            "or 'fairlead retry' puts it on trial again."
        )


def _shadows(status: Status, comparisons: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for copy in (status.traffic or {}).get("shadow", ()):
        version, share = copy["version"], copy["share"] / 100
        told = [_comparison(c) for c in comparisons if c["shadow"] == version]
        yield f"Version {version} gets copies of {share:g} % of the predictions and answers nobody."
        yield from told or ["  nothing has been compared yet"]


def _comparison(compared: Mapping[str, Any]) -> str:
    """Tell how a shadow compares with one version."""
    against = f"  against version {compared['stable']}: {compared['pairs']:,} requests"
    if not compared["compared"]:
        return f"{against}, none of them comparable yet"
    share, low, high = (
        f"{compared[key]:.2%}" for key in ("disagreement", "disagreementLow", "disagreementHigh")
    )
    errors, unpaired = compared["errors"], compared["unpaired"]
    return (
        f"{against}, {compared['compared']:,} compared; it disagrees on {share} ({low} to {high})"
        f"{_difference(compared['numbers'])}; it alone failed {errors['shadow']:,} times, "
        f"stable alone {errors['stable']:,}{_times(compared['durationMs'])}; "
        f"{unpaired['stable']:,} copies of the last minutes without an answer"
    )


def _difference(numbers: Mapping[str, Any] | None) -> str:
    if numbers is None:
        return ""
    quantiles = numbers["quantiles"]
    return (
        f"; its numbers are {numbers['mean']:+.3g} higher on average, "
        f"90 % within {quantiles['5']:+.3g} to {quantiles['95']:+.3g}"
    )


def _times(durations: Mapping[str, Any]) -> str:
    shadow, stable = durations["shadow"], durations["stable"]
    if shadow is None or stable is None:
        return ""
    return f"; median time {shadow['median']:.3g} ms, stable's {stable['median']:.3g} ms"


def _story(rollout: Rollout, spec: ServedModelSpec, now: datetime) -> str:
    who = f"version {rollout.candidate} against version {rollout.baseline} (rollout {rollout.id})"
    if not rollout.is_active:
        assert rollout.decided_at is not None
        took = format_duration(rollout.decided_at - rollout.started_at)
        return f"The last rollout, {who}, was {rollout.state} after {took}. Why: {rollout.message}."
    age = format_duration(now - rollout.started_at)
    if rollout.step is None:
        return f"On trial since {age}: {who}. It gets no traffic yet: {rollout.message}."
    if rollout.step >= len(spec.rollout.steps):
        return f"On trial since {age}: {who}. It starts over: fewer steps were applied."
    step = spec.rollout.steps[rollout.step]
    share = share_of(step, rollout)
    share = f"with {share}" if step.shadow else f"at {share}"
    where = f"step {rollout.step + 1} of {len(spec.rollout.steps)} {share}"
    return f"On trial since {age}: {who}, {where}."


def _decided(decisions: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Show each change of the rollout, and the last look if that is newer."""
    shown = list(changes(decisions))
    if decisions and shown[-1:] != [decisions[-1]]:
        shown.append(decisions[-1])
    if shown:
        yield "What was decided:"
    for decision in shown:
        yield f"  {parse_time(decision['at']):%Y-%m-%d %H:%M:%S} UTC  {decision['summary']}"


def _decided_on(decisions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the numbers an ended rollout was decided on, which are not those of now."""
    found = deciding(decisions)
    analysis: Mapping[str, Any] | None = found["inputs"]["analysis"] if found else None
    return analysis


def _numbers(analysis: Mapping[str, Any] | None) -> Iterable[str]:
    if analysis is None:
        return
    for arm in ("stable", "candidate"):
        counts = analysis["arms"].get(arm, {})
        yield f"  {arm}: {_counts(counts)}"
    if analysis["objective"] is not None:
        objective = analysis["objective"]
        yield f"  objective {objective['outcome']}: {objective.get('reason')}"
    for guardrail in analysis["guardrails"]:
        yield f"  guardrail {guardrail['name']}: {guardrail.get('reason')}"
    shadow = analysis.get("shadow")
    if shadow is not None:
        yield f"  shadow: {shadow.get('reason')}"
    if analysis["srm"] is not None:
        yield f"  split: {analysis['srm'].get('reason')}"


def _counts(counts: Mapping[str, Any]) -> str:
    known = ("requests", "units", "outcomes", "errors", "slow", "fallbacks", "retried")
    return ", ".join(f"{counts[key]:,} {key}" for key in known if key in counts)


def _what_next(rollout: Rollout, spec: ServedModelSpec, status: Status) -> str:
    if rollout.state is RolloutState.PROMOTED:
        return "A version that is promoted in MLflow next is put on trial against it."
    if not rollout.is_active:
        return _what_brings_it_back(rollout, spec, status)
    if rollout.paused:
        return "A person paused it: 'fairlead resume' goes on, 'fairlead abort' ends it."
    if rollout.awaiting:
        return _approval(rollout, status) + _what_decides(spec)
    shared = " When one is promoted, the others end." if rollout.lane else ""
    waiting = "" if status.beside else _waiting(status)
    return waiting + _what_decides(spec) + shared


def _what_brings_it_back(rollout: Rollout, spec: ServedModelSpec, status: Status) -> str:
    if rollout.candidate in status.turned_away:
        return ""  # said of all that are turned away
    if status.settled is None:
        return "It is put on trial again when it is promoted again in MLflow."
    return (
        f"It stays out until {spec.production} moves to another version, "
        "or 'fairlead retry' starts it again."
    )


def _waiting(status: Status) -> str:
    progressing = status.condition(ConditionType.PROGRESSING)
    return f"Waiting: {progressing.message}. " if progressing else ""


def _approval(rollout: Rollout, status: Status) -> str:
    progressing = status.condition(ConditionType.PROGRESSING)
    message = progressing.message if progressing else rollout.message
    return f"Waiting for a person: {message}. "


def _what_decides(spec: ServedModelSpec) -> str:
    ends = "It is aborted as soon as a guardrail or the split fails"
    objective, limit = spec.rollout.objective, format_duration(spec.rollout.max_duration)
    if spec.rollout.is_split:
        return (
            f"{ends}, or after {limit}; nothing promotes it but a person: "
            "'fairlead promote' or 'fairlead abort' ends it, and an objective is reported only."
        )
    if objective is None:
        return f"{ends}, and promoted when every step has passed{_approved(spec)}."
    ending = "promoted" if spec.rollout.on_inconclusive is OnInconclusive.PROMOTE else "aborted"
    return (
        f"{ends}, or {_bar(objective)} against it; "
        f"it is promoted when that bar is reached for it at the last step{_approved(spec)}. "
        f"Without a decision within {limit} it is {ending}."
    )


def _approved(spec: ServedModelSpec) -> str:
    return " and a person has approved" if spec.rollout.asks_a_person else ""


def _bar(objective: Objective) -> str:
    return f"the e-value of {objective.outcome} reaches {1 / objective.alpha:g}"

"""A rollout's report: its decisions as plots with their numbers, ready to be drawn.

Everything shown comes from the decisions, so that the report says what was seen when it was decided,
not what is known by now. Decisions are kept as they were sent: what is missing or of another kind is
left out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from fairlead_experiments.domain.records import FULL_WEIGHT, Decision, Rollout
from fairlead_experiments.domain.times import moment

_UNITS = ((2 * 86_400, 86_400, "days"), (7_200, 3_600, "hours"), (120, 60, "minutes"))
_HOLD = "hold"
SMALLEST_SHARE = 1e-4
"""An e-value below this share of its threshold is drawn as this: evidence of nothing."""

Numbers = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot.

    Attributes:
        values: One for each time of the plot; None where it is not known.
        low: Lower edge of a band around it, as long as `values`, or empty.
        high: Upper edge.
    """

    name: str
    values: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over time, their words, and the same numbers as a table.

    Attributes:
        times: Times since the start, in the report's unit.
        level: A value that is marked, and its words, or None.
        is_log: Whether the values are of very different sizes.
        is_step: Whether a value holds until the next one.
        rows: The table: a time and a cell for each column.
    """

    key: str
    title: str
    caption: str
    axis: str
    times: tuple[float, ...]
    lines: tuple[Line, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    level: tuple[float, str] | None = None
    is_log: bool = False
    is_step: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """One decision that changed the rollout, for the list of them."""

    at: str
    verdict: str
    summary: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a page shows.

    Attributes:
        facts: Names and values, such as the versions.
        judges: The state of each judge at the deciding look: name, state, e-value, threshold, words.
        looks: How many looks changed nothing.
        unit: Of the plots' times.
    """

    title: str
    verdict: str
    facts: tuple[tuple[str, str], ...]
    judges: tuple[tuple[str, str, str, str, str], ...]
    moments: tuple[Moment, ...]
    looks: int
    unit: str
    plots: tuple[Plot, ...] = ()
    missing: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class _Look:
    """The numbers of one decision."""

    at: int
    analysis: Numbers
    weight: float | None

    def arm(self, arm: str, key: str) -> float | None:
        return _number(_part(_part(self.analysis, "arms"), arm).get(key))

    def share(self, arm: str, key: str) -> float | None:
        """Answer the requests of a kind in percent of an arm's."""
        bad, requests = self.arm(arm, key), self.arm(arm, "requests")
        return 100 * bad / requests if bad is not None and requests else None

    def objective(self, key: str) -> float | None:
        return _number(_part(self.analysis, "objective").get(key))

    def judges(self) -> dict[str, Numbers]:
        """Answer the parts of the judges by name: the objective, each guardrail, the split."""
        found = {"objective": _part(self.analysis, "objective")}
        guards = self.analysis.get("guardrails")
        for guard in guards if isinstance(guards, list | tuple) else ():
            if isinstance(guard, Mapping):
                found[f"guardrail {guard.get('name')}"] = guard
        found["split"] = _part(self.analysis, "srm")
        return {name: part for name, part in found.items() if part}


def build_report(rollout: Rollout, decisions: Sequence[Decision]) -> Report:
    """Build the report of a rollout.

    Args:
        rollout: Its record.
        decisions: Its decisions, the earliest first.
    """
    looks = tuple(_look(decision) for decision in decisions)
    known = tuple(look for look in looks if look.analysis)
    scale, unit = _unit(rollout, decisions)
    clock = _Clock(rollout, scale)
    plots = [*_plots(rollout, known, clock), *_weight(looks, clock)]
    return Report(
        title=f"{rollout.model}: version {rollout.candidate} against version {rollout.stable}",
        verdict=f"{rollout.state}: {rollout.reason}" if rollout.reason else rollout.state,
        facts=_facts(rollout),
        judges=_judges(_deciding(decisions, known)),
        moments=tuple(_moment(d) for d in decisions if d.document.get("verdict") != _HOLD),
        looks=sum(d.document.get("verdict") == _HOLD for d in decisions),
        unit=unit,
        plots=tuple(plots),
        missing=_missing(rollout, known),
    )


# --- time -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Clock:
    """Counts from a rollout's start, in a unit of `scale` seconds."""

    rollout: Rollout
    scale: float

    def since(self, at: int) -> float:
        return (moment(at) - self.rollout.started_at).total_seconds() / self.scale

    def times(self, looks: Iterable[_Look]) -> tuple[float, ...]:
        return tuple(self.since(look.at) for look in looks)


def _clock_time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _unit(rollout: Rollout, decisions: Sequence[Decision]) -> tuple[float, str]:
    """Answer the seconds and the name of the unit that fits the rollout's length."""
    last = moment(decisions[-1].at) if decisions else rollout.started_at
    age = (last - rollout.started_at).total_seconds()
    return next(((size, name) for least, size, name in _UNITS if age >= least), (1, "seconds"))


# --- plots ----------------------------------------------------------------------------------


def _plots(rollout: Rollout, looks: tuple[_Look, ...], clock: _Clock) -> Iterable[Plot]:
    if not looks:
        return
    if rollout.objective:
        yield _effect(rollout.objective.outcome, looks, clock)
    yield _evidence(looks, clock)
    yield _by_arm("units", "Units by arm", "units", looks, clock)
    yield _by_arm("errors", "Failed requests by arm", "% of requests", looks, clock)
    if rollout.latency:
        title = f"Answers slower than {rollout.latency.slower_than:g} s by arm"
        yield _by_arm("slow", title, "% of requests", looks, clock)


def _effect(outcome: str, looks: tuple[_Look, ...], clock: _Clock) -> Plot:
    effect, low, high = (
        tuple(look.objective(key) for look in looks) for key in ("effect", "ciLow", "ciHigh")
    )
    last = looks[-1]
    ends = [last.objective(key) for key in ("effect", "ciLow", "ciHigh")]
    return Plot(
        key="effect",
        title=f"Effect on {outcome}, with its confidence sequence",
        caption=(
            f"Candidate's mean less stable's. At the end {_signed(ends[0])}, "
            f"from {_signed(ends[1])} to {_signed(ends[2])}. "
            "When zero lies outside the band it is ruled out, however often one has looked. "
            "The first looks may reach beyond the plot; the table has them."
        ),
        axis=outcome,
        times=clock.times(looks),
        lines=(Line("effect", effect, low, high),),
        columns=("effect", "lower end", "upper end"),
        rows=_rows(looks, (effect, low, high), _signed),
        level=(0.0, "no effect"),
    )


def _evidence(looks: tuple[_Look, ...], clock: _Clock) -> Plot:
    names = list(dict.fromkeys(name for look in looks for name in look.judges()))
    raw = {name: tuple(_evalue(look, name) for look in looks) for name in names}
    lines = tuple(Line(name, tuple(_share(look, name) for look in looks)) for name in names)
    ends = ", ".join(f"{line.name} {_plain(line.values[-1])}" for line in lines)
    return Plot(
        key="evidence",
        title="Evidence: each e-value by its threshold",
        caption=f"At 1 a judge has decided. At the end: {ends}. The table has the e-values themselves.",
        axis="e-value / threshold",
        times=clock.times(looks),
        lines=lines,
        columns=tuple(f"e-value of {name}" for name in names),
        rows=_rows(looks, tuple(raw.values()), _plain),
        level=(1.0, "decided"),
        is_log=True,
    )


def _evalue(look: _Look, name: str) -> float | None:
    return _number(look.judges().get(name, {}).get("evalue"))


def _share(look: _Look, name: str) -> float | None:
    part = look.judges().get(name, {})
    evalue, threshold = _number(part.get("evalue")), _number(part.get("threshold"))
    if evalue is None or not threshold:
        return None
    return max(evalue / threshold, SMALLEST_SHARE)


def _by_arm(key: str, title: str, axis: str, looks: tuple[_Look, ...], clock: _Clock) -> Plot:
    is_share = axis.startswith("%")
    values = {
        arm: tuple(look.share(arm, key) if is_share else look.arm(arm, key) for look in looks)
        for arm in ("stable", "candidate")
    }
    written = _percent if is_share else _count
    ends = " and ".join(f"{written(seen[-1])} of {arm}" for arm, seen in values.items())
    return Plot(
        key=key,
        title=title,
        caption=f"Since the start; at the end {ends}.",
        axis=axis,
        times=clock.times(looks),
        lines=tuple(Line(arm, seen) for arm, seen in values.items()),
        columns=tuple(values),
        rows=_rows(looks, tuple(values.values()), written),
    )


def _weight(looks: tuple[_Look, ...], clock: _Clock) -> Iterable[Plot]:
    shown = tuple(look for look in looks if look.weight is not None)
    if not shown:
        return
    weights = tuple(look.weight for look in shown)
    steps = ", ".join(dict.fromkeys(_percent(weight) for weight in weights))
    yield Plot(
        key="weight",
        title="Weight of the candidate",
        caption=f"The candidate's share of the units, in this order: {steps}.",
        axis="% of units",
        times=clock.times(shown),
        lines=(Line("candidate", weights),),
        columns=("weight",),
        rows=_rows(shown, (weights,), _percent),
        is_step=True,
    )


def _rows(
    looks: tuple[_Look, ...], columns: tuple[tuple[float | None, ...], ...], write: object
) -> tuple[tuple[str, ...], ...]:
    assert callable(write)
    return tuple(
        (_clock_time(moment(look.at)), *(write(column[place]) for column in columns))
        for place, look in enumerate(looks)
    )


# --- words and numbers ----------------------------------------------------------------------


def _facts(rollout: Rollout) -> tuple[tuple[str, str], ...]:
    objective, errors, latency = rollout.objective, rollout.errors, rollout.latency
    decided = _clock_time(rollout.decided_at) + " UTC" if rollout.decided_at else "not yet"
    facts = [
        ("Rollout", rollout.id),
        ("Registered model", rollout.registered_model or "unknown"),
        ("Stable", f"version {rollout.stable}"),
        ("Candidate", f"version {rollout.candidate}"),
        ("Started", _clock_time(rollout.started_at) + " UTC"),
        ("Decided", decided),
        ("Steps", ", ".join(_percent(s.weight * 100 / FULL_WEIGHT) for s in rollout.steps)),
    ]
    if objective:
        words = f"{objective.outcome}, {objective.better} is better, at least {objective.minimum_effect:g}"
        facts.append(("Objective", f"{words}, alpha {objective.alpha:g}"))
    if errors:
        facts.append(("Errors", f"at most {errors.margin:.0%} more than stable"))
    if latency:
        slow = f"at most {latency.margin:.0%} more answers slower than {latency.slower_than:g} s"
        facts.append(("Latency", slow))
    return tuple(facts)


def _missing(rollout: Rollout, looks: tuple[_Look, ...]) -> tuple[str, ...]:
    """Say what the page does not show, and why."""
    if not looks:
        return ("There are no numbers: the candidate got no traffic, or no look was kept.",)
    found = []
    if not rollout.objective:
        found.append("There is no plot of an effect: the rollout has no objective.")
    if not rollout.latency:
        found.append(
            "There is no plot of latency: without that guardrail slow answers do not count."
        )
    return tuple(found)


def _deciding(decisions: Sequence[Decision], looks: tuple[_Look, ...]) -> _Look | None:
    """Answer the look that a promotion was decided on, else the last one."""
    found = [d for d in decisions if d.document.get("verdict") == "promoting"]
    chosen = _look(found[-1]) if found else None
    if chosen is not None and chosen.analysis:
        return chosen
    return looks[-1] if looks else None


def _judges(look: _Look | None) -> tuple[tuple[str, str, str, str, str], ...]:
    return tuple(
        (
            name,
            str(part.get("state") or "unknown"),
            _plain(_number(part.get("evalue"))),
            _plain(_number(part.get("threshold"))),
            str(part.get("reason") or ""),
        )
        for name, part in (look.judges() if look else {}).items()
    )


def _moment(decision: Decision) -> Moment:
    document = decision.document
    return Moment(
        at=_clock_time(moment(decision.at)),
        verdict=str(document.get("verdict")),
        summary=str(document.get("summary")),
    )


def _look(decision: Decision) -> _Look:
    weight = _number(_part(decision.document, "to").get("weight"))
    return _Look(
        at=decision.at,
        analysis=_part(_part(decision.document, "inputs"), "analysis"),
        weight=None if weight is None else weight * 100 / FULL_WEIGHT,
    )


def _part(document: Numbers, key: str) -> Numbers:
    part = document.get(key)
    return part if isinstance(part, Mapping) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.4g}"


def _plain(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _count(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g} %"

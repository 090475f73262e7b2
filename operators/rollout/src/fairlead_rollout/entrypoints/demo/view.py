"""What the demo shows: a live picture in a terminal, plain lines without one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fairlead_rollout.domain.snapshot import Analysis
from fairlead_rollout.domain.status import ConditionType, Status
from fairlead_rollout.entrypoints.demo.story import TITLES

EVENTS_SHOWN = 7
SCALE_WIDTH = 41  # characters of the drawn interval; odd, so that zero has a place
LINE_EVERY = 5.0  # seconds between plain lines while nothing changes


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What is shown at one moment."""

    status: Status
    analysis: Analysis | None
    tally: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    seconds: float


class View(Protocol):
    """Somewhere to show pictures."""

    def show(self, picture: Picture) -> None:
        """Show how things are."""


class LiveView:
    """A picture that is drawn over and over."""

    def __init__(self, live: Live):
        self._live = live

    def show(self, picture: Picture) -> None:
        """Draw the picture."""
        self._live.update(draw(picture))


class LineView:
    """Lines, for logs: one at each event, and one now and then."""

    def __init__(self, console: Console):
        self._console = console
        self._events = 0
        self._said_at = -LINE_EVERY

    def show(self, picture: Picture) -> None:
        """Print what is new."""
        for event in picture.events[self._events :]:
            self._say(picture, f"{event['reason']}: {event['message']}")
        self._events = len(picture.events)
        if picture.seconds - self._said_at >= LINE_EVERY:
            self._say(picture, _waiting(picture.status))

    def _say(self, picture: Picture, text: str) -> None:
        self._said_at = picture.seconds
        failed = picture.tally.get("failed", 0)
        sent = picture.tally.get("sent", 0)
        head = f"{picture.seconds:6.1f}s  {sent:>6,} requests, {failed} failed  "
        self._console.print(head + text, highlight=False, soft_wrap=True)


def draw(picture: Picture) -> RenderableType:
    """Draw a picture."""
    parts: list[RenderableType] = [_versions(picture)]
    if picture.analysis is not None:
        parts.append(_arms(picture.analysis))
        parts.append(_effect(picture.analysis))
    parts.append(Text(f"waiting for: {_waiting(picture.status)}", style="yellow"))
    parts.append(_requests(picture.tally))
    parts.extend(_event(event) for event in picture.events[-EVENTS_SHOWN:])
    return Panel(Group(*parts), title=f"fairlead demo  {picture.seconds:.0f}s")


def _versions(picture: Picture) -> Table:
    status, table = picture.status, Table(box=None, pad_edge=False)
    for column in ("version", "what it is", "role", "weight"):
        table.add_column(column)
    weights = _weights(status)
    rollout = status.rollout
    for version, title in TITLES.items():
        role = ""
        if version == status.stable:
            role = "stable"
        elif rollout is not None and rollout.is_active and version == rollout.candidate:
            role = "candidate"
        style = {"stable": "green", "candidate": "cyan"}.get(role, "dim")
        table.add_row(version, title, role, weights.get(version, ""), style=style)
    return table


def _weights(status: Status) -> dict[str, str]:
    arms = status.traffic["arms"] if status.traffic else ()
    return {arm["version"]: f"{arm['weight'] / 100:g} %" for arm in arms}


def _arms(analysis: Analysis) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("arm", "units", "requests", "outcomes", "errors"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, counts in analysis.arms.items():
        numbers = (f"{counts.get(k, 0):,}" for k in ("units", "requests", "outcomes", "errors"))
        table.add_row(arm, *numbers)
    return table


def _effect(analysis: Analysis) -> Text:
    objective = analysis.objective or {}
    effect, low, high = (objective.get(key) for key in ("effect", "ciLow", "ciHigh"))
    if effect is None or low is None or high is None:
        return Text("effect: not known yet", style="dim")
    text = f"effect {effect:+.4f}  [{low:+.4f}, {high:+.4f}]  e-value {objective['evalue']:.3g} of {objective['threshold']:g}  "
    return Text(text) + Text(_scale(effect, low, high))


def _scale(effect: float, low: float, high: float) -> str:
    """Draw an interval around zero: `|` is zero, `o` the effect."""
    widest = max(abs(low), abs(high), 1e-9)

    def place(value: float) -> int:
        return round((value / widest + 1) / 2 * (SCALE_WIDTH - 1))

    line = ["-" if place(low) <= n <= place(high) else " " for n in range(SCALE_WIDTH)]
    line[place(0.0)] = "|"
    line[place(effect)] = "o"
    return "".join(line)


def _waiting(status: Status) -> str:
    progressing = status.condition(ConditionType.PROGRESSING)
    ready = status.condition(ConditionType.READY)
    condition = progressing or ready
    return condition.message if condition else "the controller to look"


def _requests(tally: Mapping[str, Any]) -> Text:
    if not tally:
        return Text("no requests yet", style="dim")
    failed = tally["failed"]
    text = Text(f"{tally['sent']:,} requests (flights of month {tally['month']}), ")
    text.append(f"{failed} failed because of Fairlead", style="bold red" if failed else "green")
    return text.append(f", {tally['failed_by_model']} because the model raised")


def _event(event: Mapping[str, Any]) -> Text:
    style = "red" if event["type"] == "Warning" else "dim"
    return Text(f"{event['at'][11:19]} {event['reason']}: {event['message']}", style=style)

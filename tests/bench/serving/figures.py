"""Sums the measured runs up, and says what the goals make of them; the same from a file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from running import Measured

Cell = tuple[int, int]
BASE, SLOW = "plain", "mlflow"
OWN = "fairlead"
GOALS: Mapping[str, Mapping[str, Mapping[Cell, float]]] = {
    "fairlead": {
        "m1": {(1, 1): 1.4, (1, 16): 5, (1, 64): 11, (100, 1): 1.9},
        "m2": {(1, 1): 1.1, (1, 16): 7, (1, 64): 25, (100, 1): 1.1},
        "m3": {(1, 1): 1.5, (1, 16): 6, (1, 64): 12, (100, 1): 1.5},
    },
    "fairlead-compiled": {
        "m1": {(1, 1): 5, (1, 16): 12, (1, 64): 16, (100, 1): 4.5},
        "m2": {(1, 1): 12, (1, 16): 40, (1, 64): 100, (100, 1): 10},
        "m3": {(1, 1): 1.7, (1, 16): 6, (1, 64): 12, (100, 1): 1.7},
    },
}
LEAST_X = 1.0
LEAST_X_OF_SLOW: Mapping[str, float] = {"m3": 10.0}
LEAST_X_OF_SLOW_ELSE = 2.0
OWN_COST: Mapping[Cell, float] = {(1, 1): 0.12, (1, 16): 0.06}
P99_CELL, MOST_P99 = (1, 64), 0.1
MOST_MEMORY, MOST_MEMORY_OF_SLOW, MOST_START, MOST_IDLE = 1.05, 0.5, 1.1, 0.01
QUIET_OTHERS, QUIET_SPREAD = 0.1, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The medians of one cell.

    Attributes:
        rate: Requests answered in a second.
        cpu: Processor seconds per request.
        p50: Milliseconds within which half of the answers came.
        p99: Milliseconds within which 99 of 100 came.
        others: How many processors everybody else used meanwhile.
        x: Requests per processor second against the baseline in the same rounds; None without it.
        spread: How far the kept rounds lie apart, as a share: x, or the processor time without it.
    """

    rate: float
    cpu: float
    p50: float
    p99: float
    others: float
    x: float | None
    spread: float


@dataclass(slots=True, kw_only=True)
class Figures:
    """All that was measured of one server with one model.

    Attributes:
        starts: Seconds from the start to the first prediction.
        idle: Processors used while nobody asks.
        rss: Resident set of all its processes in MiB, after the load.
        pss: The same, with what they share counted once.
        cells: The medians by rows and connections.
        failed: Why there are no figures, or none to trust.
    """

    starts: list[float] = field(default_factory=list)
    idle: float = 0.0
    rss: float = 0.0
    pss: float = 0.0
    cells: dict[Cell, Summary] = field(default_factory=dict)
    failed: str = ""

    @property
    def start(self) -> float:
        """The median of the starts."""
        return median(self.starts)


Found = Mapping[str, Mapping[str, Figures]]
"""Figures by model and server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """How a server was started, in words, and the versions it ran on."""

    words: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run.

    Attributes:
        date: When, as YYYY-MM-DD.
        command: How it was started.
        machine: What it ran on, by kind of thing.
        rounds: How often each server met each cell.
        kept: How many of those rounds count.
        seconds: Of load, in each cell and round.
        abouts: The servers by name.
        found: What was measured.
    """

    date: str
    command: str
    machine: Mapping[str, str]
    rounds: int
    kept: int
    seconds: int
    abouts: Mapping[str, About]
    found: Found

    def as_document(self) -> dict[str, Any]:
        """Give what JSON has words for, with four digits of each figure."""
        document = asdict(self)
        for peers in document["found"].values():
            for figures in peers.values():
                figures["cells"] = {
                    f"{rows}x{connections}": summary
                    for (rows, connections), summary in figures["cells"].items()
                }
        rounded: dict[str, Any] = _rounded(document)
        return rounded

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Report":
        """Read what `as_document` wrote."""
        abouts = {name: About(**about) for name, about in document["abouts"].items()}
        found = {
            model: {peer: _figures_of(figures) for peer, figures in peers.items()}
            for model, peers in document["found"].items()
        }
        return cls(**{**document, "abouts": abouts, "found": found})


def _figures_of(document: Mapping[str, Any]) -> Figures:
    cells = {cell_of(name): Summary(**summary) for name, summary in document["cells"].items()}
    return Figures(**{**document, "cells": cells})


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def cell_of(name: str) -> Cell:
    """Read ROWSxCONNECTIONS.

    Raises:
        ValueError: It is nothing of that kind.
    """
    rows, connections = name.split("x")
    return int(rows), int(connections)


def summarise(runs: Sequence[Measured], base: Sequence[Measured] | None, kept: int) -> Summary:
    """Give the medians of the rounds in which everybody else did least.

    x is taken round by round, of runs some seconds apart: what slows the machine for longer than
    a round slows both, where medians of each on its own would come from different moments.

    Args:
        runs: One run for each round.
        base: The baseline's runs in the same rounds, if it has any.
        kept: How many rounds count.
    """
    pairs = list(zip(runs, base or runs, strict=True))
    pairs.sort(key=lambda pair: max(one.others for one in pair))
    quiet = [run for run, _ in pairs[:kept]]
    times = [run.cpu for run in quiet]
    ratios = [before.cpu / run.cpu for run, before in pairs[:kept]]
    compared = ratios if base and base is not runs else times
    return Summary(
        rate=median(run.rate for run in quiet),
        cpu=median(times),
        p50=median(run.p50 for run in quiet),
        p99=median(run.p99 for run in quiet),
        others=median(run.others for run in quiet),
        x=median(ratios) if base else None,
        spread=(max(compared) - min(compared)) / median(compared),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One figure beside its goal.

    Attributes:
        model: Of the bench.
        peer: One of our own servers.
        what: What was measured.
        found: How much it was.
        wanted: At least, or at most.
        at_most: Which of the two.
    """

    model: str
    peer: str
    what: str
    found: float
    wanted: float
    at_most: bool = True

    @property
    def is_met(self) -> bool:
        """Whether the goal is met."""
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted


def judge(found: Found) -> list[Judgement]:
    """Compare our own servers' figures with the goals, where there is a baseline."""
    return [
        judgement
        for model, peers in found.items()
        for peer, figures in peers.items()
        if is_there(peers, BASE) and peer.startswith(OWN) and is_there(peers, peer)
        for judgement in (
            *_judge_cells(model, peer, figures, peers),
            *_judge_totals(model, peer, figures, peers),
        )
    ]


def is_there(peers: Mapping[str, Figures], name: str) -> bool:
    """Whether a server has figures to trust."""
    return name in peers and not peers[name].failed


def _judge_cells(
    model: str, peer: str, figures: Figures, peers: Mapping[str, Figures]
) -> Iterator[Judgement]:
    goals = GOALS.get(peer, {}).get(model, {})
    for cell, summary in figures.cells.items():
        if summary.x is not None:
            wanted = max(LEAST_X, goals.get(cell, LEAST_X))
            what = f"x, {tell_cell(cell)}"
            yield Judgement(
                model=model, peer=peer, what=what, found=summary.x, wanted=wanted, at_most=False
            )
    if is_there(peers, SLOW):
        wanted = LEAST_X_OF_SLOW.get(model, LEAST_X_OF_SLOW_ELSE)
        least = min(peers[SLOW].cells[cell].cpu / one.cpu for cell, one in figures.cells.items())
        what = f"least x of {SLOW}"
        yield Judgement(
            model=model, peer=peer, what=what, found=least, wanted=wanted, at_most=False
        )


def _judge_totals(
    model: str, peer: str, figures: Figures, peers: Mapping[str, Figures]
) -> Iterator[Judgement]:
    """Compare what belongs to no cell, and what only one cell shows."""

    def at_most(what: str, found: float, wanted: float) -> Judgement:
        return Judgement(model=model, peer=peer, what=what, found=found, wanted=wanted)

    base = peers[BASE]
    if P99_CELL in figures.cells and model in GOALS.get(peer, {}):
        p99 = figures.cells[P99_CELL].p99 / base.cells[P99_CELL].p99
        yield at_most(f"p99 of {BASE}'s, {tell_cell(P99_CELL)}", p99, MOST_P99)
    yield at_most(f"memory of {BASE}'s", figures.rss / base.rss, MOST_MEMORY)
    if is_there(peers, SLOW):
        yield at_most(f"memory of {SLOW}'s", figures.rss / peers[SLOW].rss, MOST_MEMORY_OF_SLOW)
    yield at_most(f"cold start of {BASE}'s", figures.start / base.start, MOST_START)
    yield at_most("idle, processors", figures.idle, MOST_IDLE)
    if model == "m0":
        for cell, most in OWN_COST.items():
            if cell in figures.cells:
                what = f"own cost in ms, {tell_cell(cell)}"
                yield at_most(what, figures.cells[cell].cpu * 1e3, most)


def tell_cell(cell: Cell) -> str:
    """Name a cell for a reader."""
    rows, connections = cell
    return f"{rows} row{'s' if rows > 1 else ''}, c={connections}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How disturbed a run was: over all cells, the median and the worst.

    Attributes:
        others: How many processors everybody else used in the rounds that count.
        most_others: The same in the worst cell.
        spread: How far the rounds of a cell lie apart, as a share.
        most_spread: The same in the worst cell.
    """

    others: float
    most_others: float
    spread: float
    most_spread: float

    @property
    def is_quiet(self) -> bool:
        """Whether figures of this run may be quoted."""
        return self.others <= QUIET_OTHERS and self.spread <= QUIET_SPREAD


def noise_of(found: Found) -> Noise | None:
    """Say how disturbed a run was; None if nothing was measured."""
    summaries = [
        summary
        for peers in found.values()
        for figures in peers.values()
        if not figures.failed
        for summary in figures.cells.values()
    ]
    if not summaries:
        return None
    others = [summary.others for summary in summaries]
    spreads = [summary.spread for summary in summaries]
    return Noise(
        others=median(others),
        most_others=max(others),
        spread=median(spreads),
        most_spread=max(spreads),
    )

"""Sums the measured runs up: tables, a plot, and what the goals say of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from running import Measured

Cell = tuple[int, int]
BASE = "plain"
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
OWN_COST = {(1, 1): 0.12e-3, (1, 16): 0.06e-3}
P99_CELL, MOST_P99 = (1, 64), 0.1
MOST_MEMORY, MOST_START, MOST_IDLE = 1.05, 1.1, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The medians of one cell; `spread` is how far processor times lie apart, as a share."""

    rate: float
    cpu: float
    p50: float
    p99: float
    others: float
    spread: float


@dataclass(slots=True)
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

    def as_document(self) -> dict[str, Any]:
        """Give what JSON has words for."""
        document = asdict(self)
        document["cells"] = {
            f"{rows}x{connections}": asdict(summary)
            for (rows, connections), summary in self.cells.items()
        }
        return document


def summarise(runs: Sequence[Measured], kept: int) -> Summary:
    """Give the medians of the runs in which everybody else did least."""
    quiet = sorted(runs, key=lambda run: run.others)[:kept]
    times = [run.cpu for run in quiet]
    return Summary(
        rate=median(run.rate for run in quiet),
        cpu=median(times),
        p50=median(run.p50 for run in quiet),
        p99=median(run.p99 for run in quiet),
        others=median(run.others for run in quiet),
        spread=(max(times) - min(times)) / median(times),
    )


def tell(console: Console, found: Mapping[str, Mapping[str, Figures]]) -> None:
    """Print a table for each model, and the goals that are missed."""
    for model, peers in found.items():
        console.print(_table(model, peers))
    missed = [line for model, peers in found.items() for line in _missed(model, peers)]
    noise = [
        (summary.others, summary.spread)
        for peers in found.values()
        for figures in peers.values()
        for summary in figures.cells.values()
    ]
    if noise:
        others, spreads = zip(*noise, strict=True)
        console.print(
            f"Noise: others used {median(others):.2f} processors (median; at most "
            f"{max(others):.2f}); processor times of a cell lie {median(spreads):.0%} apart."
        )
    console.print("\n".join(["Missed:", *missed]) if missed else "Every goal is met.")


def _table(model: str, peers: Mapping[str, Figures]) -> Table:
    table = Table(title=f"{model}: requests/s (p50/p99 ms), CPU ms a request, x of {BASE}")
    cells = list(dict.fromkeys(cell for figures in peers.values() for cell in figures.cells))
    for heading in ("peer", *(f"{rows} rows c={many}" for rows, many in cells)):
        table.add_column(heading)
    for heading in ("RSS/PSS MiB", "cold s", "idle"):
        table.add_column(heading)
    base = peers.get(BASE, Figures())
    for peer, figures in peers.items():
        if figures.failed:
            table.add_row(peer, f"FAILED: {figures.failed}")
            continue
        row = [_tell_cell(figures.cells[cell], base.cells.get(cell)) for cell in cells]
        sizes = f"{figures.rss:.0f}/{figures.pss:.0f}"
        table.add_row(peer, *row, sizes, f"{median(figures.starts):.2f}", f"{figures.idle:.3f}")
    return table


def _tell_cell(summary: Summary, base: Summary | None) -> str:
    times = f" [bold]{base.cpu / summary.cpu:.2f}[/bold]" if base else ""
    return (
        f"{summary.rate:.0f} ({summary.p50:.2f}/{summary.p99:.1f}) {summary.cpu * 1e3:.3f}{times}"
    )


def _missed(model: str, peers: Mapping[str, Figures]) -> list[str]:
    base = peers.get(BASE)
    if base is None or base.failed:
        return [f"{model}: there is no {BASE} to compare with"]
    return [
        f"{model} {peer} {line}"
        for peer, figures in peers.items()
        if peer.startswith(OWN) and not figures.failed
        for line in (
            *_missed_cells(GOALS.get(peer, {}).get(model, {}), figures, base),
            *_missed_totals(model, figures, base),
        )
    ]


def _missed_cells(goals: Mapping[Cell, float], figures: Figures, base: Figures) -> list[str]:
    missed = []
    for cell, goal in goals.items():
        if cell in figures.cells and cell in base.cells:
            x = base.cells[cell].cpu / figures.cells[cell].cpu
            if x < goal:
                missed.append(f"{cell[0]} rows c={cell[1]}: {x:.2f} of {goal:g}")
    if P99_CELL in figures.cells and goals:
        ratio = figures.cells[P99_CELL].p99 / base.cells[P99_CELL].p99
        if ratio > MOST_P99:
            missed.append(f"p99 at c=64: {ratio:.2f} of {MOST_P99}")
    return missed


def _missed_totals(model: str, figures: Figures, base: Figures) -> list[str]:
    """Compare what belongs to no cell."""
    start = median(figures.starts) / median(base.starts)
    missed = []
    if figures.rss > MOST_MEMORY * base.rss:
        missed.append(f"memory: {figures.rss / base.rss:.2f} of {MOST_MEMORY}")
    if start > MOST_START:
        missed.append(f"cold start: {start:.2f} of {MOST_START}")
    if figures.idle > MOST_IDLE:
        missed.append(f"idle: {figures.idle:.3f} of {MOST_IDLE} processors")
    if model == "m0":
        for cell, most in OWN_COST.items():
            if cell in figures.cells and figures.cells[cell].cpu > most:
                cost = figures.cells[cell].cpu * 1e3
                missed.append(f"own cost at c={cell[1]}: {cost:.3f} of {most * 1e3:g} ms")
    return missed


def plot(found: Mapping[str, Mapping[str, Figures]], path: Path) -> None:
    """Draw x by peer, a panel for each model."""
    # Slow to import, and only this needs it.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(
        1, len(found), figsize=(4.5 * len(found), 4), squeeze=False, layout="constrained"
    )
    for panel, (model, peers) in zip(axes[0], found.items(), strict=True):
        _plot_model(panel, model, peers)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _plot_model(panel: Any, model: str, peers: Mapping[str, Figures]) -> None:
    base = peers[BASE]
    shown = {peer: figures for peer, figures in peers.items() if figures.cells}
    width = 0.8 / max(len(shown), 1)
    for number, (peer, figures) in enumerate(shown.items()):
        at = [index + number * width for index in range(len(base.cells))]
        values = [base.cells[cell].cpu / figures.cells[cell].cpu for cell in base.cells]
        panel.bar(at, values, width, label=peer)
    panel.set_yscale("log")
    panel.axhline(1.0, color="black", linewidth=0.8)
    panel.set_title(model)
    panel.set_ylabel(f"requests per CPU-second, x of {BASE}")
    labels = [f"{rows} rows\nc={connections}" for rows, connections in base.cells]
    panel.set_xticks([index + 0.4 - width / 2 for index in range(len(labels))], labels)
    panel.legend(fontsize="small")

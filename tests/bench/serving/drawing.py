"""Draws a run: x of every server in every cell, a panel for each model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import BASE, GOALS, Figures, Report, is_there, tell_cell

# The palette of Okabe and Ito, which the colour-blind can tell apart; shapes say the same again.
LOOKS = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#D55E00", "D"), ("#CC79A7", "v"))
COLUMNS = 2


def draw(report: Report, path: Path) -> None:
    """Draw into an SVG file, whose text stays text and which is the same for the same figures."""
    # Slow to import, and only this needs it.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fairlead", "font.size": 9})
    from matplotlib import pyplot as plt  # noqa: PLC0415

    models = {model: peers for model, peers in report.found.items() if is_there(peers, BASE)}
    columns = min(COLUMNS, max(len(models), 1))
    rows = -(-max(len(models), 1) // columns)
    most = max((len(peers) for peers in models.values()), default=1)
    size = (5.5 * columns, rows * (1.2 + 0.25 * most))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in axes.flat[len(models) :]:
        panel.axis("off")
    for panel, (model, peers) in zip(axes.flat, models.items(), strict=False):
        _draw_model(panel, model, peers)
    if models:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    title = f"Serving beside other servers, {report.date}"
    figure.savefig(path, metadata={"Date": None, "Title": title})
    plt.close(figure)


def _draw_model(panel: Any, model: str, peers: Mapping[str, Figures]) -> None:
    shown = [peer for peer in peers if is_there(peers, peer)]
    cells = list(peers[BASE].cells)
    panel.axvline(1.0, color="black", linewidth=0.8)
    for cell, (colour, shape) in zip(cells, LOOKS, strict=False):
        found = [peers[peer].cells[cell].x for peer in shown]
        goals = [GOALS.get(peer, {}).get(model, {}).get(cell) for peer in shown]
        label = tell_cell(cell)
        panel.scatter(*_places(found), c=colour, marker=shape, s=28, label=label)
        panel.scatter(*_places(goals), c=colour, marker="|", s=90)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_yticks(range(len(shown)), shown)
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.3)
    panel.set_title(model)
    panel.set_xlabel(f"requests per processor second, x of {BASE} (bars: goals)")


def _places(values: Sequence[float | None]) -> tuple[list[float], list[int]]:
    """Give the values that there are, and in which line each stands."""
    there = [(value, place) for place, value in enumerate(values) if value is not None]
    return [value for value, _ in there], [place for _, place in there]

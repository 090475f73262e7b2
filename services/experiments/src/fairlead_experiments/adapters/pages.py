"""Draws a report: Matplotlib's SVG inside one page of HTML that needs nothing from elsewhere.

Plots take their colours from the page (CSS variables), so that they are readable on a light and on a
dark screen. Each has a title, a description and a table with its numbers.
"""

import io
import re
import threading
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from fairlead_experiments.domain.report import Line, Plot, Report

_KEPT = 8
_SIZE = (5.2, 2.9)  # inches; scaled to the page's width, so small that text stays large on a phone
_PLACE = (0.15, 0.17, 0.82, 0.68)  # of the axes; to let Matplotlib find it takes twice the time
# Matplotlib knows no variables: these colours occur nowhere else and are replaced after drawing.
_INK, _GRID = "#00000a", "#00000b"
_SERIES = ("#00001a", "#00001b", "#00001c", "#00001d")
_VARIABLES = {_INK: "--ink", _GRID: "--grid"} | {
    colour: f"--series-{place}" for place, colour in enumerate(_SERIES)
}
_OF_ARM = {"stable": 0, "candidate": 1}
_DASHES = ("-", "--", "-.", ":")
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_PAGES = Environment(
    loader=PackageLoader("fairlead_experiments.adapters", "templates"),
    autoescape=select_autoescape(default=True),
    trim_blocks=True,
    lstrip_blocks=True,
)


class Pages:
    """Draws reports one at a time and keeps the last few: who asks again need not wait again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._render = lru_cache(maxsize=_KEPT)(_render)

    def render(self, report: Report) -> str:
        """Answer the page of a report."""
        with self._lock:
            return self._render(report)


def _render(report: Report) -> str:
    drawings = {plot.key: Markup(_draw(plot, report.unit)) for plot in report.plots}  # noqa: S704 -- text is escaped by Matplotlib
    return _PAGES.get_template("report.html").render(report=report, drawings=drawings)


def _draw(plot: Plot, unit: str) -> str:
    # Half a second and 70 MB that only a service that draws pays.
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with rc_context({**_STYLE, "svg.hashsalt": plot.key}):
        figure = Figure(figsize=_SIZE, facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_axes(_PLACE, facecolor="none")
        for place, line in enumerate(plot.lines):
            _add(axes, plot, line, _OF_ARM.get(line.name, place % len(_SERIES)))
        _dress(axes, plot, unit)
        drawn = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", metadata=nothing)
    return _inline(drawn.getvalue(), plot)


def _add(axes: Any, plot: Plot, line: Line, place: int) -> None:
    colour, gap = _SERIES[place], float("nan")
    values = [gap if value is None else value for value in line.values]
    marker = "o" if len(values) == 1 else ""
    style = {"color": colour, "linestyle": _DASHES[place], "marker": marker, "label": line.name}
    if plot.is_step:
        axes.step(plot.times, values, where="post", **style)
        return
    axes.plot(plot.times, values, **style)
    if line.low and line.high:
        low, high = ([gap if v is None else v for v in edge] for edge in (line.low, line.high))
        axes.fill_between(
            plot.times, low, high, color=colour, alpha=0.2, linewidth=0, label="confidence sequence"
        )


def _dress(axes: Any, plot: Plot, unit: str) -> None:
    if plot.is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if plot.level is not None:
        value, words = plot.level
        axes.axhline(value, color=_INK, linewidth=1, linestyle=(0, (2, 2)), label=words)
    axes.set_xlabel(f"{unit} since the start")
    axes.set_ylabel(plot.axis)
    axes.grid(visible=True, linewidth=0.5)
    axes.set_axisbelow(True)
    for line in plot.lines:
        _set_limits(axes, line, plot.level)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncol": 3, "borderaxespad": 0.2}
        axes.legend(frameon=False, fontsize=9, **above)


def _set_limits(axes: Any, line: Line, level: tuple[float, str] | None) -> None:
    """Let the first looks' band reach beyond the plot: it is so wide that nothing else is seen."""
    later = slice(len(line.low) // 5, None)
    edges = [value for value in (*line.low[later], *line.high[later]) if value is not None]
    if edges:
        edges += [level[0]] if level else []
        margin = 0.05 * (max(edges) - min(edges)) or 1.0
        axes.set_ylim(min(edges) - margin, max(edges) + margin)


def _inline(drawn: str, plot: Plot) -> str:
    """Make a drawing a part of the page: ids of its own, the page's colours, words for a reader."""
    svg = drawn[drawn.index("<svg") :]
    svg = re.sub(r'(?<= id=")|(?<=href="#)|(?<=url\(#)', f"{plot.key}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r' (?:width|height)="[0-9.]+pt"', "", svg, count=2)
    label = f'<svg role="img" aria-labelledby="{plot.key}-title {plot.key}-caption"'
    return svg.replace("<svg", label, 1)

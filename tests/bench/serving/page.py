"""Writes a run as a page: the same tables for the documentation and for the terminal."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from figures import (
    BASE,
    SLOW,
    Cell,
    Figures,
    Judgement,
    Noise,
    Report,
    Summary,
    judge,
    noise_of,
    tell_cell,
)

MODELS: Mapping[str, str] = {
    "m0": "answers a constant: what is left is the price of serving",
    "m1": "scaler and logistic regression on 30 numbers, sent as a tensor",
    "m2": "scaler, one-hot encoder and 100 boosted trees on 8 columns, half of them text",
    "m3": "XGBoost, 300 trees on 20 named numbers",
}
FULL_ROUNDS = 5
PICTURE = "../images/benchmarks.svg"
HEAD = """\
# Serving beside other servers

`make bench` wrote this page and [benchmarks.json](benchmarks.json), from which a test writes it again.
[Why serving is fast](../explanation/serving.md) explains the figures; [the how-to](../how-to/load-test.md#compare-serving-with-other-servers) says how to measure them.

"""
HOW_TO_READ = """\
Every server gets the same rows on one connection or more, on one processor; the load comes from another.
In a round each server has its turn in each cell (rows in a request, connections), while the others are stopped.
Ray Serve and BentoML's batching do not bear that: each of them meets `plain` alone.
Before and after, its answers are compared with the model's own predictions; a server that answers wrongly, fails a request or dies has no figures but the reason.

- **x** is requests per processor second against `plain` in the same rounds, so that what slows the machine slows both: read this first.
- Processor time is that of all the server's processes. Requests per second and latencies suffer more from what else the machine does.
- Memory is the resident set of all its processes after the load; PSS counts once what they share.
- A cold start ends with the first prediction; idle is while nobody asks.
"""
AGAIN = """\
## Run it again

Figures of two machines do not compare; x does, roughly.

```sh
{command}
```
"""


def page_of(report: Report) -> str:
    """Write the page of the documentation, in Markdown."""
    machine = ", ".join(f"{kind} {what}" for kind, what in report.machine.items())
    parts = [
        HEAD + f"Measured on {report.date} ({machine}).\n{_tell_rounds(report)}\n",
        f"![x of every server in every cell, one panel for each model]({PICTURE})\n",
        HOW_TO_READ,
        summary_of(report),
        "## How each server was run\n",
        f"All have {_tell_versions(_common(report))}, unless their row says otherwise.\n",
        table(["server", "started as", "versions"], _servers(report)),
        AGAIN.format(command=report.command),
    ]
    return "\n".join(parts)


def summary_of(report: Report) -> str:
    """Write the tables, the goals and the noise, in Markdown."""
    parts = [_model(model, peers) for model, peers in report.found.items()]
    return "\n".join(
        [*parts, _goals(judge(report.found)), _noise(noise_of(report.found), report.kept)]
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    filled = ([*line, *[""] * (len(headings) - len(line))] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in filled)


def _tell_rounds(report: Report) -> str:
    kind = "a full run" if report.rounds >= FULL_ROUNDS else "a short run, to be quoted by nobody"
    return (
        f"It was {kind}: {report.kept} of {report.rounds} rounds count, the quietest, "
        f"each with {report.seconds} s of load in every cell."
    )


def _model(model: str, peers: Mapping[str, Figures]) -> str:
    cells = list(dict.fromkeys(cell for figures in peers.values() for cell in figures.cells))
    names = [tell_cell(cell) for cell in cells]
    totals = ["RSS (PSS), MiB", "cold start, s", "idle, processors"]
    shown = {peer: figures for peer, figures in peers.items() if not figures.failed}
    x = [
        [f"`{peer}`", *(_missing(figures) if figures.failed else _tell_x(cells, figures))]
        for peer, figures in peers.items()
    ]
    costs = [[f"`{peer}`", *_tell_costs(cells, figures)] for peer, figures in shown.items()]
    return "\n".join(
        [
            f"## {model}: {MODELS[model]}\n",
            f"x of `{BASE}`:\n",
            table(["server", *names, *totals], x),
            "Requests per second, processor ms per request, p50 and p99 in ms:\n",
            table(["server", *names], costs),
        ]
    )


def _missing(figures: Figures) -> list[str]:
    return [f"missing: {_in_line(figures.failed)}"]


def _tell_x(cells: Sequence[Cell], figures: Figures) -> Iterator[str]:
    for cell in cells:
        x = figures.cells[cell].x if cell in figures.cells else None
        yield "-" if x is None else f"**{x:.2f}**"
    yield f"{figures.rss:.0f} ({figures.pss:.0f})"
    yield f"{figures.start:.2f}"
    yield f"{figures.idle:.3f}"


def _tell_costs(cells: Sequence[Cell], figures: Figures) -> Iterator[str]:
    for cell in cells:
        yield _tell_cost(figures.cells[cell]) if cell in figures.cells else "-"


def _tell_cost(summary: Summary) -> str:
    cpu = f"{summary.cpu * 1e3:.3g} ms"
    return f"{summary.rate:.0f}/s, {cpu}, {summary.p50:.2f} / {summary.p99:.1f}"


def _goals(judgements: Sequence[Judgement]) -> str:
    if not judgements:
        return f"## Goals\n\nThere is no `{BASE}` or none of our own servers to compare.\n"
    met = (
        f"{sum(one.is_met for one in judgements)} of {len(judgements)} are met. Each figure has "
        f"its goal in brackets; what misses it is bold. `{SLOW}` is `mlflow models serve`.\n"
    )
    at_most = [one for one in judgements if one.at_most]
    at_least = [one for one in judgements if not one.at_most]
    return "\n".join(
        [
            "## Goals\n",
            met,
            "At least:\n",
            _goal_table(at_least),
            "At most:\n",
            _goal_table(at_most),
        ]
    )


def _goal_table(judgements: Sequence[Judgement]) -> str:
    columns = list(dict.fromkeys(one.what for one in judgements))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for one in judgements:
        text = f"{one.found:.3g} ({one.wanted:g})"
        rows.setdefault((one.model, one.peer), {})[one.what] = text if one.is_met else f"**{text}**"
    return table(
        ["model", "server", *columns],
        [
            [model, f"`{peer}`", *(row.get(column, "") for column in columns)]
            for (model, peer), row in rows.items()
        ],
    )


def _noise(noise: Noise | None, kept: int) -> str:
    if noise is None:
        return "## Noise\n\nNothing was measured.\n"
    verdict = "The run was quiet." if noise.is_quiet else "The run was noisy: quote none of it."
    others = (
        f"In the rounds that count everybody else used {noise.others:.2f} processors "
        f"(median of all cells; {noise.most_others:.2f} in the worst)."
    )
    spread = (
        f"The rounds of a cell lie {noise.spread:.0%} apart ({noise.most_spread:.0%} in the worst): "
        "smaller differences mean nothing."
    )
    if kept == 1:
        spread = "One round counts, so nothing is known of how far rounds lie apart."
    return f"## Noise\n\n{verdict}\n{others}\n{spread}\n"


def _servers(report: Report) -> list[list[str]]:
    common = _common(report).items()
    return [
        [f"`{peer}`", about.words, _tell_versions(dict(about.versions.items() - common))]
        for peer, about in report.abouts.items()
    ]


def _common(report: Report) -> Mapping[str, str]:
    """Give the versions that more than half of the servers share."""
    counts = Counter(pair for about in report.abouts.values() for pair in about.versions.items())
    return dict(pair for pair, count in counts.items() if 2 * count > len(report.abouts))


def _tell_versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _in_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/").replace("<", "&lt;").replace("`", "'")

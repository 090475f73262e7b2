"""The report of a rollout: what was seen, drawn, for everybody, with nothing from elsewhere."""

import itertools
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead_experiments.adapters.pages import Pages
from fairlead_experiments.app.validation import read_decision, read_rollout
from fairlead_experiments.domain.report import Plot, Report, build_report

Build = Callable[..., dict[str, Any]]
START = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = "<script>alert(1)</script> & $x$ </svg>"
NUMBERS = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3)
JSON = st.recursive(
    NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def analysis(units: int, **changed: Any) -> dict[str, Any]:
    """Build the numbers of a look."""
    arm = {"requests": 2 * units, "units": units, "errors": units // 10, "slow": units // 20}
    judge = {"state": "holding", "evalue": 0.5, "threshold": 100.0, "reason": "within the margin"}
    return {
        "verdict": "holding",
        "arms": {"stable": arm, "candidate": {**arm, "errors": 0}},
        "objective": {
            **judge,
            "outcome": "squared_error",
            "effect": -1 / units,
            "ciLow": -2 / units,
            "ciHigh": 0.1 / units,
            "threshold": 20.0,
        },
        "guardrails": [{**judge, "name": "errors"}, {**judge, "name": "latency", "evalue": 0.0}],
        "srm": {**judge, "threshold": 1000.0, "evalue": None},
        **changed,
    }


def decision(seconds: float, verdict: str, weight: int, seen: Any = None) -> dict[str, Any]:
    """Build a decision."""
    at = START + timedelta(seconds=seconds)
    return {
        "at": at.isoformat().replace("+00:00", "Z"),
        "check": "c",
        "verdict": verdict,
        "reason": "Reason",
        "message": "message",
        "summary": f"Version 4: {verdict} at {weight}.",
        "to": {"state": "running", "step": 0, "weight": weight},
        "thresholds": {},
        "inputs": {"analysis": seen},
    }


def story() -> list[dict[str, Any]]:
    """Build a rollout that is promoted after ten minutes."""
    looks = [decision(n, "hold", 1000, analysis(n)) for n in range(10, 600, 10)]
    ends = [
        decision(600, "promoting", 1000, analysis(600)),
        decision(603, "promoted", 0, analysis(9_999)),
    ]
    return [decision(0, "started", 0), decision(5, "step", 1000), *looks, *ends]


def report(record: dict[str, Any], decisions: list[dict[str, Any]]) -> Report:
    """Build the report of decisions."""
    kept = [read_decision("r1", f"d{n}", d) for n, d in enumerate(decisions)]
    return build_report(read_rollout("r1", record), kept)


class Page(HTMLParser):
    """Reads a page: its elements with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.words += data

    def values(self, *names: str) -> list[str]:
        """Return the values of attributes."""
        return [a[n] or "" for _, a in self.elements for n in names if n in a]


@pytest.fixture(scope="module")
def pages() -> Pages:
    """What draws."""
    return Pages()


@pytest.fixture
def page(client: Any, record: Build) -> str:
    """The page of a promoted rollout, by the API."""
    client.put("/v1/rollouts/r1", json=record(state="promoted", reason=HOSTILE))
    for number, sent in enumerate(story()):
        client.put(f"/v1/rollouts/r1/decisions/d{number}", json=sent)
    answer = client.get("/v1/rollouts/r1/report")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    text: str = answer.text
    return text


def test_the_page_asks_nobody_for_anything_and_runs_nothing(page: str) -> None:
    """No address of another host is loaded, no script is there, and the page's own policy says so."""
    found = Page(page)
    assert all(value.startswith("#") for value in found.values("href", "xlink:href", "src"))
    assert re.findall(r"url\((?!#)", page) == []
    assert "@import" not in page
    tags = {tag for tag, _ in found.elements}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form"})
    assert not any(name.startswith("on") for _, a in found.elements for name in a)
    policy = next(a["content"] for _, a in found.elements if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert HOSTILE in found.words


def test_the_page_can_be_read_without_seeing_it(page: str) -> None:
    """A language, a title, headings in order; each drawing has a name, words and a table."""
    found = Page(page)
    elements = found.elements
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in elements
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    drawings = [a for tag, a in elements if tag == "svg"]
    assert len(drawings) == 6
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert set((drawing["aria-labelledby"] or "").split()) <= set(ids)
    tags = [tag for tag, _ in elements]
    assert tags.count("details") == 6
    assert all("scope" in a for tag, a in elements if tag == "th")
    assert tags.count("caption") == tags.count("table")


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, by WCAG 2."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_lines_have_contrast_on_a_light_and_on_a_dark_screen(page: str) -> None:
    """At least 4.5 to 1 for everything that is read."""
    palettes = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    assert len(palettes) == 2
    for palette in palettes:
        colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", palette))
        for name in ("ink", "quiet", "series-0", "series-1", "series-2", "series-3"):
            for ground in ("paper", "raised"):
                light, dark = sorted((luminance(colours[name]), luminance(colours[ground])))[::-1]
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


def plots(found: Report) -> dict[str, Plot]:
    """Return the plots by key."""
    return {plot.key: plot for plot in found.plots}


def test_a_report_shows_what_was_seen_when_it_was_decided(record: Build) -> None:
    """Effect with its band, e-values by their thresholds, weight, units, errors and slow answers."""
    found = report(record(), story())
    shown = plots(found)
    assert list(shown) == ["effect", "evidence", "units", "errors", "slow", "weight"]
    assert shown["effect"].lines[0].high[0] == pytest.approx(0.01)
    assert [line.name for line in shown["evidence"].lines] == [
        "objective",
        "guardrail errors",
        "guardrail latency",
        "split",
    ]
    assert [line.values[0] for line in shown["evidence"].lines] == [0.025, 0.005, 1e-4, None]
    assert shown["errors"].lines[0].values[-1] == pytest.approx(5.0, abs=0.01)
    assert shown["weight"].lines[0].values[:2] == (0.0, 10.0)
    assert (found.unit, shown["units"].times[-1]) == ("minutes", pytest.approx(10.05))
    assert found.looks == 59
    assert [m.verdict for m in found.moments] == ["started", "step", "promoting", "promoted"]
    assert [judge[0] for judge in found.judges][:2] == ["objective", "guardrail errors"]


def test_each_plots_table_holds_each_of_its_points(record: Build) -> None:
    """Whoever cannot see a line reads its numbers: one row for each look, a cell for each column."""
    for plot in report(record(), story()).plots:
        assert len(plot.rows) == len(plot.times)
        assert all(len(row) == 1 + len(plot.columns) for row in plot.rows)
        assert all(len(line.values) == len(plot.times) for line in plot.lines)


def test_a_candidate_without_traffic_has_a_report_without_numbers(
    record: Build, pages: Pages
) -> None:
    """It says why nothing is drawn; without an objective or a guardrail it says that too."""
    broken = report(record(), [decision(0, "started", 0), decision(9, "aborted", 0)])
    assert [plot.key for plot in broken.plots] == ["weight"]
    assert "got no traffic" in pages.render(broken)
    plain = report(record(objective=None, guardrails=None), story())
    assert list(plots(plain)) == ["evidence", "units", "errors", "weight"]
    assert len(plain.missing) == 2
    nothing = report(record(), [])
    assert "got no traffic" in pages.render(nothing)


@given(seen=JSON, part=JSON)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_was_sent_there_is_a_report(record: Build, seen: Any, part: Any) -> None:
    """A decision of another shape is left out of the plots, never a failure."""
    odd = [decision(1, "hold", 1000), decision(2, "hold", 1000)]
    odd[0]["inputs"] = {"analysis": seen, "x": part}
    odd[1]["inputs"] = {"analysis": analysis(10, objective=part, guardrails=seen, arms=part)}
    odd[1]["to"] = {"weight": part}
    found = [*odd, *story()]
    kept = [
        type(read_decision("r1", "d", story()[0]))("d", "r1", n * 10**6, document)
        for n, document in enumerate(found)
    ]
    assert build_report(read_rollout("r1", record()), kept).plots


def test_the_same_decisions_make_the_same_page_and_new_ones_another(
    record: Build, pages: Pages
) -> None:
    """Drawn again elsewhere it is the same, byte for byte."""
    found = report(record(), story())
    assert pages.render(found) == Pages().render(found)
    assert pages.render(report(record(), story()[:-1])) != pages.render(found)


def test_an_unknown_rollout_has_no_report(client: Any) -> None:
    """It is not found, in our error shape."""
    answer = client.get("/v1/rollouts/none/report")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "NOT_FOUND")

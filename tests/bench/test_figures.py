"""What the serving bench makes of the runs: medians, x, judgements, noise, page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from comparing import sittings, turns_of
from drawing import draw
from environments import PINNED, ROOT, SAME
from figures import About, Figures, Judgement, Report, Summary, judge, noise_of, summarise
from page import page_of, summary_of
from peers import OTHERS, PEERS
from running import Measured, ServerFailedError, last_words, values_of

DOCS = ROOT / "docs"
CELL = (1, 16)


def run(cpu: float, others: float = 0.0) -> Measured:
    """A second of load, of which only the processor time matters."""
    return Measured(rate=100.0, cpu=cpu, p50=1.0, p99=2.0, errors=0, others=others)


def measured(x: float = 1.0, **changes: Any) -> Figures:
    """Figures with one cell, as good as the baseline's except for what is changed."""
    summary = Summary(
        rate=100.0,
        cpu=0.001 / x,
        p50=1.0,
        p99=2.0,
        others=0.0,
        x=x,
        spread=changes.pop("spread", 0),
    )
    whole = {"starts": [1.0], "idle": 0.0, "rss": 100.0, "pss": 90.0, "cells": {CELL: summary}}
    return Figures(**{**whole, **changes})


def report(**peers: Figures) -> Report:
    """A run with m1."""
    return Report(
        date="2026-01-02",
        command="make bench",
        machine={"processors": "2 x Fast"},
        rounds=5,
        kept=3,
        seconds=1,
        abouts={peer: About(words="Started.", versions={"numpy": "1"}) for peer in peers},
        found={"m1": peers},
    )


def judged(**peers: Figures) -> dict[str, Judgement]:
    """Judgements on the server `fairlead` with m1, by what they are about."""
    return {one.what: one for one in judge({"m1": peers})}


def test_the_rounds_in_which_somebody_disturbed_do_not_count() -> None:
    """The median is of the quietest rounds, not of all."""
    runs = [run(9.0, others=0.9), run(1.0), run(2.0), run(3.0), run(8.0, others=0.5)]

    assert summarise(runs, None, 3).cpu == 2.0


def test_a_round_in_which_the_baseline_was_disturbed_does_not_count() -> None:
    """A round is quiet when it was so for both of the pair."""
    base = [run(50.0, others=0.9), run(4.0), run(4.0)]
    runs = [run(1.0), run(1.0), run(2.0)]

    assert summarise(runs, base, 1).x == 4.0


def test_x_is_taken_within_a_round() -> None:
    """A machine that is half as fast in one round changes no x."""
    base, runs = [run(4.0), run(8.0), run(4.0)], [run(1.0), run(2.0), run(1.0)]

    found = summarise(runs, base, 3)

    assert (found.x, found.spread) == (4.0, 0.0)


def test_without_a_baseline_there_is_no_x() -> None:
    """The spread is then that of processor times."""
    found = summarise([run(1.0), run(2.0), run(3.0)], None, 3)

    assert (found.x, found.spread) == (None, 1.0)


def test_the_baselines_own_spread_is_that_of_its_times() -> None:
    """Beside itself it would never vary."""
    runs = [run(1.0), run(2.0), run(3.0)]

    found = summarise(runs, runs, 3)

    assert (found.x, found.spread) == (1.0, 1.0)


def test_figures_that_reach_their_goals_are_met() -> None:
    """At least five times plain at c=16, twice mlflow, and no more memory, time or idling."""
    found = judged(plain=measured(), mlflow=measured(0.5, rss=300.0), fairlead=measured(5.0))

    assert found["x, 1 row, c=16"].wanted == 5
    assert all(one.is_met for one in found.values())


@pytest.mark.parametrize(
    ("what", "figures"),
    [
        ("x, 1 row, c=16", measured(4.9)),
        ("least x of mlflow", measured(0.9)),
        ("memory of plain's", measured(5.0, rss=106.0)),
        ("memory of mlflow's", measured(5.0, rss=151.0)),
        ("cold start of plain's", measured(5.0, starts=[1.0, 1.2, 1.2])),
        ("idle, processors", measured(5.0, idle=0.02)),
    ],
)
def test_a_figure_that_misses_its_goal_is_told(what: str, figures: Figures) -> None:
    """Each goal can be missed alone."""
    found = judged(plain=measured(), mlflow=measured(0.5, rss=300.0), fairlead=figures)

    assert not found[what].is_met


def test_a_model_without_goals_of_its_own_must_still_beat_plain() -> None:
    """In every cell x is at least 1."""
    found = judge({"m0": {"plain": measured(), "fairlead": measured(0.9)}})

    assert [(one.wanted, one.is_met) for one in found if one.what.startswith("x,")] == [(1, False)]


def test_ten_times_mlflow_is_wanted_with_xgboost() -> None:
    """Its own goal stands against that of the others."""
    peers = {"plain": measured(), "mlflow": measured(0.5), "fairlead": measured(4.0)}

    assert [one.wanted for one in judge({"m3": peers}) if one.what == "least x of mlflow"] == [10]


def test_a_tenth_of_plains_p99_is_wanted_at_64_connections() -> None:
    """The cell with the longest queue has a goal for its latency."""
    slow = replace(measured().cells[CELL], p99=100.0)
    fast = replace(slow, p99=11.0, x=12.0)
    peers = {"plain": measured(cells={(1, 64): slow}), "fairlead": measured(cells={(1, 64): fast})}

    found = judged(**peers)["p99 of plain's, 1 row, c=64"]

    assert (round(found.found, 2), found.is_met) == (0.11, False)


def test_what_serving_itself_costs_is_judged_with_the_constant_model() -> None:
    """At 16 connections 0.06 ms of processor time are allowed."""
    peers = {"plain": measured(), "fairlead": measured(10.0)}

    found = {one.what: one for one in judge({"m0": peers})}["own cost in ms, 1 row, c=16"]

    assert (found.found, found.wanted, found.is_met) == (0.1, 0.06, False)


def test_nothing_is_judged_without_a_baseline_to_trust() -> None:
    """A failed baseline is no measure."""
    assert judged(plain=measured(failed="it died"), fairlead=measured(5.0)) == {}


def test_others_are_not_judged() -> None:
    """The goals are our own."""
    assert judged(plain=measured(), kserve=measured(0.1)) == {}


def test_noise_is_that_of_the_servers_with_figures() -> None:
    """The median and the worst of all cells; a failed server has none to count."""
    peers = {
        "plain": measured(spread=0.1),
        "mlflow": measured(spread=0.3),
        "fairlead": measured(spread=0.2),
        "ray": measured(spread=9.0, failed="it died"),
    }

    found = noise_of({"m1": peers})

    assert found
    assert (found.spread, found.most_spread, found.is_quiet) == (0.2, 0.3, False)


def test_a_run_in_which_all_failed_has_no_noise() -> None:
    """Nothing was measured, and the tables say so."""
    failed = Figures(failed="it died")

    assert noise_of({"m1": {"plain": failed}}) is None
    assert "Nothing was measured." in summary_of(report(plain=failed))


def test_a_failed_server_is_a_row_with_the_reason() -> None:
    """No figures of it are shown, and the reason cannot break the table."""
    text = summary_of(report(plain=measured(), ray=measured(7.77, failed="it said\na|b `c`")))

    assert "| `ray` | missing: it said a/b 'c' |" in text
    assert "7.77" not in text


def test_a_missed_goal_is_bold() -> None:
    """The page shows at a glance what is missed."""
    text = summary_of(report(plain=measured(), fairlead=measured(4.9)))

    assert "| **4.9 (5)** |" in text


def test_a_short_run_says_that_it_is_one() -> None:
    """Nobody should quote a look."""
    full = report(plain=measured())

    assert "a full run" in page_of(full)
    assert "a short run" in page_of(replace(full, rounds=1, kept=1))


def test_a_server_with_versions_of_its_own_shows_them() -> None:
    """What most share is told once."""
    whole = report(plain=measured(), mlflow=measured(), kserve=measured())
    abouts = {**whole.abouts, "kserve": About(words="Started.", versions={"numpy": "0"})}

    page = page_of(replace(whole, abouts=abouts))

    assert "All have numpy 1, unless" in page
    assert "| `plain` | Started. |  |" in page
    assert "| `kserve` | Started. | numpy 0 |" in page


def test_a_report_outlives_its_file() -> None:
    """What is read is what was written, to four digits."""
    whole = report(plain=measured(), ray=Figures(failed="it died"), fairlead=measured(1.23456))

    again = Report.from_document(json.loads(json.dumps(whole.as_document())))

    assert again.found["m1"]["fairlead"].cells[CELL].x == 1.235
    assert page_of(again) == page_of(Report.from_document(again.as_document()))
    assert again.found["m1"]["ray"] == Figures(failed="it died")


def test_the_page_of_the_documentation_is_that_of_its_figures() -> None:
    """The committed page is what the tool makes of the committed figures."""
    document = json.loads((DOCS / "reference" / "benchmarks.json").read_text("utf-8"))

    page = (DOCS / "reference" / "benchmarks.md").read_text("utf-8")

    assert page == page_of(Report.from_document(document))


def test_the_picture_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    """It holds no time and no random names, and every server that has figures."""
    whole = report(plain=measured(), kserve=measured(0.8), ray=Figures(failed="it died"))

    draw(whole, tmp_path / "one.svg")
    draw(whole, tmp_path / "two.svg")

    text = (tmp_path / "one.svg").read_text("utf-8")
    assert text == (tmp_path / "two.svg").read_text("utf-8")
    assert ("kserve" in text, "ray" in text) == (True, False)


def test_what_cannot_be_stopped_meets_only_the_baseline() -> None:
    """Ray would disturb the others, and being stopped would disturb Ray."""
    assert list(sittings(["plain", "mlflow", "ray", "bentoml-batch"])) == [
        ["plain", "mlflow"],
        ["plain", "ray"],
        ["plain", "bentoml-batch"],
    ]
    assert list(sittings(["plain", "ray"])) == [["plain", "ray"]]


def test_a_round_goes_through_all_servers_before_the_next_cell() -> None:
    """The servers of one cell are neighbours in time."""
    assert list(turns_of(1, [(1, 1), CELL], ["a", "b"])) == [
        ("a", (1, 1)),
        ("b", (1, 1)),
        ("a", CELL),
        ("b", CELL),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        b'{"predictions": [1, 2]}',
        b'{"outputs": [{"name": "y", "shape": [2, 1], "data": [1, 2]}]}',
        b"[1.0, 2.0]",
    ],
)
def test_predictions_are_read_in_every_form(answer: bytes) -> None:
    """MLflow's, the protocol's, and BentoML's bare list."""
    assert values_of(answer).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"outputs": []}', b'{"predictions": ["a"]}'])
def test_an_answer_without_predictions_is_a_failure(answer: bytes) -> None:
    """It is never taken for figures."""
    with pytest.raises(ServerFailedError, match="no predictions"):
        values_of(answer)


def test_a_reason_names_no_folder_of_the_machine() -> None:
    """Reasons are shown in the documentation."""
    reason = ServerFailedError(last_words("one\nFile '/home/me/x/app.py' is missing\n\n"))

    assert str(reason) == "File 'app.py' is missing"
    assert last_words("") == "it said nothing"


@pytest.mark.parametrize("peer", OTHERS)
def test_other_servers_compute_with_our_versions(peer: str) -> None:
    """Their pins for what loads and computes the models are ours, and name no index."""
    ours = (ROOT / "requirements" / "local.txt").read_text("utf-8").splitlines()
    theirs = (PINNED / f"{PEERS[peer].environment}.txt").read_text("utf-8").splitlines()
    wanted = {line for line in ours if line.startswith(tuple(f"{name}==" for name in SAME))}

    assert wanted - set(theirs) == set()
    assert [line for line in theirs if "index" in line.partition("==")[0]] == []

"""Several candidates by alias: each is on trial in its lane, and the best becomes stable."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fairlead_rollout.adapters.schema import read_spec
from fairlead_rollout.domain.errors import InvalidSpecError
from fairlead_rollout.domain.explain import explain
from fairlead_rollout.domain.snapshot import Verb, Verdict
from fairlead_rollout.domain.status import ConditionType, to_document
from fairlead_rollout.domain.summary import summary_of
from fairlead_rollout.entrypoints import cli

World = Any
Maker = Callable[..., World]
SCHEMA = Path(__file__).parents[4] / "docs/reference/traffic-plan.schema.json"
REGISTRY = {
    "production": {"alias": "champion"},
    "candidates": [{"alias": "challenger-a"}, {"alias": "challenger-b"}, {"alias": "challenger-c"}],
}
OBJECTIVE = {"outcome": "squared_error", "better": "lower", "minimumEffect": 0.01}
RULES = {
    "steps": [{"weight": 10, "for": "3s"}, {"weight": 50, "until": "decided"}],
    "objective": OBJECTIVE,
    "maxDuration": "1h",
}


@pytest.fixture
def make(make_world: Maker, build_manifest: Callable[..., Any]) -> Maker:
    """Return a maker of worlds in which version 1 serves and candidates may have aliases."""

    def build(**rollout: Any) -> World:
        world = make_world(build_manifest(registry=REGISTRY, rollout={**RULES, **rollout}))
        world.run_until(lambda: world.status.stable == "1")
        return world

    return build


def start(world: World, *versions: str) -> World:
    """Set an alias to each version, and wait until all of them have their first weight."""
    world.aliases = dict(
        zip(("challenger-a", "challenger-b", "challenger-c"), versions, strict=False)
    )
    world.run_until(lambda: set(world.lanes) == set(versions) and not world.status.writeback, 1.0)
    return world


@pytest.fixture
def pair(make: Maker) -> World:
    """Return a world in which versions 2 and 3 are on trial at their first step."""
    return start(make(), "2", "3")


@pytest.fixture
def decided(pair: World) -> World:
    """Return a world in which both are at the last step, which holds until one is better."""
    pair.run_until(lambda: [lane[2] for lane in pair.lanes.values()] == [5_000, 5_000])
    return pair


def progress(world: World) -> tuple[str, str]:
    """Return the reason and the message of what is waited for."""
    condition = world.status.condition(ConditionType.PROGRESSING)
    assert condition is not None
    return condition.reason, condition.message


def explained(world: World) -> str:
    """Return what `fairlead explain` prints."""
    served = world.store_.read("flight-delay")
    return explain(served.name, served.spec, world.status, None, world.time)


def ended(world: World, version: str) -> tuple[str, str]:
    """Return how a version's last rollout ended, and why."""
    rollout = world.trial(version)
    return rollout.state.value, rollout.reason


def is_over(world: World) -> Callable[[], bool]:
    """Return whether nothing is on trial and MLflow knows everything."""
    return lambda: not world.status.trials and not world.status.writeback


# ------------------------------------------------------------------ what they need


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"rollout": {"steps": [{"weight": 5, "for": "1m"}]}}, "needs spec.rollout.objective"),
        ({"traffic": {"unit": {"cookie": "a"}}}, "cannot be told apart by a cookie"),
        (
            {"rollout": {**RULES, "objective": {**OBJECTIVE, "alpha": 0.000002}}},
            "too small for 3 candidates",
        ),
    ],
    ids=["an objective", "a unit that is no cookie", "enough alpha"],
)
def test_what_candidates_need(
    build_manifest: Callable[..., Any], spec: dict[str, Any], message: str
) -> None:
    """Each is named with the remedy."""
    with pytest.raises(InvalidSpecError, match=message):
        read_spec(build_manifest(**{"registry": REGISTRY, **spec}))


# ------------------------------------------------------------------ they start


def test_each_candidate_has_a_lane(pair: World) -> None:
    """Two aliases make two rollouts beside each other, each of half of the units."""
    assert pair.lanes == {"2": (0, 5_000, 1_000), "3": (5_000, 10_000, 1_000)}
    jsonschema.validate(pair.status.traffic, json.loads(SCHEMA.read_text()))
    assert pair.status.traffic["arms"] == [{"arm": "stable", "version": "1", "weight": 10_000}]
    first, second = pair.status.trials
    assert (first.alias, second.alias) == ("challenger-a", "challenger-b")
    assert first.id != second.id
    assert {pair.tags[v]["rollout.status"] for v in ("2", "3")} == {"running"}
    for rollout in (first, second):
        assert {"started", "step"} <= {d["verdict"] for d in pair.decisions(rollout.id)}


def test_what_people_see_names_both(pair: World) -> None:
    """Columns, condition and explanation."""
    summary = summary_of(pair.status)
    assert (summary.candidate, summary.weight) == ("2, 3", "5 %, 5 %")
    available = pair.status.condition(ConditionType.CANDIDATE_AVAILABLE)
    assert available.message == "versions 2, 3 are ready and healthy in the gateway"
    told = explained(pair)
    assert "version 2 against version 1" in told
    assert "version 3 against version 1" in told
    assert "at 10 % of its lane" in told
    assert "reaches 40" in told  # 1 / (5 % / 2)


def test_alpha_is_shared(make: Maker) -> None:
    """Each of three candidates is judged at a third of alpha."""
    world = start(make(), "2", "3", "4")
    alphas = {r["candidate"]: r["objective"]["alpha"] for r in world.records_.values()}
    assert alphas == pytest.approx({"2": 0.05 / 3, "3": 0.05 / 3, "4": 0.05 / 3})
    assert [lane[:2] for lane in world.lanes.values()] == [(0, 3333), (3333, 6666), (6666, 10_000)]


def test_one_candidate_is_a_rollout_as_ever(make: Maker) -> None:
    """One alias that names a new version: all units, all of alpha, no lane."""
    world = make()
    world.aliases = {"challenger-b": "2"}
    world.run_until(lambda: world.weight == 1_000)
    assert world.lanes == {}
    (record,) = world.records_.values()
    assert (record["objective"]["alpha"], world.rollout.alias) == (0.05, "challenger-b")
    world.verdict = Verdict.BETTER
    world.run_until(is_over(world))
    assert (world.status.stable, world.production) == ("2", "2")


def test_aliases_of_stable_and_of_one_version_twice_name_one_candidate(make: Maker) -> None:
    """What counts are versions other than stable."""
    world = make()
    world.aliases = {"challenger-a": "1", "challenger-b": "2", "challenger-c": "2"}
    world.run_until(lambda: world.weight == 1_000)
    assert (world.rollout.candidate, world.status.beside) == ("2", ())


def test_steps_go_on_by_themselves(pair: World) -> None:
    """A candidate that is seen too little holds its own weight, and nobody else's."""
    counts = pair.analysis

    def analysis(rollout: str) -> Any:
        pair.requests = 0 if rollout == pair.trial("2").id else 1_000
        return counts(rollout)

    pair.analysis = analysis
    pair.run_until(lambda: pair.lanes["3"][2] == 5_000)
    assert pair.lanes["2"] == (0, 5_000, 1_000)


# ------------------------------------------------------------------ they end


def test_the_better_one_becomes_stable(decided: World) -> None:
    """It takes all traffic, MLflow's production moves to it, the other one is told who won."""
    decided.verdicts = {"3": Verdict.BETTER}
    decided.run_until(is_over(decided))
    assert (decided.status.stable, decided.production) == ("3", "3")
    assert ended(decided, "3") == ("promoted", "ObjectiveBetter")
    assert ended(decided, "2") == ("aborted", "OtherPromoted")
    assert decided.trial("2").message == "version 3 was promoted"
    assert decided.tags["2"]["rollout.reason"] == "OtherPromoted: version 3 was promoted"
    assert (decided.rollout.candidate, decided.rollout.state) == ("3", "promoted")


def test_after_the_end_nothing_starts_by_itself(decided: World) -> None:
    """The loser's alias still names it, the old version's pointer is moved: both stay out."""
    decided.verdicts = {"3": Verdict.BETTER}
    decided.run_until(is_over(decided))
    decided.run(10, every=4.0)
    status = decided.status
    assert (status.attempts, status.trials, status.settled) == (2, (), None)
    assert status.turned_away == ("2",)
    assert "Version 2 stays out until its alias moves" in explained(decided)


def test_of_several_that_are_better_the_largest_effect_wins(decided: World) -> None:
    """The objective is better when lower here."""
    decided.verdict = Verdict.BETTER
    decided.effects = {"2": -0.01, "3": -0.03}
    decided.run_until(is_over(decided))
    assert decided.status.stable == "3"


def test_a_broken_candidate_is_dropped_and_the_other_goes_on(pair: World) -> None:
    """Its lane is nobody's, the other keeps its own, and can still win."""
    pair.broken = {"2": (3, "it cannot be loaded")}
    pair.run_until(lambda: len(pair.status.trials) == 1)
    pair.run()
    assert ended(pair, "2") == ("aborted", "CandidateFailed")
    assert pair.lanes == {"3": (5_000, 10_000, 1_000)}
    assert summary_of(pair.status).candidate == "3"
    pair.verdicts = {"3": Verdict.BETTER}
    pair.run_until(is_over(pair))
    assert pair.status.stable == "3"


@pytest.mark.parametrize(
    ("verdict", "state", "reason"),
    [
        (Verdict.WORSE, "aborted", "ObjectiveWorse"),
        (Verdict.INVALID, "invalid", "SampleRatioMismatch"),
    ],
)
def test_each_is_guarded_by_its_own_numbers(
    pair: World, verdict: Verdict, state: str, reason: str
) -> None:
    """Numbers against one end that one alone."""
    pair.verdicts = {"3": verdict}
    pair.run(3)
    assert ended(pair, "3") == (state, reason)
    assert set(pair.lanes) == {"2"}


def test_when_all_are_dropped_stable_stays(pair: World) -> None:
    """Nothing is on trial, nothing is moved, and a retry puts both on trial again."""
    pair.verdict = Verdict.WORSE
    pair.run_until(is_over(pair))
    pair.run(5, every=4.0)
    assert (pair.status.stable, pair.production, pair.status.attempts) == ("1", "1", 2)
    aborted = pair.status.condition(ConditionType.ABORTED)
    assert aborted.reason == "ObjectiveWorse"
    pair.verdict = Verdict.INSUFFICIENT
    pair.ask(Verb.RETRY)
    pair.run_until(lambda: set(pair.lanes) == {"2", "3"})
    assert pair.status.attempts == 4


def test_while_one_is_scaled_the_other_holds(decided: World) -> None:
    """What is decided is not decided again by an effect that is larger a moment later."""
    decided.refused = {"2": "there is no room for a second process"}
    decided.verdicts = {"2": Verdict.BETTER}
    decided.run_until(lambda: decided.trial("2").promoting)
    decided.verdict = Verdict.BETTER
    decided.effects = {"3": -0.5}
    decided.run(5)
    assert (decided.trial("2").promoting, decided.trial("3").promoting) == (True, False)
    assert "version 3 holds" in progress(decided)[1]
    decided.refused = {}
    decided.run_until(is_over(decided))
    assert (decided.status.stable, ended(decided, "3")[1]) == ("2", "OtherPromoted")


def test_if_the_winner_breaks_while_it_is_scaled_the_other_goes_on(decided: World) -> None:
    """It is still there, and may win."""
    decided.verdicts = {"2": Verdict.BETTER}
    decided.run_until(lambda: decided.trial("2").promoting)
    decided.verdicts = {"3": Verdict.BETTER}
    decided.broken = {"2": (3, "it broke")}
    decided.run_until(is_over(decided))
    assert ended(decided, "2") == ("aborted", "CandidateFailed")
    assert decided.status.stable == "3"


def test_without_a_decision_in_time_all_are_aborted(decided: World) -> None:
    """`maxDuration` is each one's."""
    decided.run_until(is_over(decided), every=60)
    assert {ended(decided, v) for v in ("2", "3")} == {("aborted", "Inconclusive")}


def test_inconclusive_candidates_may_be_promoted(make: Maker) -> None:
    """`onInconclusive: promote` takes the one with the largest estimated effect."""
    world = start(make(onInconclusive="promote"), "2", "3")
    world.effects = {"2": -0.01, "3": -0.03}
    world.run_until(is_over(world), every=30)
    assert (world.status.stable, ended(world, "2")[1]) == ("3", "OtherPromoted")


# ------------------------------------------------------------------ pointers move


def test_a_newer_version_starts_all_anew(pair: World) -> None:
    """By default a moved alias ends the trials and begins new ones."""
    pair.aliases["challenger-b"] = "4"
    pair.run_until(lambda: set(pair.lanes) == {"2", "4"})
    assert ended(pair, "3") == ("superseded", "Superseded")
    assert pair.status.history[-1].message == "version 4 at alias challenger-b arrived"
    assert pair.status.attempts == 4


def test_a_newer_version_waits(make: Maker) -> None:
    """With `queue` the trials go on, and the newer version begins after them."""
    world = start(make(onNewVersion="queue"), "2", "3")
    world.aliases["challenger-c"] = "4"
    world.run(5)
    assert set(world.lanes) == {"2", "3"}
    world.verdicts = {"2": Verdict.BETTER}
    world.run_until(lambda: world.status.stable == "2")
    world.run_until(lambda: world.weight == 1_000)
    assert (world.rollout.candidate, world.rollout.baseline) == ("4", "2")


def test_a_newer_version_is_refused(make: Maker) -> None:
    """With `refuse` it stays out, until its alias has moved away and back."""
    world = start(make(onNewVersion="refuse"), "2", "3")
    world.aliases["challenger-c"] = "4"
    world.verdict = Verdict.WORSE
    world.run_until(is_over(world))
    assert world.tags["4"]["rollout.status"] == "refused"
    world.run(5, every=4.0)
    assert world.status.attempts == 2
    del world.aliases["challenger-c"]
    world.run(2)
    world.aliases["challenger-c"] = "4"
    world.run_until(lambda: world.status.attempts == 3)


def test_aliases_set_one_after_the_other_start_together(make: Maker) -> None:
    """Whatever `onNewVersion` says: nobody has met the first one yet."""
    world = make(onNewVersion="refuse")
    world.broken = {"2": (1, "it is slow to start")}
    world.aliases = {"challenger-a": "2"}
    world.run(2)
    world.aliases["challenger-b"] = "3"
    world.broken = {}
    world.run_until(lambda: set(world.lanes) == {"2", "3"})


@pytest.mark.parametrize("names", [None, "1", "3"], ids=["nothing", "stable", "the other one"])
def test_a_candidate_that_its_alias_names_no_more_is_withdrawn(
    pair: World, names: str | None
) -> None:
    """The other one goes on in its lane."""
    pair.aliases = {"challenger-b": "3"} | ({"challenger-a": names} if names else {})
    pair.run(2)
    assert ended(pair, "2") == ("aborted", "CandidateWithdrawn")
    assert pair.lanes == {"3": (5_000, 10_000, 1_000)}


def test_a_version_at_production_comes_first(pair: World) -> None:
    """It takes over from the candidates, which begin anew when it has been decided."""
    pair.production = "4"
    pair.run_until(lambda: pair.weight == 1_000)
    assert pair.rollout.candidate == "4"
    assert {ended(pair, v)[0] for v in ("2", "3")} == {"superseded"}
    pair.verdicts = {"4": Verdict.BETTER}
    pair.run_until(lambda: set(pair.lanes) == {"2", "3"})
    assert pair.status.stable == "4"


def test_a_version_that_waits_at_production_is_not_moved_away(make: Maker) -> None:
    """A person has promoted it meanwhile: it is tried against the winner."""
    world = start(make(onNewVersion="queue"), "2", "3")
    world.production = "4"
    world.verdicts = {"2": Verdict.BETTER}
    world.run_until(lambda: world.status.stable == "2")
    world.run_until(lambda: world.weight == 1_000)
    assert (world.production, world.rollout.candidate, world.rollout.baseline) == ("4", "4", "2")
    assert world.status.turned_away == ("3",)


def test_a_registry_outage_ends_nothing(pair: World) -> None:
    """What runs goes on."""
    pair.registry_up = False
    pair.run(20, every=2.0)
    assert {lane[2] for lane in pair.lanes.values()} == {5_000}


# ------------------------------------------------------------------ people


def test_a_person_aborts_one(pair: World) -> None:
    """The other goes on."""
    pair.ask(Verb.ABORT, rollout=pair.trial("3").id)
    pair.run(2)
    assert ended(pair, "3") == ("aborted", "AbortedByPerson")
    assert set(pair.lanes) == {"2"}


def test_a_person_pauses_one(pair: World) -> None:
    """It holds its weight, and the other one steps."""
    pair.ask(Verb.PAUSE, rollout=pair.trial("3").id)
    pair.run_until(lambda: pair.lanes["2"][2] == 5_000)
    assert pair.lanes["3"][2] == 1_000
    assert (pair.trial("2").paused, pair.trial("3").paused) == (False, True)


def test_a_person_promotes_one(pair: World) -> None:
    """Whatever the numbers say, and the other one ends."""
    pair.ask(Verb.PROMOTE, rollout=pair.trial("3").id)
    pair.run_until(is_over(pair))
    assert (pair.status.stable, ended(pair, "2")[1]) == ("3", "OtherPromoted")


def test_a_request_that_is_meant_for_none_of_them_is_dropped(pair: World) -> None:
    """It was asked of a rollout that has ended."""
    pair.ask(Verb.ABORT, request="late", rollout="another")
    pair.run(2)
    assert (pair.status.handled_request, len(pair.status.trials)) == ("late", 2)


def test_each_promotion_has_its_own_approval(make: Maker) -> None:
    """A tag on one version approves that one."""
    world = start(make(promotion="approved"), "2", "3")
    world.verdict = Verdict.BETTER
    world.run_until(lambda: all(r.awaiting for r in world.status.trials))
    assert "--candidate 3" in progress(world)[1]
    world.run(2)
    world.approvals["3"] = "true"
    world.run_until(is_over(world))
    assert (world.status.stable, ended(world, "3")[1]) == ("3", "ApprovedByPerson")


def test_the_command_asks_which_one_is_meant(
    pair: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several on trial a request needs a version; one that is not on trial is refused."""
    monkeypatch.setattr(cli, "HANDLED_WITHIN", 0.0)
    home = ["--home", str(pair.home.root)]
    assert cli.main([*home, "abort", "flight-delay"]) == 1
    assert "say which by --candidate: 2, 3" in capsys.readouterr().err
    assert cli.main([*home, "abort", "flight-delay", "--candidate", "9"]) == 1
    assert "version 9 is not one of: 2, 3" in capsys.readouterr().err
    cli.main([*home, "abort", "flight-delay", "--candidate", "3"])
    pair.run(2)
    assert ended(pair, "3") == ("aborted", "AbortedByPerson")


@pytest.mark.parametrize("told", [False, True], ids=["before-mlflow", "after-mlflow"])
def test_a_rollback_before_the_pointer_was_seen_to_move(
    decided: World, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """The last poll still shows the version that was replaced: it is gone back to all the same."""
    view = decided.view
    monkeypatch.setattr(decided, "view", lambda *of: replace(view(*of), production="1"))
    decided.verdicts = {"3": Verdict.BETTER}
    decided.run_until(lambda: decided.status.stable == "3")
    decided.run(3 if told else 0)
    assert decided.production == ("3" if told else "1")
    decided.ask(Verb.ROLLBACK, "rollback")
    decided.run(3)
    monkeypatch.undo()
    decided.run(5)
    assert (decided.production, decided.rollout.candidate) == ("1", "1")
    assert decided.rollout.is_active


# ------------------------------------------------------------------ kills and losses


def play(world: World) -> None:
    """Two candidates come, one breaks, the other wins."""
    world.run_until(lambda: world.status.stable == "1", 10)
    world.aliases = {"challenger-a": "2", "challenger-b": "3"}
    world.run_until(lambda: set(world.lanes) == {"2", "3"}, 10)
    world.broken = {"2": (3, "it cannot be loaded")}
    world.verdicts = {"3": Verdict.BETTER}
    world.run_until(lambda: world.status.production == "3" and is_over(world)(), 10)
    world.run_until(lambda: {w.version for w in world.running} == {"3"}, 10)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_write_it_ends_the_same(
    kill_everywhere: Callable[..., None], build_manifest: Callable[..., Any], after: bool
) -> None:
    """State is in the status alone."""
    document = build_manifest(registry=REGISTRY, rollout=RULES)
    kill_everywhere(play, after=after, document=document)


def test_a_lost_status_is_rebuilt(decided: World) -> None:
    """The same rollouts in the same lanes, at the step they had reached."""
    decided.run(2)  # the gateway has taken the step
    before, lanes = decided.status.trials, decided.lanes
    (decided.home.served_models / "flight-delay" / "status.json").unlink()
    decided.run(2)
    after = decided.status.trials
    assert [(r.id, r.lane, r.step, r.alias, r.rules) for r in after] == [
        (r.id, r.lane, r.step, r.alias, r.rules) for r in before
    ]
    assert decided.lanes == lanes


def test_a_lost_status_knows_who_won(decided: World) -> None:
    """What was promoted serves, and what lost stays out."""
    decided.verdicts = {"2": Verdict.BETTER}
    decided.run_until(is_over(decided))
    (decided.home.served_models / "flight-delay" / "status.json").unlink()
    decided.run(3)
    assert (decided.status.stable, decided.status.trials) == ("2", ())
    assert decided.status.turned_away == ("3",)


def test_a_lost_record_is_told_again(pair: World) -> None:
    """Of each rollout that runs."""
    pair.is_record_lost = True
    pair.records_.clear()
    pair.run(4)
    assert {r["candidate"] for r in pair.records_.values()} == {"2", "3"}


def test_each_rollout_tells_of_its_end(decided: World) -> None:
    """Events, report and page are each rollout's own."""
    decided.verdicts = {"3": Verdict.BETTER}
    decided.run_until(is_over(decided))
    reasons = [event["reason"] for event in decided.store_.events("flight-delay")]
    assert {"OtherPromoted", "ObjectiveBetter", "Promoting"} <= set(reasons)
    assert {decided.trial(v).id for v in ("2", "3")} == set(decided.reports) == set(decided.pages)


# ------------------------------------------------------------------ one alone


def test_a_rollout_alone_is_written_as_before(on_trial: World) -> None:
    """Without several candidates no field is new: nothing is written again, and no trial restarts."""
    document = to_document(on_trial.status)
    assert {"beside", "turnedAway"}.isdisjoint(document)
    assert {"alias", "lane"}.isdisjoint(document["rollout"])
    assert "lanes" not in document["traffic"]
    assert on_trial.rollout.rules == "be938e1dda02"

"""The rollout policies: what each does by itself, and what it leaves to a person."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from fairlead_rollout.domain.explain import explain
from fairlead_rollout.domain.snapshot import Verb, Verdict
from fairlead_rollout.domain.status import ConditionType, RolloutState

World = Any
OBJECTIVE = {"outcome": "squared_error", "better": "lower", "minimumEffect": 0.01}
GUARDRAIL_WORSE = ({"name": "errors", "state": "worse"},)
Maker = Callable[..., World]


@pytest.fixture
def trial(make_world: Maker, build_manifest: Callable[..., Any]) -> Maker:
    """Return a maker of worlds in which version 2 has just been promoted beside a serving one."""

    def make(steps: list[dict[str, Any]], *, server: Any = None, **rollout: Any) -> World:
        kept = server or {"replicas": 2, "keep": {"versions": 0}}
        rules = {"steps": steps, "maxDuration": "1h", **rollout}
        world = make_world(build_manifest(rollout=rules, server=kept))
        world.run_until(lambda: world.status.stable == "1")
        world.production = "2"
        world.run_until(lambda: world.status.rollout is not None)
        return world

    return make


def progress(world: World) -> tuple[str, str]:
    """Return the reason and the message of what is waited for."""
    condition = world.status.condition(ConditionType.PROGRESSING)
    assert condition is not None
    return condition.reason, condition.message


def told(world: World) -> list[str]:
    """Return the reasons of all events, oldest first."""
    return [event["reason"] for event in world.store_.events("flight-delay")]


def explained(world: World) -> str:
    """Return what `fairlead explain` prints."""
    served = world.store_.read("flight-delay")
    return explain(served.name, served.spec, world.status, None, world.time)


# ------------------------------------------------------------------ a fixed split


@pytest.fixture
def split(trial: Maker) -> World:
    """Return a world in which a fixed split of half and half runs."""
    steps = [{"weight": 5, "for": "1s"}, {"weight": 50, "until": "stopped"}]
    world = trial(steps, objective=OBJECTIVE, maxDuration="28d")
    world.run_until(lambda: world.weight == 5_000 and progress(world)[0] == "SplitHolding")
    return world


@pytest.mark.parametrize("verdict", list(Verdict)[:4])
def test_a_split_holds_whatever_the_objective_says(split: World, verdict: Verdict) -> None:
    """For weeks neither a better nor a worse objective promotes or aborts."""
    split.verdict = verdict
    split.run(5, every=5 * 86_400)
    assert (split.weight, split.status.stable, split.rollout.is_active) == (5_000, "1", True)


def test_an_objective_against_the_candidate_does_not_stop_a_split_at_its_first_step(
    trial: Maker,
) -> None:
    """What a split reports decides nothing at any step."""
    world = trial(
        [{"weight": 5, "for": "1s"}, {"weight": 50, "until": "stopped"}], objective=OBJECTIVE
    )
    world.verdict = Verdict.WORSE
    world.run_until(lambda: world.weight == 5_000)


@pytest.mark.parametrize(
    ("verdict", "guardrails", "reason"),
    [
        (Verdict.WORSE, GUARDRAIL_WORSE, "GuardrailWorse"),
        (Verdict.INVALID, (), "SampleRatioMismatch"),
    ],
)
def test_a_split_is_guarded_all_the_time(
    split: World, verdict: Verdict, guardrails: Any, reason: str
) -> None:
    """A guardrail or a wrong split aborts at once."""
    split.verdict, split.guardrails = verdict, guardrails
    split.run()
    assert (split.weight, split.rollout.reason) == (0, reason)


@pytest.mark.parametrize(("verb", "stable"), [(Verb.PROMOTE, "2"), (Verb.ABORT, "1")])
def test_a_person_ends_a_split(split: World, verb: Verb, stable: str) -> None:
    """Either way, at any time."""
    split.ask(verb)
    split.run_until(lambda: not split.rollout.is_active)
    assert split.status.stable == stable
    assert "by ada" in split.rollout.message


def test_a_split_that_nobody_ends_keeps_stable(split: World) -> None:
    """`maxDuration` ends it, and the version stays out until it is asked for again."""
    split.time += timedelta(days=28)
    split.run(2)
    assert (split.rollout.state, split.rollout.reason) == (RolloutState.ABORTED, "SplitOver")
    split.run(6, every=4.0)
    assert (split.status.stable, split.status.attempts) == ("1", 1)


def test_a_split_writes_nothing_while_it_holds(split: World) -> None:
    """Numbers that change with every request are no news for weeks."""
    before = split.writes
    split.why = "squared_error -0.013 over 880 and 900 units"
    split.run(5, every=60.0)
    assert split.writes == before


def test_a_split_is_explained_with_what_ends_it(split: World) -> None:
    """The words name both ways out, and the time that ends it otherwise."""
    text = explained(split)
    for needle in ("50 %", "fairlead promote", "fairlead abort", "28d"):
        assert needle in text


# ------------------------------------------------------------------ approval by a person

GATED = [{"weight": 5, "until": "approved"}, {"weight": 50, "for": "1s"}]


@pytest.fixture
def gated(trial: Maker) -> World:
    """Return a world whose rollout waits for an approval between two steps."""
    world = trial(GATED)
    world.run_until(lambda: world.rollout.awaiting)
    world.run(2)
    return world


@pytest.fixture
def unpromoted(trial: Maker) -> World:
    """Return a world whose candidate is better and waits for the approval of its promotion."""
    steps = [{"weight": 5, "for": "1s"}, {"weight": 50, "until": "decided"}]
    world = trial(steps, objective=OBJECTIVE, promotion="approved")
    world.verdict, world.why = Verdict.BETTER, "version 2 is better"
    world.run_until(lambda: world.rollout.awaiting)
    world.run(2)
    return world


def test_a_step_waits_for_its_approval(gated: World) -> None:
    """However long, and the condition says who has to do what."""
    gated.run(5, every=600.0)
    reason, message = progress(gated)
    assert (gated.weight, reason) == (500, "AwaitingApproval")
    for needle in ("version 2", "50 %", "fairlead approve flight-delay", "rollout.approve"):
        assert needle in message
    assert told(gated).count("AwaitingApproval") == 1
    assert gated.tags["2"]["rollout.reason"].startswith("AwaitingApproval: ")


def test_it_is_asked_only_when_all_else_has_come(trial: Maker) -> None:
    """Too few requests come first: nobody approves a step that nothing is known of."""
    world = trial(GATED)
    world.requests = 49
    world.run_until(lambda: world.weight == 500)
    world.run(6, every=4.0)
    assert (world.rollout.awaiting, progress(world)[0]) == (False, "NotEnoughData")


def test_an_approval_lets_the_next_step_begin(gated: World) -> None:
    """And whoever gave it is told with the step."""
    gated.ask(Verb.APPROVE, step=0)
    gated.run()
    assert (gated.weight, gated.rollout.awaiting) == (5_000, False)
    assert "approved by ada" in gated.rollout.message
    gated.run_until(lambda: gated.status.stable == "2")


@pytest.mark.parametrize("step", [None, 1])
def test_an_approval_of_another_step_is_none(gated: World, step: int | None) -> None:
    """A second click does not approve what comes after."""
    gated.ask(Verb.APPROVE, step=step)
    gated.run(5, every=1.0)
    assert gated.rollout.awaiting
    assert gated.status.handled_request == "request-1"


def test_an_approval_before_it_is_asked_is_none(trial: Maker) -> None:
    """It was given for numbers that nobody had seen."""
    world = trial(GATED)
    world.requests = 0
    world.run_until(lambda: world.weight == 500)
    world.ask(Verb.APPROVE, step=0)
    world.run(2)
    world.requests = 1_000
    world.run(10, every=1.0)
    assert (world.weight, world.rollout.awaiting) == (500, True)


def test_a_paused_rollout_takes_no_approval(gated: World) -> None:
    """Resuming comes first, and the question is still there then."""
    gated.ask(Verb.PAUSE)
    gated.run()
    gated.ask(Verb.APPROVE, "request-2", step=0)
    gated.approvals["2"] = "true"
    gated.run(5, every=1.0)
    assert (gated.weight, progress(gated)[0]) == (500, "Paused")
    del gated.approvals["2"]
    gated.ask(Verb.RESUME, "request-3")
    gated.run(2)
    assert progress(gated)[0] == "AwaitingApproval"
    gated.ask(Verb.APPROVE, "request-4", step=0)
    gated.run()
    assert gated.weight == 5_000


@pytest.mark.parametrize("value", ["true", "True", "the rollout's id"])
def test_a_tag_in_mlflow_approves(gated: World, value: str) -> None:
    """It counts once, and says so from then on."""
    gated.approvals["2"] = gated.rollout.id if "id" in value else value
    gated.run()
    assert gated.weight == 5_000
    gated.run_until(lambda: gated.approvals["2"].startswith("counted for step 0"))


def test_a_tag_approves_one_step_only(trial: Maker) -> None:
    """While MLflow still has it the next question stays open, until the tag is set again."""
    world = trial([*GATED[:1], {"weight": 50, "until": "approved"}])
    world.run_until(lambda: world.rollout.awaiting)
    world.run(2)
    taken, world._take = world._take, lambda item: item.kind == "approval" or taken(item)
    world.approvals["2"] = "true"
    world.run_until(lambda: world.weight == 5_000 and world.rollout.awaiting)
    world.run(6, every=4.0)
    assert (world.weight, world.rollout.awaiting) == (5_000, True)
    world.approvals["2"] = "counted"
    world.run()
    world.approvals["2"] = "true"
    world.run_until(lambda: world.status.stable == "2")
    assert world.rollout.reason == "ApprovedByPerson"


@pytest.mark.parametrize("value", ["true", "old"])
def test_a_tag_from_before_the_question_is_an_old_one(trial: Maker, value: str) -> None:
    """The tag of an earlier rollout of the same version, or one that was set too soon."""
    world = trial(GATED)
    world.approvals["2"] = value
    world.run_until(lambda: world.rollout.awaiting)
    world.run(6, every=4.0)
    assert world.weight == 500
    world.approvals["2"] = world.rollout.id
    world.run()
    assert world.weight == 5_000


@pytest.mark.parametrize("value", ["false", "no", "5f0c2f0e-8f4d-5b53-9a0e-2b4f6f9f7c11"])
def test_a_tag_with_another_value_approves_nothing(gated: World, value: str) -> None:
    """Nor does one that names another rollout; setting it right is an approval."""
    gated.approvals["2"] = value
    gated.run(5, every=1.0)
    assert gated.weight == 500
    gated.approvals["2"] = "true"
    gated.run()
    assert gated.weight == 5_000


def test_a_tag_counts_when_mlflow_is_back(gated: World) -> None:
    """While MLflow is away a person can approve by the command."""
    gated.approvals["2"], gated.registry_up = "true", False
    gated.run(6, every=4.0)
    assert gated.weight == 500
    gated.registry_up = True
    gated.run()
    assert gated.weight == 5_000


@pytest.mark.parametrize(
    ("verdict", "guardrails", "reason"),
    [
        (Verdict.WORSE, GUARDRAIL_WORSE, "GuardrailWorse"),
        (Verdict.WORSE, (), "ObjectiveWorse"),
        (Verdict.INVALID, (), "SampleRatioMismatch"),
    ],
)
def test_the_candidate_is_guarded_while_a_person_is_waited_for(
    unpromoted: World, verdict: Verdict, guardrails: Any, reason: str
) -> None:
    """Nobody's holiday costs the traffic anything."""
    unpromoted.verdict, unpromoted.guardrails = verdict, guardrails
    unpromoted.run()
    assert (unpromoted.weight, unpromoted.rollout.reason) == (0, reason)
    assert not unpromoted.rollout.awaiting


def test_a_candidate_that_breaks_while_it_waits_is_aborted(gated: World) -> None:
    """Its processes are watched too."""
    gated.broken["2"] = (3, "the disk is gone")
    gated.run(2)
    assert (gated.weight, gated.rollout.reason) == (0, "CandidateFailed")


def test_what_nobody_approves_ends_at_the_maximum(gated: World) -> None:
    """Waiting for a person has an end, and stable is kept."""
    gated.time += timedelta(hours=1)
    gated.run(2)
    assert (gated.rollout.reason, gated.status.stable) == ("Inconclusive", "1")
    assert "nobody approved it within 1h" in gated.rollout.message


def test_a_better_candidate_is_promoted_when_a_person_approves(unpromoted: World) -> None:
    """The history has the person and the numbers."""
    assert (unpromoted.status.stable, progress(unpromoted)[0]) == ("1", "AwaitingApproval")
    assert "its promotion" in progress(unpromoted)[1]
    unpromoted.ask(Verb.APPROVE, step=1)
    unpromoted.run_until(lambda: unpromoted.status.stable == "2")
    assert unpromoted.rollout.reason == "ApprovedByPerson"
    assert unpromoted.rollout.message == "approved by ada; version 2 is better"
    assert unpromoted.rollout.numbers.evalue == 54.0


def test_a_verdict_once_reached_waits_for_its_approval_for_good(unpromoted: World) -> None:
    """The bar may be looked at as often as one likes; it need not stay reached."""
    unpromoted.verdict = Verdict.HOLDING
    unpromoted.run(5, every=1.0)
    assert progress(unpromoted)[0] == "AwaitingApproval"


def test_guardrails_alone_promote_when_a_person_approves(trial: Maker) -> None:
    """After the last step's time the question is asked."""
    world = trial([{"weight": 50, "for": "1s"}], promotion="approved")
    world.run_until(lambda: world.rollout.awaiting)
    world.run(6, every=4.0)
    assert world.status.stable == "1"
    world.ask(Verb.APPROVE, step=0)
    world.run_until(lambda: world.status.stable == "2")
    assert world.rollout.message == "approved by ada; every step passed, all guardrails held"


def test_nothing_is_sent_before_the_first_approval(trial: Maker) -> None:
    """A first step of weight 0: the candidate is ready, no request and no exposure is its own."""
    world = trial([{"weight": 0, "until": "approved"}, *GATED])
    world.run_until(lambda: world.rollout.awaiting)
    assert world.status.traffic["arms"] == [{"arm": "stable", "version": "1", "weight": 10_000}]
    assert world.status.traffic["rollout"] is None
    assert [s["weight"] for s in world.records_[world.rollout.id]["steps"]] == [0, 500, 5_000]
    world.ask(Verb.APPROVE, step=0)
    world.run_until(lambda: world.weight == 500)
    assert world.status.traffic["step"] == 1


def test_whether_a_person_has_to_approve_can_be_changed_on_trial(
    on_trial: World, build_manifest: Callable[..., Any]
) -> None:
    """It is not a rule by which anything is counted: the trial goes on."""
    document = build_manifest()
    document["spec"]["rollout"]["promotion"] = "approved"
    before = on_trial.rollout.id
    on_trial.store_.apply(document, on_trial.time)
    on_trial.run_until(lambda: on_trial.weight == 5_000, every=5.0)
    on_trial.verdict = Verdict.BETTER
    on_trial.run_until(lambda: on_trial.rollout.awaiting)
    assert on_trial.rollout.id == before


def test_what_waits_for_a_person_is_explained(gated: World) -> None:
    """The words say what to do, and what happens otherwise."""
    text = explained(gated)
    for needle in ("Waiting for a person", "fairlead approve flight-delay", "rollout.approve"):
        assert needle in text


# ------------------------------------------------------------------ shadow first

SHADOWED = [{"shadow": 20, "for": "10m"}, {"weight": 5, "for": "1s"}, {"weight": 50, "for": "1s"}]
STABLE_ALONE = [{"arm": "stable", "version": "1", "weight": 10_000}]


@pytest.fixture
def shadowed(trial: Maker) -> World:
    """Return a world whose candidate gets copies of a fifth of the requests."""
    world = trial(SHADOWED)
    world.run_until(lambda: world.rollout.step_started_at is not None)
    return world


def test_a_shadowed_candidate_gets_copies_and_answers_nothing(shadowed: World) -> None:
    """Stable is alone in the arms, and no rollout is named: no unit is counted anywhere."""
    plan = shadowed.status.traffic
    assert plan["arms"] == STABLE_ALONE
    assert plan["shadow"] == [{"version": "2", "share": 2_000}]
    assert (plan["rollout"], plan["step"], plan["fallback"]) == (None, None, None)
    assert progress(shadowed)[1].startswith("copies of 20 % until")


def test_weights_follow_the_shadow_step_with_their_own_indexes(shadowed: World) -> None:
    """The record has a step of weight 0 in front; exposures carry the indexes after it."""
    steps = shadowed.records_[shadowed.rollout.id]["steps"]
    assert [(s["index"], s["weight"]) for s in steps] == [(0, 0), (1, 500), (2, 5_000)]
    shadowed.time += timedelta(minutes=10)
    shadowed.run_until(lambda: shadowed.weight == 500)
    plan = shadowed.status.traffic
    assert (plan["step"], plan["shadow"]) == (1, [])
    shadowed.run_until(lambda: shadowed.status.stable == "2")


def test_a_shadow_step_waits_for_no_request(shadowed: World) -> None:
    """Copies are no exposures: `minimumRequests` is about the steps with a weight."""
    shadowed.requests = 0
    shadowed.time += timedelta(minutes=10)
    shadowed.run_until(lambda: shadowed.weight == 500)


def test_a_candidate_that_breaks_on_copies_is_aborted(shadowed: World) -> None:
    """Nobody has met it."""
    shadowed.broken["2"] = (3, "out of memory")
    shadowed.run(2)
    assert (shadowed.rollout.reason, shadowed.rollout.step) == ("CandidateFailed", 0)
    assert shadowed.status.traffic["shadow"] == []


def test_a_candidate_without_ready_processes_gets_no_weight_after_its_shadow_step(
    shadowed: World,
) -> None:
    """Its process is starting again just when the step's time is over."""
    shadowed.broken["2"] = (1, "ended with exit code 1")
    shadowed.time += timedelta(minutes=10)
    shadowed.run(5, every=1.0)
    assert (shadowed.weight, progress(shadowed)[0]) == (0, "CandidateUnavailable")
    assert "ended with exit code 1" in progress(shadowed)[1]
    shadowed.broken.clear()
    shadowed.run_until(lambda: shadowed.weight == 500)


def test_a_shadowed_candidate_has_processes_for_its_share(trial: Maker) -> None:
    """Copies of all requests are as much work as all requests."""
    world = trial(
        [{"shadow": 100, "for": "1m"}, {"weight": 1, "for": "1s"}],
        server={"replicas": 4, "keep": {"versions": 0}},
    )
    world.run_until(lambda: world.rollout.step is not None)
    assert {w.version: w.wanted for w in world.running} == {"1": 4, "2": 4}


def test_a_shadow_step_can_end_with_an_approval(trial: Maker) -> None:
    """A person looks at what the copies showed."""
    world = trial([{"shadow": 20, "until": "approved"}, *SHADOWED[1:]])
    world.run_until(lambda: world.rollout.awaiting)
    assert "copies of 20 %" in progress(world)[1]
    world.ask(Verb.APPROVE, step=0)
    world.run_until(lambda: world.weight == 500)


def test_staging_and_the_candidate_get_copies_beside_each_other(
    make_world: Maker, build_manifest: Callable[..., Any]
) -> None:
    """During an outage of the registry both stay as they are."""
    rollout = {"steps": SHADOWED}
    world = make_world(build_manifest(rollout=rollout, registry={"shadow": {"stage": "Staging"}}))
    world.shadow = "7"
    world.run_until(lambda: world.status.stable == "1")
    world.production = "2"
    both = [{"version": "7", "share": 10_000}, {"version": "2", "share": 2_000}]
    world.run_until(lambda: (world.status.traffic or {}).get("shadow") == both)
    world.registry_up = False
    world.run(3, every=1.0)
    assert world.status.traffic["shadow"] == both


def test_a_shadow_step_is_paused_and_resumed_as_any_other(shadowed: World) -> None:
    """The copies go on; the weights wait."""
    shadowed.ask(Verb.PAUSE)
    shadowed.run()
    shadowed.time += timedelta(minutes=20)
    shadowed.run(3)
    assert (shadowed.weight, progress(shadowed)[0]) == (0, "Paused")
    shadowed.ask(Verb.RESUME, "request-2")
    shadowed.run_until(lambda: shadowed.weight == 500)


def test_a_status_lost_in_the_shadow_step_is_rebuilt_in_it(shadowed: World) -> None:
    """Nothing was counted yet: the rollout is at its first step."""
    shadowed.run_until(lambda: not shadowed.status.writeback)
    shadowed.requests = 0
    before = shadowed.status.traffic, shadowed.rollout.id
    (shadowed.home.served_models / "flight-delay" / "status.json").unlink()
    shadowed.run()
    assert (shadowed.status.traffic, shadowed.rollout.id) == before


def test_a_shadow_step_is_explained(shadowed: World) -> None:
    """In the words of the spec."""
    assert "step 1 of 3 with copies of 20 %" in explained(shadowed)


# ------------------------------------------------------------------ a newer version arrives


@pytest.fixture
def arriving(trial: Maker) -> Maker:
    """Return a maker of worlds in which version 3 arrives while version 2 is on trial."""

    def make(rule: str) -> World:
        world = trial([{"weight": 5, "for": "10m"}], onNewVersion=rule)
        world.run_until(lambda: world.weight == 500)
        world.production = "3"
        world.run(3)
        return world

    return make


@pytest.mark.parametrize("verb", [Verb.PROMOTE, Verb.ABORT])
def test_a_queued_version_has_its_turn_when_the_trial_is_decided(
    arriving: Maker, verb: Verb
) -> None:
    """However it is decided; until then the trial goes on as if nothing had come."""
    world = arriving("queue")
    assert (world.rollout.candidate, world.weight, world.status.waiting) == ("2", 500, "3")
    assert world.tags["3"]["rollout.status"] == "pending"
    assert world.tags["3"]["rollout.reason"].startswith("Queued: ")
    world.ask(verb)
    world.run_until(lambda: world.rollout.candidate == "3" and world.weight == 500)
    assert world.status.stable == ("2" if verb is Verb.PROMOTE else "1")
    assert world.status.waiting is None
    world.run_until(lambda: not world.status.writeback)
    assert world.tags["3"]["rollout.status"] == "running"


def test_only_the_newest_version_waits(arriving: Maker) -> None:
    """The one between is told that its turn will not come."""
    world = arriving("queue")
    world.production = "4"
    world.run(3)
    assert world.status.waiting == "4"
    assert world.tags["3"]["rollout.status"] == "superseded"
    assert world.tags["3"]["rollout.reason"].startswith("Superseded: ")
    world.ask(Verb.ABORT)
    world.run_until(lambda: world.rollout.candidate == "4")
    assert "rollout.id" not in world.tags["3"]
    assert told(world).count("Queued") == 2


@pytest.mark.parametrize("named", ["2", None])
def test_a_version_that_is_named_no_more_waits_no_more(arriving: Maker, named: str | None) -> None:
    """The pointer went back to the candidate, or is gone."""
    world = arriving("queue")
    world.production = named
    world.run(3)
    assert (world.status.waiting, world.rollout.candidate, world.weight) == (None, "2", 500)
    assert world.tags["3"]["rollout.status"] == "superseded"


def test_a_queue_does_not_keep_a_person_from_going_back(arriving: Maker) -> None:
    """Naming stable again ends the trial, whatever waits."""
    world = arriving("queue")
    world.production = "1"
    world.run_until(lambda: world.rollout.reason == "ProductionMovedBack")
    world.run(3)
    assert (world.status.waiting, world.status.attempts) == (None, 1)


@pytest.mark.parametrize("verb", [Verb.PROMOTE, Verb.ABORT])
def test_a_refused_version_stays_out_after_the_trial_too(arriving: Maker, verb: Verb) -> None:
    """Until it is promoted again."""
    world = arriving("refuse")
    assert world.tags["3"]["rollout.status"] == "refused"
    assert world.tags["3"]["rollout.reason"].startswith("Refused: version 2 was on trial")
    assert told(world).count("Refused") == 1
    world.ask(verb)
    world.run_until(lambda: not world.rollout.is_active)
    world.run(5, every=60.0)
    assert (world.status.attempts, world.status.settled) == (1, "3")
    assert "was refused" in explained(world)
    world.production = world.status.stable
    world.run(2)
    world.production = "3"
    world.run_until(lambda: world.rollout.candidate == "3")


def test_a_refused_version_is_taken_on_retry(arriving: Maker) -> None:
    """A person need not move the pointer to and fro."""
    world = arriving("refuse")
    world.ask(Verb.ABORT)
    world.run_until(lambda: not world.rollout.is_active)
    world.ask(Verb.RETRY, "request-2")
    world.run_until(lambda: world.rollout.candidate == "3" and world.weight == 500)


@pytest.mark.parametrize(
    ("rule", "words"), [("queue", "version 3 waits"), ("refuse", "version 3 was refused")]
)
def test_what_becomes_of_a_newer_version_is_told(arriving: Maker, rule: str, words: str) -> None:
    """In the condition of the trial, and in words."""
    world = arriving(rule)
    assert words in progress(world)[1]
    assert words.removeprefix("version 3 ").split()[-1] in explained(world)


@pytest.mark.parametrize("before", ["queue", "refuse"])
def test_the_rule_can_be_changed_while_a_version_waits(
    arriving: Maker, build_manifest: Callable[..., Any], before: str
) -> None:
    """With `restart` the newer version takes the candidate's place at once."""
    world = arriving(before)
    rollout = {"steps": [{"weight": 5, "for": "10m"}], "maxDuration": "1h"}
    world.store_.apply(build_manifest(rollout=rollout), world.time)
    world.run_until(lambda: world.rollout.candidate == "3" and world.weight == 500)
    assert [(r.candidate, r.reason) for r in world.status.history] == [("2", "Superseded")]
    assert (world.status.waiting, world.status.settled) == (None, None)


def test_a_version_waits_through_an_outage_of_the_registry(arriving: Maker) -> None:
    """What was seen last holds."""
    world = arriving("queue")
    world.registry_up = False
    world.run(3)
    world.ask(Verb.PROMOTE)
    world.run_until(lambda: world.status.stable == "2")
    world.registry_up = True
    world.run_until(lambda: world.rollout.candidate == "3")


def test_a_revert_leaves_the_pointer_to_the_version_that_waits(
    make_world: Maker, build_manifest: Callable[..., Any]
) -> None:
    """`onAbort: revert` moves the pointer only from the candidate."""
    rollout = {"steps": [{"weight": 5, "for": "10m"}], "onNewVersion": "queue"}
    world = make_world(build_manifest(rollout=rollout, registry={"onAbort": "revert"}))
    world.run_until(lambda: world.status.stable == "1")
    world.production = "2"
    world.run_until(lambda: world.weight == 500)
    world.production = "3"
    world.run(2)
    world.verdict = Verdict.WORSE
    world.run(2)
    world.verdict = Verdict.HOLDING
    world.run_until(lambda: world.rollout.candidate == "3" and world.weight == 500)
    assert world.production == "3"


# ------------------------------------------------------------------ back to a version before


@pytest.fixture
def promoted(make_world: Maker, build_manifest: Callable[..., Any]) -> Maker:
    """Return a maker of worlds in which versions 1, 2 and 3 were stable one after the other."""

    def make(rollback: str = "immediate") -> World:
        rollout = {"steps": [{"weight": 10, "for": "30s"}], "rollback": rollback}
        server = {"replicas": 2, "keep": {"versions": 1, "for": "1h"}}
        world = make_world(build_manifest(rollout=rollout, server=server))
        world.run_until(lambda: world.status.stable == "1")
        for version in ("2", "3"):
            world.production = version
            world.run_until(lambda: world.weight == 1_000)
            world.ask(Verb.PROMOTE, f"promote-{version}")
            world.run_until(lambda v=version: world.status.stable == v)
        return world

    return make


@pytest.mark.parametrize("version", ["2", "1"], ids=["kept running", "started again"])
def test_an_immediate_rollback_takes_all_traffic_once_it_is_available(
    promoted: Maker, version: str
) -> None:
    """No step: the version was stable before. It is scaled first, and the history says why."""
    world = promoted()
    world.production = version
    seen = set()
    for _ in range(20):
        world.run()
        seen.add(world.weight)
        assert all(w.ready for w in world.running if w.version == world.status.stable)
    assert (world.status.stable, seen) == (version, {0})
    assert (world.rollout.state, world.rollout.reason) == (RolloutState.PROMOTED, "RolledBack")
    world.run_until(lambda: not world.status.writeback)
    assert world.tags[version]["rollout.reason"].startswith("RolledBack: ")


def test_without_the_fast_path_a_rollback_is_a_rollout(promoted: Maker) -> None:
    """The default: an older version is put on trial as any other."""
    world = promoted("rollout")
    world.production = "2"
    world.run_until(lambda: world.weight == 1_000)
    assert (world.rollout.candidate, world.status.stable) == ("2", "3")


def test_a_version_that_was_left_by_a_rollback_is_put_on_trial(promoted: Maker) -> None:
    """Going forward again to what was not good enough has no fast path."""
    world = promoted()
    world.production = "2"
    world.run_until(lambda: world.status.stable == "2")
    world.production = "3"
    world.run_until(lambda: world.weight == 1_000)
    assert world.rollout.candidate == "3"


def test_an_older_version_that_never_was_stable_is_put_on_trial(promoted: Maker) -> None:
    """It was aborted, or never promoted: nothing speaks for it."""
    world = promoted()
    world.production = "5"
    world.run_until(lambda: world.weight == 1_000)
    world.ask(Verb.PROMOTE, "promote-5")
    world.run_until(lambda: world.status.stable == "5")
    world.production = "4"
    world.run_until(lambda: world.weight == 1_000)
    assert world.rollout.candidate == "4"


def test_a_rollback_that_cannot_start_leaves_stable(promoted: Maker) -> None:
    """It is aborted with its reason."""
    world = promoted()
    world.production, world.broken["1"] = "1", (3, "the artifacts are gone")
    world.run_until(lambda: world.rollout.reason == "CandidateFailed")
    assert (world.status.stable, world.weight) == ("3", 0)


@pytest.mark.parametrize("rule", ["restart", "queue", "refuse"])
def test_an_immediate_rollback_waits_for_no_trial(
    promoted: Maker, build_manifest: Callable[..., Any], rule: str
) -> None:
    """Whatever is to become of newer versions: who goes back has a reason."""
    world = promoted()
    rollout = {
        "steps": [{"weight": 10, "for": "30s"}],
        "rollback": "immediate",
        "onNewVersion": rule,
    }
    world.store_.apply(build_manifest(rollout=rollout), world.time)
    world.production = "4"
    world.run_until(lambda: world.weight == 1_000)
    world.production = "2"
    world.run_until(lambda: world.status.stable == "2")
    assert [(r.candidate, r.state) for r in world.status.history[-2:]] == [
        ("4", "superseded"),
        ("2", "promoted"),
    ]


@pytest.mark.parametrize("rollback", ["immediate", "rollout"])
def test_the_command_moves_the_pointer_and_the_pointer_decides(
    promoted: Maker, rollback: str
) -> None:
    """The registry stays the truth: the request is told to MLflow, and followed from there."""
    world = promoted(rollback)
    world.ask(Verb.ROLLBACK, "back")
    world.run_until(lambda: world.production == "2")
    world.run_until(lambda: world.rollout.candidate == "2" and world.status.attempts == 3)
    if rollback == "immediate":
        world.run_until(lambda: world.status.stable == "2")
    else:
        world.run_until(lambda: world.weight == 1_000)


def test_the_command_undoes_no_promotion_that_came_meanwhile(promoted: Maker) -> None:
    """The pointer is moved only from the version it named when the request was read."""
    world = promoted()
    world.registry_up = False
    world.run()
    world.ask(Verb.ROLLBACK, "back")
    world.run(2)
    world.production, world.registry_up = "4", True
    world.run_until(lambda: world.weight == 1_000)
    assert (world.production, world.rollout.candidate) == ("4", "4")


def test_there_is_nothing_before_the_first_version(serving: World) -> None:
    """A request to go back from it moves nothing."""
    serving.production = "2"
    serving.run_until(lambda: serving.weight == 1_000)
    serving.ask(Verb.ABORT)
    serving.run_until(lambda: not serving.rollout.is_active)
    serving.ask(Verb.ROLLBACK, "back")
    serving.run(3)
    assert (serving.production, serving.status.stable) == ("2", "1")


# ------------------------------------------------------------------ by hand


def test_a_pause_does_not_stop_the_clock_of_the_maximum(on_trial: World) -> None:
    """`maxDuration` ends a paused rollout too; who wants longer says so in the spec."""
    on_trial.ask(Verb.PAUSE)
    on_trial.run()
    on_trial.time += timedelta(hours=1)
    on_trial.run(2)
    assert (on_trial.rollout.reason, on_trial.status.stable) == ("Inconclusive", "1")
    assert not on_trial.rollout.paused


def test_abort_wins_over_a_promotion_that_is_being_carried_out(on_trial: World) -> None:
    """Until the candidate has all traffic a person can stop it."""
    on_trial.broken["2"] = (1, "is starting again")
    on_trial.ask(Verb.PROMOTE)
    on_trial.run(3)
    assert (on_trial.rollout.promoting, progress(on_trial)[0]) == (True, "Promoting")
    on_trial.ask(Verb.ABORT, "request-2")
    on_trial.run()
    assert (on_trial.rollout.state, on_trial.weight) == (RolloutState.ABORTED, 0)
    on_trial.broken.clear()
    on_trial.run(5, every=1.0)
    assert on_trial.status.stable == "1"


@pytest.mark.parametrize("verdict", [Verdict.INSUFFICIENT, Verdict.HOLDING])
def test_too_little_data_neither_passes_nor_fails(on_trial: World, verdict: Verdict) -> None:
    """At the last step the weight holds, for as long as the rollout may take."""
    on_trial.verdict = verdict
    on_trial.run_until(lambda: on_trial.weight == 5_000, every=5.0)
    on_trial.run(5, every=600.0)
    assert (on_trial.weight, on_trial.rollout.is_active) == (5_000, True)
    reason = "NotEnoughData" if verdict is Verdict.INSUFFICIENT else "Undecided"
    assert progress(on_trial)[0] == reason


def test_an_inconclusive_candidate_is_promoted_where_that_is_asked_for(
    make_world: Maker, build_manifest: Callable[..., Any]
) -> None:
    """It was seen often enough, and nothing spoke against it."""
    document = build_manifest()
    document["spec"]["rollout"]["onInconclusive"] = "promote"
    world = make_world(document)
    world.run_until(lambda: world.status.stable == "1")
    world.production = "2"
    world.run_until(lambda: world.weight == 5_000, every=5.0)
    world.time += timedelta(hours=1)
    world.run_until(lambda: world.status.stable == "2")
    assert world.rollout.reason == "Inconclusive"

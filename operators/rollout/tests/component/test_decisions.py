"""Every decision is kept, and whoever asks is told the same."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest

from fairlead_rollout.domain.decisions import BETWEEN_LOOKS, between_looks
from fairlead_rollout.domain.explain import explain
from fairlead_rollout.domain.snapshot import Verb, Verdict
from fairlead_rollout.domain.status import ConditionType

World = Any
NAME = "flight-delay"
ERRORS = {"name": "errors", "state": "worse", "evalue": 140.0, "threshold": 100.0, "reason": "bad"}


def go_on(world: World, condition: Callable[[], bool]) -> None:
    """Let time pass with each pass, as it does: two decisions are never of one moment."""
    world.run_until(condition, every=0.5)


def is_decided(world: World) -> bool:
    """Say whether the rollout of version 2 has ended and everybody was told."""
    ended = any(r.candidate == "2" for r in world.status.history)
    return ended and not world.status.writeback


def decided(world: World) -> tuple[Mapping[str, Any], ...]:
    """Return the decisions about version 2 as the API has them."""
    rollout = next(r for r in world.status.history if r.candidate == "2")
    found: tuple[Mapping[str, Any], ...] = world.decisions(rollout.id)
    return found


def better(world: World) -> None:
    """Let the objective decide for the candidate."""
    go_on(world, lambda: world.weight == 5_000)
    world.verdict, world.why = Verdict.BETTER, "version 2 is better: squared_error -0.013"


def guarded(world: World) -> None:
    """Let a guardrail decide against it."""
    world.verdict, world.why, world.guardrails = Verdict.WORSE, "version 2 is worse", (ERRORS,)


def worse(world: World) -> None:
    """Let the objective decide against it."""
    world.verdict, world.why = Verdict.WORSE, "squared_error +0.02"


def invalid(world: World) -> None:
    """Let the split fail."""
    world.verdict, world.why = Verdict.INVALID, "the arms are not comparable"


def broken(world: World) -> None:
    """Let the candidate end by itself."""
    world.broken["2"] = (3, "module\x00 'lost' is <b>not</b> installed")


def too_long(world: World) -> None:
    """Let the time pass without a decision."""
    world.time += timedelta(hours=1)


def superseded(world: World) -> None:
    """Let a newer version arrive."""
    world.production = "3"


def moved_back(world: World) -> None:
    """Point the registry to stable again."""
    world.production = "1"


def promoted_by_person(world: World) -> None:
    """Promote as a person would."""
    world.ask(Verb.PROMOTE)


def aborted_by_person(world: World) -> None:
    """Pause, go on and abort, as a person would."""
    for verb in (Verb.PAUSE, Verb.RESUME, Verb.ABORT):
        world.ask(verb, verb.value)
        world.run(2, every=0.5)
        assert world.status.handled_request == verb.value


ENDS = [
    pytest.param(better, "promoted", "ObjectiveBetter", id="better"),
    pytest.param(guarded, "aborted", "GuardrailWorse", id="guardrail"),
    pytest.param(worse, "aborted", "ObjectiveWorse", id="worse"),
    pytest.param(invalid, "invalid", "SampleRatioMismatch", id="split"),
    pytest.param(broken, "aborted", "CandidateFailed", id="broken"),
    pytest.param(too_long, "aborted", "Inconclusive", id="too-long"),
    pytest.param(superseded, "superseded", "Superseded", id="superseded"),
    pytest.param(moved_back, "aborted", "ProductionMovedBack", id="moved-back"),
    pytest.param(promoted_by_person, "promoted", "PromotedByPerson", id="promoted-by-person"),
    pytest.param(aborted_by_person, "aborted", "AbortedByPerson", id="aborted-by-person"),
]


@pytest.mark.parametrize(("end", "verdict", "reason"), ENDS)
def test_explain_the_api_and_the_runs_file_say_the_same(
    on_trial: World, end: Callable[[World], None], verdict: str, reason: str
) -> None:
    """For each kind of end: one list of decisions, the same words and numbers wherever one reads."""
    go_on(on_trial, lambda: on_trial.rollout.step_started_at is not None)
    end(on_trial)
    go_on(on_trial, lambda: is_decided(on_trial))

    kept = decided(on_trial)
    rollout = next(r for r in on_trial.status.history if r.candidate == "2")
    written = on_trial.reports[rollout.id]
    served = on_trial.store_.read(NAME)
    status = on_trial.status
    if status.rollout.id == rollout.id:
        analysis = on_trial.analysis(rollout.id)
        text = explain(NAME, served.spec, status, analysis, on_trial.time, decisions=kept)
        for decision in kept:
            assert (decision["summary"] in text) == (decision["verdict"] != "hold")
        assert text.count(reason) >= 1

    assert written["decisions"] == list(kept)
    assert on_trial.pages[rollout.id] == f"<title>{verdict}</title>"
    assert (kept[0]["verdict"], kept[0]["from"]) == ("started", None)
    assert (kept[-1]["verdict"], kept[-1]["reason"]) == (verdict, reason)
    assert kept[-1]["message"].startswith(rollout.message[:6])
    assert kept[-1]["summary"].endswith(f"({reason}).")
    assert kept[-1]["rules"] == served.spec.rollout.fingerprint
    assert written["rollout"]["state"] == verdict


@pytest.mark.parametrize(
    ("steps", "question"),
    [
        pytest.param([{"weight": 50, "for": "10s"}], "its promotion", id="the promotion"),
        pytest.param(
            [{"weight": 50, "until": "approved"}, {"weight": 70, "for": "10s"}], "70 %", id="a step"
        ),
    ],
)
def test_what_waits_for_a_person_is_told_alike_wherever_one_reads(
    make_world: Callable[..., World],
    build_manifest: Callable[..., Any],
    steps: list[dict[str, Any]],
    question: str,
) -> None:
    """One question: in status, API, explain, an event and MLflow, with the numbers it was asked on."""
    world = make_world(build_manifest(rollout={"steps": steps, "promotion": "approved"}))
    world.verdict, world.why = Verdict.HOLDING, "nothing is against version 2"
    go_on(world, lambda: world.status.stable == "1")
    world.production = "2"
    go_on(world, lambda: world.status.rollout is not None and world.rollout.awaiting)
    go_on(world, lambda: not world.status.writeback)

    kept = world.decisions(world.rollout.id)
    (asked,) = [d for d in kept if d["verdict"] == "awaiting"]
    message = asked["message"]
    progressing = world.status.condition(ConditionType.PROGRESSING)
    analysis, served = world.analysis(world.rollout.id), world.store_.read(NAME)
    text = explain(NAME, served.spec, world.status, analysis, world.time, decisions=kept)

    assert question in message
    assert asked["check"] == "approval_needed"
    assert asked["from"] == asked["to"] == {"state": "running", "step": 0, "weight": 5_000}
    assert asked["inputs"]["analysis"]["verdict"] == analysis.verdict == "holding"
    assert asked["reason"] == world.rollout.reason == progressing.reason == "AwaitingApproval"
    assert world.rollout.message == progressing.message == message
    assert (
        asked["summary"] == f"Version 2 waits for a person at 50 %: {message} (AwaitingApproval)."
    )
    assert asked["summary"] in text
    assert f"Waiting for a person: {message}." in text
    assert world.tags["2"]["rollout.status"] == "running"
    assert world.tags["2"]["rollout.reason"] == f"AwaitingApproval: {message}"
    events = [e for e in world.store_.events(NAME) if e["reason"] == "AwaitingApproval"]
    assert [e["message"] for e in events] == [message]

    world.run(5, every=60.0)
    assert [d["verdict"] for d in world.decisions(world.rollout.id)].count("awaiting") == 1
    world.ask(Verb.APPROVE, step=0)
    world.run(every=0.5)
    go_on(world, lambda: not world.status.writeback)
    moves = [d for d in world.decisions(world.rollout.id) if d["verdict"] != "hold"]
    answer = moves[[d["verdict"] for d in moves].index("awaiting") + 1]
    assert answer["verdict"] == ("promoting" if question == "its promotion" else "step")
    assert "approved by ada" in answer["summary"]


def test_a_decision_holds_what_it_was_taken_on(on_trial: World) -> None:
    """Numbers, thresholds, the way from one place to the next, and the check that spoke."""
    better(on_trial)
    go_on(on_trial, lambda: is_decided(on_trial))
    verdicts = {d["verdict"]: d for d in decided(on_trial)}

    found = verdicts["promoting"]
    assert found["check"] == "objective_open"
    assert found["from"] == found["to"] == {"state": "running", "step": 1, "weight": 5_000}
    assert found["inputs"]["analysis"]["objective"]["evalue"] == 54.0
    assert found["inputs"]["analysis"]["verdict"] == "better"
    assert found["inputs"]["candidate"]["ready"] == 1
    assert found["thresholds"]["objective"]["evalue"] == 20.0
    assert found["thresholds"]["minimumRequests"] == 50
    assert found["thresholds"]["steps"][0]["weight"] == 1_000
    assert found["thresholds"]["steps"][0]["for"] == 30.0
    step = [d for d in decided(on_trial) if d["verdict"] == "step"][-1]
    assert (step["from"]["weight"], step["to"]["weight"]) == (1_000, 5_000)
    assert "1,000 of 50 requests needed" in step["summary"]
    assert verdicts["promoted"]["to"]["weight"] == 0


def test_a_person_is_named_in_the_decision(on_trial: World) -> None:
    """Who paused, and that it went on."""
    aborted_by_person(on_trial)
    go_on(on_trial, lambda: is_decided(on_trial))
    asked = {d["verdict"]: d["inputs"]["request"] for d in decided(on_trial)}
    assert asked["paused"] == {"verb": "pause", "by": "ada"}
    assert asked["resumed"] == {"verb": "resume", "by": "ada"}
    assert asked["aborted"] == {"verb": "abort", "by": "ada"}


def test_an_ended_rollout_is_explained_by_the_numbers_it_was_decided_on(on_trial: World) -> None:
    """Outcomes that come later do not change why it was decided."""
    guarded(on_trial)
    go_on(on_trial, lambda: is_decided(on_trial))
    on_trial.guardrails = ({**ERRORS, "reason": "much later"},)
    analysis, kept = on_trial.analysis(on_trial.rollout.id), decided(on_trial)
    spec = on_trial.store_.read(NAME).spec
    text = explain(NAME, spec, on_trial.status, analysis, on_trial.time, decisions=kept)
    assert "guardrail errors: bad" in text
    assert "much later" not in text


def test_looks_grow_rarer_and_are_never_written_to_the_status(on_trial: World) -> None:
    """Held for an hour: some dozens of looks, each with its numbers, and no write of the status."""
    go_on(on_trial, lambda: on_trial.rollout.step_started_at is not None)
    on_trial.requests = 0
    on_trial.run(10, every=1.0)
    before = on_trial.writes
    on_trial.run(100, every=30.0)

    looks = [d for d in on_trial.decisions(on_trial.rollout.id) if d["verdict"] == "hold"]
    assert 50 < len(looks) < 90
    assert {d["reason"] for d in looks[2:]} == {"StepHolding", "NotEnoughData"}
    assert all(d["inputs"]["analysis"]["arms"]["stable"]["units"] == 900 for d in looks)
    assert on_trial.writes - before <= 3


@pytest.mark.parametrize(("days", "looks"), [(1 / 24, 195), (1, 324), (14, 430), (365, 562)])
def test_a_rollout_of_any_length_has_some_hundreds_of_looks(days: float, looks: int) -> None:
    """However long it takes, what is kept is bounded."""
    age, kept = timedelta(0), 0
    while age < timedelta(days=days):
        age, kept = age + between_looks(age), kept + 1
    assert kept <= looks


def test_a_look_that_cannot_be_kept_holds_up_nothing(on_trial: World) -> None:
    """Experiments goes away mid-rollout: a person's abort goes through, its decision waits and comes."""
    go_on(on_trial, lambda: on_trial.rollout.step_started_at is not None)
    on_trial.experiments_up = False
    on_trial.run(5, every=float(BETWEEN_LOOKS.total_seconds()))
    on_trial.ask(Verb.ABORT)
    go_on(on_trial, lambda: on_trial.weight == 0)
    on_trial.run(3, every=1.0)
    assert on_trial.tags["2"]["rollout.status"] == "aborted"
    assert {i.kind for i in on_trial.status.writeback} == {"record", "decision", "report", "page"}
    assert on_trial.reports == {}
    on_trial.experiments_up = True
    go_on(on_trial, lambda: is_decided(on_trial))
    assert decided(on_trial)[-1]["verdict"] == "aborted"
    assert on_trial.reports[on_trial.rollout.id]["decisions"] == list(decided(on_trial))


def test_a_lost_record_still_gets_the_runs_file(on_trial: World) -> None:
    """The experiments' database is gone after the end: what the status knows is written."""
    on_trial.registry_up = False
    worse(on_trial)
    on_trial.production = "2"
    go_on(on_trial, lambda: not on_trial.rollout.is_active)
    on_trial.run(3, every=1.0)
    on_trial.records_.clear()
    on_trial.registry_up = True
    go_on(on_trial, lambda: is_decided(on_trial))
    written = on_trial.reports[on_trial.rollout.id]
    assert (written["rollout"]["state"], written["decisions"]) == ("aborted", [])
    assert on_trial.pages == {on_trial.rollout.id: None}


def test_the_version_is_described_in_mlflow_by_its_verdict(on_trial: World) -> None:
    """A person reads the verdict and the reason where they look at the version."""
    broken(on_trial)
    go_on(on_trial, lambda: is_decided(on_trial))
    text = on_trial.descriptions["2"]
    assert "**Rollout aborted on 2026-01-01 00:00 UTC: version 2 against version 1" in text
    assert "CandidateFailed: version 2 cannot serve: module  'lost'" in text
    assert "\x00" not in text + on_trial.tags["2"]["rollout.reason"]

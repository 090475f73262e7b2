"""One served model through its life: first version, trial, promotion, abort, faults."""

import errno
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fairlead_rollout.app.reconcile import reconcile
from fairlead_rollout.domain.errors import UnavailableError
from fairlead_rollout.domain.explain import explain
from fairlead_rollout.domain.snapshot import FETCH_FAILED, Verb, Verdict
from fairlead_rollout.domain.status import ConditionType, RolloutState, Status

World = Any


def reasons(world: World) -> list[str]:
    """Return the reasons of all events, oldest first."""
    return [event["reason"] for event in world.store_.events("flight-delay")]


def versions(world: World) -> set[str]:
    """Return the versions that have a workload."""
    return {w.version for w in world.running}


def test_first_version_gets_all_traffic_once_it_is_ready(serving: World) -> None:
    """The first Production version serves without a trial."""
    assert serving.status.traffic["arms"] == [{"arm": "stable", "version": "1", "weight": 10_000}]
    assert serving.status.condition(ConditionType.READY).status == "True"
    assert serving.status.history == ()


def test_nothing_serves_while_the_registry_names_no_version(world: World) -> None:
    """Without a Production version the status says what is waited for."""
    world.production = None
    world.run(3)
    ready = world.status.condition(ConditionType.READY)
    assert (ready.status, ready.reason) == ("False", "WaitingForVersion")
    assert "stage Production" in ready.message


def test_first_version_that_cannot_load_is_stalled_with_its_reason(world: World) -> None:
    """A first version that never starts asks for a person and names the cause."""
    world.broken["1"] = (3, "module 'lost' is not installed")
    world.run(3)
    stalled = world.status.condition(ConditionType.STALLED)
    assert "module 'lost' is not installed" in stalled.message
    world.production = "2"
    world.run_until(lambda: world.status.stable == "2")
    assert world.status.condition(ConditionType.STALLED) is None


def test_a_new_version_gets_the_first_weight_only_when_it_is_ready(serving: World) -> None:
    """The candidate has no weight while its processes start."""
    serving.production = "2"
    serving.run()
    assert serving.rollout.state is RolloutState.PENDING
    assert serving.weight == 0
    serving.run_until(lambda: serving.weight == 1_000)
    assert serving.rollout.state is RolloutState.RUNNING
    assert serving.status.traffic["salt"] == serving.rollout.id


def test_a_step_is_timed_from_when_the_gateway_has_applied_it(on_trial: World) -> None:
    """A gateway that is late does not shorten the step."""
    on_trial.gateway_up = False
    on_trial.run(200, every=1.0)
    assert on_trial.rollout.step_started_at is None
    on_trial.gateway_up = True
    on_trial.run(3)
    began = on_trial.rollout.step_started_at
    on_trial.run_until(lambda: on_trial.weight == 5_000)
    assert on_trial.time - began >= timedelta(seconds=30)


def test_too_few_requests_hold_the_weight(on_trial: World) -> None:
    """A step whose time is over does not end before the candidate was seen often enough."""
    on_trial.requests = 49
    on_trial.run(100, every=1.0)
    assert on_trial.weight == 1_000
    assert on_trial.status.condition(ConditionType.PROGRESSING).reason == "NotEnoughData"
    on_trial.requests = 50
    on_trial.run_until(lambda: on_trial.weight == 5_000)


def test_a_better_candidate_becomes_stable_and_the_old_version_goes(on_trial: World) -> None:
    """Promotion scales first, moves the weight, then removes what no longer serves."""
    on_trial.run_until(lambda: on_trial.weight == 5_000)
    on_trial.verdict, on_trial.why = Verdict.BETTER, "version 2 is better"
    on_trial.run_until(lambda: on_trial.status.stable == "2")
    arms = on_trial.status.traffic["arms"]
    assert arms == [{"arm": "stable", "version": "2", "weight": 10_000}]
    assert on_trial.running[-1].wanted == 2
    on_trial.run_until(lambda: versions(on_trial) == {"2"})
    on_trial.run_until(lambda: not on_trial.status.writeback)
    assert on_trial.tags["2"]["rollout.status"] == "promoted"
    assert on_trial.tags["2"]["rollout.effect"] == "-0.013"
    assert on_trial.reports[on_trial.rollout.id]["rollout"]["state"] == "promoted"
    assert on_trial.records_[on_trial.rollout.id]["state"] == "promoted"


def test_better_before_the_last_step_is_not_yet_a_promotion(on_trial: World) -> None:
    """The objective decides for a candidate at the last step only."""
    on_trial.verdict = Verdict.BETTER
    on_trial.run(20, every=1.0)
    assert on_trial.weight == 1_000


@pytest.mark.parametrize(
    ("verdict", "guardrails", "state", "reason"),
    [
        pytest.param(Verdict.WORSE, (), "aborted", "ObjectiveWorse", id="objective"),
        pytest.param(
            Verdict.WORSE,
            ({"name": "errors", "state": "worse"},),
            "aborted",
            "GuardrailWorse",
            id="guardrail",
        ),
        pytest.param(Verdict.INVALID, (), "invalid", "SampleRatioMismatch", id="split"),
    ],
)
def test_numbers_against_the_candidate_abort_at_any_step(
    on_trial: World, verdict: Verdict, guardrails: Any, state: str, reason: str
) -> None:
    """An abort sets the weight to 0 in the same pass and keeps the candidate out."""
    on_trial.verdict, on_trial.guardrails = verdict, guardrails
    on_trial.run()
    assert on_trial.weight == 0
    assert (on_trial.rollout.state, on_trial.rollout.reason) == (state, reason)
    assert on_trial.status.stable == "1"
    on_trial.run(100, every=1.0)
    assert on_trial.status.attempts == 1
    assert versions(on_trial) == {"1"}
    assert on_trial.tags["2"]["rollout.status"] == state


def test_a_candidate_that_cannot_load_is_aborted_without_traffic(serving: World) -> None:
    """A broken candidate never gets a weight, and the verdict carries its own reason."""
    serving.production = "2"
    serving.broken["2"] = (3, "No module named 'calibration_notebook'")
    serving.run()
    serving.run_until(lambda: serving.rollout.state is RolloutState.ABORTED)
    assert serving.rollout.step is None
    assert "calibration_notebook" in serving.rollout.message
    serving.run_until(lambda: not serving.status.writeback)
    assert "calibration_notebook" in serving.tags["2"]["rollout.reason"]


def test_a_candidate_that_never_gets_ready_is_aborted_at_the_deadline(serving: World) -> None:
    """Waiting for a candidate has an end."""
    serving.production = "2"
    serving.broken["2"] = (1, "its process ended with exit code 1")
    serving.run(2)
    assert serving.rollout.state is RolloutState.PENDING
    serving.time += timedelta(minutes=10)
    serving.run()
    assert serving.rollout.reason == "ProgressDeadlineExceeded"


def test_a_third_version_supersedes_the_one_on_trial(on_trial: World) -> None:
    """A newer promotion ends the trial and starts its own."""
    on_trial.production = "3"
    on_trial.run_until(lambda: on_trial.weight == 1_000 and on_trial.rollout.candidate == "3")
    (superseded,) = on_trial.status.history
    assert (superseded.candidate, superseded.state) == ("2", "superseded")
    on_trial.run_until(lambda: versions(on_trial) == {"1", "3"})


def test_changed_rules_start_the_trial_over(
    on_trial: World, build_manifest: Callable[..., Any]
) -> None:
    """A trial is judged by the rules it began with; new rules are a new rollout."""
    document = build_manifest()
    document["spec"]["rollout"]["steps"][0]["weight"] = 20
    on_trial.store_.apply(document, on_trial.time)
    on_trial.run_until(lambda: on_trial.weight == 2_000)
    (ended,) = on_trial.status.history
    assert (ended.state, ended.reason, ended.candidate) == ("superseded", "RulesChanged", "2")
    assert on_trial.rollout.id != ended.id


def test_other_changes_of_the_spec_leave_the_trial_alone(
    on_trial: World, build_manifest: Callable[..., Any]
) -> None:
    """More replicas are no new experiment."""
    before = on_trial.rollout.id
    on_trial.store_.apply(build_manifest(server={"replicas": 3}), on_trial.time)
    on_trial.run(5)
    assert (on_trial.rollout.id, on_trial.status.history) == (before, ())


def test_moving_production_back_ends_the_trial(on_trial: World) -> None:
    """The registry asks for stable again: the candidate goes, and may come back later."""
    on_trial.production = "1"
    on_trial.run_until(lambda: on_trial.rollout.reason == "ProductionMovedBack")
    assert on_trial.weight == 0
    on_trial.production = "2"
    on_trial.run_until(lambda: on_trial.weight == 1_000)
    assert on_trial.status.attempts == 2


def test_an_aborted_version_comes_back_when_promoted_again(on_trial: World) -> None:
    """Only a new move of the pointer starts a second trial of the same version."""
    on_trial.verdict = Verdict.WORSE
    on_trial.run(20, every=1.0)
    assert on_trial.status.attempts == 1
    on_trial.production = "1"
    on_trial.run(2)
    on_trial.production, on_trial.verdict = "2", Verdict.INSUFFICIENT
    on_trial.run_until(lambda: on_trial.weight == 1_000)
    assert on_trial.status.attempts == 2


@pytest.fixture
def reverting(make_world: Callable[..., World], build_manifest: Callable[..., Any]) -> World:
    """Return a world with `onAbort: revert` whose candidate has just turned out worse."""
    world = make_world(build_manifest(registry={"onAbort": "revert"}))
    world.run_until(lambda: world.status.stable == "1")
    world.production = "2"
    world.run_until(lambda: world.weight == 1_000)
    world.verdict = Verdict.WORSE
    return world


def test_revert_moves_the_pointer_back_to_stable(reverting: World) -> None:
    """With `onAbort: revert` MLflow names stable again after an abort."""
    reverting.run_until(lambda: reverting.production == "1")
    reverting.run(5)
    assert reverting.status.settled is None


def test_a_retry_takes_back_that_the_pointer_is_to_be_moved(reverting: World) -> None:
    """MLflow was away since the abort: when it is back, the new trial must not be ended by the old."""
    reverting.registry_up = False
    reverting.run_until(lambda: not reverting.rollout.is_active)
    reverting.verdict = Verdict.INSUFFICIENT
    reverting.ask(Verb.RETRY)
    reverting.run(3)
    reverting.registry_up = True
    reverting.run_until(lambda: reverting.weight == 1_000)
    reverting.run(5)
    assert (reverting.production, reverting.status.attempts) == ("2", 2)
    assert reverting.rollout.is_active


@pytest.mark.parametrize(("verb", "stable"), [(Verb.ABORT, "1"), (Verb.PROMOTE, "2")])
def test_a_person_decides_at_once(on_trial: World, verb: Verb, stable: str) -> None:
    """A person's word ends the trial, and the history names the person."""
    on_trial.ask(verb)
    on_trial.run_until(lambda: not on_trial.rollout.is_active)
    assert on_trial.status.stable == stable
    assert "by ada" in on_trial.rollout.message


def test_a_paused_rollout_holds_its_weight_but_still_aborts(on_trial: World) -> None:
    """Pausing stops the steps, not the guardrails."""
    on_trial.ask(Verb.PAUSE)
    on_trial.run(100, every=1.0)
    assert on_trial.weight == 1_000
    assert on_trial.rollout.paused
    on_trial.verdict = Verdict.WORSE
    on_trial.run()
    assert on_trial.weight == 0


def test_a_rollout_paused_before_its_first_weight_gets_none(serving: World) -> None:
    """Its candidate may get ready meanwhile, and the deadline for that is no matter then."""
    serving.broken["2"] = (1, "it is slow to start")
    serving.production = "2"
    serving.run(2)
    serving.ask(Verb.PAUSE)
    serving.run(2)
    serving.broken.clear()
    serving.run(100, every=15.0)
    assert (serving.weight, serving.rollout.step, serving.rollout.paused) == (0, None, True)
    progressing = serving.status.condition(ConditionType.PROGRESSING)
    assert progressing.reason == "Paused"
    assert progressing.message.startswith("paused before version 2 gets anything")
    serving.ask(Verb.RESUME, "request-2")
    serving.run_until(lambda: serving.weight == 1_000)


def test_a_rollout_paused_before_its_first_weight_ends_in_time(serving: World) -> None:
    """`maxDuration` runs on."""
    serving.production = "2"
    serving.run()
    serving.ask(Verb.PAUSE)
    serving.run(10, every=600.0)
    assert (serving.rollout.state, serving.rollout.reason) == ("aborted", "Inconclusive")


def test_a_resumed_rollout_goes_on(on_trial: World) -> None:
    """After a pause the steps go on."""
    on_trial.ask(Verb.PAUSE)
    on_trial.run(50, every=1.0)
    on_trial.ask(Verb.RESUME, "request-2")
    on_trial.run_until(lambda: on_trial.weight == 5_000)


def test_retry_puts_an_aborted_version_on_trial_again(on_trial: World) -> None:
    """A retry is a rollout of its own with an id of its own."""
    on_trial.verdict = Verdict.WORSE
    on_trial.run(2)
    first = on_trial.rollout.id
    on_trial.verdict = Verdict.INSUFFICIENT
    on_trial.ask(Verb.RETRY)
    on_trial.run_until(lambda: on_trial.weight == 1_000)
    assert on_trial.rollout.id != first


def test_a_request_for_an_earlier_rollout_does_nothing(on_trial: World) -> None:
    """An abort that was meant for the version before does not hit its successor."""
    on_trial.ask(Verb.ABORT)
    on_trial.production = "3"
    request = on_trial.store_.manifest("flight-delay")["metadata"]["request"]
    on_trial.store_.ask("flight-delay", _stale(request))
    on_trial.run_until(lambda: on_trial.weight == 1_000 and on_trial.rollout.candidate == "3")
    assert on_trial.rollout.is_active


def _stale(request: Any) -> Any:
    from fairlead_rollout.domain.snapshot import Request  # noqa: PLC0415

    return Request(id="stale", verb=Verb.ABORT, rollout="00000000-0000", by=request["by"])


def test_a_rollout_without_a_decision_ends_at_its_maximum(on_trial: World) -> None:
    """`maxDuration` keeps stable unless the spec says otherwise."""
    on_trial.run_until(lambda: on_trial.weight == 5_000)
    on_trial.time += timedelta(hours=1)
    on_trial.run(2)
    assert (on_trial.rollout.reason, on_trial.status.stable) == ("Inconclusive", "1")


def test_guardrails_decide_without_an_objective(
    make_world: Callable[..., World], build_manifest: Callable[..., Any]
) -> None:
    """Without an objective the candidate is promoted after its last step."""
    steps = {"steps": [{"weight": 5, "for": "10s"}, {"weight": 50, "for": "10s"}]}
    world = make_world(build_manifest(rollout=steps))
    world.run_until(lambda: world.status.stable == "1")
    world.production, world.verdict = "2", Verdict.HOLDING
    world.run_until(lambda: world.status.stable == "2")
    assert world.rollout.reason == "GuardrailsHeld"


def test_a_registry_outage_takes_no_traffic_and_loses_no_verdict(on_trial: World) -> None:
    """While MLflow is away the trial goes on; the verdict is told when it is back."""
    on_trial.registry_up = False
    on_trial.run_until(lambda: on_trial.weight == 5_000)
    condition = on_trial.status.condition(ConditionType.REGISTRY_UNAVAILABLE)
    assert condition.reason == "RegistryUnreachable"
    on_trial.verdict = Verdict.BETTER
    on_trial.run_until(lambda: on_trial.status.stable == "2")
    assert "rollout.decided_at" not in on_trial.tags["2"]
    on_trial.registry_up = True
    on_trial.run_until(lambda: not on_trial.status.writeback)
    assert on_trial.tags["2"]["rollout.status"] == "promoted"
    assert on_trial.status.condition(ConditionType.REGISTRY_UNAVAILABLE) is None


def test_a_missing_production_version_takes_no_traffic(serving: World) -> None:
    """The pointer may vanish; what serves goes on serving."""
    serving.production = None
    serving.run(10, every=1.0)
    assert serving.status.stable == "1"
    assert serving.status.traffic["arms"][0]["weight"] == 10_000


def test_nothing_moves_while_experiments_is_away(on_trial: World) -> None:
    """Without numbers the weight holds."""
    on_trial.experiments_up = False
    on_trial.run(100, every=1.0)
    assert on_trial.weight == 1_000
    on_trial.experiments_up = True
    on_trial.run_until(lambda: on_trial.weight == 5_000)


def test_a_trial_starts_only_when_experiments_knows_of_it(serving: World) -> None:
    """No exposure may come before the record that says how to judge it."""
    serving.production = "2"
    serving.run()
    serving.experiments_up = False
    serving.run(20, every=0.5)
    assert serving.weight == 0
    serving.experiments_up = True
    serving.run_until(lambda: serving.weight == 1_000)


def test_staging_gets_copies_and_never_an_arm(
    make_world: Callable[..., World], build_manifest: Callable[..., Any]
) -> None:
    """A shadow version is in the plan as a shadow only, once it is ready."""
    world = make_world(build_manifest(registry={"shadow": {"stage": "Staging"}}))
    world.shadow = "7"
    world.run_until(lambda: bool(world.status.traffic and world.status.traffic["shadow"]))
    assert world.status.traffic["shadow"] == [{"version": "7", "share": 10_000}]
    world.shadow = None
    world.run_until(lambda: versions(world) == {"1"})


def test_a_wrong_spec_stalls_and_takes_no_traffic(
    serving: World, build_manifest: Callable[..., Any]
) -> None:
    """A manifest broken behind the command's back says so and changes nothing."""
    path = serving.home.served_models / "flight-delay" / "manifest.json"
    path.write_text(path.read_text("utf-8").replace('"replicas": 2', '"replicas": "two"'), "utf-8")
    before = serving.status.traffic
    serving.run(3)
    stalled = serving.status.condition(ConditionType.STALLED)
    assert "spec.server.replicas" in stalled.message
    assert serving.status.traffic == before


@pytest.mark.parametrize("moment", ["serving", "on_trial", "last_step", "aborted", "promoted"])
def test_a_lost_status_is_rebuilt_before_anything_changes(on_trial: World, moment: str) -> None:
    """Stable and the trial are told from processes and records; traffic does not move."""
    if moment == "serving":
        on_trial.production = "1"
        on_trial.run_until(lambda: versions(on_trial) == {"1"})
    if moment == "last_step":
        on_trial.run_until(lambda: on_trial.weight == 5_000)
    if moment in {"aborted", "promoted"}:
        on_trial.ask(Verb.ABORT if moment == "aborted" else Verb.PROMOTE)
        on_trial.run_until(lambda: not on_trial.rollout.is_active)
    on_trial.run_until(lambda: not on_trial.status.writeback)
    before = on_trial.status
    (on_trial.home.served_models / "flight-delay" / "status.json").write_text("{half", "utf-8")
    on_trial.run()
    after = on_trial.status
    assert (after.stable, after.traffic) == (before.stable, before.traffic)
    assert after.attempts == before.attempts
    assert _ids(after) == _ids(before)
    on_trial.run(50, every=0.1)
    assert on_trial.status.attempts == before.attempts


def _ids(status: Status) -> list[tuple[str, str]]:
    return [(rollout.id, rollout.state) for rollout in status.history]


def test_a_status_that_cannot_be_read_just_now_is_not_lost(
    on_trial: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is left to open, or a disk over the network hangs: the pass is made again later."""
    on_trial.ask(Verb.PAUSE)
    on_trial.run(3)
    before, read = on_trial.status, Path.read_text

    def read_text(path: Path, *how: str) -> str:
        if path.name == "status.json" and path.parent.name == "flight-delay":
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return read(path, *how)

    monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(OSError, match="Too many open files"):
        reconcile("flight-delay", on_trial.ports)
    monkeypatch.undo()
    assert on_trial.status == before
    on_trial.run(3)
    assert on_trial.rollout.paused


def test_a_lost_status_waits_for_experiments(serving: World) -> None:
    """While the records cannot be read the status says only that, and nothing changes."""
    path = serving.home.served_models / "flight-delay" / "status.json"
    path.unlink()
    serving.experiments_up = False
    serving.run(3)
    assert [c.type for c in serving.status.conditions] == ["ExperimentsUnavailable"]
    assert serving.status.stable is None
    assert versions(serving) == {"1"}
    serving.experiments_up = True
    serving.run_until(lambda: serving.status.stable == "1")
    assert serving.status.condition(ConditionType.EXPERIMENTS_UNAVAILABLE) is None


def test_a_lost_status_waits_for_the_registry(serving: World) -> None:
    """Before the first look at MLflow nothing is concluded from an empty status."""
    path = serving.home.served_models / "flight-delay" / "status.json"
    path.unlink()
    serving.registry_up = False
    serving.run(50, every=1.0)
    assert [c.type for c in serving.status.conditions] == ["RegistryUnavailable"]
    assert versions(serving) == {"1"}


def test_a_lost_status_with_a_shadow_keeps_what_serves(
    make_world: Callable[..., World], build_manifest: Callable[..., Any]
) -> None:
    """Two ready versions and no record: the one production names is the one that serves."""
    world = make_world(build_manifest(registry={"shadow": {"stage": "Staging"}}))
    world.shadow = "7"
    world.run_until(lambda: bool(world.status.traffic and world.status.traffic["shadow"]))
    before = world.status.traffic
    (world.home.served_models / "flight-delay" / "status.json").unlink()
    world.run()
    assert (world.status.stable, world.status.traffic) == ("1", before)


@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gate"])
def test_a_candidate_without_a_record_is_not_taken_for_stable(
    make_world: Callable[..., World], build_manifest: Callable[..., Any], gate: bool
) -> None:
    """Experiments was away when the trial began, and the candidate is ready: it never answered."""
    rules = {"guardrails": {"shadow": {"maxDisagreement": 0.05}}} if gate else {}
    world = make_world(build_manifest(rollout={"steps": [{"weight": 10, "for": "1m"}], **rules}))
    world.run_until(lambda: world.status.stable == "1")
    world.experiments_up = False
    world.production = "2"
    world.run(5, every=1.0)
    assert {w.version: w.ready > 0 for w in world.running} == {"1": True, "2": True}
    (world.home.served_models / "flight-delay" / "status.json").unlink()
    world.experiments_up = True
    world.run(2)
    assert (world.status.stable, world.rollout.candidate) == ("1", "2")


def test_rules_changed_while_the_status_was_lost_start_the_trial_over(
    on_trial: World, build_manifest: Callable[..., Any]
) -> None:
    """The record says by which rules was counted; fewer steps must not break anything."""
    on_trial.run_until(lambda: not on_trial.status.writeback)
    document = build_manifest()
    document["spec"]["rollout"]["steps"] = [{"weight": 50, "until": "decided"}]
    on_trial.store_.apply(document, on_trial.time)
    (on_trial.home.served_models / "flight-delay" / "status.json").unlink()
    on_trial.run_until(lambda: on_trial.weight == 5_000)
    assert on_trial.status.history[-1].reason == "RulesChanged"


def test_fewer_steps_are_explained_before_the_controller_has_seen_them(
    on_trial: World, build_manifest: Callable[..., Any]
) -> None:
    """The controller is away, and the trial is at a step that is no more."""
    on_trial.run_until(lambda: on_trial.weight == 5_000)
    document = build_manifest()
    document["spec"]["rollout"]["steps"] = [{"weight": 30, "until": "decided"}]
    on_trial.store_.apply(document, on_trial.time)
    served = on_trial.store_.read("flight-delay")
    told = explain("flight-delay", served.spec, served.status, None, on_trial.time)
    assert "It starts over: fewer steps were applied." in told


def test_fewer_steps_and_a_request_at_once_do_not_stop_the_controller(
    on_trial: World, build_manifest: Callable[..., Any]
) -> None:
    """What a person asked of the old trial is not carried over to the new one."""
    on_trial.run_until(lambda: on_trial.weight == 5_000)
    document = build_manifest()
    document["spec"]["rollout"]["steps"] = [{"weight": 30, "until": "decided"}]
    on_trial.store_.apply(document, on_trial.time)
    on_trial.ask(Verb.PROMOTE)
    on_trial.run_until(lambda: on_trial.weight == 3_000)
    assert on_trial.status.stable == "1"


def test_a_revert_does_not_undo_a_newer_promotion(reverting: World) -> None:
    """The pointer is moved back only while it names the aborted version."""
    reverting.run()
    reverting.production, reverting.verdict = "5", Verdict.INSUFFICIENT
    reverting.run_until(lambda: not reverting.status.writeback)
    assert reverting.production == "5"


def test_a_candidate_that_cannot_be_fetched_is_waited_for(serving: World) -> None:
    """The registry's absence is not the candidate's fault; the deadline bounds the waiting."""
    serving.production = "2"
    serving.broken["2"] = (4, "MLflow does not answer")
    serving.run(20, every=1.0)
    assert serving.rollout.is_active
    serving.broken.clear()
    serving.run_until(lambda: serving.weight == 1_000)


def test_nobody_is_promoted_blind_at_the_maximum(
    make_world: Callable[..., World], build_manifest: Callable[..., Any]
) -> None:
    """`onInconclusive: promote` needs an analysis with enough requests."""
    document = build_manifest()
    document["spec"]["rollout"]["onInconclusive"] = "promote"
    world = make_world(document)
    world.run_until(lambda: world.status.stable == "1")
    world.production = "2"
    world.run_until(lambda: world.weight == 1_000)
    world.experiments_up = False
    world.time += timedelta(hours=2)
    world.run(3)
    assert (world.rollout.state, world.status.stable) == ("aborted", "1")


def test_a_record_that_experiments_lost_is_put_again(on_trial: World) -> None:
    """A restored database must not leave a candidate unguarded."""
    on_trial.run_until(lambda: not on_trial.status.writeback)
    kept = on_trial.records_.pop(on_trial.rollout.id)
    on_trial.is_record_lost = True
    on_trial.run_until(lambda: on_trial.rollout.id in on_trial.records_)
    assert on_trial.records_[on_trial.rollout.id]["steps"] == kept["steps"]


def test_a_record_carries_no_control_characters(serving: World) -> None:
    """A foreign program's coloured words must not make the record unacceptable."""
    serving.production = "2"
    serving.broken["2"] = (3, "\x1b[31mno such module\x1b[0m " + "x" * 5_000)
    serving.run()
    serving.run_until(lambda: not serving.rollout.is_active and not serving.status.writeback)
    reason = serving.records_[serving.rollout.id]["reason"]
    assert reason.isprintable()
    assert len(reason) <= 1_000


def test_an_event_behind_a_half_written_one_is_kept(on_trial: World) -> None:
    """The disk was full in the middle of a line: only that one is lost, and told again."""
    path = on_trial.home.served_models / "flight-delay" / "events.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"id": "cut off he')
    on_trial.ask(Verb.PAUSE)
    on_trial.run(3)
    on_trial.ask(Verb.RESUME, "request-2")
    on_trial.run(3)
    assert reasons(on_trial)[-2:] == ["Paused", "StepHolding"]


def test_an_outage_and_every_pause_are_events(on_trial: World) -> None:
    """The same step paused twice is told twice; the registry's absence is told once."""
    for number, verb in enumerate((Verb.PAUSE, Verb.RESUME, Verb.PAUSE)):
        on_trial.ask(verb, f"request-{number}")
        on_trial.run(3)
    on_trial.registry_up = False
    on_trial.run(5)
    assert reasons(on_trial).count("Paused") == 2
    assert reasons(on_trial).count("RegistryUnreachable") == 1


def test_why_a_version_does_not_start_is_told_once_for_each_cause(serving: World) -> None:
    """A version that waits for what is away says so in an event, not in its condition alone."""
    serving.production = "2"
    serving.broken["2"] = (FETCH_FAILED, "the artifact store does not answer")
    serving.run(5, every=1)
    serving.broken["2"] = (FETCH_FAILED, "MLflow does not answer")
    serving.run(5, every=1)
    told = [e for e in serving.store_.events("flight-delay") if e["reason"] == "StartingCandidate"]
    assert [(e["type"], e["message"]) for e in told] == [
        ("Normal", "version 2 is starting"),
        ("Warning", "version 2 is starting: the artifact store does not answer"),
        ("Warning", "version 2 is starting: MLflow does not answer"),
    ]


def test_a_step_that_holds_writes_nothing(on_trial: World) -> None:
    """Time that passes is no news: a thousand rollouts must not write a thousand times a second."""
    on_trial.run_until(lambda: on_trial.rollout.step_started_at is not None)
    on_trial.run(3, every=1)
    before = on_trial.writes
    on_trial.run(5, every=1)
    assert on_trial.status.condition(ConditionType.PROGRESSING).reason == "StepHolding"
    assert on_trial.writes == before


def test_one_broken_model_does_not_stop_the_others(serving: World) -> None:
    """An unexpected error is logged, and the next model is reconciled all the same."""
    from fairlead_rollout.app.controller import Controller  # noqa: PLC0415

    seen: list[str] = []

    def read(name: str) -> None:
        seen.append(name)
        raise RuntimeError("unexpected")

    class Both:
        """Two served models, nothing changed."""

        def keys(self) -> tuple[str, ...]:
            return ("a", "b")

        def take_changed(self) -> frozenset[str]:
            return frozenset()

    serving.read = read
    Controller(serving.ports, Both()).run_once()
    assert seen == ["a", "b"]


def test_events_tell_each_change_once(on_trial: World) -> None:
    """A repeated pass tells nothing twice."""
    on_trial.run(20)
    told = reasons(on_trial)
    assert len(told) == len(set(told))
    assert "ApplyingTraffic" in told


def test_records_of_another_registered_model_are_not_believed(
    make_world: Callable[..., World], build_manifest: Callable[..., Any]
) -> None:
    """Version 2 of another registered model was aborted: ours is not thought settled by it."""
    world = make_world(build_manifest())
    record = {
        "model": "flight-delay",
        "registeredModel": "somebody else's",
        "stable": "7",
        "candidate": "2",
        "startedAt": "2025-12-31T00:00:00Z",
        "decidedAt": "2025-12-31T01:00:00Z",
        "state": "aborted",
        "reason": "worse",
        "steps": [],
    }
    world.records_["theirs"] = record
    world.run_until(lambda: world.status.stable is not None)
    assert (world.status.stable, world.status.attempts, world.status.settled) == ("1", 0, None)


def test_an_object_that_cannot_be_written_just_now_stops_no_verdict(
    on_trial: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An admission webhook that is down answers for the API server; an abort cannot wait for it."""

    def ensure(*_: object) -> None:
        raise UnavailableError("PATCH deployments: 500 failed calling webhook")

    monkeypatch.setattr(on_trial, "ensure", ensure)
    on_trial.verdict = Verdict.WORSE
    for _ in range(5):
        on_trial.settle()
        with pytest.raises(UnavailableError, match="webhook"):
            reconcile("flight-delay", on_trial.ports)
        on_trial.time += timedelta(seconds=1)
    assert on_trial.rollout.state is RolloutState.ABORTED
    assert on_trial.weight == 0
    assert on_trial.tags["2"]["rollout.status"] == "aborted"


def test_a_refused_object_is_told_and_stops_nothing_else(on_trial: World) -> None:
    """The API server will not have the candidate's pods: Stalled says why, an abort still works."""
    on_trial.refused["2"] = 'Deployment "x" is invalid: volumeMounts[2].name: Not found: "nowhere"'
    on_trial.run(3)
    stalled = on_trial.status.condition(ConditionType.STALLED)
    assert stalled is not None
    assert "volumeMounts[2].name" in stalled.message
    assert reasons(on_trial).count("InvalidSpec") == 1
    on_trial.ask(Verb.ABORT)
    on_trial.run_until(lambda: on_trial.rollout.state is RolloutState.ABORTED)
    assert on_trial.weight == 0
    on_trial.run(3)
    assert on_trial.status.condition(ConditionType.STALLED) is None

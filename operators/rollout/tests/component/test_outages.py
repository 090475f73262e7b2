"""What is said while a system is away, or another ServedModel is in the way."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fairlead_rollout.domain.errors import UnavailableError
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.snapshot import Verb, Verdict
from fairlead_rollout.domain.status import ConditionType

World = Any
ADDRESS = "http://mlflow:5000 does not answer (ConnectError)"


@pytest.fixture
def talking(on_trial: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a world on trial whose registry and experiments say why they do not answer."""

    def problem(world: World) -> str | None:
        return None if world.registry_up and world.experiments_up else ADDRESS

    monkeypatch.setattr(type(on_trial), "problem", property(problem))
    on_trial.run_until(lambda: not on_trial.status.writeback)
    return on_trial


def events(world: World) -> Counter[str]:
    """Return how often each reason was told."""
    return Counter(event["reason"] for event in world.store_.events("flight-delay"))


def test_a_registry_that_is_away_is_named_once(talking: World) -> None:
    """Condition and event say who does not answer; the condition goes with the outage."""
    talking.registry_up = False
    talking.run(20, every=1.0)
    condition = talking.status.condition(ConditionType.REGISTRY_UNAVAILABLE)
    assert (condition.status, condition.reason) == ("True", "RegistryUnreachable")
    assert condition.message.startswith(ADDRESS)
    assert condition.message.endswith("traffic stays as it is")
    assert events(talking)["RegistryUnreachable"] == 1
    talking.registry_up = True
    talking.run(2)
    assert talking.status.condition(ConditionType.REGISTRY_UNAVAILABLE) is None


def test_experiments_that_are_away_are_named_once(talking: World) -> None:
    """Without numbers the weight holds, and people know why."""
    talking.experiments_up = False
    talking.run(20, every=1.0)
    condition = talking.status.condition(ConditionType.EXPERIMENTS_UNAVAILABLE)
    assert (condition.status, condition.reason) == ("True", "AnalysisUnavailable")
    assert condition.message.endswith("weights stay as they are")
    assert talking.weight == 1_000
    warned = [
        event
        for event in talking.store_.events("flight-delay")
        if event["reason"] == "AnalysisUnavailable" and ADDRESS in event["message"]
    ]
    assert len(warned) == 1
    talking.experiments_up = True
    talking.run(2)
    assert talking.status.condition(ConditionType.EXPERIMENTS_UNAVAILABLE) is None


def test_each_outage_is_told(talking: World) -> None:
    """A second outage is news again."""
    for _ in range(2):
        talking.registry_up = False
        talking.run(5, every=1.0)
        talking.registry_up = True
        talking.run(5, every=1.0)
    assert events(talking)["RegistryUnreachable"] == 2


def test_both_away_at_once_are_both_told(talking: World) -> None:
    """One outage does not hide the other."""
    talking.registry_up = talking.experiments_up = False
    talking.run(5, every=1.0)
    for kind in (ConditionType.REGISTRY_UNAVAILABLE, ConditionType.EXPERIMENTS_UNAVAILABLE):
        assert talking.status.condition(kind) is not None
    assert events(talking)["RegistryUnreachable"] == 1


def test_experiments_are_not_missed_where_nothing_is_on_trial(
    serving: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that only serves needs no numbers."""
    monkeypatch.setattr(type(serving), "problem", property(lambda _: ADDRESS))
    serving.experiments_up = False
    serving.run(5, every=1.0)
    assert serving.status.condition(ConditionType.EXPERIMENTS_UNAVAILABLE) is None


def test_the_time_of_an_outage_is_its_beginning(talking: World) -> None:
    """How long it has lasted can be read off."""
    talking.registry_up = False
    talking.run()
    began = talking.status.condition(ConditionType.REGISTRY_UNAVAILABLE).last_transition_time
    talking.run(30, every=1.0)
    condition = talking.status.condition(ConditionType.REGISTRY_UNAVAILABLE)
    assert condition.last_transition_time == began


@pytest.fixture
def in_conflict(on_trial: World) -> Callable[..., None]:
    """Return a switch that puts an older ServedModel of the same name in the way, or away."""
    free = on_trial.read

    def blocked(key: str) -> Any:
        served = free(key)
        problem = "the older ServedModel other/flight-delay has the same name"
        return served and replace(served, spec=None, problem=problem, reason=Reason.ROUTE_CONFLICT)

    def switch(*, on: bool) -> None:
        on_trial.read = blocked if on else free

    return switch


def test_a_name_that_is_taken_stalls_and_changes_nothing(
    on_trial: World, in_conflict: Callable[..., None]
) -> None:
    """The newer one says whom it is in the way of; its processes stay as they are."""
    before, running = on_trial.status.traffic, on_trial.running
    in_conflict(on=True)
    on_trial.run(20, every=1.0)
    stalled = on_trial.status.condition(ConditionType.STALLED)
    assert (stalled.status, stalled.reason) == ("True", "RouteConflict")
    assert "other/flight-delay" in stalled.message
    assert events(on_trial)["RouteConflict"] == 1
    assert (on_trial.status.traffic, on_trial.running) == (before, running)


def test_a_name_that_is_free_again_goes_on_where_it_was(
    on_trial: World, in_conflict: Callable[..., None]
) -> None:
    """The same rollout goes on, and a person can end it."""
    rollout = on_trial.rollout.id
    in_conflict(on=True)
    on_trial.run(3, every=1.0)
    in_conflict(on=False)
    on_trial.run(3)
    assert on_trial.status.condition(ConditionType.STALLED) is None
    assert on_trial.rollout.id == rollout
    on_trial.ask(Verb.ABORT)
    on_trial.run_until(lambda: on_trial.weight == 0)


def test_an_outage_does_not_hide_what_was_decided(talking: World) -> None:
    """The trial is aborted in the pass that finds the registry away: both are told."""
    talking.verdict, talking.registry_up = Verdict.WORSE, False
    talking.run(3)
    assert events(talking)["RegistryUnreachable"] == 1
    assert events(talking)["ObjectiveWorse"] == 1


def test_an_older_verdict_is_not_told_after_a_newer_one(
    on_trial: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow comes back and drops its first call: the version's last word is that of its retry."""
    refused: list[str] = []
    take = on_trial.write

    def write(spec: Any, item: Any) -> None:
        if item.kind not in refused:
            refused.append(item.kind)
            raise UnavailableError("MLflow is starting")
        take(spec, item)

    on_trial.run_until(lambda: not on_trial.status.writeback)
    monkeypatch.setattr(on_trial, "write", away)
    on_trial.verdict = Verdict.WORSE
    on_trial.run_until(lambda: not on_trial.rollout.is_active)
    on_trial.verdict = Verdict.INSUFFICIENT
    on_trial.ask(Verb.RETRY, "retry")
    on_trial.run_until(lambda: on_trial.weight > 0)
    on_trial.ask(Verb.PROMOTE, "promote")
    on_trial.run_until(lambda: on_trial.status.stable == "2")
    monkeypatch.setattr(on_trial, "write", write)
    on_trial.run_until(lambda: not on_trial.status.writeback)
    assert {"tags", "description", "report", "page"} <= set(refused)
    assert on_trial.tags["2"]["rollout.status"] == "promoted"
    assert on_trial.tags["2"]["rollout.id"] == on_trial.rollout.id
    assert "Rollout promoted" in on_trial.descriptions["2"]


def away(_: Any, item: Any) -> None:
    """Fail as MLflow does while it is away and its last poll is not old yet."""
    raise UnavailableError(f"MLflow does not take {item.kind}")

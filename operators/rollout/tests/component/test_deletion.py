"""A ServedModel that is deleted: others are told of its rollout's end before it goes."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from fairlead_rollout.domain.errors import FairleadError
from fairlead_rollout.domain.status import ConditionType, RolloutState

World = Any


def delete(world: World) -> None:
    """Delete the ServedModel as a person would."""
    world.deleted_at = world.time


def last(world: World) -> Any:
    """Return the last rollout as it was stored last."""
    return world.status.rollout


def test_a_running_rollout_holds_its_served_model(on_trial: World) -> None:
    """From the start of a rollout until its end has been told."""
    assert on_trial.is_held


def test_without_a_rollout_nothing_holds_it(serving: World) -> None:
    """What has nothing to tell goes at once."""
    serving.run(5, every=1.0)
    assert not serving.is_held


def test_an_ended_rollout_lets_go_once_it_has_been_told(on_trial: World) -> None:
    """The finalizer is there no longer than it must."""
    from fairlead_rollout.domain.snapshot import Verb  # noqa: PLC0415

    on_trial.ask(Verb.ABORT)
    on_trial.run_until(lambda: not on_trial.rollout.is_active and not on_trial.status.writeback)
    on_trial.run(2)
    assert not on_trial.is_held


def test_a_deletion_ends_the_rollout_and_tells_everybody(on_trial: World) -> None:
    """MLflow and the experiments service do not go on waiting for a verdict."""
    rollout = on_trial.rollout.id
    delete(on_trial)
    on_trial.run_until(lambda: on_trial.is_gone)
    ended = last(on_trial)
    assert (ended.id, ended.state, ended.reason) == (rollout, "aborted", "ServedModelDeleted")
    assert on_trial.records_[rollout]["state"] == "aborted"
    assert on_trial.tags["2"]["rollout.status"] == "aborted"
    assert "deleted" in on_trial.tags["2"]["rollout.reason"]
    assert on_trial.status.writeback == ()


def test_the_candidate_gets_no_traffic_before_the_served_model_goes(on_trial: World) -> None:
    """It drains first: the gateway hears of weight 0 while everything still runs."""
    delete(on_trial)
    on_trial.run()
    assert on_trial.weight == 0
    assert not on_trial.is_gone
    assert on_trial.status.stable == "1"
    assert {w.version for w in on_trial.running} >= {"1", "2"}


@pytest.mark.parametrize("away", ["registry_up", "experiments_up"])
def test_who_is_away_for_long_is_not_waited_for(on_trial: World, away: str) -> None:
    """After a minute the ServedModel goes, told or not."""
    on_trial.run_until(lambda: not on_trial.status.writeback)
    setattr(on_trial, away, False)
    delete(on_trial)
    on_trial.run(55, every=1.0)
    assert not on_trial.is_gone
    on_trial.run(10, every=1.0)
    assert on_trial.is_gone


def test_who_comes_back_in_time_is_told(on_trial: World) -> None:
    """A short outage of MLflow loses no verdict."""
    on_trial.registry_up = False
    delete(on_trial)
    on_trial.run(20, every=1.0)
    on_trial.registry_up = True
    on_trial.run_until(lambda: on_trial.is_gone)
    assert on_trial.tags["2"]["rollout.status"] == "aborted"


def test_a_deletion_moves_no_pointer(
    make_world: Callable[..., World], build_manifest: Callable[..., Any]
) -> None:
    """`onAbort: revert` is for a verdict; a person who deletes has not given one."""
    world = make_world(build_manifest(registry={"onAbort": "revert"}))
    world.run_until(lambda: world.status.stable == "1")
    world.production = "2"
    world.run_until(lambda: world.weight == 1_000)
    delete(world)
    world.run_until(lambda: world.is_gone)
    assert world.production == "2"
    assert world.tags["2"]["rollout.status"] == "aborted"


def test_nothing_new_is_started_for_what_is_going(on_trial: World) -> None:
    """A promotion in the last minute puts no version on trial."""
    on_trial.run_until(lambda: not on_trial.status.writeback)
    on_trial.experiments_up = False
    delete(on_trial)
    on_trial.run(3)
    on_trial.production = "3"
    on_trial.run(20, every=1.0)
    assert not on_trial.is_gone
    assert on_trial.status.attempts == 1
    assert "3" not in {w.version for w in on_trial.running}


def test_a_pending_rollout_is_ended_too(serving: World) -> None:
    """Also one whose candidate never got a weight."""
    serving.production, serving.broken["2"] = "2", (4, "MLflow does not answer")
    serving.run(3)
    assert serving.rollout.state is RolloutState.PENDING
    delete(serving)
    serving.run_until(lambda: serving.is_gone)
    assert last(serving).reason == "ServedModelDeleted"
    assert serving.records_[last(serving).id]["state"] == "aborted"


def test_a_paused_rollout_is_ended_too(on_trial: World) -> None:
    """Nobody is left to resume it."""
    from fairlead_rollout.domain.snapshot import Verb  # noqa: PLC0415

    on_trial.ask(Verb.PAUSE)
    on_trial.run(2)
    delete(on_trial)
    on_trial.run_until(lambda: on_trial.is_gone)
    assert last(on_trial).reason == "ServedModelDeleted"


def test_one_that_is_wrong_goes_all_the_same(on_trial: World) -> None:
    """A spec that cannot be followed must not keep its ServedModel for ever."""
    path = on_trial.home.served_models / "flight-delay" / "manifest.json"
    path.write_text(path.read_text("utf-8").replace('"replicas": 2', '"replicas": "two"'), "utf-8")
    delete(on_trial)
    on_trial.run(2)
    assert on_trial.is_gone


def test_one_whose_status_was_lost_goes_while_nobody_can_say_what_it_was(
    on_trial: World,
) -> None:
    """Without the experiments service a lost status cannot be rebuilt; a deletion need not wait."""
    (on_trial.home.served_models / "flight-delay" / "status.json").unlink()
    on_trial.experiments_up = False
    delete(on_trial)
    on_trial.run(2)
    assert on_trial.is_gone


def test_a_deletion_is_never_kept_from_afterwards(
    serving: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes takes no finalizer for what is being deleted; nothing fails for that."""
    monkeypatch.setattr(type(serving), "is_gone", property(lambda _: False))  # another one's hold
    serving.production = "2"
    serving.run_until(lambda: serving.weight == 1_000)
    serving.is_held = False  # deleted before it could be held
    delete(serving)

    def hold(key: str, *, held: bool) -> None:
        if held:
            raise FairleadError("422: no new finalizers can be added")

    serving.hold = hold
    serving.run_until(lambda: not serving.rollout.is_active and not serving.status.writeback)
    assert serving.tags["2"]["rollout.status"] == "aborted"


def test_killed_at_any_write_a_deletion_still_tells_everybody(
    make_world: Callable[..., World], killed: type[BaseException]
) -> None:
    """The next controller finishes what the last one began."""
    for write in range(1, 20):
        world = make_world()
        world.run_until(lambda w=world: w.status.stable == "1")
        world.production = "2"
        world.run_until(lambda w=world: w.weight == 1_000)
        delete(world)
        world.kill_at = world.writes + write
        try:
            world.run_until(lambda w=world: w.is_gone)
        except killed:
            world.kill_at = None
            world.run_until(lambda w=world: w.is_gone)
            assert world.records_[last(world).id]["state"] == "aborted"
            assert world.tags["2"]["rollout.status"] == "aborted"
        else:
            assert write > 4
            return
    raise AssertionError("a deletion writes without end")


def test_what_is_cleaned_up_already_is_not_made_again(on_trial: World) -> None:
    """A deletion in the foreground takes the processes first: each one made anew would hold it up."""
    on_trial.run_until(lambda: not on_trial.status.writeback)
    on_trial.experiments_up = False
    delete(on_trial)
    served = on_trial.store_.read("flight-delay")
    for version in ("1", "2"):
        on_trial.cluster_.remove(served, version)
    on_trial.run(5, every=1.0)
    assert not on_trial.is_gone
    assert on_trial.running == ()


def test_the_minute_counts_from_the_deletion(on_trial: World) -> None:
    """A controller that was away for long does not start another minute."""
    on_trial.registry_up = False
    delete(on_trial)
    on_trial.time += timedelta(minutes=5)
    on_trial.run(3)
    assert on_trial.is_gone
    assert on_trial.status.condition(ConditionType.PROGRESSING) is None

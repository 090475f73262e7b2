"""State is lost in the middle of a rollout, and rebuilt from what exists."""

from collections.abc import Callable

from fairlead_e2e.served import HELD, Served
from fairlead_e2e.waiting import wait_until

Serve = Callable[..., Served]


def test_status_wiped(serve: Serve) -> None:
    """A wiped status is rebuilt: the same stable version, the same rollout, the same units."""
    served = serve(HELD)
    with served.load() as load:
        rollout = served.hold_at_half()
        load.await_sent(60)
        # When the status is wiped
        served.platform.kube.patch(
            "ServedModel", served.namespace, served.name, {"status": None}, "status"
        )
        # Then it is rebuilt, on the same rollout
        served.await_weight(5_000)
        assert served.rollout()["id"] == rollout
        assert served.status()["stable"] == "1"
        load.await_sent(100)
        served.ask("promote")
        served.await_serving("2")
    served.assert_unnoticed(load.report)


def test_deleted_and_made_again(serve: Serve) -> None:
    """A ServedModel that is made again serves its stable version; no request breaks in between."""
    served = serve(HELD)
    with served.load() as load:
        rollout = served.hold_at_half()
        # When somebody deletes it and applies it again
        deleted = load.now().at
        served.platform.kube.delete("ServedModel", served.namespace, served.name)
        wait_until(lambda: not served.document(), 90, "the ServedModel is gone", served.told)
        served.apply(HELD)
        # Then the version that was stable serves, and the one that was on trial stays out
        served.await_serving("1")
        load.await_sent(60)
        back = load.now()
        assert back.last["2"] < back.at - 0.5
        tags = served.await_tag("2", "aborted")
    assert tags["rollout.id"] == rollout
    assert tags["rollout.reason"].startswith("ServedModelDeleted")
    # ... and while there was none, requests were refused, and none was cut off
    for note in load.report.failures:
        assert note["began"] >= deleted, load.report.told()
        assert note["at"] <= back.at, load.report.told()
        assert note["why"].startswith(("404", "503")), load.report.told()


def test_made_again_for_another_model(serve: Serve) -> None:
    """A ServedModel of an old name for another registered model knows nothing of the old one."""
    # Given a served model whose version 2 became stable and whose version 3 was aborted
    old = serve(HELD, versions=3)
    old.promote("2")
    old.await_state("2", "running")
    old.ask("promote")
    old.await_serving("2")
    old.promote("3")
    old.await_state("3", "running")
    old.ask("abort")
    old.await_state("3", "aborted")
    # When it is deleted and one of its name is made for another registered model
    new = serve(HELD, versions=1)
    # Then the first version of that one serves, with no history
    assert new.name == old.name
    assert new.status()["stable"] == "1"
    assert new.status()["history"] == []
    with new.load() as load:
        load.await_sent(40)
    new.assert_unnoticed(load.report)

"""Who is woken by what, and which of two ServedModels of one name is served."""

from typing import Any

import pytest

from fairlead_rollout.adapters.k8s.watch import Watch

Document = dict[str, Any]


def served(
    namespace: str, name: str = "flights", created: str = "2026-01-01T00:00:00Z", uid: str = "u"
) -> Document:
    """Return a ServedModel as a watch delivers it."""
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "creationTimestamp": created,
            "uid": uid,
        },
        "spec": {"model": f"model of {name}"},
    }


@pytest.fixture
def watch() -> Watch:
    """Return a watch that has seen nothing."""
    return Watch()


def test_a_served_model_that_appears_is_looked_at_once(watch: Watch) -> None:
    """What changed is told once."""
    watch.see(served("a"), is_gone=False)
    assert watch.keys() == ("a/flights",)
    assert watch.take_changed() == {"a/flights"}
    assert watch.take_changed() == frozenset()


def test_one_that_went_is_forgotten(watch: Watch) -> None:
    """Nobody looks for what is not there."""
    watch.see(served("a"), is_gone=False)
    watch.see(served("a"), is_gone=True)
    assert watch.keys() == ()


def test_the_older_of_two_with_one_name_is_served(watch: Watch) -> None:
    """The name is the path at the gateway; the newer one waits."""
    watch.see(served("b", created="2026-01-02T00:00:00Z", uid="a"), is_gone=False)
    watch.see(served("a", created="2026-01-01T00:00:00Z", uid="b"), is_gone=False)
    assert watch.rivals("b/flights") == ("a/flights",)
    assert watch.rivals("a/flights") == ()


def test_of_two_made_in_one_second_the_smaller_uid_is_served(watch: Watch) -> None:
    """The gateway's agents decide by the same rule."""
    watch.see(served("a", uid="2"), is_gone=False)
    watch.see(served("b", uid="1"), is_gone=False)
    assert watch.rivals("a/flights") == ("b/flights",)


def test_the_newer_one_is_woken_when_the_older_goes(watch: Watch) -> None:
    """The path is free again at once."""
    watch.see(served("a"), is_gone=False)
    watch.see(served("b", created="2026-01-02T00:00:00Z"), is_gone=False)
    watch.take_changed()
    watch.see(served("a"), is_gone=True)
    assert watch.take_changed() == {"b/flights"}
    assert watch.rivals("b/flights") == ()


def test_all_older_ones_are_rivals_the_oldest_first(watch: Watch) -> None:
    """When the oldest goes the next one serves."""
    for day, namespace in enumerate(("b", "c", "a"), start=1):
        watch.see(served(namespace, created=f"2026-01-0{day}T00:00:00Z"), is_gone=False)
    assert watch.rivals("a/flights") == ("b/flights", "c/flights")


def test_other_names_are_no_rivals(watch: Watch) -> None:
    """A name that is part of another one is another one."""
    watch.see(served("a", "flights"), is_gone=False)
    watch.see(served("b", "flights-eu"), is_gone=False)
    assert watch.rivals("b/flights-eu") == ()


def test_a_moved_pointer_wakes_all_of_its_registered_model(watch: Watch) -> None:
    """Two ServedModels may serve one registered model."""
    for namespace, name in (("a", "flights"), ("b", "flights"), ("a", "hotels")):
        watch.see(served(namespace, name), is_gone=False)
    watch.take_changed()
    watch.wake(frozenset({"model of flights", "unknown"}))
    assert watch.take_changed() == {"a/flights", "b/flights"}


def test_a_pod_wakes_its_served_model(watch: Watch) -> None:
    """Readiness and crashes are acted on at once."""
    watch.see_pod("a", {"fairlead.dev/model": "flights"})
    assert watch.take_changed() == {"a/flights"}

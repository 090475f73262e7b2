"""The order in which the controller looks at many served models."""

from collections.abc import Callable
from typing import Any

import pytest

from fairlead_rollout.app.controller import Controller

World = Any


class Models:
    """Served models that are all due, and changes that come when they are told to."""

    def __init__(self, count: int):
        self._keys = tuple(f"model-{number}" for number in range(count))
        self.changed: set[str] = set()

    def keys(self) -> tuple[str, ...]:
        """See Due."""
        return self._keys

    def take_changed(self) -> frozenset[str]:
        """See Due."""
        changed, self.changed = frozenset(self.changed), set()
        return changed


@pytest.fixture
def passes(world: World) -> Callable[..., list[str]]:
    """Return a function that makes one round and returns who was looked at, in order."""

    def run(models: Models, during: Callable[[str], None] = lambda _: None) -> list[str]:
        seen: list[str] = []

        def read(key: str) -> None:
            seen.append(key)
            during(key)

        world.read = read
        Controller(world.ports, models).run_once()
        return seen

    return run


def test_a_promotion_does_not_wait_until_all_others_were_looked_at(
    passes: Callable[..., list[str]],
) -> None:
    """After a change of leader all are due at once, and that takes minutes with a thousand."""
    models = Models(1_000)

    def promote(key: str) -> None:
        if key == "model-3":
            models.changed.add("model-900")

    seen = passes(models, promote)
    assert seen.index("model-900") <= 5
    assert sorted(seen) == sorted(models.keys())


def test_what_never_stops_changing_does_not_hold_up_what_is_due(
    passes: Callable[..., list[str]],
) -> None:
    """A rollout whose step is timed gets its turn beside a pod that crashes for ever."""
    models, left = Models(100), iter(range(1_000))

    def crash(key: str) -> None:
        models.changed |= {"model-0", "model-1"} if next(left, None) is not None else set()

    assert "model-99" in passes(models, crash)[:220]


def test_a_change_that_a_pass_has_seen_already_is_not_looked_at_again(
    passes: Callable[..., list[str]],
) -> None:
    """Due and changed at once is one pass."""
    models = Models(10)
    models.changed = set(models.keys())
    assert sorted(passes(models)) == sorted(models.keys())


def test_a_replica_that_no_longer_leads_looks_at_nothing(world: World) -> None:
    """Another one may have taken over in the middle of a round."""
    seen: list[str] = []
    world.read = seen.append
    leads = iter([True, True])
    models = Models(10)
    Controller(world.ports, models, may_act=lambda: next(leads, False)).run_once()
    assert len(seen) == 2

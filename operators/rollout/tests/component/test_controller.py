"""The order in which the controller looks at many served models."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from fairlead_rollout.app import controller as module
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


# ------------------------------------------------------------------ when it looks again


class One:
    """One served model, and nobody who tells of a change."""

    def keys(self) -> tuple[str, ...]:
        """See Due."""
        return ("flight-delay",)

    def take_changed(self) -> frozenset[str]:
        """See Due."""
        return frozenset()


@pytest.fixture
def unwoken(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that lets one controller run for a while; nothing wakes it."""
    began: list[Controller] = []

    def run(world: World, seconds: int) -> None:
        class Time:
            """The controller's clock is the world's."""

            @staticmethod
            def monotonic() -> float:
                return float(world.time.timestamp())

        monkeypatch.setattr(module, "time", Time)
        if not began:
            began.append(Controller(world.ports, One(), idle=timedelta(minutes=5)))
        for _ in range(seconds):
            world.settle()
            began[0].run_once()
            world.time += timedelta(seconds=1)

    return run


def test_a_replaced_version_goes_in_time_though_nothing_else_happens(
    on_trial: World, unwoken: Callable[..., None]
) -> None:
    """Its end is expected: it is not left to the look every five minutes."""
    from fairlead_rollout.domain.snapshot import Verb  # noqa: PLC0415

    on_trial.ask(Verb.PROMOTE)
    unwoken(on_trial, 30)
    assert on_trial.status.stable == "2"
    assert [w.version for w in on_trial.running] == ["2"]


def test_a_new_model_serves_soon_after_experiments_come_up(
    world: World, unwoken: Callable[..., None]
) -> None:
    """At an installation's first start the services come up in any order; nobody tells of it."""
    world.experiments_up = False
    unwoken(world, 5)
    assert world.status.stable is None
    world.experiments_up = True
    unwoken(world, 15)
    assert world.status.stable == "1"


def test_what_was_refused_is_tried_again_soon(
    on_trial: World, unwoken: Callable[..., None]
) -> None:
    """A quota that was raised, or an object that had to go first: nobody tells of it."""
    on_trial.refused["2"] = "403 exceeded quota"
    unwoken(on_trial, 3)
    del on_trial.refused["2"]
    unwoken(on_trial, 40)
    assert on_trial.status.condition("Stalled") is None


def test_what_serves_is_left_in_peace(
    serving: World, unwoken: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand models that only serve cost nothing."""
    serving.run(5)
    looks = []
    read = serving.read
    monkeypatch.setattr(serving, "read", lambda key: looks.append(key) or read(key))
    unwoken(serving, 290)
    assert len(looks) == 1


def test_a_gateway_that_is_away_for_long_is_asked_for_less_often(
    serving: World, unwoken: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand models that wait for a lost node must not keep the controller and the API busy."""
    serving.run(5)
    serving.gateway_up = False
    unwoken(serving, 301)
    looks = []
    read = serving.read
    monkeypatch.setattr(serving, "read", lambda key: looks.append(key) or read(key))
    unwoken(serving, 600)
    assert len(looks) <= 25
    serving.gateway_up = True
    unwoken(serving, 31)
    assert serving.status.condition("TrafficApplied").status == "True"

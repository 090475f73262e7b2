"""Several gateway replicas, and what they say of the plan."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from fairlead_rollout.domain.snapshot import Applied, Verb
from fairlead_rollout.domain.status import ConditionType
from fairlead_rollout.domain.traffic import plan_digest

World = Any


class Replicas:
    """Gateway replicas that take the newest plan when they are let."""

    def __init__(self, world: World, names: tuple[str, ...]):
        self._world = world
        self._names = names
        self.routed: dict[str, Mapping[str, Any] | None] = dict.fromkeys(names)
        self.stuck: set[str] = set()
        world.applied = self.applied

    def applied(self, name: str) -> Applied:
        """See Gateway."""
        for replica in self._names:
            if replica not in self.stuck:
                self.routed[replica] = self._world.status.traffic
        digests = {r: plan_digest(dict(p)) if p else None for r, p in self.routed.items()}
        return Applied(digests=digests, healthy={w.version: w.ready for w in self._world.running})


@pytest.fixture
def replicas(serving: World) -> Replicas:
    """Return two replicas in a world in which version 1 serves."""
    return Replicas(serving, ("gateway-a", "gateway-b"))


def test_the_condition_names_the_replicas_that_are_behind(
    serving: World, replicas: Replicas
) -> None:
    """Who has not applied the plan is said by name."""
    replicas.stuck = {"gateway-b"}
    serving.production = "2"
    serving.run_until(lambda: serving.weight == 1_000)
    serving.run(2)
    applied = serving.status.condition(ConditionType.TRAFFIC_APPLIED)
    assert (applied.status, applied.reason) == ("False", "ApplyingTraffic")
    assert applied.message.startswith("1 of 2 gateway replicas")
    assert applied.message.endswith("not yet: gateway-b")
    replicas.stuck.clear()
    serving.run(3)
    applied = serving.status.condition(ConditionType.TRAFFIC_APPLIED)
    assert (applied.status, applied.reason) == ("True", "TrafficApplied")
    assert applied.message.startswith("2 of 2 gateway replicas")


def test_a_steps_time_runs_only_once_every_replica_has_applied_it(
    serving: World, replicas: Replicas
) -> None:
    """One replica that is behind holds the step, however long."""
    replicas.stuck = {"gateway-a"}
    serving.production = "2"
    serving.run_until(lambda: serving.weight == 1_000)
    serving.run(60, every=1.0)
    assert (serving.weight, serving.rollout.step_started_at) == (1_000, None)
    replicas.stuck.clear()
    began = serving.time
    serving.run_until(lambda: serving.weight == 5_000)
    assert (serving.time - began).total_seconds() >= 30


def test_a_replaced_version_stays_until_every_replica_has_left_it(
    serving: World, replicas: Replicas
) -> None:
    """Pods of the old version are not removed while one replica still sends there."""
    serving.production = "2"
    serving.run_until(lambda: serving.weight == 1_000)
    replicas.stuck = {"gateway-b"}
    serving.ask(Verb.PROMOTE)
    serving.run_until(lambda: serving.status.stable == "2")
    serving.run(60, every=1.0)
    assert {w.version for w in serving.running} == {"1", "2"}
    replicas.stuck.clear()
    serving.run_until(lambda: {w.version for w in serving.running} == {"2"}, every=1.0)


def test_a_plan_counts_as_applied_in_the_form_its_store_gave_it(
    serving: World,
) -> None:
    """The Kubernetes API keeps 5.0 as 5: the gateway digests what it reads there."""
    path = serving.home.served_models / "flight-delay" / "status.json"
    path.write_text(path.read_text("utf-8").replace("5.0", "5"), "utf-8")
    assert json.dumps(serving.status.traffic["timeout"]) == "5"
    serving.run(3)
    assert serving.status.condition(ConditionType.TRAFFIC_APPLIED).status == "True"


def test_a_gateway_without_replicas_has_applied_nothing(
    serving: World, changed: Callable[..., Any]
) -> None:
    """Nobody being behind is not the same as everybody having applied it."""
    serving.applied = lambda _: Applied(digests={})
    serving.production = "2"
    serving.run(20, every=1.0)
    assert serving.weight == 0

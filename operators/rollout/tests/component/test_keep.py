"""Versions that were stable: how many are kept running, how long, and when they go."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fairlead_rollout.domain.snapshot import Verb
from fairlead_rollout.domain.traffic import versions_in

World = Any


def versions(world: World) -> set[str]:
    """Return the versions that have a workload."""
    return {w.version for w in world.running}


@pytest.fixture
def keeping(
    make_world: Callable[..., World], build_manifest: Callable[..., Any]
) -> Callable[..., World]:
    """Return a maker of worlds in which versions 1 to n were stable one after the other."""

    def make(keep: dict[str, Any], promoted: int) -> World:
        world = make_world(build_manifest(server={"replicas": 2, "keep": keep}))
        world.run_until(lambda: world.status.stable == "1")
        for version in range(2, promoted + 1):
            promote(world, str(version))
        return world

    return make


def promote(world: World, version: str) -> None:
    """Put a version on trial and have a person promote it."""
    world.production = version
    world.run_until(lambda: world.weight == 1_000)
    world.ask(Verb.PROMOTE, f"promote-{version}")
    world.run_until(lambda: world.status.stable == version)


def test_the_version_before_is_kept_for_a_while(keeping: Callable[..., World]) -> None:
    """A rollback within the time need not wait for a start."""
    world = keeping({"versions": 1, "for": "5m"}, promoted=2)
    world.run(280, every=1.0)
    assert versions(world) == {"1", "2"}
    world.run_until(lambda: versions(world) == {"2"}, every=1.0)


def test_no_more_versions_are_kept_than_asked_for(keeping: Callable[..., World]) -> None:
    """The newest ones count; an older one goes as soon as a newer one takes its place."""
    world = keeping({"versions": 2, "for": "1h"}, promoted=4)
    world.run(60, every=1.0)
    assert versions(world) == {"2", "3", "4"}


def test_none_is_kept_where_none_is_asked_for(keeping: Callable[..., World]) -> None:
    """The old version goes once no request can be under way there."""
    world = keeping({"versions": 0}, promoted=2)
    world.run_until(lambda: versions(world) == {"2"}, every=1.0)


def test_a_kept_version_gets_no_traffic(keeping: Callable[..., World]) -> None:
    """It waits; the plan does not name it."""
    world = keeping({"versions": 1, "for": "1h"}, promoted=2)
    world.run(60, every=1.0)
    assert versions_in(world.status.traffic) == {"2"}
    assert "1" in versions(world)


def test_a_version_that_gets_traffic_is_never_removed(keeping: Callable[..., World]) -> None:
    """While the gateway has not left it, its time does not run."""
    world = keeping({"versions": 0}, promoted=1)
    world.production = "2"
    world.run_until(lambda: world.weight == 1_000)
    world.gateway_up = False
    world.ask(Verb.PROMOTE)
    applied, healthy = dict(world.routed), {"1": 2, "2": 2}
    world.applied = lambda _: _applied(applied, healthy)
    world.run_until(lambda: world.status.stable == "2")
    world.run(120, every=1.0)
    assert versions(world) == {"1", "2"}
    assert world.status.retiring == ()


def _applied(plan: dict[str, Any], healthy: dict[str, int]) -> Any:
    from fairlead_rollout.domain.snapshot import Applied  # noqa: PLC0415
    from fairlead_rollout.domain.traffic import plan_digest  # noqa: PLC0415

    return Applied(digests={"gateway": plan_digest(plan)}, healthy=healthy)


def test_a_rollback_takes_a_kept_version_as_it_is(keeping: Callable[..., World]) -> None:
    """It is a candidate like any other, and is ready at once."""
    world = keeping({"versions": 1, "for": "1h"}, promoted=2)
    world.run(10, every=1.0)
    world.production = "1"
    world.run_until(lambda: world.weight == 1_000)
    assert world.rollout.candidate == "1"
    assert "1" not in {entry.version for entry in world.status.retiring}


def test_an_aborted_version_is_not_kept(keeping: Callable[..., World]) -> None:
    """What was never stable is nothing to roll back to."""
    world = keeping({"versions": 1, "for": "1h"}, promoted=1)
    world.production = "2"
    world.run_until(lambda: world.weight == 1_000)
    world.ask(Verb.ABORT)
    world.run_until(lambda: versions(world) == {"1"}, every=1.0)


def test_keeping_less_removes_what_was_kept(
    keeping: Callable[..., World], build_manifest: Callable[..., Any]
) -> None:
    """A changed number is followed."""
    world = keeping({"versions": 1, "for": "1h"}, promoted=2)
    world.run(30, every=1.0)
    assert versions(world) == {"1", "2"}
    server = {"replicas": 2, "keep": {"versions": 0}}
    world.store_.apply(build_manifest(server=server), world.time)
    world.run_until(lambda: versions(world) == {"2"}, every=1.0)


# ------------------------------------------------------------------ autoscaling


@pytest.fixture
def scaled(make_world: Callable[..., World], build_manifest: Callable[..., Any]) -> World:
    """Return a world in which load has brought version 1 from two processes to four."""
    server = {"replicas": 2, "autoscaling": {"maxReplicas": 6}, "keep": {"versions": 0}}
    world = make_world(build_manifest(server=server))
    world.run_until(lambda: world.status.stable == "1")
    seen = world.workloads

    def workloads(served: Any) -> Any:
        found = seen(served)
        return tuple(replace(w, ready=4, wanted=4) if w.version == "1" else w for w in found)

    world.workloads = workloads
    return world


def wanted(world: World, version: str) -> int:
    """Return how many processes a version should have."""
    return next(w.wanted for w in world.running if w.version == version)


def test_a_candidate_is_scaled_to_what_stable_has_come_to(scaled: World) -> None:
    """All traffic of four processes is not sent to two."""
    scaled.production = "2"
    scaled.run_until(lambda: scaled.weight == 1_000)
    assert wanted(scaled, "2") == 1
    scaled.ask(Verb.PROMOTE)
    most = 0
    for _ in range(50):
        scaled.run(every=0.25)
        most = max(most, wanted(scaled, "2"))
        if scaled.status.stable == "2":
            break
    assert (most, scaled.status.stable) == (4, "2")


def test_a_candidate_is_scaled_before_it_gets_the_traffic(scaled: World) -> None:
    """The weight stays until four processes are ready and healthy in the gateway."""
    scaled.production = "2"
    scaled.run_until(lambda: scaled.weight == 1_000)
    seen = scaled.workloads

    def workloads(served: Any) -> Any:
        return tuple(
            replace(w, ready=min(w.ready, 3)) for w in seen(served) if w.version == "2"
        ) + (tuple(w for w in seen(served) if w.version != "2"))

    scaled.workloads = workloads
    scaled.ask(Verb.PROMOTE)
    scaled.run(40, every=0.25)
    assert (scaled.weight, scaled.status.stable) == (1_000, "1")
    scaled.workloads = seen
    scaled.run_until(lambda: scaled.status.stable == "2")


def test_a_rollback_finds_the_kept_version_as_large_as_it_was(
    keeping: Callable[..., World],
) -> None:
    """The kept version is not scaled down to a trial's size, to be scaled up again after it."""
    world = keeping({"versions": 1, "for": "1h"}, promoted=2)
    world.production = "1"
    world.run_until(lambda: world.weight == 1_000)
    assert {w.version: w.wanted for w in world.running} == {"1": 2, "2": 2}

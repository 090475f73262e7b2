"""Pods are ended and killed in the middle of a rollout, and nobody notices."""

import time
from collections.abc import Callable
from functools import partial

import pytest
from fairlead_e2e.faults import await_replaced, await_restarted, kill
from fairlead_e2e.kube import Document
from fairlead_e2e.load import Load, Report
from fairlead_e2e.platform import CONTROLLER, GATEWAY, Platform
from fairlead_e2e.served import HELD, Served
from fairlead_e2e.waiting import Stopwatch, wait_until

Serve = Callable[..., Served]
Measured = Callable[[str, float], None]


def finish(served: Served, load: Load, rollout: str) -> None:
    """Check that the rollout is still the same one, and that it can be decided."""
    assert served.rollout()["id"] == rollout, served.told()
    assert served.weight() == 5_000
    served.ask("promote")
    served.await_serving("2")
    load.await_sent(60)


def assert_only_in_flight(report: Report, killed: list[float], connections: int) -> None:
    """Check that what failed was under way when a gateway was killed, one request a connection."""
    for note in report.failures:
        assert any(note["began"] <= at + 0.5 for at in killed), report.told()
    assert len(report.failures) <= connections * len(killed), report.told()
    assert report.moved == []


@pytest.mark.parametrize(
    ("how", "within"), [("terminated", 8.0), ("deleted-by-force", 20.0), ("killed", 20.0)]
)
def test_controller_gone(
    serve: Serve, platform: Platform, measured: Measured, how: str, within: float
) -> None:
    """The leading controller is ended: in time a request is acted on, by whoever leads then."""
    served = serve(HELD)
    with served.load() as load:
        rollout = served.hold_at_half()
        leader = next(
            pod for pod in platform.pods(CONTROLLER) if pod["metadata"]["name"] == platform.leader()
        )
        # When the leader is ended, and a person asks for something
        end_controller(platform, leader, how)
        clock = Stopwatch()
        assert served.rollout()["id"] == rollout
        served.ask("promote")
        # Then it is done
        wait_until(lambda: served.status()["handledRequest"], 40, "it is acted on", served.told)
        seconds = clock.seconds
        served.await_serving("2")
        load.await_sent(60)
    measured(f"hand-over of the controller, {how}", seconds)
    served.assert_unnoticed(load.report)
    assert seconds <= within


def end_controller(platform: Platform, pod: Document, how: str) -> None:
    """End a controller's pod, or its process."""
    if how == "killed":
        kill(platform, pod, "controller")
    else:
        grace = None if how == "terminated" else 0
        platform.kube.delete("Pod", platform.name, pod["metadata"]["name"], grace=grace)


def test_gateways_deleted_in_turn(serve: Serve, platform: Platform) -> None:
    """Both gateway pods are deleted one after the other: no request fails."""
    served = serve(HELD)
    with served.load() as load:
        rollout = served.hold_at_half()
        ready = partial(platform.ready_pods, GATEWAY)
        before = ready()
        for pod in before:
            platform.kube.delete("Pod", platform.name, pod["metadata"]["name"])
            await_replaced(ready, before, pod)
            load.await_sent(60)
        finish(served, load, rollout)
    served.assert_unnoticed(load.report)


def test_gateways_killed_in_turn(serve: Serve, platform: Platform) -> None:
    """Both gateway pods are killed without grace: only requests in flight on them break."""
    served = serve(HELD)
    killed: list[float] = []
    with served.load() as load:
        rollout = served.hold_at_half()
        for pod in platform.pods(GATEWAY):
            kill(platform, pod, "envoy")
            killed.append(time.time())
            await_restarted(platform.kube, pod, "envoy")
            load.await_sent(60)
        finish(served, load, rollout)
    assert_only_in_flight(load.report, killed, load.connections)


@pytest.mark.parametrize("version", ["1", "2"], ids=["stable", "candidate"])
def test_model_pod_gone(serve: Serve, platform: Platform, version: str) -> None:
    """A pod of stable or of the candidate is deleted, and one is killed: no request fails."""
    served = serve(HELD)
    with served.load() as load:
        rollout = served.hold_at_half()
        # When a pod is deleted with grace
        before = served.ready_pods(version)
        first = _oldest(before)
        platform.kube.delete("Pod", served.namespace, first["metadata"]["name"])
        await_replaced(partial(served.ready_pods, version), before, first)
        load.await_sent(60)
        # ... and another one's process is killed
        second = _oldest(served.ready_pods(version))
        kill(platform, second, "server")
        await_restarted(platform.kube, second, "server")
        load.await_sent(60)
        finish(served, load, rollout)
    served.assert_unnoticed(load.report)


def _oldest(pods: list[Document]) -> Document:
    return min(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

"""A node is drained, and one is lost."""

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from fairlead_e2e.faults import await_replaced
from fairlead_e2e.kube import Document, Kube
from fairlead_e2e.platform import CONTROLLER, GATEWAY, Platform
from fairlead_e2e.served import HELD, Served
from fairlead_e2e.settings import Settings
from fairlead_e2e.waiting import Stopwatch, wait_until

Serve = Callable[..., Served]
Measured = Callable[[str, float], None]
HOST = "kubernetes.io/hostname"


@pytest.fixture
def nodes(kube: Kube) -> tuple[str, str]:
    """A node to take away and one that stays, of at least two."""
    found = sorted(
        node["metadata"]["name"]
        for node in kube.find("Node")
        if not any(t["effect"] != "PreferNoSchedule" for t in node["spec"].get("taints") or ())
    )
    if len(found) < 2:
        pytest.skip(f"needs two nodes that take pods; there is {len(found)}")
    return found[-1], found[0]


@contextmanager
def cordoned(kube: Kube, node: str) -> Iterator[None]:
    """Keep new pods off a node."""
    kube.patch("Node", None, node, {"spec": {"unschedulable": True}})
    try:
        yield
    finally:
        kube.patch("Node", None, node, {"spec": {"unschedulable": None}})


def _on(pods: list[Document], node: str) -> list[Document]:
    return [pod for pod in pods if pod["spec"].get("nodeName") == node]


def test_budgets_hold(serve: Serve, platform: Platform) -> None:
    """Of each component's and each version's two pods one alone may be evicted at a time."""
    served = serve()
    groups = (
        (platform.name, GATEWAY),
        (platform.name, CONTROLLER),
        (platform.name, {"app.kubernetes.io/component": "experiments"}),
        (served.namespace, {"fairlead.dev/model": served.name}),
    )
    with served.load() as load:
        for namespace, labels in groups:
            first, second = platform.kube.pods(namespace, labels)
            evicted = [
                platform.kube.evict(namespace, pod["metadata"]["name"]) for pod in (first, second)
            ]
            assert evicted == [True, False], labels
            _await_two(platform, namespace, labels, first)
            load.await_sent(40)
    served.assert_unnoticed(load.report)


def _await_two(platform: Platform, namespace: str, labels: dict[str, str], gone: Document) -> None:
    def two() -> bool:
        found = platform.kube.find("Pod", namespace, labels)
        names = {pod["metadata"]["name"] for pod in found}
        budgets = platform.kube.find("PodDisruptionBudget", namespace)
        return gone["metadata"]["name"] not in names and all(
            budget["status"]["disruptionsAllowed"] for budget in budgets
        )

    wait_until(two, 120, f"two pods of {labels} are there again")


def test_node_drained(serve: Serve, platform: Platform, nodes: tuple[str, str]) -> None:
    """All pods of a node are evicted in a rollout, as by `kubectl drain`: no request fails."""
    served, (node, other) = serve(HELD), nodes
    kube = platform.kube
    places = (platform.name, platform.mlflow_namespace, served.namespace)

    def movable() -> list[Document]:
        found = [pod for place in places for pod in _on(kube.find("Pod", place), node)]
        return [pod for pod in found if pod["metadata"].get("ownerReferences")]

    def drained() -> bool:
        left = [pod for pod in movable() if pod["status"]["phase"] in {"Running", "Pending"}]
        for pod in left:
            if "deletionTimestamp" not in pod["metadata"]:
                kube.evict(pod["metadata"]["namespace"], pod["metadata"]["name"])
        return not left

    with served.load(spec={"nodeSelector": {HOST: other}}) as load:
        rollout = served.hold_at_half()
        with cordoned(kube, node):
            wait_until(drained, 300, f"{node} is drained", lambda: [_name(p) for p in movable()])
            load.await_sent(60)
        platform.await_whole()
        assert served.rollout()["id"] == rollout
        served.ask("promote")
        served.await_serving("2")
    served.assert_unnoticed(load.report)


def _name(pod: Document) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


@pytest.fixture
def power(settings: Settings) -> Callable[[str, str], None]:
    """Cuts a node's power, and gives it back, by the commands that the environment names."""
    commands = {"stop": settings.node_stop, "start": settings.node_start}
    if not all(commands.values()):
        pytest.skip("needs commands that stop and start a node: FAIRLEAD_E2E_NODE_STOP and _START")

    def switch(verb: str, node: str) -> None:
        command = shlex.split(commands[verb].replace("{node}", node))
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    return switch


def test_node_lost(
    serve: Serve,
    platform: Platform,
    nodes: tuple[str, str],
    power: Callable[[str, str], None],
    measured: Measured,
) -> None:
    """A node loses power in a rollout: only requests in flight on it break, and the rest goes on."""
    node, other = nodes
    kube = platform.kube
    # Given replicas of everything on both nodes
    for labels in (GATEWAY, CONTROLLER):
        _spread(platform, labels, node)
    served = serve(HELD)
    assert _on(served.pods("1"), node)
    with served.load(spec={"nodeSelector": {HOST: other}}) as load:
        rollout = served.hold_at_half()
        # When one of them is lost
        power("stop", node)
        stopped, clock = time.time(), Stopwatch()
        try:
            _await_out(kube, platform.name, node)
            measured("until a lost node's endpoints are out", clock.seconds)
            load.await_sent(200)
            assert served.rollout()["id"] == rollout
            assert served.weight() == 5_000
        finally:
            power("start", node)
        _await_node(kube, node)
        platform.await_whole(300)
        load.await_sent(60)
        served.ask("promote")
        served.await_serving("2")
    report = load.report
    late = [note for note in report.failures if note["began"] > stopped + 0.5]
    assert late == [], report.told()
    assert len(report.failures) <= load.connections, report.told()
    assert report.moved == []


def _spread(platform: Platform, labels: dict[str, str], node: str) -> None:
    """Have one of a component's pods on a node: nobody moves them back after a drain."""
    before = platform.ready_pods(labels)
    if not _on(before, node):
        platform.kube.delete("Pod", platform.name, before[0]["metadata"]["name"])
        await_replaced(partial(platform.ready_pods, labels), before, before[0])
    assert _on(platform.ready_pods(labels), node)


def _await_out(kube: Kube, namespace: str, node: str) -> None:
    """Wait until no Service sends anything to a node."""

    def out() -> bool:
        endpoints = [
            endpoint
            for part in kube.find("EndpointSlice", namespace)
            for endpoint in part.get("endpoints") or ()
        ]
        return not any(
            e.get("nodeName") == node and e["conditions"].get("ready") for e in endpoints
        )

    wait_until(out, 180, f"the endpoints on {node} are out")


def _await_node(kube: Kube, node: str) -> None:
    def ready() -> bool:
        found = kube.get("Node", None, node) or {}
        conditions = found["status"]["conditions"]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    wait_until(ready, 120, f"{node} is back")

"""A gateway turns ready with its first full configuration, and leaves without breaking a request."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import pytest
from gateway_client import Load
from gateway_lab import Gateway, answered, plan, running, wait_for

from fairlead_gateway.app.drain import DrainSettings, drain
from fairlead_gateway.app.ports import Requests

MEANT = {"x-fairlead-drain": "yes"}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Gateway]]:
    """Give two gateways that serve the same replicas, as the pods of one Service do."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    options = ("--drain-at-least", "1.5")
    with running(folders[0], *options) as first, running(folders[1], *options) as second:
        for version in ("3", "4"):
            first.upstream(version)
            second.workloads[f"iris-v{version}"] = first.workloads[f"iris-v{version}"]
            second.publish(version)
        for made in (first, second):
            made.apply(plan(weight=5000))
        yield [first, second]


def test_ready_with_a_full_configuration(gateway: Gateway) -> None:
    """Envoy does not listen before it has been told everything, then answers 200 by itself."""
    gateway.kill("agent")
    assert gateway.ready() == 0
    gateway.start_agent()
    wait_for(lambda: gateway.ready() == 200)
    gateway.kill("agent")
    assert gateway.ready() == 200


def test_readiness_leaves_no_trace(iris: Gateway) -> None:
    """Asking for the readiness is neither logged nor counted, whatever a request carries."""
    for _ in range(20):
        answer = iris.client.get(f"{iris.url}/-/ready", headers={"x-unit-id": "a"})
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    assert iris.post(headers={"x-inference-id": "last"}).status_code == 200
    wait_for(iris.log)
    assert [line["id"] for line in iris.log()] == ["last"]
    wait_for(lambda: iris.metric("fairlead_gateway_requests_total") == 1)


def test_no_request_fails_while_a_gateway_leaves(pair: list[Gateway]) -> None:
    """Kept, new and long requests all succeed while one of two gateways drains and is ended.

    New connections still reach it after it has turned unready, as a Service forgets it late.
    """
    leaving, staying = pair
    service = [leaving.port, staying.port]
    turn = cycle(range(1 << 30))
    load = Load(0, connections=24, fresh=8, find=lambda: service[next(turn) % len(service)])

    def count() -> int:
        return sum(answer.port == leaving.port for answer in load.answers)

    def happening() -> None:
        answered(load)
        with ThreadPoolExecutor() as pool:
            long = pool.submit(leaving.post, headers={"x-test-delay": "2.5"})
            wait_for(lambda: int(leaving.stat("http.gateway.downstream_rq_active")) > 0)
            url = f"http://127.0.0.1:{leaving.agent_port}/v1/drain"
            drained = pool.submit(leaving.client.get, url, headers=MEANT, timeout=30)
            wait_for(lambda: leaving.ready() == 503)
            late = count()
            wait_for(lambda: count() >= late + 100)
            service.remove(leaving.port)
            outcome = drained.result().json()
            assert long.result().status_code == 200
        assert (outcome["drained"], outcome["activeRequests"]) == (True, 0)
        assert outcome["seconds"] > 2.5, "the long request was waited for"
        assert leaving.end("envoy") == 0
        answered(load)

    load.during(happening)
    assert load.failures == []
    assert len(leaving.log()) == count() + 1, "each answer, and the long one, is in the log"


def test_a_drain_closes_kept_connections(iris: Gateway) -> None:
    """Once draining, each answer says that its connection closes, and the readiness says why."""
    assert "connection" not in iris.post().headers
    with ThreadPoolExecutor() as pool:
        url = f"http://127.0.0.1:{iris.agent_port}/v1/drain"
        drained = pool.submit(iris.client.get, url, headers=MEANT, timeout=30)
        wait_for(lambda: iris.ready() == 503)
        answer = iris.post()
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        unready = iris.client.get(f"{iris.url}/-/ready").json()
        assert unready["error_code"] == "UNAVAILABLE"
        assert drained.result().json()["drained"] is True


@pytest.mark.parametrize("headers", [{}, {"x-fairlead-drain": "no"}])
def test_a_scrape_drains_nothing(iris: Gateway, headers: dict[str, str]) -> None:
    """Whoever asks for the drain's path without the header that means it is refused, and told so."""
    url = f"http://127.0.0.1:{iris.agent_port}/v1/drain"
    answer = iris.client.get(url, headers=headers, timeout=30)
    assert answer.status_code == 403
    assert answer.json()["error_code"] == "PERMISSION_DENIED"
    assert "x-fairlead-drain: yes" in answer.json()["message"]
    assert iris.ready() == 200
    assert "connection" not in iris.post().headers


class Scripted:
    """An Envoy with so many requests under way, and a clock that moves when it is waited for."""

    def __init__(self, *active: int | None, reachable_after: int = 0, quick: int = 0) -> None:
        """Remember what to say; the last is said again and again.

        So many times a request has come and gone between two looks.
        """
        self.active = list(active)
        self.refusals = reachable_after
        self.quick = quick
        self.answered = 0
        self.started = 0
        self.time = 0.0

    def start_draining(self) -> bool:
        """Drain, unless it cannot be reached yet."""
        self.started += 1
        self.refusals -= 1
        return self.refusals < 0

    def requests(self) -> Requests | None:
        """Say the next."""
        active = self.active.pop(0) if len(self.active) > 1 else self.active[0]
        if self.answered < self.quick:
            self.answered += 1
        return None if active is None else Requests(active=active, answered=self.answered)

    def monotonic(self) -> float:
        """Tell the time."""
        return self.time

    def now(self) -> float:
        """Tell the time."""
        return self.time

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        self.time += seconds


@pytest.mark.parametrize(
    ("envoy", "done", "least", "most"),
    [
        (Scripted(0), True, 3.0, 3.1),
        (Scripted(*[2] * 100, 0), True, 5.4, 5.7),
        (Scripted(*[0, 1] * 100, 0), True, 10.4, 10.7),
        (Scripted(0, quick=100), True, 5.4, 5.7),
        (Scripted(0, quick=1000), False, 25.0, 25.1),
        (Scripted(1), False, 25.0, 25.1),
        (Scripted(None), False, 25.0, 25.1),
        (Scripted(*[None] * 80, 0), True, 4.4, 4.7),
        (Scripted(0, reachable_after=80), True, 4.4, 4.7),
    ],
    ids=[
        *("idle", "busy", "off and on", "busy between the looks", "busy for ever"),
        *("stuck", "gone", "deaf for a while", "late"),
    ],
)
def test_when_a_drain_ends(envoy: Scripted, done: bool, least: float, most: float) -> None:
    """It ends with half a second without any request, not before three seconds, and after 25."""
    found = drain(envoy, envoy, envoy.pause, DrainSettings())
    assert found.done is done
    assert least <= found.seconds <= most

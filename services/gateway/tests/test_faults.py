"""What clients get, and what the experiments service is told, while something dies or falters.

Each fault strikes under load. Clients see none of it while a healthy replica is there, and every
request that was sent again, or that stable answered, counts for the arm whose process was struck.
"""

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from gateway_client import Answer, Connection, Load
from gateway_experiments import FakeExperiments
from gateway_lab import Gateway, Served, answered, name_for, running, wait_for

CANDIDATE, STABLE = 1, 0  # Which of the replicas is struck.
OVERLOADED, FROZEN = signal.SIGUSR1, signal.SIGSTOP
CROWD = 1100  # More than the 1,024 requests that Envoy sends a cluster at a time by default.

Exposures = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def experiments() -> Iterator[FakeExperiments]:
    """Give a fake experiments service."""
    made = FakeExperiments()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def fire(
    experiments: FakeExperiments, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """Give the gateway that all faults strike."""
    home = tmp_path_factory.mktemp("fire")
    with running(home, "--experiments-url", experiments.url) as made:
        yield made


@pytest.fixture
def target(fire: Gateway, request: pytest.FixtureRequest) -> Iterator[Served]:
    """Give a model half on its candidate's one replica, half on stable's two."""
    made = Served(fire, name_for(request))
    for version in ("3", "4", "3"):
        made.upstream(version)
    made.apply(5000, timeout=4.0)
    yield made
    made.close()


def told(experiments: FakeExperiments, load: Load) -> Exposures:
    """Wait for the exposure of every answer, compare the two, and sort them by arm."""
    ids = [answer.headers["x-inference-id"] for answer in load.answers]
    wait_for(lambda: set(ids) <= set(experiments.seen))
    sorted_by_arm: Exposures = {"candidate": [], "stable": []}
    for answer in load.answers:
        exposure = experiments.seen[answer.headers["x-inference-id"]]
        assert exposure["code"] == answer.code
        assert exposure["arm"] == answer.headers["x-rollout-arm"]
        assert exposure["version"] == answer.headers["x-model-version"]
        sorted_by_arm[exposure["arm"]].append(exposure)
    assert all(experiments.times[each] == 1 for each in ids)
    return sorted_by_arm


def is_blamed(exposure: dict[str, Any]) -> bool:
    """Tell whether an exposure speaks against its arm: sent again, or answered by another version."""
    own = {"candidate": "4", "stable": "3"}[exposure["arm"]]
    return exposure["attempts"] > 1 or exposure["version"] != own


@pytest.mark.parametrize(
    "blow",
    [signal.SIGTERM, signal.SIGKILL, OVERLOADED, FROZEN],
    ids=["terminated", "killed", "answering 503", "frozen"],
)
@pytest.mark.parametrize("victim", [CANDIDATE, STABLE], ids=["candidate", "stable"])
def test_a_replica_is_struck(
    target: Served, experiments: FakeExperiments, victim: int, blow: signal.Signals
) -> None:
    """No request fails, and only the arm of the struck process is blamed."""
    load = target.load()

    def happening() -> None:
        answered(load)
        target.gateway.strike(target.replicas[victim], blow)
        answered(load, 1200)

    load.during(happening)
    assert load.failures == []
    exposures = told(experiments, load)
    guilty, innocent = ("candidate", "stable") if victim == CANDIDATE else ("stable", "candidate")
    assert not [each for each in exposures[innocent] if is_blamed(each)]
    assert any(each["attempts"] > 1 for each in exposures[guilty])
    stood_in = [each for each in exposures["candidate"] if each["version"] == "3"]
    assert len(stood_in) > 100 if victim == CANDIDATE else not stood_in


def test_the_first_of_two_answers_counts(target: Served, experiments: FakeExperiments) -> None:
    """A candidate that is slow is not given up: it answers while stable, asked too, does not."""
    target.apply(10_000, timeout=4.0)
    for index in (0, 2):
        target.gateway.strike(target.replicas[index], FROZEN)
    (answer,) = target.ask({"x-unit-id": "a", "x-test-delay": "2.6"})
    assert (answer.code, answer.headers["x-model-version"]) == (200, "4")
    found = wait_for(lambda: experiments.seen.get(answer.headers["x-inference-id"]))
    assert (found["arm"], found["version"], found["attempts"]) == ("candidate", "4", 2)


@pytest.mark.parametrize("retries", [{"attempts": 3, "onReset": False}, {"attempts": 0}])
def test_a_request_that_may_not_run_twice_is_asked_once(
    target: Served, experiments: FakeExperiments, retries: dict[str, Any]
) -> None:
    """Where a request is not to be sent again after a reset, slowness sends it to nobody else."""
    target.apply(10_000, timeout=0.5, retries={"onReset": True} | retries)
    target.gateway.strike(target.replicas[CANDIDATE], FROZEN)
    (answer,) = target.ask({"x-unit-id": "a"})
    assert answer.code == 504
    found = wait_for(lambda: experiments.seen.get(answer.headers["x-inference-id"]))
    assert (found["arm"], found["code"], found["attempts"]) == ("candidate", 504, 1)


@pytest.mark.parametrize("weight", [0, 10_000], ids=["stable", "candidate"])
def test_a_crowd_fills_no_breaker(
    target: Served, experiments: FakeExperiments, weight: int
) -> None:
    """More requests at a time than Envoy's defaults allow are all with one replica, and answered."""
    target.apply(weight, timeout=60.0)
    endpoints = target.gateway.workloads[f"{target.model}-v3"]
    endpoints[1]["ready"] = False
    target.gateway.publish("3", target.model)
    usable = {"3": {"healthy": 1, "total": 2}, "4": {"healthy": 1, "total": 1}}
    wait_for(lambda: target.gateway.applied()[target.model]["versions"] == usable)
    load = Load(target.gateway.port)
    load.answers += asyncio.run(crowd(target, {"x-unit-id": "a", "x-test-crowd": str(CROWD)}))
    assert {answer.code for answer in load.answers} == {200}
    assert not [each for arm in told(experiments, load).values() for each in arm if is_blamed(each)]


async def crowd(target: Served, headers: dict[str, str]) -> list[Answer]:
    """Have a whole crowd of requests wait for their answers at one replica.

    They come by and by: a machine that is busy takes longer than Envoy waits to open a thousand
    connections at once.
    """
    connections = [Connection(lambda: target.gateway.port) for _ in range(CROWD)]
    waiting: list[asyncio.Task[Answer]] = []
    for connection in connections:
        waiting.append(asyncio.create_task(connection.ask(target.path, headers)))
        if len(waiting) % 50 == 0 and len(waiting) < CROWD:
            await asyncio.to_thread(wait_for, lambda: sent(target) == len(waiting))
    answers = await asyncio.gather(*waiting)
    for writer in [connection.writer for connection in connections if connection.writer]:
        writer.close()
        await writer.wait_closed()
    return answers


def sent(target: Served) -> int:
    """Return how many requests the model's replicas have been sent."""
    names = [f"cluster.{target.model}-v{version}.upstream_rq_total" for version in ("3", "4")]
    return sum(int(target.gateway.stat(name)) for name in names)

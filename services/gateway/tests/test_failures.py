"""However a candidate fails, the experiments service counts it against the candidate."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from free_ports import free_port
from gateway_lab import Gateway, Served, black_hole, running, wait_for

COMMAND = "from fairlead_experiments.entrypoints.cli import main; raise SystemExit(main())"
ASKED = 12


@dataclass
class Counting:
    """A gateway that ships to the real experiments service."""

    gateway: Gateway
    port: int

    def call(self, method: str, path: str, **more: Any) -> Any:
        """Ask the experiments service."""
        url = f"http://127.0.0.1:{self.port}{path}"
        return self.gateway.client.request(method, url, **more).raise_for_status().json()

    def begin(self, rollout: str, model: str) -> None:
        """Record a rollout, as the controller does."""
        record = {
            "model": model,
            "registeredModel": model,
            "stable": "3",
            "candidate": "4",
            "startedAt": "2026-01-01T00:00:00Z",
            "decidedAt": None,
            "state": "running",
            "reason": "",
            "steps": [{"index": 0, "weight": 10_000}],
            "objective": None,
            "guardrails": {"errors": {"margin": 0.25}, "latency": None},
        }
        self.call("PUT", f"/v1/rollouts/{rollout}", json=record)

    def arms(self, rollout: str) -> Any:
        """Wait until all that was asked is counted, and return the arms."""

        def counted() -> Any:
            arms = self.call("GET", f"/v1/rollouts/{rollout}/analysis")["arms"]
            total = sum(arm["requests"] for arm in arms.values())
            return arms if total >= ASKED else None

        return wait_for(counted)


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counting]:
    """Give a gateway and an experiments service, both real."""
    home, port = tmp_path_factory.mktemp("failures"), free_port()
    with running(home, "--experiments-url", f"http://127.0.0.1:{port}") as gateway:
        database = {"FAIRLEAD_DATABASE_URL": f"sqlite:///{home}/experiments.db"}
        gateway.start("experiments", "-c", COMMAND, "serve", "--port", str(port), **database)
        made = Counting(gateway, port)

        def is_ready() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return gateway.client.get(f"http://127.0.0.1:{port}/readyz").is_success
            return False

        wait_for(is_ready, limit=300)
        yield made


def nothing(_: Served) -> contextlib.AbstractContextManager[Any]:
    """Leave the candidate alone."""
    return contextlib.nullcontext()


def kill(served: Served) -> contextlib.AbstractContextManager[Any]:
    """Kill the candidate's only process."""
    served.gateway.kill(served.replicas[1])
    return contextlib.nullcontext()


def take_away(served: Served) -> contextlib.AbstractContextManager[Any]:
    """Take the candidate's endpoint away, and wait until Envoy has none."""
    served.gateway.remove("4", served.model)
    wait_for(lambda: served.gateway.stat(f"cluster.{served.model}-v4.membership_total") == "1")
    return contextlib.nullcontext()


@contextlib.contextmanager
def lose(served: Served) -> Iterator[None]:
    """Put the candidate on a node that swallows what is sent to it."""
    served.gateway.remove("4", served.model)
    with black_hole() as port:
        served.gateway.black_hole("4", served.model, port)
        wait_for(lambda: served.gateway.stat(f"cluster.{served.model}-v4.membership_total") == "2")
        yield


@dataclass(frozen=True)
class Failure:
    """A way of failing.

    Attributes:
        codes: What clients may see; 0 is an answer that breaks off.
        headers: What is asked of the candidate.
        happens: What happens to it.
        stood_in: Whether stable answers each request in its stead.
    """

    codes: set[int]
    headers: dict[str, str] = field(default_factory=dict)
    happens: Callable[[Served], contextlib.AbstractContextManager[Any]] = nothing
    stood_in: bool = False


FAILURES = {
    "its process is gone": Failure({200}, happens=kill, stood_in=True),
    "it has no replica": Failure({200}, happens=take_away, stood_in=True),
    "its node is lost": Failure({200}, happens=lose, stood_in=True),
    "it closes the connection": Failure({200}, {"x-test-half": "none"}, stood_in=True),
    "it says it is unavailable": Failure({200}, {"x-test-code": "503"}, stood_in=True),
    "it breaks off": Failure({0}, {"x-test-half": "close"}),
    "it raises": Failure({500}, {"x-test-code": "500"}),
    "it is too slow": Failure({504, 200}, {"x-test-delay": "5"}),
}


def ask(served: Served, number: int, headers: dict[str, str]) -> int:
    """Ask for one prediction; return the code, 0 for an answer that breaks off."""
    asked = {**headers, "x-test-only": "4", "x-unit-id": f"u{number}"}
    try:
        return served.gateway.post(served.model, headers=asked).status_code
    except httpx.RemoteProtocolError:
        return 0


@pytest.mark.parametrize("way", FAILURES)
def test_a_failure_is_the_candidate_s(counting: Counting, way: str) -> None:
    """Each request counts as the candidate's error, answered by stable or not; stable has none."""
    failure, rollout = FAILURES[way], str(uuid.uuid4())
    served = Served(counting.gateway, f"m-{rollout[:8]}")
    for version in ("3", "4"):
        served.upstream(version)
    counting.begin(rollout, served.model)
    served.apply(10_000, rollout=rollout, salt=rollout, timeout=1.0)
    with failure.happens(served):
        codes = {ask(served, number, failure.headers) for number in range(ASKED)}
    assert codes <= failure.codes
    arms = counting.arms(rollout)
    served.close()
    candidate = arms["candidate"]
    assert (candidate["requests"], candidate["errors"]) == (ASKED, ASKED)
    assert not failure.stood_in or candidate["fallbacks"] == ASKED
    assert (arms["stable"]["requests"], arms["stable"]["errors"]) == (0, 0)


def test_a_candidate_that_does_not_fail_has_no_errors(counting: Counting) -> None:
    """What is counted above is no accident of the counting."""
    rollout = str(uuid.uuid4())
    served = Served(counting.gateway, f"m-{rollout[:8]}")
    for version in ("3", "4"):
        served.upstream(version)
    counting.begin(rollout, served.model)
    served.apply(10_000, rollout=rollout, salt=rollout)
    assert {ask(served, number, {}) for number in range(ASKED)} == {200}
    arms = counting.arms(rollout)
    served.close()
    assert (arms["candidate"]["requests"], arms["candidate"]["errors"]) == (ASKED, 0)

"""A system that hangs costs the one thread that makes all passes little of its time."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fairlead_rollout.adapters.experiments_client import ExperimentsClient
from fairlead_rollout.adapters.http import TIMEOUT
from fairlead_rollout.adapters.mlflow_registry import MlflowRegistry
from fairlead_rollout.adapters.schema import read_spec
from fairlead_rollout.domain.errors import NotFoundError, UnavailableError
from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import Writeback


class System:
    """A system that hangs for some paths, and the clock of who waits for it."""

    def __init__(self) -> None:
        self.time = 0.0
        self.hangs: Callable[[str], bool] = lambda _: True
        self.refuses = False
        self.asked: list[str] = []
        transport = httpx.MockTransport(self._answer)
        self.http = httpx.Client(transport=transport, base_url="http://system", timeout=TIMEOUT)

    def monotonic(self) -> float:
        """Return the time."""
        return self.time

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        if self.refuses:
            raise httpx.ConnectError("refused", request=request)
        if self.hangs(request.url.path):
            self.time += request.extensions["timeout"]["connect"]
            raise httpx.ConnectTimeout("no answer", request=request)
        return httpx.Response(404 if request.method == "GET" else 200, json={})


@pytest.fixture
def system() -> System:
    """Return a system that hangs."""
    return System()


@pytest.fixture
def experiments(system: System) -> ExperimentsClient:
    """Return the client under test."""
    return ExperimentsClient(system.http, monotonic=system.monotonic)


@pytest.fixture
def registry(system: System) -> MlflowRegistry:
    """Return the registry under test."""
    return MlflowRegistry(system.http, monotonic=system.monotonic)


@pytest.fixture
def spec(build_manifest: Callable[..., Any]) -> ServedModelSpec:
    """Return a spec."""
    return read_spec(build_manifest())


def record(rollout: str) -> Writeback:
    """Build a rollout's record."""
    return Writeback(kind="record", rollout=rollout, version="2", content={})


def test_fifty_rollouts_do_not_each_wait_for_experiments_that_hang(
    system: System, experiments: ExperimentsClient
) -> None:
    """An abort waits for two time-outs, not for one of every rollout that is active."""
    for number in range(50):
        assert experiments.analysis(f"rollout-{number}") is None
        assert experiments.problem == "http://system does not answer (ConnectTimeout)"
        with pytest.raises(UnavailableError, match="does not answer"):
            experiments.put_record(record(f"rollout-{number}"))
    assert system.time <= 3.0


def test_experiments_that_answer_again_are_asked_again_soon(
    system: System, experiments: ExperimentsClient
) -> None:
    """The first answer ends the outage for all."""
    for number in range(3):
        experiments.analysis(f"rollout-{number}")
    system.hangs = lambda _: False
    system.time += 2.0
    system.asked.clear()
    for number in range(3):
        with pytest.raises(NotFoundError):
            experiments.analysis(f"rollout-{number}")
    assert len(system.asked) == 3
    assert experiments.problem is None


def test_experiments_that_go_on_hanging_are_tried_once_in_a_while(
    system: System, experiments: ExperimentsClient
) -> None:
    """Most of the time is left for what else there is to do."""
    for number in range(1_000):
        experiments.analysis(f"rollout-{number % 50}")
        system.time += 0.02
    assert 4 <= len(system.asked) <= 12


def test_one_rollout_that_takes_too_long_keeps_no_other_from_its_numbers(
    system: System, experiments: ExperimentsClient
) -> None:
    """A guardrail of the others is watched on."""
    system.hangs = lambda path: "rollout-0" in path
    for _ in range(3):
        assert experiments.analysis("rollout-0") is None
        with pytest.raises(UnavailableError):
            experiments.put_record(record("rollout-0"))
        with pytest.raises(NotFoundError):
            experiments.analysis("rollout-1")


def test_what_refuses_at_once_is_asked_each_time(
    system: System, experiments: ExperimentsClient
) -> None:
    """It costs nothing, and the first call after a restart finds the service."""
    system.refuses = True
    for number in range(10):
        assert experiments.analysis(f"rollout-{number}") is None
    assert len(system.asked) == 10


def test_verdicts_do_not_each_wait_for_an_mlflow_that_hangs(
    system: System, registry: MlflowRegistry, spec: ServedModelSpec
) -> None:
    """What is told may be late; an abort of another model may not."""
    for number in range(50):
        for kind in ("tags", "report"):
            told = Writeback(kind=kind, rollout=f"rollout-{number}", version="2", content={"a": 1})
            with pytest.raises(UnavailableError, match="does not answer"):
                registry.write(spec, told)
    assert system.time <= 3.0


def test_the_poll_goes_on_while_telling_hangs(
    system: System, registry: MlflowRegistry, spec: ServedModelSpec
) -> None:
    """A store of artifacts that hangs is no outage of the registry."""
    for number in range(3):
        told = Writeback(kind="tags", rollout=f"rollout-{number}", version="2", content={"a": 1})
        with pytest.raises(UnavailableError):
            registry.write(spec, told)
    system.asked.clear()
    with pytest.raises(UnavailableError):
        registry.poll()
    assert len(system.asked) == 1

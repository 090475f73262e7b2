"""The poll of MLflow with many registered models."""

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fairlead_rollout.adapters.http import TIMEOUT
from fairlead_rollout.adapters.mlflow_registry import STALE_AFTER, MlflowRegistry
from fairlead_rollout.adapters.schema import read_spec
from fairlead_rollout.domain.errors import NotLookedYetError
from fairlead_rollout.domain.spec import ServedModelSpec


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.time


class Mlflow:
    """Registered models by the version in Production."""

    def __init__(self) -> None:
        self.production: dict[str, str] = {}
        self.takes = 0.0
        self.searches = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request, or time out as the client asked to."""
        if not request.url.path.endswith("/registered-models/search"):
            return httpx.Response(200, json={})
        self.searches += 1
        if self.takes > request.extensions["timeout"]["read"]:
            raise httpx.ReadTimeout("too slow", request=request)
        models = [
            {"name": n, "latest_versions": [{"version": v, "current_stage": "Production"}]}
            for n, v in self.production.items()
        ]
        return httpx.Response(200, content=json.dumps({"registered_models": models}))


@pytest.fixture
def mlflow() -> Mlflow:
    """Return an MLflow without models."""
    return Mlflow()


@pytest.fixture
def clock() -> Clock:
    """Return a clock."""
    return Clock()


@pytest.fixture
def registry(mlflow: Mlflow, clock: Clock) -> MlflowRegistry:
    """Return the registry under test."""
    transport = httpx.MockTransport(mlflow)
    http = httpx.Client(transport=transport, base_url="http://mlflow", timeout=TIMEOUT)
    return MlflowRegistry(http, monotonic=clock.monotonic)


@pytest.fixture
def spec(build_manifest: Callable[..., Any]) -> Callable[[str], ServedModelSpec]:
    """Return a maker of specs by registered model."""
    return lambda model: read_spec(build_manifest(model=model))


def test_a_search_of_a_thousand_models_is_waited_for(
    registry: MlflowRegistry, mlflow: Mlflow
) -> None:
    """MLflow takes over a second for it, and longer when it is busy: no outage yet."""
    mlflow.takes = 4.0
    mlflow.production = {"a": "1"}
    assert registry.poll() == {"a"}


def test_an_outage_is_told_while_a_search_hangs(
    registry: MlflowRegistry, mlflow: Mlflow, clock: Clock, spec: Any
) -> None:
    """Waiting longer for an answer does not keep an outage secret."""
    with pytest.raises(NotLookedYetError):
        registry.view(spec("a"))
    registry.poll()
    assert registry.view(spec("a")) is not None
    clock.time += STALE_AFTER.total_seconds() + 1
    assert registry.view(spec("a")) is None


def test_only_models_with_news_are_woken(registry: MlflowRegistry, mlflow: Mlflow) -> None:
    """One promotion of a thousand wakes one."""
    mlflow.production = {f"model-{n}": "1" for n in range(1_000)}
    registry.poll()
    mlflow.production["model-7"] = "2"
    assert registry.poll() == {"model-7"}
    assert registry.poll() == frozenset()


def test_a_poll_that_fails_is_followed_by_another(registry: MlflowRegistry, mlflow: Mlflow) -> None:
    """Whatever MLflow answers, the thread goes on and says what was wrong."""
    mlflow.production = {"a": "not a number"}
    assert registry._poll_safely() == frozenset()
    assert registry.problem == "ValueError"
    mlflow.production = {"a": "2"}
    stop = threading.Event()
    woken: list[frozenset[str]] = []

    def wake(models: frozenset[str]) -> None:
        woken.append(models)
        stop.set()

    registry.run(stop, wake)
    assert woken == [frozenset({"a"})]
    assert registry.problem is None

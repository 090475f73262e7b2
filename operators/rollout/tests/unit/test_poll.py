"""The poll of MLflow with many registered models."""

import contextlib
import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fairlead_rollout.adapters.http import TIMEOUT
from fairlead_rollout.adapters.mlflow_registry import STALE_AFTER, WANTED_FOR, MlflowRegistry
from fairlead_rollout.adapters.schema import read_spec
from fairlead_rollout.domain.errors import NotLookedYetError
from fairlead_rollout.domain.snapshot import RegistryView
from fairlead_rollout.domain.spec import ServedModelSpec


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.time


class Mlflow:
    """Registered models by the version in Production; those without our tag are not found."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.production: dict[str, str] = {}
        self.aliases: list[dict[str, str]] = []  # of every model
        self.untagged: dict[str, str] = {}
        self.takes = 0.0
        self.tagging_takes = 0.0
        self.tagging_fails = False
        self.asked_for: list[str] = []
        self.version_takes = 0.0
        self.versions_asked_for: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request, or time out as the client asked to."""
        if request.url.path.endswith("/model-versions/get"):
            return self._version(request.url.params["name"])
        if not request.url.path.endswith("/registered-models/search"):
            return self._tag(json.loads(request.content)["name"])
        if self.takes > request.extensions["timeout"]["read"]:
            raise httpx.ReadTimeout("too slow", request=request)
        models = [
            {
                "name": n,
                "latest_versions": [{"version": v, "current_stage": "Production"}],
                "aliases": self.aliases,
            }
            for n, v in self.production.items()
        ]
        return httpx.Response(200, content=json.dumps({"registered_models": models}))

    def _version(self, model: str) -> httpx.Response:
        self.versions_asked_for.append(model)
        self.clock.time += self.version_takes
        tags = [{"key": "rollout.approve", "value": f"tag of {model}"}]
        return httpx.Response(200, json={"model_version": {"tags": tags}})

    def _tag(self, model: str) -> httpx.Response:
        self.asked_for.append(model)
        self.clock.time += self.tagging_takes
        if self.tagging_fails:
            return httpx.Response(503)
        if model in self.untagged:
            self.production[model] = self.untagged.pop(model)
        return httpx.Response(200 if model in self.production else 404, json={})


@pytest.fixture
def clock() -> Clock:
    """Return a clock."""
    return Clock()


@pytest.fixture
def mlflow(clock: Clock) -> Mlflow:
    """Return an MLflow without models."""
    return Mlflow(clock)


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


def test_aliases_of_candidates_are_seen(
    registry: MlflowRegistry, mlflow: Mlflow, build_manifest: Callable[..., Any]
) -> None:
    """Those that the ServedModel names, and only where they name a version."""
    mlflow.production = {"a": "1"}
    mlflow.aliases = [{"alias": "b", "version": "2"}, {"alias": "other", "version": "3"}]
    candidates = [{"alias": "b"}, {"alias": "c"}]
    asked = read_spec(build_manifest(model="a", registry={"candidates": candidates}))
    with pytest.raises(NotLookedYetError):
        registry.view(asked)
    assert registry.poll() == {"a"}
    assert registry.view(asked) == RegistryView(production="1", candidates={"b": "2"})
    mlflow.aliases.append({"alias": "c", "version": "3"})
    assert registry.poll() == {"a"}
    seen = registry.view(asked)
    assert seen is not None
    assert seen.candidates == {"b": "2", "c": "3"}


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


# ------------------------------------------------------------------ models MLflow does not know


@pytest.fixture
def want(registry: MlflowRegistry, spec: Any) -> Callable[..., None]:
    """Return a function that asks for models, as passes do."""

    def ask(*models: str) -> None:
        for model in models:
            with contextlib.suppress(NotLookedYetError):
                registry.view(spec(model))

    return ask


def test_a_model_without_our_tag_is_found_by_the_same_poll(
    registry: MlflowRegistry, mlflow: Mlflow, spec: Any, want: Callable[..., None]
) -> None:
    """A new ServedModel serves at once what is there."""
    mlflow.untagged = {"a": "3"}
    want("a")
    assert registry.poll() == {"a"}
    assert registry.view(spec("a")) == RegistryView(production="3")


def test_hundreds_of_unknown_models_do_not_make_the_others_wait(
    registry: MlflowRegistry,
    mlflow: Mlflow,
    clock: Clock,
    spec: Any,
    want: Callable[..., None],
) -> None:
    """A promotion of what exists is seen at the next poll, and the registry is not called away."""
    mlflow.production, mlflow.tagging_takes = {"a": "1"}, 0.05
    unknown = [f"unknown-{number}" for number in range(400)]
    want("a", *unknown)
    for version in range(2, 30):
        before = clock.time
        mlflow.production["a"] = str(version)
        assert "a" in registry.poll()
        assert clock.time - before <= 1.0
        assert registry.view(spec("a")) == RegistryView(production=str(version))
        clock.time += 2.0
    assert len(set(mlflow.asked_for)) >= 250


def test_a_model_whose_turn_has_not_come_is_not_called_away(
    registry: MlflowRegistry, mlflow: Mlflow, spec: Any, want: Callable[..., None]
) -> None:
    """Nothing can be said of it yet; its ServedModel waits for the next poll."""
    mlflow.tagging_takes = 0.4
    models = ["a", "b", "c"]
    want(*models)
    registry._poll_safely()
    (left,) = set(models) - set(mlflow.asked_for)
    with pytest.raises(NotLookedYetError):
        registry.view(spec(left))
    assert registry._poll_safely() == {left}
    assert registry.view(spec(left)) == RegistryView(production=None)


def test_a_model_that_stays_unknown_is_asked_for_less_and_less_often(
    registry: MlflowRegistry, mlflow: Mlflow, clock: Clock, want: Callable[..., None]
) -> None:
    """One that comes soon is found soon, one that comes late within half a minute."""
    want("a")
    times = []
    for _ in range(150):
        before = len(mlflow.asked_for)
        registry.poll()
        times += [clock.time] * (len(mlflow.asked_for) - before)
        clock.time += 2.0
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[0] <= 2.0
    assert pauses == sorted(pauses)
    assert 25.0 <= pauses[-1] <= 30.0
    mlflow.untagged = {"a": "1"}
    news = set()
    for _ in range(16):
        news |= registry.poll()
        clock.time += 2.0
    assert news == {"a"}


def test_a_model_that_cannot_be_tagged_holds_up_no_other(
    registry: MlflowRegistry, mlflow: Mlflow, spec: Any, want: Callable[..., None]
) -> None:
    """An MLflow that takes no writes shows what it knows; of the rest it is said why not."""
    mlflow.production, mlflow.tagging_fails = {"a": "1"}, True
    want("a", "b")
    assert registry._poll_safely() == {"a"}
    assert registry.view(spec("a")) == RegistryView(production="1")
    for _ in range(2):
        assert registry.view(spec("b")) is None
        assert registry.problem is not None
        assert "503 to POST" in registry.problem
        registry._poll_safely()


def test_a_model_nobody_asks_for_any_more_is_not_looked_for(
    registry: MlflowRegistry, mlflow: Mlflow, clock: Clock, spec: Any, want: Callable[..., None]
) -> None:
    """ServedModels come and go for months."""
    want("a", "b")
    registry.poll()
    for _ in range(10):
        clock.time += 120.0
        want("a")
        registry.poll()
    mlflow.asked_for.clear()
    clock.time += 60.0
    registry.poll()
    assert mlflow.asked_for == ["a"]
    with pytest.raises(NotLookedYetError):
        registry.view(spec("b"))


def test_a_hundred_questions_do_not_hold_up_a_promotion(
    registry: MlflowRegistry,
    mlflow: Mlflow,
    clock: Clock,
    spec: Callable[[str], ServedModelSpec],
) -> None:
    """A poll looks at as many tags as fit into its time; each gets its turn."""
    names = [f"model-{n}" for n in range(100)]
    mlflow.production = dict.fromkeys(names, "1")
    for name in names:
        with contextlib.suppress(NotLookedYetError):
            registry.view(spec(name))
    registry.poll()
    for name in names:
        registry.view(spec(name), "2")
    mlflow.version_takes = 0.125
    began = clock.time
    registry.poll()
    assert clock.time - began == 0.5
    for _ in range(24):
        registry.poll()
    assert sorted(mlflow.versions_asked_for) == sorted(names)
    assert {registry.view(spec(n), "2").approval for n in names} == {f"tag of {n}" for n in names}
    registry.poll()
    assert mlflow.versions_asked_for[100:] == mlflow.versions_asked_for[:4]


def test_a_tag_that_nobody_waits_for_is_not_looked_at(
    registry: MlflowRegistry,
    mlflow: Mlflow,
    clock: Clock,
    spec: Callable[[str], ServedModelSpec],
) -> None:
    """Once no pass has asked for it for a while, the polls forget it."""
    mlflow.production = {"m": "1"}
    with contextlib.suppress(NotLookedYetError):
        registry.view(spec("m"), "2")
    registry.poll()
    registry.view(spec("m"), "2")
    clock.time += WANTED_FOR.total_seconds() + 1
    before = len(mlflow.versions_asked_for)
    registry.poll()
    assert len(mlflow.versions_asked_for) == before

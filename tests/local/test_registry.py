"""The registry adapter against a real MLflow: stages, aliases, verdicts."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from fairlead_rollout.adapters.http import client
from fairlead_rollout.adapters.mlflow_registry import API, LONGEST_PAUSE, MlflowRegistry
from fairlead_rollout.adapters.schema import read_spec
from fairlead_rollout.domain.errors import NotLookedYetError, UnavailableError
from fairlead_rollout.domain.snapshot import RegistryView
from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import Writeback

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]


class Mlflow:
    """A registered model of its own in a real MLflow, with three versions of one run."""

    def __init__(self, url: str):
        self.http = client(url)
        self.model = f"Prüfung {uuid4()} (v1.0)"
        run = self._post("runs/create", experiment_id="0")["run"]["info"]
        self.run = run["run_id"]
        self.artifacts = run["artifact_uri"].removeprefix("mlflow-artifacts:").lstrip("/")
        self._post("registered-models/create", name=self.model)
        for _ in range(3):
            source = {"source": f"{run['artifact_uri']}/model", "run_id": self.run}
            self._post("model-versions/create", name=self.model, **source)

    def _post(self, path: str, **body: Any) -> Any:
        answer = self.http.post(f"{API}/{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def stage(self, version: str, stage: str) -> None:
        """Move a version to a stage, archiving what was there."""
        target = {"name": self.model, "version": version, "stage": stage}
        self._post("model-versions/transition-stage", **target, archive_existing_versions=True)

    def alias(self, version: str, alias: str) -> None:
        """Point an alias to a version."""
        self._post("registered-models/alias", name=self.model, version=version, alias=alias)

    def spec(self, production: dict[str, str]) -> ServedModelSpec:
        """Return a spec that follows a pointer of the model."""
        registry = {"production": production, "shadow": {"stage": "Staging"}}
        return read_spec(
            {
                "apiVersion": "fairlead.dev/v1alpha1",
                "kind": "ServedModel",
                "metadata": {"name": "m"},
                "spec": {"model": self.model, "registry": registry},
            }
        )

    def version(self, version: str) -> Any:
        """Return a version as MLflow holds it."""
        query = {"name": self.model, "version": version}
        answer = self.http.get(f"{API}/model-versions/get", params=query)
        return answer.raise_for_status().json()["model_version"]


@pytest.fixture
def mlflow(stack: Any) -> Iterator[Mlflow]:
    """Return a model of its own in the stack's MLflow."""
    made = Mlflow(stack.url("mlflow"))
    yield made
    made.http.close()


@pytest.fixture
def registry(mlflow: Mlflow) -> MlflowRegistry:
    """Return an adapter that has not looked yet."""
    return MlflowRegistry(mlflow.http)


def want(registry: MlflowRegistry, spec: ServedModelSpec) -> None:
    """Have the next poll look for a model."""
    with contextlib.suppress(NotLookedYetError):
        registry.view(spec)


def item(kind: str, version: str, content: dict[str, Any]) -> Writeback:
    """Build something to tell."""
    return Writeback(kind=kind, rollout="r", version=version, content=content)


def test_nothing_is_known_before_the_first_look(mlflow: Mlflow, registry: MlflowRegistry) -> None:
    """Not having looked is not the same as no version."""
    spec = mlflow.spec({"stage": "Production"})
    with pytest.raises(NotLookedYetError):
        registry.view(spec)
    registry.poll()
    assert registry.view(spec) == RegistryView(production=None)


def test_stages_and_aliases_are_followed(mlflow: Mlflow, registry: MlflowRegistry) -> None:
    """Either pointer is seen at the next look, and moving it back is seen too."""
    by_stage, by_alias = mlflow.spec({"stage": "Production"}), mlflow.spec({"alias": "champion"})
    want(registry, by_stage)
    mlflow.stage("2", "Production")
    mlflow.stage("3", "Staging")
    mlflow.alias("1", "champion")
    assert registry.poll()
    assert registry.view(by_stage) == RegistryView(production="2", shadow="3")
    assert registry.view(by_alias) == RegistryView(production="1", shadow="3")
    mlflow.stage("1", "Production")
    mlflow.alias("3", "champion")
    assert registry.poll()
    assert registry.view(by_stage) == RegistryView(production="1", shadow="3")
    assert registry.view(by_alias) == RegistryView(production="3", shadow="3")
    assert not registry.poll()


def test_a_model_that_is_registered_later_is_found(mlflow: Mlflow) -> None:
    """The poll's filter does not hide what did not exist at the first look."""
    now = time.monotonic()
    registry = MlflowRegistry(mlflow.http, monotonic=lambda: now)
    spec = mlflow.spec({"stage": "Production"})
    real, mlflow.model = mlflow.model, f"later {uuid4()}"
    later = mlflow.spec({"stage": "Production"})
    want(registry, spec)
    want(registry, later)
    registry.poll()
    assert registry.view(later) == RegistryView(production=None)
    mlflow._post("registered-models/create", name=mlflow.model)
    mlflow._post("model-versions/create", name=mlflow.model, source=f"models:/{real}/1")
    mlflow.stage("1", "Production")
    now += LONGEST_PAUSE.total_seconds()
    registry.poll()
    assert registry.view(later) == RegistryView(production="1")


def test_a_verdict_is_written_as_tags_and_can_be_found(
    mlflow: Mlflow, registry: MlflowRegistry
) -> None:
    """Writing twice is as writing once; MLflow's own search finds the verdict."""
    spec = mlflow.spec({"stage": "Production"})
    for _ in range(2):
        registry.write(spec, item("tags", "2", {"rollout.status": "promoted", "rollout.id": "r"}))
    tags = {t["key"]: t["value"] for t in mlflow.version("2")["tags"]}
    assert tags == {"rollout.status": "promoted", "rollout.id": "r"}


def test_an_approval_is_seen_and_marked_as_counted(
    mlflow: Mlflow, registry: MlflowRegistry
) -> None:
    """The candidate's tag is looked at from when it is asked for; a new value is news."""
    spec = mlflow.spec({"stage": "Production"})
    want(registry, spec)
    registry.poll()
    assert registry.view(spec, "2") == RegistryView(production=None, approval=None)
    assert registry.poll() == {mlflow.model}
    assert registry.view(spec, "2") == RegistryView(production=None, approval="")
    mlflow._post(
        "model-versions/set-tag",
        name=mlflow.model,
        version="2",
        key="rollout.approve",
        value="true",
    )
    assert registry.poll() == {mlflow.model}
    assert registry.view(spec, "2") == RegistryView(production=None, approval="true")
    registry.write(spec, item("approval", "2", {"rollout.approve": "counted"}))
    registry.poll()
    assert registry.view(spec, "2") == RegistryView(production=None, approval="counted")
    assert not registry.poll()


@pytest.mark.parametrize("pointer", [{"stage": "Production"}, {"alias": "champion"}])
def test_a_pointer_is_moved_back_to_an_older_version(
    mlflow: Mlflow, registry: MlflowRegistry, pointer: dict[str, str]
) -> None:
    """A revert wins over the higher version number, but not over a newer promotion."""
    spec = mlflow.spec(pointer)
    want(registry, spec)
    mlflow.stage("3", "Production")
    mlflow.alias("3", "champion")
    registry.write(spec, item("production", "1", {"candidate": "2"}))
    registry.poll()
    assert registry.view(spec) == RegistryView(production="3")
    registry.write(spec, item("production", "1", {"candidate": "3"}))
    registry.poll()
    assert registry.view(spec) == RegistryView(production="1")


def test_the_report_becomes_an_artifact_of_the_training_run(
    mlflow: Mlflow, registry: MlflowRegistry
) -> None:
    """`rollout.json` lies beside the run's other artifacts."""
    spec = mlflow.spec({"stage": "Production"})
    registry.write(spec, item("report", "1", {"rollout.json": '{"rollout": "é"}'}))
    path = f"/api/2.0/mlflow-artifacts/artifacts/{mlflow.artifacts}/rollout.json"
    assert mlflow.http.get(path).json() == {"rollout": "é"}


def test_a_version_that_is_gone_loses_no_other_verdict(
    mlflow: Mlflow, registry: MlflowRegistry
) -> None:
    """What cannot be told any more is not told again and again."""
    spec = mlflow.spec({"stage": "Production"})
    registry.write(spec, item("tags", "99", {"rollout.status": "promoted"}))
    registry.write(spec, item("report", "99", {"rollout.json": "{}"}))
    registry.write(spec, item("description", "99", {"summary": "s", "why": "w"}))


def test_a_registry_that_is_away_is_an_error_of_its_own(mlflow: Mlflow) -> None:
    """Nothing listens: unavailable, to be tried again; the view stays unknown."""
    away = MlflowRegistry(httpx.Client(base_url="http://127.0.0.1:9"))
    spec = mlflow.spec({"stage": "Production"})
    with pytest.raises(UnavailableError):
        away.poll()
    with pytest.raises(UnavailableError):
        away.write(spec, item("tags", "1", {"rollout.id": "r"}))
    stop = threading.Event()
    told: list[frozenset[str]] = []
    want(away, spec)
    poller = threading.Thread(
        target=away.run, args=(stop, lambda news: (told.append(news), stop.set()))
    )
    poller.start()
    poller.join(timeout=30)
    assert told == [frozenset({spec.model})]
    assert away.view(spec) is None


def test_the_poller_wakes_the_controller(
    mlflow: Mlflow, registry: MlflowRegistry, until: Callable[..., Any]
) -> None:
    """A moved pointer is told without being asked for."""
    spec = mlflow.spec({"stage": "Production"})
    want(registry, spec)
    stop, woken = threading.Event(), threading.Event()
    poller = threading.Thread(target=registry.run, args=(stop, lambda _: woken.set()))
    poller.start()
    try:
        assert woken.wait(10)
        woken.clear()
        mlflow.stage("2", "Production")
        assert woken.wait(10)
    finally:
        stop.set()
        poller.join()
    assert registry.view(spec) == RegistryView(production="2")

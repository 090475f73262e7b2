"""Verdicts in a real MLflow on a real PostgreSQL: its limits, and both going away half-way."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from free_ports import free_port

from fairlead_rollout.adapters.http import client
from fairlead_rollout.adapters.mlflow_registry import API, MlflowRegistry
from fairlead_rollout.domain.snapshot import Verdict
from fairlead_rollout.domain.status import Writeback

# The experiments service's tests have the server; its address is the same on every checkout.
sys.path.insert(0, str(Path(__file__).parents[4] / "services/experiments/tests"))

from experiments_postgresql import PostgresServer

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]
World = Any
MODEL = "Flight Delay (EU) – 2026.v1"
PERSON = "Trained on 2013.\n\nAsk *Ada* before it goes to Production."
PATIENCE = 400.0  # seconds; an empty database takes a busy machine minutes


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition, and fail when it does not come."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"still not so: {what}"
        threading.Event().wait(0.1)


class Mlflow:
    """An MLflow server on a PostgreSQL of its own; either can be ended and started again."""

    def __init__(self, folder: Path):
        self.postgres = PostgresServer().start()
        database = self.postgres.create_database()
        self._store = database.replace("postgresql://", "postgresql+psycopg2://")
        self._folder, self._port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.http = client(f"http://127.0.0.1:{self._port}")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = (sys.executable, "-m", "mlflow", "server", "--workers", "1")
        place = ("--host", "127.0.0.1", "--port", str(self._port))
        artifacts = ("--artifacts-destination", str(self._folder / "artifacts"))
        environment = {
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": self._store,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with (self._folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *place, *artifacts],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )
        wait_until(self._answers, "MLflow answers")

    def kill(self) -> None:
        """End the server and all its processes at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """End everything."""
        self.kill()
        self.http.close()
        self.postgres.remove()

    def _answers(self) -> bool:
        assert self._process is not None
        log = self._folder / "mlflow.log"
        assert self._process.poll() is None, log.read_text("utf-8")[-2_000:]
        try:
            return self.http.get("/health").is_success
        except httpx.HTTPError:
            return False

    def post(self, path: str, **body: Any) -> Any:
        """Send a POST that must succeed."""
        answer = self.http.post(f"{API}/{path}", json=body, timeout=60)
        assert answer.is_success, answer.text
        return answer.json()

    def register(self) -> str:
        """Register two versions of one run, the second described by a person; return the artifacts."""
        run = self.post("runs/create", experiment_id="0")["run"]["info"]
        self.post("registered-models/create", name=MODEL)
        source = {"source": f"{run['artifact_uri']}/model", "run_id": run["run_id"]}
        for _ in range(2):
            self.post("model-versions/create", name=MODEL, description=PERSON, **source)
        return str(run["artifact_uri"]).removeprefix("mlflow-artifacts:").lstrip("/")

    def version(self, version: str) -> Mapping[str, Any]:
        """Return a version."""
        query = {"name": MODEL, "version": version}
        answer = self.http.get(f"{API}/model-versions/get", params=query, timeout=60)
        found: Mapping[str, Any] = answer.raise_for_status().json()["model_version"]
        return found

    def artifact(self, path: str) -> httpx.Response:
        """Return a file of the run."""
        return self.http.get(f"/api/2.0/mlflow-artifacts/artifacts/{path}", timeout=60)


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    """Return an MLflow that runs."""
    server = Mlflow(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="module")
def artifacts(mlflow: Mlflow) -> str:
    """Return where the files of the run that made both versions are."""
    return mlflow.register()


def describe(mlflow: Mlflow, text: str) -> None:
    """Write a description as a person would."""
    body = {"name": MODEL, "version": "1", "description": text}
    answer = mlflow.http.patch(f"{API}/model-versions/update", json=body, timeout=60)
    assert answer.is_success, answer.text


@pytest.mark.usefixtures("artifacts")
def test_the_longest_words_fit_into_postgresql(mlflow: Mlflow, world: World) -> None:
    """5,000 characters, whatever they are: tags and the description are taken, a person's text is whole."""
    registry, spec = MlflowRegistry(mlflow.http), world.store_.read("flight-delay").spec
    long = Writeback(
        kind="description", rollout="r", version="1", content={"summary": "S", "why": "ü😀" * 5_000}
    )
    for length in (10, 4_700, 4_990):
        person = "p" * length
        describe(mlflow, person)
        registry.write(spec, long)
        found = mlflow.version("1")["description"]
        assert found.startswith(person)
        assert len(found) == (5_000 if length < 4_800 else length)
    tags = Writeback(kind="tags", rollout="r", version="1", content={"rollout.reason": "é" * 5_000})
    registry.write(spec, tags)
    assert {t["key"]: len(t["value"]) for t in mlflow.version("1")["tags"]} == {
        "rollout.reason": 5_000
    }


@pytest.mark.usefixtures("artifacts")
def test_a_verdict_is_put_after_a_persons_words(
    mlflow: Mlflow, on_trial: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a person wrote about the version stays; ours comes after it."""
    registry = MlflowRegistry(mlflow.http)
    monkeypatch.setattr(on_trial, "write", registry.write)
    on_trial.verdict, on_trial.why = Verdict.WORSE, "squared_error +0.02"

    def is_told() -> bool:
        on_trial.run(1, every=1.0)
        return not on_trial.rollout.is_active and not on_trial.status.writeback

    wait_until(is_told, "the verdict is told")
    found = mlflow.version("2")["description"]
    assert found.startswith(PERSON)
    assert found.count("<!-- fairlead:rollout ") == 1
    assert "ObjectiveWorse: squared_error +0.02" in found


def test_a_verdict_waits_for_mlflow_and_its_database_and_is_written_once(
    mlflow: Mlflow, artifacts: str, on_trial: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL goes after the tags, MLflow after that; both come back: each thing is told once, whole.

    The version was aborted before: of our words in its description the newer ones are left.
    """
    registry, told = MlflowRegistry(mlflow.http), Counter[str]()

    def write(spec: Any, item: Writeback) -> None:
        registry.write(spec, item)
        told[item.kind] += 1
        if item.kind == "tags":
            mlflow.postgres.stop()

    on_trial.run_until(lambda: not on_trial.status.writeback)
    monkeypatch.setattr(on_trial, "write", write)
    on_trial.broken["2"] = (3, "module\x00 'lost' is not installed")
    on_trial.run_until(lambda: not on_trial.rollout.is_active)
    on_trial.run(3, every=1.0)
    assert told == {"tags": 1}
    assert {item.kind for item in on_trial.status.writeback} == {"description", "report", "page"}

    mlflow.kill()
    on_trial.run(2, every=1.0)
    mlflow.postgres.start()
    mlflow.start()

    def is_told() -> bool:
        on_trial.run(1, every=1.0)
        return not on_trial.status.writeback

    wait_until(is_told, "everything is told")
    on_trial.run(2, every=1.0)
    assert told == {"tags": 1, "description": 1, "report": 1, "page": 1}
    _is_whole(mlflow, artifacts, on_trial)


def _is_whole(mlflow: Mlflow, artifacts: str, world: World) -> None:
    version, rollout = mlflow.version("2"), world.rollout
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert tags["rollout.status"] == "aborted"
    assert "module  'lost' is not installed" in tags["rollout.reason"]
    assert version["description"].startswith(PERSON)
    assert version["description"].count("<!-- fairlead:rollout ") == 1
    assert "Rollout aborted on 2026-01-01" in version["description"]
    written = mlflow.artifact(f"{artifacts}/rollout.json").json()
    assert written["decisions"] == list(world.decisions(rollout.id))
    assert mlflow.artifact(f"{artifacts}/rollout.html").text == "<title>aborted</title>"

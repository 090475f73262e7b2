"""Models saved by MLflow, and servers started as users start them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from free_ports import free_port
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parent))

LIMIT = 180.0


@dataclass
class Server:
    """One serving process."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=LIMIT)

    def predict(self, payload: object) -> httpx.Response:
        """Send one payload."""
        return self.http.post("/invocations", json=payload)

    def wait_ready(self) -> None:
        """Wait until the model may have traffic."""
        wait_until(lambda: self.status("/readyz") == 200 or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    def status(self, path: str) -> int:
        """Give the code of an answer, or 0 when nobody listens."""
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return 0

    def metric(self, name: str, **labels: str) -> float:
        """Read one sample of `/metrics`, the one with these labels."""
        (found,) = [
            sample.value
            for family in text_string_to_metric_families(self.http.get("/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return found

    def wait_exit(self) -> int:
        """Wait for the end of the process; give its exit code."""
        return self.process.wait(timeout=LIMIT)

    def close(self) -> None:
        """End the process, whatever state it is in."""
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=LIMIT)


def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for a condition; fail after a limit."""
    deadline = time.monotonic() + LIMIT
    while not is_true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)


@contextmanager
def started(
    log: Path,
    model: object,
    *arguments: str,
    environment: Mapping[str, str | None] | None = None,
    program: Sequence[str] = (str(Path(sys.executable).with_name("fairlead-serving")),),
) -> Iterator[Server]:
    """Start the command on a free port; end it whatever happens.

    A variable whose value is None is not there.
    """
    port = free_port()
    command = [*program, "--model", str(model)]
    command += ["--port", str(port), "--drain-seconds", "1", *arguments]
    given = {**os.environ, **(environment or {})}
    variables = {name: value for name, value in given.items() if value is not None}
    with log.open("w") as stream:
        process = subprocess.Popen(command, stderr=stream, text=True, env=variables)
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        yield server
    finally:
        server.close()


Serve = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Start servers that end with the test."""

    def start(model: object, *arguments: str, **options: Any) -> Any:
        return started(tmp_path / "server.log", model, *arguments, **options)

    return start


@pytest.fixture(scope="session")
def start_server() -> Callable[..., Any]:
    """Start a server whose end is the caller's business."""
    return started


@pytest.fixture
def wait() -> Callable[[Callable[[], bool]], None]:
    """Wait for a condition, with a limit."""
    return wait_until


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model of `make_models.py`, one folder each."""
    root = tmp_path_factory.mktemp("models")
    script = Path(__file__).with_name("make_models.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(root)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="session")
def expected(models: Path) -> Mapping[str, Any]:
    """For each model a payload and what MLflow itself predicts for it."""
    document: Mapping[str, Any] = json.loads((models / "expected.json").read_text())
    return document


@dataclass(frozen=True)
class MlflowServer:
    """A running MLflow server."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """Start a real MLflow server with its own empty database."""
    port = free_port()
    database = folder / "mlflow.db"
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "mlflow.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or _answers(f"{url}/health"))
        yield MlflowServer(url, process)
        assert process.poll() is None, (folder / "mlflow.log").read_text()[-2000:]
    finally:
        with suppress(ProcessLookupError):  # Its log is in the message above.
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=LIMIT)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One MLflow server for the whole session."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server

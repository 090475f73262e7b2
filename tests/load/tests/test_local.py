"""A short run against a real stack on this machine, as `make load` does it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import httpx
import psutil
import pytest
import yaml
from fairlead_load.local import NAME, Stack, running
from free_ports import free_port

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]
API = "/api/2.0/mlflow"
PACKAGE = Path(__file__).parent.parent

# A version that says for every flight how likely it is late; what it does is in its pickle.
ESTIMATOR = """
class Estimator:
    def predict_proba(self, rows):
        return [[0.75, 0.25]] * len(rows)
"""
STRINGS, LONGS = ("carrier", "origin", "dest"), ("weekday", "dep_hour", "arr_hour")


def model_files(columns: list[str]) -> dict[str, bytes]:
    """The files of a model of these columns, as MLflow writes them."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(ESTIMATOR, scope)  # noqa: S102 - our own text; a class without a module is pickled by value
    kinds = {**dict.fromkeys(STRINGS, "string"), **dict.fromkeys(LONGS, "long")}
    inputs = [
        {"type": kinds.get(name, "double"), "name": name, "required": True} for name in columns
    ]
    description = {
        "flavors": {
            "python_function": {
                "loader_module": "mlflow.sklearn",
                "model_path": "model.pkl",
                "predict_fn": "predict_proba",
                "env": {"virtualenv": "python_env.yaml"},
            },
            "sklearn": {"pickled_model": "model.pkl", "serialization_format": "cloudpickle"},
        },
        "signature": {"inputs": json.dumps(inputs)},
    }
    return {
        "MLmodel": yaml.safe_dump(description).encode(),
        "model.pkl": cloudpickle.dumps(scope["Estimator"]()),
        "requirements.txt": b"scikit-learn\n",
    }


def register(stack: Stack) -> None:
    """Register a version that costs no training."""
    columns = json.loads((stack.data / "heldout" / "columns.json").read_bytes())["columns"]
    with httpx.Client(base_url=stack.url("mlflow"), timeout=60) as mlflow:
        run = mlflow.post(f"{API}/runs/create", json={"experiment_id": "0"}).json()["run"]["info"]
        root = run["artifact_uri"].removeprefix("mlflow-artifacts:").lstrip("/")
        for name, content in model_files(columns).items():
            url = f"/api/2.0/mlflow-artifacts/artifacts/{root}/model/{name}"
            mlflow.put(url, content=content).raise_for_status()
        mlflow.post(f"{API}/registered-models/create", json={"name": NAME})
        version = {"name": NAME, "source": f"{run['artifact_uri']}/model", "run_id": run["run_id"]}
        mlflow.post(f"{API}/model-versions/create", json=version).raise_for_status()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with one registered version; whatever it leaves is ended and is a failure."""
    stack = Stack(tmp_path_factory.mktemp("load"))
    stack.run("fairlead-training", "prepare", "--data", str(stack.data))
    with running(stack):
        register(stack)
        yield stack
    left = [p for p in psutil.process_iter() if _is_of(p, stack)]
    for process in left:
        process.kill()
    assert left == []


def _is_of(process: psutil.Process, stack: Stack) -> bool:
    try:
        return process.environ().get("FAIRLEAD_HOME") == str(stack.home)
    except (psutil.Error, OSError):
        return False


def load(stack: Stack, *options: str) -> tuple[int, dict[str, Any], Path]:
    """Run the load test; answer its exit code, its verdict and the report's folder."""
    command = [sys.executable, "-m", "fairlead_load.local", "--home", str(stack.home)]
    ours = ("--users", "10", "--rate", "10", "--seconds", "8")
    before = set(stack.home.glob("load/*"))
    done = subprocess.run([*command, *ours, *options], cwd=PACKAGE, check=False, timeout=200)
    (folder,) = set(stack.home.glob("load/*")) - before
    return done.returncode, json.loads((folder / "verdict.json").read_bytes()), folder


@contextmanager
def worker(stack: Stack, port: int) -> Iterator[None]:
    """A worker that is told all but its data by its master; it ends with it."""
    locust = [sys.executable, "-m", "locust", "--locustfile", str(PACKAGE / "locustfile.py")]
    environment = {**os.environ, "FAIRLEAD_LOAD_DATA": str(stack.data / "heldout")}
    process = subprocess.Popen([*locust, "--worker", "--master-port", str(port)], env=environment)
    try:
        yield
        process.wait(60)
    finally:
        process.kill()
        process.wait()


def broken(verdict: dict[str, Any]) -> list[str]:
    """The thresholds that were not kept."""
    return [found["threshold"] for found in verdict["findings"] if not found["kept"]]


def test_a_run_passes_and_keeps_its_report(stack: Stack) -> None:
    """Real flights through the gateway and past it, and what came of them is taken."""
    code, verdict, folder = load(stack, "--max-p99-multiple", "20")

    assert verdict["passed"], verdict
    assert code == 0
    thresholds = {finding["threshold"] for finding in verdict["findings"]}
    assert {"gateway errors", "direct errors", "outcomes errors", "p99"} <= thresholds
    assert (folder / "report.html").stat().st_size > 10_000
    assert "gateway v1" in (folder / "stats_stats.csv").read_text("utf-8")


def test_a_distributed_run_fails_where_a_threshold_is_broken(stack: Stack) -> None:
    """A worker sends and posts as the master's options say; the master judges."""
    port = free_port()
    master = ("--master", "--master-bind-port", str(port), "--expect-workers", "1")
    with worker(stack, port):
        code, verdict, _ = load(stack, "--max-p99-multiple", "0.01", *master)

    assert code == 1
    assert broken(verdict) == ["p99"]
    assert "outcomes errors" in {finding["threshold"] for finding in verdict["findings"]}

"""The local stack under test: real MLflow, Envoy, experiments, controller and serving processes."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import cloudpickle
import httpx
import psutil
import pytest
import yaml

MODEL = "Flight Delay (EU) – 2026.v1"
NAME = "flight-delay-eu"
API = "/api/2.0/mlflow"
CONNECTIONS = 16
LIMIT = 240.0
"""Seconds that a wait takes at most: only what is broken, or a very busy machine, needs them."""
SPEC: dict[str, Any] = {
    "model": MODEL,
    "server": {"replicas": 2, "keep": {"versions": 0}},
    "rollout": {
        "steps": [{"weight": 20, "for": "2s"}, {"weight": 50, "until": "decided"}],
        "objective": {"outcome": "score", "better": "higher", "minimumEffect": 0.1},
        "minimumRequests": 10,
        # The tests kill candidates on purpose; what they check is that nobody notices.
        "guardrails": {},
    },
}

# What a version does is in its pickle, by value: a class of its own for each behaviour.
ESTIMATORS = """
import time

class Estimator:
    '''Answers its own number for every row, or another one where x is large.'''

    def __init__(self, number, load=0.0, fails=False, large=None):
        self.number, self.load, self.fails = number, load, fails
        self.large = number if large is None else large

    def __setstate__(self, state):
        time.sleep(state['load'])
        if state['fails']:
            raise RuntimeError('this version was saved by mistake')
        self.__dict__.update(state)

    def predict(self, rows):
        xs = getattr(rows, 'values', rows)
        return [float(self.large if x[0] >= 9 else self.number) for x in xs]
"""


MLMODEL = {
    "flavors": {
        "python_function": {
            "loader_module": "mlflow.sklearn",
            "model_path": "model.pkl",
            "predict_fn": "predict",
            "env": {"virtualenv": "python_env.yaml"},
        },
        "sklearn": {"pickled_model": "model.pkl", "serialization_format": "cloudpickle"},
    },
    "signature": {
        "inputs": '[{"type": "double", "name": "x", "required": true}]',
        "outputs": '[{"type": "double", "required": true}]',
    },
}


def wait_until(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait for something to be so and return it."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not so within {LIMIT:g} s: {what or condition}")


def children_of(home: Path) -> list[psutil.Process]:
    """Return every process that was started for a folder, whoever its parent is."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FAIRLEAD_HOME") == str(home):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@dataclass
class Load:
    """A steady load through the gateway, and everything that came back."""

    gateway: str
    rate: float = 120.0
    callers: int = 500
    failures: list[str] = field(default_factory=list)
    answers: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    first: dict[str, float] = field(default_factory=dict)
    units: dict[tuple[str, str], str] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)
    sent: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        """Start sending."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and wait for what is under way."""
        self._stop.set()
        self._thread.join()

    def has_sent(self, more: int) -> Callable[[], bool]:
        """Return a condition: so many more requests were sent."""
        target = self.sent + more
        return lambda: self.sent >= target

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        async with httpx.AsyncClient(
            base_url=self.gateway, limits=limits, timeout=30, trust_env=False
        ) as http:
            await asyncio.gather(*(self._work(http, n) for n in range(CONNECTIONS)))

    async def _work(self, http: httpx.AsyncClient, worker: int) -> None:
        number = worker
        while not self._stop.is_set():
            began = time.monotonic()
            await self._ask(http, f"unit-{number % self.callers}")
            number += CONNECTIONS
            await asyncio.sleep(max(0.0, CONNECTIONS / self.rate - (time.monotonic() - began)))

    async def _ask(self, http: httpx.AsyncClient, unit: str) -> None:
        body = {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}
        self.sent += 1
        try:
            answer = await http.post(
                f"/models/{NAME}/invocations", json=body, headers={"x-unit-id": unit}
            )
        except httpx.HTTPError as error:
            self.failures.append(f"{time.time():.3f} {error!r}")
            return
        if answer.status_code != httpx.codes.OK:
            self.failures.append(f"{time.time():.3f} {answer.status_code} {answer.text[:200]}")
            return
        self._note(answer, unit)

    def _note(self, answer: httpx.Response, unit: str) -> None:
        rollout = answer.headers.get("x-rollout-id", "")
        arm, version = answer.headers["x-rollout-arm"], answer.headers["x-model-version"]
        self.answers[(rollout, arm, version)] += 1
        self.first.setdefault(version, time.time())
        before = self.units.get((rollout, unit))
        if rollout and before == "candidate" and arm == "stable":
            self.moved.append(unit)
        self.units[(rollout, unit)] = arm


@dataclass
class Stack:
    """A local stack in a folder, driven by the `fairlead` command."""

    home: Path
    up: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Run `fairlead up` and wait until everything answers."""
        self.spawn(*options)
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until everything answers."""
        wait_until(self._all_ready, "the stack is ready")

    def spawn(self, *options: str) -> None:
        """Run `fairlead up`."""
        with (self.home / "up.log").open("ab") as log:
            command = ["fairlead", "--home", str(self.home), "up", *options]
            self.up = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End `fairlead up` and return its exit code."""
        assert self.up is not None
        self.up.send_signal(how)
        return self.up.wait(LIMIT)

    def run(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a `fairlead` command."""
        return subprocess.run(
            ["fairlead", "--home", str(self.home), *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def apply(self, spec: Mapping[str, Any] = SPEC, name: str = NAME) -> None:
        """Apply a ServedModel."""
        manifest = {
            "apiVersion": "fairlead.dev/v1alpha1",
            "kind": "ServedModel",
            "metadata": {"name": name},
            "spec": spec,
        }
        done = self.run("apply", "-f", "-", text=json.dumps(manifest))
        assert done.returncode == 0, done.stderr

    def url(self, listener: str) -> str:
        """Return a listener's base address."""
        ports = json.loads((self.home / "ports.json").read_text("utf-8"))["ports"]
        return f"http://127.0.0.1:{ports[listener]}"

    def processes(self) -> dict[str, Any]:
        """Return what `fairlead up` reports of every process."""
        try:
            report: dict[str, Any] = json.loads((self.home / "processes.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return report

    def status(self, name: str = NAME) -> dict[str, Any]:
        """Return a served model's status."""
        try:
            path = self.home / "served-models" / name / "status.json"
            status: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return status

    def rollout(self) -> dict[str, Any]:
        """Return the current or last rollout, empty when there was none."""
        return self.status().get("rollout") or {}

    def weight(self) -> int:
        """Return the candidate's weight of 10,000."""
        arms = (self.status().get("traffic") or {}).get("arms", ())
        return sum(arm["weight"] for arm in arms if arm["arm"] == "candidate")

    def is_applied(self) -> bool:
        """Say whether the gateway routes by the newest plan."""
        seen = {c["type"]: c["status"] for c in self.status().get("conditions", ())}
        return seen.get("TrafficApplied") == "True"

    def pids(self, prefix: str) -> dict[str, int]:
        """Return the process ids of everything whose key starts so."""
        seen = self.processes().items()
        return {key: p["pid"] for key, p in seen if key.startswith(prefix) and p["pid"]}

    def version_prefix(self, version: str) -> str:
        """Return how the keys of a version's processes start."""
        return f"{NAME}-v{version}-"

    def versions(self) -> set[str]:
        """Return the versions that have a process."""
        found = (re.match(rf"{NAME}-v(.+)-[0-9a-f]+/", key) for key in self.processes())
        return {match[1] for match in found if match}

    def kill(self, key: str) -> int:
        """Kill -9 a process and wait until another one has taken its place."""
        pid: int = self.processes()[key]["pid"]
        os.kill(pid, signal.SIGKILL)

        def replaced() -> bool:
            seen = self.processes().get(key) or {}
            return seen.get("pid") not in {None, pid} and bool(seen["ready"])

        wait_until(replaced, f"{key} is replaced")
        return pid

    def promote(self, version: str) -> float:
        """Set a version to Production in MLflow; returns when."""
        body = {"name": MODEL, "version": version, "stage": "Production"}
        url = f"{self.url('mlflow')}{API}/model-versions/transition-stage"
        answer = httpx.post(url, json={**body, "archive_existing_versions": True}, timeout=30)
        answer.raise_for_status()
        return time.time()

    def stage(self, version: str) -> None:
        """Set a version to Staging in MLflow."""
        body = {"name": MODEL, "version": version, "stage": "Staging"}
        url = f"{self.url('mlflow')}{API}/model-versions/transition-stage"
        answer = httpx.post(url, json={**body, "archive_existing_versions": True}, timeout=30)
        answer.raise_for_status()

    def alias(self, alias: str, version: str) -> None:
        """Have an alias name a version in MLflow."""
        body = {"name": MODEL, "alias": alias, "version": version}
        url = f"{self.url('mlflow')}{API}/registered-models/alias"
        httpx.post(url, json=body, timeout=30).raise_for_status()

    def unalias(self, alias: str) -> None:
        """Have an alias name nothing in MLflow."""
        body = {"name": MODEL, "alias": alias}
        url = f"{self.url('mlflow')}{API}/registered-models/alias"
        httpx.request("DELETE", url, json=body, timeout=30).raise_for_status()

    def trials(self) -> dict[str, dict[str, Any]]:
        """Return the rollouts that run, by their candidates."""
        status = self.status()
        found = [status.get("rollout") or {}, *status.get("beside", ())]
        return {r["candidate"]: r for r in found if r.get("state") in {"pending", "running"}}

    def lanes(self) -> dict[str, int]:
        """Return each candidate's weight in its lane, of 10,000."""
        lanes = (self.status().get("traffic") or {}).get("lanes", {"trials": ()})["trials"]
        return {lane["arms"][0]["version"]: lane["arms"][0]["weight"] for lane in lanes}

    def comparisons(self, shadow: str, tolerance: float = 0.0) -> list[dict[str, Any]]:
        """Return how a shadow compares with what has answered beside it."""
        url = f"{self.url('experiments')}/v1/models/{NAME}/shadow"
        params = {"shadow": shadow, "tolerance": str(tolerance)}
        answer = httpx.get(url, params=params, timeout=30).raise_for_status()
        found: list[dict[str, Any]] = answer.json()["comparisons"]
        return found

    def version(self, version: str) -> dict[str, Any]:
        """Return a version as MLflow holds it."""
        url = f"{self.url('mlflow')}{API}/model-versions/get"
        answer = httpx.get(url, params={"name": MODEL, "version": version}, timeout=30)
        found: dict[str, Any] = answer.raise_for_status().json()["model_version"]
        return found

    def tags(self, version: str) -> dict[str, str]:
        """Return a version's tags in MLflow."""
        return {tag["key"]: tag["value"] for tag in self.version(version).get("tags", [])}

    def artifact(self, version: str, name: str) -> str:
        """Return a file of the run that made a version."""
        with httpx.Client(base_url=self.url("mlflow"), timeout=30) as http:
            run = http.get(f"{API}/runs/get", params={"run_id": self.version(version)["run_id"]})
            uri: str = run.raise_for_status().json()["run"]["info"]["artifact_uri"]
            folder = uri.removeprefix("mlflow-artifacts:").lstrip("/")
            answer = http.get(f"/api/2.0/mlflow-artifacts/artifacts/{folder}/{name}")
            return answer.raise_for_status().text

    def analysis(self, rollout: str) -> dict[str, Any]:
        """Return the analysis of a rollout."""
        answer = httpx.get(f"{self.url('experiments')}/v1/rollouts/{rollout}/analysis", timeout=30)
        document: dict[str, Any] = answer.raise_for_status().json()
        return document

    def load(self, rate: float = 120.0, callers: int = 500) -> Load:
        """Return a load of so many units through the gateway, to be entered."""
        return Load(self.url("gateway"), rate, callers)

    def await_version(self, version: str) -> None:
        """Wait until a version is the stable one and nothing is on trial."""

        def serves() -> bool:
            status = self.status()
            if status.get("stable") != version or self.is_on_trial():
                return False
            return self.is_applied()

        wait_until(serves, f"version {version} serves")

    def await_weight(self, weight: int) -> None:
        """Wait until the gateway routes by a candidate's weight."""
        wait_until(lambda: self.weight() == weight and self.is_applied(), f"the weight is {weight}")

    def settle_on(self, version: str) -> None:
        """Have a version serve, whatever was before."""
        if self.is_on_trial():
            self.run("abort", NAME)
        if self.status().get("stable") == version:
            self.promote(version)
            wait_until(lambda: self.status().get("production") == version)
            return
        self.promote(version)
        if self.status().get("stable") is not None:
            wait_until(lambda: self.is_on_trial() and self.rollout()["candidate"] == version)
            self.run("promote", NAME)
        self.await_version(version)

    def is_on_trial(self) -> bool:
        """Say whether a version is on trial."""
        return self.rollout().get("state") in {"pending", "running"}

    def _all_ready(self) -> bool:
        assert self.up is not None
        assert self.up.poll() is None, (self.home / "up.log").read_text("utf-8")
        seen = self.processes()
        services = ("mlflow/0", "experiments/0", "agent/0", "envoy/0", "controller/0")
        return all(seen.get(key, {}).get("ready") for key in services)


def _model_folder(folder: Path, number: int, **behaviour: Any) -> Path:
    """Write a model folder as MLflow does, with a pickle that carries its own class."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(ESTIMATORS, scope)  # noqa: S102 -- our own text; a class without a module is pickled by value
    path = folder / f"model-{number}"
    path.mkdir()
    (path / "model.pkl").write_bytes(cloudpickle.dumps(scope["Estimator"](number, **behaviour)))
    (path / "requirements.txt").write_text("scikit-learn\n", "utf-8")
    (path / "MLmodel").write_text(yaml.safe_dump(MLMODEL), "utf-8")
    return path


def register(stack: Stack, folder: Path) -> str:
    """Upload a model folder through MLflow and register it; returns the version."""
    with httpx.Client(base_url=stack.url("mlflow"), timeout=60) as mlflow:
        run = mlflow.post(f"{API}/runs/create", json={"experiment_id": "0"}).json()["run"]["info"]
        root = run["artifact_uri"].removeprefix("mlflow-artifacts:").lstrip("/")
        for path in folder.iterdir():
            url = f"/api/2.0/mlflow-artifacts/artifacts/{root}/model/{path.name}"
            mlflow.put(url, content=path.read_bytes()).raise_for_status()
        mlflow.post(f"{API}/registered-models/create", json={"name": MODEL})
        source = f"{run['artifact_uri']}/model"
        version = {"name": MODEL, "source": source, "run_id": run["run_id"]}
        answer = mlflow.post(f"{API}/model-versions/create", json=version)
        assert answer.is_success, answer.text
        number: str = answer.json()["model_version"]["version"]
        return number


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with four versions of one model: 1 to 3 answer their number, 4 cannot load."""
    home = tmp_path_factory.mktemp("stack").resolve()
    stack = Stack(home)
    stack.spawn()
    try:
        stack.await_ready()
        folder = tmp_path_factory.mktemp("models")
        for number, behaviour in ((1, {}), (2, {}), (3, {"load": 1.0}), (4, {"fails": True})):
            assert register(stack, _model_folder(folder, number, **behaviour)) == str(number)
        stack.apply()
        stack.promote("1")
        stack.await_version("1")
        yield stack
    finally:
        stack.stop()
        left = children_of(home)
        for process in left:
            process.kill()
    assert left == [], f"left running: {left}"


@pytest.fixture
def disagreeing(stack: Stack, tmp_path: Path) -> str:
    """A version that answers what version 1 does, but where x is 9 or more."""
    return register(stack, _model_folder(tmp_path, 1, large=3))


@pytest.fixture(scope="session")
def spec() -> Mapping[str, Any]:
    """The ServedModel of the stack."""
    return SPEC


@pytest.fixture
def empty_stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that is not started yet; whatever it leaves is ended and is a failure."""
    home = tmp_path.resolve()
    yield Stack(home)
    left = children_of(home)
    for process in left:
        process.kill()
    assert left == [], f"left running: {left}"


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """Return `wait_until`."""
    return wait_until


@pytest.fixture(scope="session")
def processes_of() -> Callable[[Path], list[psutil.Process]]:
    """Return what finds every process of a folder."""
    return children_of


assert sys.platform == "linux", "the gateway's Envoy comes from a Linux wheel"

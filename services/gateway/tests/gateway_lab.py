"""A gateway on loopback: a real Envoy, the real agent, small upstreams."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from free_ports import free_port
from gateway_client import Answer, Load, ask_all

from fairlead_gateway.domain.plan import parse_plan, plan_digest

TESTS = Path(__file__).parent
ROLLOUT = "5f0c2f0e-8f4d-5b53-9a0e-2b4f6f9f7c11"


def name_for(request: pytest.FixtureRequest) -> str:
    """Make up a model's name for a test."""
    return f"m-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]}"


def wait_for(condition: Callable[[], Any], limit: float = 60.0) -> Any:
    """Wait until a condition holds, and return what it returned."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {limit} s: {condition}")


def answered(load: Load, more: int = 400) -> None:
    """Wait until so many more requests have been answered."""
    enough = len(load.answers) + more
    wait_for(lambda: len(load.answers) >= enough)


def plan(model: str = "iris", weight: int | None = 1000, **changes: Any) -> dict[str, Any]:
    """Make a plan: 4 against 3 at a weight, or 3 alone without one."""
    stable = {"arm": "stable", "version": "3", "weight": 10_000 - (weight or 0)}
    candidate = {"arm": "candidate", "version": "4", "weight": weight}
    running = weight is not None
    made = {
        "model": model,
        "rollout": ROLLOUT if running else None,
        "step": 0 if running else None,
        "salt": ROLLOUT,
        "unit": {"header": "x-unit-id"},
        "arms": [candidate, stable] if running else [stable],
        "shadow": [],
        "fallback": "3" if running else None,
        "timeout": 5.0,
        "retries": {"attempts": 3, "onReset": True},
        "limits": {"maxBodyBytes": 10_485_760},
    }
    return made | changes


def write(path: Path, document: Any) -> None:
    """Write a file as the controller does, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = document if isinstance(document, str) else json.dumps(document)
    temporary = path.with_name(".tmp")
    temporary.write_text(content)
    temporary.replace(path)


@dataclass
class Gateway:
    """The gateway under test, and the files that steer it."""

    home: Path
    options: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    admin: int = field(default_factory=free_port)
    agent_port: int = field(default_factory=free_port)
    client: httpx.Client = field(
        default_factory=lambda: httpx.Client(trust_env=False, verify=False)  # noqa: S501 - no TLS.
    )
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    workloads: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pool: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where Envoy listens."""
        scheme = "https" if "--tls-folder" in self.options else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    def start(self, name: str, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a process; its output goes to a file."""
        with (self.home / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=out, stderr=out, env={**os.environ, **env}
            )
        self.processes[name] = process
        return process

    def start_envoy(self, *more: str) -> None:
        """Start Envoy by our own command."""
        self.start(
            "envoy",
            *("-c", "from fairlead_gateway.entrypoints.cli import main; main()", "envoy"),
            *("--home", str(self.home), "--listen-port", str(self.port)),
            *("--admin-port", str(self.admin), *more),
        )

    def start_agent(self, *more: str) -> None:
        """Start the agent by our own command."""
        self.start(
            "agent",
            *("-c", "from fairlead_gateway.entrypoints.cli import main; main()", "agent"),
            *("--home", str(self.home), "--port", str(self.agent_port)),
            *("--envoy-admin-port", str(self.admin), "--grace", "0.5", *self.options, *more),
        )

    def kill(self, name: str) -> None:
        """Kill a process at once, without a chance to clean up."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def strike(self, name: str, by: signal.Signals) -> None:
        """Send a process a signal, and let it live if it will."""
        self.processes[name].send_signal(by)

    def end(self, name: str) -> int:
        """Ask a process to end, and return what it ended with."""
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(timeout=60)

    def ready(self) -> int:
        """Return what Envoy says of its readiness; 0 if it does not listen."""
        with contextlib.suppress(httpx.HTTPError):
            return self.client.get(f"{self.url}/-/ready").status_code
        return 0

    def upstream(self, version: str, model: str = "iris", **env: str) -> str:
        """Start one replica of a version, publish it, and return its name."""
        port = free_port()
        name = f"{model}-{version}-{port}"
        self.start(name, str(TESTS / "gateway_upstream.py"), version, str(port), **env)
        wait_for(lambda: is_open(port))
        endpoint = {"address": "127.0.0.1", "port": port, "ready": True}
        self.workloads.setdefault(f"{model}-v{version}", []).append(endpoint)
        self.publish(version, model)
        return name

    def black_hole(self, version: str, model: str, port: int) -> None:
        """Publish a replica that answers no connection, as on a node that has lost power."""
        endpoint = {"address": "127.0.0.1", "port": port, "ready": True}
        self.workloads.setdefault(f"{model}-v{version}", []).append(endpoint)
        self.publish(version, model)

    def borrow(self, version: str, model: str) -> None:
        """Publish a replica that all models share, for tests that do it no harm."""
        if version not in self.pool:
            self.upstream(version, "pool")
            self.pool[version] = self.workloads[f"pool-v{version}"][0]
            self.remove(version, "pool")
        self.workloads[f"{model}-v{version}"] = [dict(self.pool[version])]
        self.publish(version, model)

    def publish(self, version: str, model: str = "iris") -> None:
        """Write the status of a version's processes."""
        name = f"{model}-v{version}"
        document = {"workload": name, "model": model, "version": version}
        write(
            self.home / "workloads" / name / "status.json",
            document | {"endpoints": self.workloads[name]},
        )

    def remove(self, version: str, model: str = "iris") -> None:
        """Take a version's processes out of the files."""
        shutil.rmtree(self.home / "workloads" / f"{model}-v{version}")
        self.workloads.pop(f"{model}-v{version}")

    def put(self, document: Any, name: str | None = None) -> None:
        """Write a served model's plan without waiting."""
        name = name or document["model"]
        write(self.home / "served-models" / name / "status.json", {"traffic": document})

    def apply(self, document: dict[str, Any]) -> None:
        """Write a plan and wait until Envoy follows it."""
        self.put(document)
        digest = plan_digest(parse_plan(document))
        wait_for(lambda: self.applied().get(document["model"], {}).get("digest") == digest)

    def agent(self, path: str) -> httpx.Response | None:
        """Ask the agent."""
        with contextlib.suppress(httpx.HTTPError):
            return self.client.get(f"http://127.0.0.1:{self.agent_port}{path}")
        return None

    def applied(self) -> dict[str, Any]:
        """Return what the agent says is applied."""
        answer = self.agent("/v1/applied")
        return {} if answer is None else answer.json()["models"]

    def metric(self, start: str) -> float:
        """Sum the samples that start like this."""
        answer = self.agent("/metrics")
        lines = [] if answer is None else answer.text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))

    def stat(self, name: str) -> str:
        """Return one of Envoy's statistics."""
        answer = self.client.get(f"http://127.0.0.1:{self.admin}/stats", params={"filter": name})
        return answer.text.strip().rpartition(": ")[2]

    def post(self, model: str = "iris", **more: Any) -> httpx.Response:
        """Ask for a prediction."""
        more.setdefault("json", {"inputs": [1]})
        return self.client.post(f"{self.url}/models/{model}/invocations", **more)

    def log(self) -> list[dict[str, Any]]:
        """Return the access log."""
        path = self.home / "gateway" / "access.log"
        return [json.loads(line) for line in path.read_bytes().splitlines()]

    def stop(self) -> None:
        """Stop all processes."""
        self.client.close()
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self.processes.values():
            process.wait()


def is_open(port: int) -> bool:
    """Tell whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """Give a port on which the kernel drops who would connect: its queue is full, nobody accepts."""
    with contextlib.ExitStack() as open_sockets:
        listener = open_sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(4):
            waiting = open_sockets.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(("127.0.0.1", port))
        with socket.socket() as probe:
            probe.settimeout(0.2)
            with pytest.raises(TimeoutError):
                probe.connect(("127.0.0.1", port))
        yield port


@contextlib.contextmanager
def running(home: Path, *options: str) -> Iterator[Gateway]:
    """Run a gateway, and leave no process behind."""
    (home / "served-models").mkdir()
    made = Gateway(home, list(options))
    try:
        made.start_envoy()
        made.start_agent()
        yield made
    finally:
        made.stop()


class Served:
    """One served model at a gateway."""

    def __init__(self, gateway: Gateway, model: str) -> None:
        """Remember both."""
        self.gateway = gateway
        self.model = model
        self.path = f"/models/{model}/invocations"
        self.replicas: list[str] = []

    def upstream(self, version: str, **env: str) -> str:
        """Start one replica of a version, and return its name."""
        self.replicas.append(self.gateway.upstream(version, self.model, **env))
        return self.replicas[-1]

    def plan(self, weight: int | None = 1000, **changes: Any) -> dict[str, Any]:
        """Make a plan."""
        return plan(self.model, weight, **changes)

    def apply(self, weight: int | None = 1000, **changes: Any) -> None:
        """Make a plan and wait until Envoy follows it."""
        self.gateway.apply(self.plan(weight, **changes))

    def ask(self, *headers: dict[str, str], connections: int = 16) -> list[Answer]:
        """Ask for predictions."""
        work = [(self.path, each) for each in headers]
        return ask_all(self.gateway.port, work, connections)

    def load(self) -> Load:
        """Make load."""
        return Load(self.gateway.port, self.path)

    def log(self, least: int) -> list[dict[str, Any]]:
        """Wait until so many requests to the model are in the log, and return them."""

        def lines() -> list[dict[str, Any]]:
            found = [line for line in self.gateway.log() if line.get("model") == self.model]
            return found if len(found) >= least else []

        return wait_for(lines)

    def close(self) -> None:
        """Take the model away."""
        shutil.rmtree(self.gateway.home / "served-models" / self.model, ignore_errors=True)
        for version in ("3", "4", "5", "6"):
            shutil.rmtree(
                self.gateway.home / "workloads" / f"{self.model}-v{version}", ignore_errors=True
            )
        for name in self.replicas:
            if name in self.gateway.processes:
                self.gateway.kill(name)

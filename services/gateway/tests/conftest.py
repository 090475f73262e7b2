"""A gateway on loopback: a real Envoy, the real agent, small upstreams."""

import contextlib
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

TESTS = Path(__file__).parent
ROLLOUT = "5f0c2f0e-8f4d-5b53-9a0e-2b4f6f9f7c11"


def free_port() -> int:
    """Find a port nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], limit: float = 20.0) -> Any:
    """Wait until a condition holds, and return what it returned."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {limit} s: {condition}")


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
        "retries": {"attempts": 2, "onReset": True},
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
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    workloads: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where Envoy listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, name: str, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a process; its output goes to a file."""
        with (self.home / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=out, stderr=out, env={**os.environ, **env}
            )
        self.processes[name] = process
        return process

    def start_envoy(self) -> None:
        """Start Envoy by our own command."""
        self.start(
            "envoy",
            *("-c", "from fairlead_gateway.entrypoints.cli import main; main()", "envoy"),
            *("--home", str(self.home), "--listen-port", str(self.port)),
            *("--admin-port", str(self.admin)),
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

    def upstream(self, version: str, model: str = "iris", **env: str) -> str:
        """Start one replica of a version, publish it, and return its name."""
        port = free_port()
        name = f"{model}-{version}-{port}"
        self.start(name, str(TESTS / "upstream.py"), version, str(port), **env)
        wait_for(lambda: is_open(port))
        endpoint = {"address": "127.0.0.1", "port": port, "ready": True}
        self.workloads.setdefault(f"{model}-v{version}", []).append(endpoint)
        self.publish(version, model)
        return name

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
        from fairlead_gateway.domain.plan import parse_plan, plan_digest

        self.put(document)
        digest = plan_digest(parse_plan(document))
        wait_for(lambda: self.applied().get(document["model"], {}).get("digest") == digest)

    def agent(self, path: str) -> httpx.Response | None:
        """Ask the agent."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.agent_port}{path}", trust_env=False)
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
        answer = httpx.get(
            f"http://127.0.0.1:{self.admin}/stats", params={"filter": name}, trust_env=False
        )
        return answer.text.strip().rpartition(": ")[2]

    def post(self, model: str = "iris", **more: Any) -> httpx.Response:
        """Ask for a prediction."""
        more.setdefault("json", {"inputs": [1]})
        return httpx.post(f"{self.url}/models/{model}/invocations", trust_env=False, **more)

    def log(self) -> list[dict[str, Any]]:
        """Return the access log."""
        path = self.home / "gateway" / "access.log"
        return [json.loads(line) for line in path.read_bytes().splitlines()]

    def stop(self) -> None:
        """Stop all processes."""
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self.processes.values():
            process.wait()


def is_open(port: int) -> bool:
    """Tell whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Give a gateway whose Envoy and agent run, with nothing served yet."""
    made = Gateway(tmp_path)
    (tmp_path / "served-models").mkdir()
    try:
        made.start_envoy()
        made.start_agent()
        yield made
    finally:
        made.stop()


@pytest.fixture
def iris(gateway: Gateway) -> Gateway:
    """Give a gateway with version 3 of iris against version 4 at 10 %."""
    gateway.upstream("3")
    gateway.upstream("4")
    gateway.apply(plan())
    return gateway

"""The supervisor of local mode with small processes: what one does must not matter to others."""

import asyncio
import errno
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fairlead_rollout.adapters import processes, supervisor
from fairlead_rollout.adapters.files import read_json, write_json
from fairlead_rollout.adapters.home import Home
from fairlead_rollout.adapters.stack import Addresses
from fairlead_rollout.adapters.supervisor import Supervisor
from fairlead_rollout.domain.processes import ProcessSpec

NOWHERE = Addresses(ports=dict.fromkeys(("gateway", "mlflow", "experiments", "agent", "admin"), 1))
SLEEPS = (sys.executable, "-c", "import time; time.sleep(60)")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """Return a folder; what runs in it is ended after the test."""
    home = Home(tmp_path / "home")
    home.root.mkdir()
    yield home
    for running in processes.find(home.root):
        running.kill()
        psutil.wait_procs([running.process], timeout=10)


def spec_of(workload: str, command: tuple[str, ...] = SLEEPS) -> ProcessSpec:
    """Return a process that is ready while it runs."""
    return ProcessSpec(workload=workload, replica=0, command=command)


def seen(home: Home) -> dict[str, Any]:
    """Return what the supervisor says of its processes."""
    document: dict[str, Any] = json.loads((home.root / "processes.json").read_text("utf-8"))
    return document


def tick(watch: Supervisor, wanted: dict[str, ProcessSpec], times: int = 1) -> None:
    """Let a supervisor look after its processes, some times."""

    async def ticks() -> None:
        for _ in range(times):
            watch.tick(wanted)
            await asyncio.sleep(0.05)

    asyncio.run(ticks())


def test_a_process_that_cannot_be_started_keeps_no_other_from_its_start(home: Home) -> None:
    """The others run, their addresses are told, and what is wrong with the one is too."""
    wanted = {f"{name}/0": spec_of(name) for name in ("a", "c")}
    wanted |= {"b/0": spec_of("b", ("/no/such/program",))}
    (home.workloads / "b").mkdir(parents=True)
    watch = Supervisor(home, NOWHERE)
    tick(watch, dict(sorted(wanted.items())), times=3)
    found = seen(home)
    assert [found[f"{name}/0"]["pid"] is not None for name in "abc"] == [True, False, True]
    status = json.loads((home.workloads / "b" / "status.json").read_text("utf-8"))
    assert "cannot be started" in status["failure"]["reason"]
    wanted["b/0"] = spec_of("b")
    tick(watch, wanted, times=3)
    assert seen(home)["b/0"]["pid"] is not None


def test_a_process_left_behind_that_is_wanted_no_more_ends_its_work(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer processes of a version are wanted since `up` was killed: the one too many drains."""
    ready, drained = home.root / "ready", home.root / "drained"
    drains = f"""
import pathlib, signal, sys, time
def end(*_):
    time.sleep(0.5)
    pathlib.Path({str(drained)!r}).touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
pathlib.Path({str(ready)!r}).touch()
time.sleep(60)
"""
    left = spec_of("model-v1", (sys.executable, "-c", drains))
    running = processes.start(left, home.root, home.logs / "left.log")
    while not ready.exists():
        assert running.is_alive
    monkeypatch.setattr(supervisor, "services", lambda *_: ())

    async def up() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(Supervisor(home, NOWHERE).run(stop))
        while running.is_alive:  # noqa: ASYNC110 -- another process has no event
            await asyncio.sleep(0.05)
        stop.set()
        await task

    asyncio.run(asyncio.wait_for(up(), timeout=20))
    assert drained.exists()


def test_a_workload_that_cannot_be_read_just_now_goes_on(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spec that is there and cannot be opened does not end the processes that serve."""
    wanted = {"workload": "model-v1", "model": "model", "version": "1", "replicas": 1}
    write_json(home.workloads / "model-v1" / "spec.json", wanted)
    monkeypatch.setattr(supervisor, "services", lambda *_: ())
    monkeypatch.setattr(supervisor, "serving", lambda *_: [spec_of("model-v1")])
    reads = Path.read_text

    def read_text(path: Path, *how: str) -> str:
        if path.name == "spec.json":
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return reads(path, *how)

    async def up() -> int | None:
        stop = asyncio.Event()
        task = asyncio.create_task(Supervisor(home, NOWHERE).run(stop))
        pid = await pid_of("model-v1/0", home)
        monkeypatch.setattr(Path, "read_text", read_text)
        await asyncio.sleep(1)
        monkeypatch.setattr(Path, "read_text", reads)
        after = await pid_of("model-v1/0", home)
        stop.set()
        await task
        return after if after == pid else None

    assert asyncio.run(asyncio.wait_for(up(), timeout=20)) is not None


async def pid_of(key: str, home: Home) -> int:
    """Return the process that is ready under a key, once there is one."""
    while True:
        found = (read_json(home.root / "processes.json") or {}).get(key, {})
        if found.get("ready"):
            return int(found["pid"])
        await asyncio.sleep(0.05)


def test_a_worker_whose_leader_nobody_waited_for_is_ended(home: Home) -> None:
    """In a container without an init, what was killed with `up` stays in the table as a zombie."""
    worker = "import time; time.sleep(60)"
    leads = f"""
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", {worker!r}])
print(worker.pid, flush=True)
time.sleep(60)
"""
    output = home.logs / "leader.log"
    leader = processes.start(spec_of("mlflow", (sys.executable, "-c", leads)), home.root, output)
    while not output.read_text("utf-8").endswith("\n"):
        assert leader.is_alive
    process = psutil.Process(int(output.read_text("utf-8")))
    started = processes.Running(key="mlflow/0", port=None, digest="", process=process)
    leader.process.kill()
    while leader.is_alive:
        time.sleep(0.05)
    assert list(processes.find(home.root)) == []
    time.sleep(0.5)
    assert (leader.exit_code(), started.is_alive) == (-9, False)

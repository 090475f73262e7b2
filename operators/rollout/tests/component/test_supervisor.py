"""The supervisor of local mode with small processes: what one does must not matter to others."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fairlead_rollout.adapters import processes
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

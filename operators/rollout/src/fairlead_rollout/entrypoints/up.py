"""`fairlead up`: the local stack in one folder, in the foreground."""

import asyncio
import fcntl
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fairlead_rollout.adapters import processes
from fairlead_rollout.adapters.home import Home
from fairlead_rollout.adapters.stack import LISTENERS, Addresses, choose_addresses
from fairlead_rollout.adapters.supervisor import Supervisor
from fairlead_rollout.domain.errors import FairleadError

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: its terminal was closed
LEFTOVERS_WITHIN = 10.0  # seconds
READY_WITHIN = 120.0  # seconds; MLflow's first start makes its database


def run_up(root: Path, ports: Mapping[str, int], mlflow: str | None) -> int:
    """Run the stack until SIGINT or SIGTERM.

    Args:
        root: The folder that holds all state.
        ports: Wanted port by listener; 0 or absent is any free one.
        mlflow: Address of an MLflow to use instead of starting one.

    Raises:
        FairleadError: The stack of that folder runs already, or a port is taken.
    """
    home = Home(root.resolve())
    home.root.mkdir(parents=True, exist_ok=True)
    with only_one(home):
        addresses = adopt_addresses(home, ports, mlflow)
        asyncio.run(_run(home, addresses))
    return 0


def adopt_addresses(home: Home, ports: Mapping[str, int], mlflow: str | None) -> Addresses:
    """Choose the listeners' ports; those of processes that are still there stay theirs."""
    left = {running.key.partition("/")[0]: running.port for running in processes.find(home.root)}
    return choose_addresses(home, ports, mlflow, held=left)


@contextmanager
def only_one(home: Home) -> Iterator[None]:
    """Hold the folder; the lock ends with the process, however it ends."""
    with home.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FairleadError(
                f"the stack in {home.root} runs already; "
                "end it with Ctrl-C where it runs or with 'fairlead down', or use another --home"
            ) from None
        yield


def run_down(root: Path) -> int:
    """End what a killed `fairlead up` of the folder left behind.

    Raises:
        FairleadError: A living `fairlead up` holds the folder.
    """
    home = Home(root.resolve())
    if not home.root.exists():
        print(f"nothing runs in {home.root}")
        return 0
    with only_one(home):
        left = end_leftovers(home)
        print(f"ended {left} processes" if left else f"nothing runs in {home.root}")
    return 0


def end_leftovers(home: Home) -> int:
    """End what an earlier stack of a folder left behind; returns how many processes that were."""
    left = list(processes.find(home.root))
    for running in left:
        running.terminate()
    deadline = time.monotonic() + LEFTOVERS_WITHIN
    while any(r.is_alive for r in left) and time.monotonic() < deadline:
        time.sleep(0.1)
    for running in left:
        running.kill()
    return len(left)


async def _run(home: Home, addresses: Addresses) -> None:
    stop = asyncio.Event()
    for number in ENDING:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    supervisor = Supervisor(home, addresses)
    teller = asyncio.create_task(_tell(supervisor, home, addresses))
    await supervisor.run(stop)
    teller.cancel()


async def _tell(supervisor: Supervisor, home: Home, addresses: Addresses) -> None:
    """Say where everything is, once it is there."""
    console = Console()
    deadline = time.monotonic() + READY_WITHIN
    with console.status("starting MLflow, experiments, gateway and controller"):
        while not supervisor.is_ready and time.monotonic() < deadline:  # noqa: ASYNC110 -- the supervisor has no event for it
            await asyncio.sleep(0.1)
    if not supervisor.is_ready:
        console.print(f"not everything is ready yet; see the logs in {home.logs}")
    console.print("[bold]ready[/bold]; Ctrl-C ends everything")
    names = {
        "gateway": "requests: POST /models/NAME/invocations",
        "mlflow": "MLflow",
        "experiments": "experiments API: /docs",
    }
    for listener in (name for name in LISTENERS if name in names):
        console.print(f"  {addresses.shown(listener)}  {names[listener]}", highlight=False)

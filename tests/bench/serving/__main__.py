"""What serving costs beside its peers, in one interleaved run: `python tests/bench/serving`.

Each server runs on one processor, the load on another. A round gives each server one second of
each cell (rows x connections), while the others are stopped, so that a noisy moment meets all of
them alike; the quietest rounds count. x is requests per processor second against `plain`, a
FastAPI application for the same model.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from figures import Figures, plot, summarise, tell
from models import MODELS
from peers import PEERS, Launch
from rich.console import Console
from rich.progress import Progress
from running import Measured, Server, started

HERE = Path(__file__).parent
IDLE_SECONDS = 3.0
Cell = tuple[int, int]


def main() -> int:
    """Measure, write the figures down, and say where they miss the goals."""
    given = _parse()
    console = Console()
    for tool in ("wrk", "taskset"):
        if shutil.which(tool) is None:
            console.print(f"The bench needs '{tool}', which is not on the PATH; install it.")
            return 2
    found: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as scratch, Progress() as progress:
        folder = given.keep_models or Path(scratch) / "models"
        if not folder.exists():
            progress.console.print("Training the models")
            command = [sys.executable, "-W", "ignore", str(HERE / "models.py"), str(folder)]
            subprocess.run(command, check=True)
        for model in given.models:
            found[model] = _compare(folder / model, Path(scratch), given, progress)
    tell(console, found)
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "figures": {
            model: {peer: figures.as_document() for peer, figures in peers.items()}
            for model, peers in found.items()
        },
    }
    if given.out:
        given.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
        plot(found, given.out.with_suffix(".svg"))
    return 1 if any(figures.failed for peers in found.values() for figures in peers.values()) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="serving", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", type=_listed, default=["m0", "m1", "m2", "m3"], help="of m0, m1, m2, m3")
    add("--peers", type=_listed, default=list(PEERS), help=f"of {', '.join(PEERS)}")
    add("--cells", type=_listed, default=["1x1", "1x16", "1x64", "100x1"], help="ROWSxCONNECTIONS")
    add("--rounds", type=int, default=5)
    add("--kept", type=int, default=3, help="how many of the rounds count, the quietest first")
    add("--seconds", type=int, default=1, help="of load, in each cell and round")
    add("--starts", type=int, default=3, help="how often each server is started")
    add("--port", type=int, default=21300)
    add("--out", type=Path, help="where the figures go, as FILE.json and FILE.svg")
    add("--keep-models", type=Path, help="the folder of trained models; made if it is not there")
    given = parser.parse_args()
    for name in given.models:
        if name not in MODELS:
            parser.error(f"there is no model '{name}'")
    for name in given.peers:
        if name not in PEERS:
            parser.error(f"there is no peer '{name}'")
    return given


def _listed(text: str) -> list[str]:
    return text.split(",")


def _compare(
    model: Path, scratch: Path, given: argparse.Namespace, progress: Progress
) -> dict[str, Figures]:
    """Measure all servers with one model."""
    figures: dict[str, Figures] = {}
    cells = [tuple(map(int, cell.split("x"))) for cell in given.cells]
    runs: dict[str, dict[Cell, list[Measured]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for number, peer in enumerate(given.peers):
            try:
                launches = [
                    PEERS[peer](model, given.port + 10 * number + again)
                    for again in range(given.starts)
                ]
                log = scratch / f"{model.name}-{peer}.log"
                servers[peer], figures[peer] = _bring_up(stack, launches, model, log)
            except ValueError as error:
                figures[peer] = Figures(failed=str(error))
            progress.console.print(f"{model.name} {peer}: {figures[peer].failed or 'is up'}")
        task = progress.add_task(model.name, total=given.rounds * len(cells) * len(servers))
        for peer, cell in _rounds(given.rounds, cells, servers):
            with servers[peer].awake():
                runs[peer][cell].append(servers[peer].measure(*cell, given.seconds))
            progress.advance(task)
        for peer, server in servers.items():
            _finish(server, figures[peer], runs[peer], given.kept)
    return figures


def _rounds(
    rounds: int, cells: Sequence[Any], servers: dict[str, Server]
) -> Iterator[tuple[str, Cell]]:
    for _ in range(rounds):
        for cell in cells:
            for peer in servers:
                yield peer, cell


def _bring_up(
    stack: ExitStack, launches: Sequence[Launch], model: Path, log: Path
) -> tuple[Server, Figures]:
    """Start a server as often as there are launches; the last one stays."""
    figures = Figures()
    for launch in launches[:-1]:
        with started(launch, model, log) as (_, seconds):
            figures.starts.append(seconds)
    server, seconds = stack.enter_context(started(launches[-1], model, log))
    figures.starts.append(seconds)
    server.verify()
    server.measure(1, 16, 1)  # What is slow only once is not what is measured.
    figures.idle = server.idle(IDLE_SECONDS)
    server.freeze()
    return server, figures


def _finish(server: Server, figures: Figures, runs: dict[Cell, list[Measured]], kept: int) -> None:
    try:
        with server.awake():
            server.verify()
            figures.rss, figures.pss = server.memory()
    except ValueError as error:
        figures.failed = f"after the load {error}"
    figures.cells = {cell: summarise(found, kept) for cell, found in runs.items()}
    errors = sum(run.errors for found in runs.values() for run in found)
    if errors:
        figures.failed = f"{errors} requests failed under load"


def _machine() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.machine()
    return f"{len(names)} x {processor}, Python {platform.python_version()}"


sys.exit(main())

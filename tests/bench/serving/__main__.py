"""What serving costs beside its peers, in one interleaved run: `python tests/bench/serving`.

Each server runs on one processor, the load on another. A round gives each server one second of
each cell (rows x connections), while the others are stopped, so that a noisy moment meets all of
them alike; the quietest rounds count. x is requests per processor second against `plain`, a
FastAPI application for the same model.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Container, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from comparing import Comparison, Plan
from drawing import draw
from environments import SAME, EnvironmentMissingError, python_of, versions
from figures import BASE, OWN, About, Cell, Figures, Report, cell_of, is_there
from page import MODELS, page_of, summary_of
from peers import GROUPS, PEERS, USUAL
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress
from running import HERE

WRITTEN = Path("build") / "bench" / "benchmarks"


def main() -> int:
    """Measure, or read what was measured; print the tables and write what was asked for."""
    given = _parse()
    console = Console()
    if given.read:
        report = Report.from_document(json.loads(given.read.read_text("utf-8")))
    else:
        for tool in ("wrk", "taskset"):
            if shutil.which(tool) is None:
                console.print(f"The bench needs '{tool}', which is not on the PATH; install it.")
                return 2
        report = _measure(given)
    _write(report, given)
    summary = summary_of(report)
    if console.is_terminal:
        console.print(Markdown(summary))
    else:
        sys.stdout.write(summary)
    ours = [peer for peer in report.abouts if peer == BASE or peer.startswith(OWN)]
    failed = any(not is_there(peers, peer) for peers in report.found.values() for peer in ours)
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="serving", description=__doc__.splitlines()[0])
    groups = "; ".join(f"{name}: {', '.join(peers)}" for name, peers in GROUPS.items())
    add = parser.add_argument
    add("--models", type=_models, default=list(MODELS), help=f"of {', '.join(MODELS)}")
    add("--peers", type=_peers, default=list(USUAL), help=f"servers or groups of them ({groups})")
    add("--cells", type=_cells, default="1x1,1x16,1x64,100x1", help="ROWSxCONNECTIONS")
    add("--rounds", type=int, default=5)
    add("--kept", type=int, default=3, help="how many of the rounds count, the quietest first")
    add("--seconds", type=int, default=1, help="of load, in each cell and round")
    add("--starts", type=int, default=3, help="how often each server is started")
    add("--port", type=int, default=21300, help="the first that is tried")
    add("--keep-models", type=Path, help="the folder of trained models; made if it is not there")
    add("--read", type=Path, help="measure nothing: take the figures from this JSON file")
    add("--out", type=Path, default=WRITTEN.with_suffix(".json"), help="where the figures go")
    add("--plot", type=Path, default=WRITTEN.with_suffix(".svg"), help="where they are drawn")
    add("--page", type=Path, help="where the page of the documentation goes; else there is none")
    return parser.parse_args()


def _models(text: str) -> list[str]:
    return _known(text.split(","), MODELS, "model")


def _peers(text: str) -> list[str]:
    names = [peer for name in text.split(",") for peer in GROUPS.get(name, (name,))]
    return _known(list(dict.fromkeys(names)), PEERS, "server")


def _known(names: list[str], known: Container[str], kind: str) -> list[str]:
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"there is no {kind} '{name}'")
    return names


def _cells(text: str) -> list[Cell]:
    return [cell_of(name) for name in text.split(",")]


def _measure(given: argparse.Namespace) -> Report:
    found: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, Progress() as progress:
        folder = given.keep_models or Path(scratch) / "models"
        if not folder.exists():
            progress.console.print("Training the models")
            command = [sys.executable, "-W", "ignore", str(HERE / "models.py"), str(folder)]
            subprocess.run(command, check=True)
        missing = _missing(given.peers, progress)
        plan = Plan(**{part.name: getattr(given, part.name) for part in fields(Plan)})
        for model in given.models:
            figures = {
                peer: Figures(failed=missing.get(peer, ""))
                for peer in given.peers
                if model in (PEERS[peer].models or MODELS)
            }
            Comparison(folder / model, Path(scratch), plan, progress).fill(figures)
            found[model] = figures
    return Report(
        date=datetime.now(UTC).date().isoformat(),
        command=_command(given),
        machine=_machine(),
        rounds=given.rounds,
        kept=min(given.kept, given.rounds),
        seconds=given.seconds,
        abouts={peer: _about(peer, missing) for peer in given.peers},
        found=found,
    )


def _missing(peers: Sequence[str], progress: Progress) -> dict[str, str]:
    """Make the environments that are not there; say which servers have none, and why."""
    missing = {}
    for peer in peers:
        try:
            python_of(PEERS[peer].environment)
        except EnvironmentMissingError as error:
            missing[peer] = str(error)
            progress.console.print(f"{peer} is missing: {error}")
    return missing


def _about(peer: str, missing: dict[str, str]) -> About:
    entry = PEERS[peer]
    if peer in missing:
        return About(words=entry.about, versions={})
    packages = (*entry.packages, *SAME, "pandas")
    return About(words=entry.about, versions=versions(python_of(entry.environment), packages))


def _write(report: Report, given: argparse.Namespace) -> None:
    document = report.as_document()
    # All from the rounded figures, so that the file alone makes the same page and picture.
    rounded = Report.from_document(document)
    for path in (given.out, given.plot, given.page):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    draw(rounded, given.plot)
    if given.page:
        given.page.write_text(page_of(rounded), "utf-8")


def _command(given: argparse.Namespace) -> str:
    """Say how to measure the same again."""
    options = {
        "models": ",".join(given.models),
        "peers": ",".join(given.peers),
        "cells": ",".join(f"{rows}x{connections}" for rows, connections in given.cells),
        "rounds": given.rounds,
        "kept": given.kept,
        "seconds": given.seconds,
        "starts": given.starts,
    }
    told = " ".join(f"--{name} {value}" for name, value in options.items())
    return f"make bench BENCH={shlex.quote(told)}"


def _machine() -> dict[str, str]:
    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processors": f"{len(names)} x {names[0] if names else platform.machine()}",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }


sys.exit(main())

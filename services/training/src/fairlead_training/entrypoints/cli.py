"""The command `fairlead-training`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from fairlead_training.domain.recipes import recipe_named, recipes

if TYPE_CHECKING:
    from fairlead_training.app.ports import Manifest, Say
    from fairlead_training.app.train import Workshop
    from fairlead_training.app.train_all import Result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"fairlead-training: {error}", file=sys.stderr)
        return 1


def prepare(options: argparse.Namespace) -> int:
    """Write the data."""
    with _progress(total=2) as say:
        manifest = _prepare(options.data, say)
    print(
        f"{manifest.flights:,} flights, {manifest.requests:,} requests in {options.data}; "
        f"{manifest.dropped:,} cancelled or diverted flights left out."
    )
    return 0


def train(options: argparse.Namespace) -> int:
    """Train one version."""
    from fairlead_training.app.train import train as run_training  # noqa: PLC0415 - Slow.

    with _progress(total=5) as say:
        manifest = _prepare(options.data, say)
        shop = _workshop(options, say)
        run_id = run_training(recipe_named(options.version), manifest, shop.store.flights(), shop)
    print(f"run {run_id}")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate a run on the held-out months."""
    from fairlead_training.app.train import evaluate as run_evaluation  # noqa: PLC0415 - Slow.

    with _progress(total=4) as say:
        manifest = _prepare(options.data, say)
        shop = _workshop(options, say)
        run_id = options.run_id or _finished(options.version, manifest, shop)
        figures = run_evaluation(run_id, shop.store.flights(), shop, as_served=options.as_served)
    for name, value in figures.items():
        print(f"{name:28} {value:.4f}")
    return 0


def register(options: argparse.Namespace) -> int:
    """Register a run's model; print the version's number."""
    from fairlead_training.app.train_all import register as register_run  # noqa: PLC0415 - Slow.

    with _progress(total=1) as say:
        registered = register_run(options.run_id, options.model, _workshop(options, say))
    print(registered.version)
    return 0


def train_all(options: argparse.Namespace) -> int:
    """Train and register every version; print what came of it."""
    from fairlead_training.app.train_all import train_all as run_all  # noqa: PLC0415 - Slow.

    with _progress(total=2 + 4 * len(recipes())) as say:
        manifest = _prepare(options.data, say)
        results = run_all(options.model, manifest, _workshop(options, say))
    Console().print(_results_table(options.model, results))
    return 0


def _prepare(data: Path, say: Say) -> Manifest:
    from fairlead_training.adapters.flights import NycFlights  # noqa: PLC0415 - Slow.
    from fairlead_training.adapters.folder import Folder  # noqa: PLC0415
    from fairlead_training.app.prepare import prepare as run_prepare  # noqa: PLC0415

    return run_prepare(NycFlights(), Folder(data), say)


def _workshop(options: argparse.Namespace, say: Say) -> Workshop:
    say("starting MLflow's client")
    from fairlead_training.adapters.estimators import ScikitLearn  # noqa: PLC0415 - Slow.
    from fairlead_training.adapters.folder import Folder  # noqa: PLC0415
    from fairlead_training.adapters.plots import MatplotlibPlots  # noqa: PLC0415
    from fairlead_training.adapters.tracking import MlflowTracking  # noqa: PLC0415
    from fairlead_training.app.train import Workshop  # noqa: PLC0415

    return Workshop(
        store=Folder(options.data),
        estimators=ScikitLearn(),
        tracking=MlflowTracking(options.tracking_uri, options.experiment),
        plots=MatplotlibPlots(),
        say=say,
    )


def _finished(version: str, manifest: Manifest, shop: Workshop) -> str:
    from fairlead_training.app.train import run_tags  # noqa: PLC0415 - Slow.

    run_id = shop.tracking.finished(run_tags(recipe_named(version), manifest))
    if run_id is None:
        raise ValueError(
            f"No finished run of version {version} has this code and this data; train it first."
        )
    return run_id


class _progress:  # noqa: N801 - Used as a function that opens a context.
    """Shows the steps on a terminal, or prints them one a line elsewhere."""

    def __init__(self, total: int) -> None:
        columns: list[Any] = [SpinnerColumn(), BarColumn(), TimeElapsedColumn()]
        console = Console(stderr=True)
        self._bar = Progress(*columns, TextColumn("{task.description}"), console=console)
        self._quiet = not console.is_terminal
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Say:
        if not self._quiet:
            self._bar.start()
        return self._say

    def __exit__(self, *_: object) -> None:
        if not self._quiet:
            self._bar.stop()

    def _say(self, what: str) -> None:
        if self._quiet:
            print(what, file=sys.stderr)
        self._bar.update(self._task, description=what, advance=1)


def _results_table(model: str, results: Sequence[Result]) -> Table:
    title = f"{model}: July to December, as each trainer saw it"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))  # Fits 80 columns.
    for heading in ("version", "recipe", "AUC", "Brier", "run", ""):
        table.add_column(heading, no_wrap=True)
    for result in results:
        table.add_row(
            result.registered.version,
            result.recipe.name,
            f"{result.auc:.3f}",
            f"{result.brier:.3f}",
            result.run_id,
            "cached" if result.cached else "trained",
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairlead-training", description="Will this flight arrive more than 15 minutes late?"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    names = [recipe.name for recipe in recipes()]

    def add(name: str, command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        summary = (command.__doc__ or "").split("\n", maxsplit=1)[0]
        added = commands.add_parser(name, help=summary, description=summary)
        added.add_argument(
            "--data", type=Path, default=Path(".fairlead/data"), help="folder of the prepared data"
        )
        added.set_defaults(command=command)
        return added

    add("prepare", prepare)
    one = _with_tracking(add("train", train))
    one.add_argument("--version", required=True, choices=names)
    judged = _with_tracking(add("evaluate", evaluate))
    which = judged.add_mutually_exclusive_group(required=True)
    which.add_argument("--run-id")
    which.add_argument("--version", choices=names)
    judged.add_argument(
        "--as-served", action="store_true", help="judge by what clients send (metrics served_*)"
    )
    registered = _with_tracking(add("register", register))
    registered.add_argument("--run-id", required=True)
    registered.add_argument("--model", default="flight-delay", help="registered model's name")
    every = _with_tracking(add("all", train_all))
    every.add_argument("--model", default="flight-delay", help="registered model's name")
    return parser


def _with_tracking(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    parser.add_argument("--tracking-uri", default=uri, help="(default: %(default)s)")
    parser.add_argument("--experiment", default="flight-delay", help="(default: %(default)s)")
    return parser

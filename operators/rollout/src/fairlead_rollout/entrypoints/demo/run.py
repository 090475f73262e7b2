"""Plays the demo: trains, starts the stack, promotes one version after the other, sums up."""

import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fairlead_rollout.adapters.experiments_client import read_analysis
from fairlead_rollout.adapters.files import read_json, write_json
from fairlead_rollout.adapters.folder_store import FolderStore
from fairlead_rollout.adapters.home import Home
from fairlead_rollout.adapters.stack import Addresses, program
from fairlead_rollout.adapters.supervisor import Supervisor
from fairlead_rollout.domain.errors import FairleadError
from fairlead_rollout.domain.processes import ProcessSpec
from fairlead_rollout.domain.snapshot import Analysis
from fairlead_rollout.domain.status import Rollout, Status
from fairlead_rollout.entrypoints.demo.story import (
    ACTS,
    FIRST,
    MODEL,
    NAME,
    SERVED_MODEL,
    Act,
)
from fairlead_rollout.entrypoints.demo.view import LineView, LiveView, Picture, View
from fairlead_rollout.entrypoints.up import ENDING, adopt_addresses, end_leftovers, only_one

RATE = 120.0  # requests a second: leaves two cores room for the rest of the stack
ACT_WITHIN = 90.0  # seconds
STACK_WITHIN = 90.0
LOOK_EVERY = 0.25
LINE_WIDTH = 150  # columns of the tables where there is no terminal to ask
API = "/api/2.0/mlflow"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one promotion.

    Attributes:
        rollout: None when nothing was decided in time.
        failed: Requests that failed because of Fairlead while it was on trial.
    """

    act: Act
    rollout: Rollout | None
    seconds: float
    failed: int

    @property
    def is_expected(self) -> bool:
        """Say whether it ended as the story says, for the reason it says, no higher than it says."""
        rollout, act = self.rollout, self.act
        if rollout is None or self.failed:
            return False
        return (rollout.state, rollout.reason, rollout.step) == (
            act.state,
            act.reason,
            act.last_step,
        )


def run_demo(root: Path) -> int:
    """Play the demo in a folder of its own.

    Returns:
        0 when every verdict is the expected one and no request failed because of Fairlead.
    """
    home = Home(root.resolve())
    home.root.mkdir(parents=True, exist_ok=True)
    with only_one(home):
        end_leftovers(home)  # before what they use is taken away
        _forget_last_time(home)
        addresses = adopt_addresses(home, {}, None)
        return asyncio.run(_play(home, addresses))


def _forget_last_time(home: Home) -> None:
    """Start the story over; MLflow with its trained models and the data are kept."""
    for folder in (home.served_models, home.workloads, home.root / "gateway"):
        shutil.rmtree(folder, ignore_errors=True)
    stale = (*home.root.glob(f"{home.experiments.name}*"), home.root / "traffic.json")
    for path in (*stale, _calendar(home)):
        path.unlink(missing_ok=True)


async def _play(home: Home, addresses: Addresses) -> int:
    console = Console()
    if not console.is_terminal:
        console = Console(width=LINE_WIDTH)
    async with _stack(home, addresses) as supervisor:
        mlflow = httpx.AsyncClient(base_url=addresses.url("mlflow"), trust_env=False)
        async with mlflow:
            await _prepare(home, addresses, supervisor, mlflow, console)
            stage = _Stage(home, addresses, mlflow)
            FolderStore(home).apply(SERVED_MODEL, datetime.now(UTC))
            with _view(console) as view:
                verdicts = await _acts(stage, supervisor, view)
            await _sum_up(console, stage, verdicts)
        if console.is_terminal:
            console.print("Everything stays up; Ctrl-C ends it.")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
    return 0 if all(verdict.is_expected for verdict in verdicts) else 1


@contextlib.asynccontextmanager
async def _stack(home: Home, addresses: Addresses) -> AsyncIterator[Supervisor]:
    """Run the stack; when it is told to stop in the middle of the story, the story ends."""
    stop, supervisor = asyncio.Event(), Supervisor(home, addresses)
    story = asyncio.current_task()
    running = asyncio.create_task(supervisor.run(stop))

    def end() -> None:
        stop.set()
        if story is not None:
            story.cancel()

    for number in ENDING:
        asyncio.get_running_loop().add_signal_handler(number, end)
    try:
        yield supervisor
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        raise FairleadError("ended before the story was over") from None
    finally:
        stop.set()
        await running


async def _prepare(
    home: Home,
    addresses: Addresses,
    supervisor: Supervisor,
    mlflow: httpx.AsyncClient,
    console: Console,
) -> None:
    console.print("Preparing the flights of 2013")
    await _training(home, "prepare")
    with console.status("starting MLflow, experiments, gateway and controller"):
        await _until(lambda: supervisor.is_ready, STACK_WITHIN, f"the stack; see {home.logs}")
    console.print("Training five versions (kept for the next time)")
    await _training(home, "all", "--tracking-uri", addresses.url("mlflow"), "--model", MODEL)
    await _take_pointers_away(mlflow)


async def _training(home: Home, *arguments: str) -> None:
    data = home.root / "data"
    command = (program("fairlead-training"), arguments[0], "--data", str(data), *arguments[1:])
    process = await asyncio.create_subprocess_exec(*command)
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if code:
        raise FairleadError(f"'fairlead-training {arguments[0]}' ended with exit code {code}")


async def _take_pointers_away(mlflow: httpx.AsyncClient) -> None:
    """Undo what an earlier demo left at the versions: stages and verdicts."""
    query = {"filter": f"name = '{MODEL}'", "max_results": "100"}
    found = await mlflow.get(f"{API}/model-versions/search", params=query)
    for version in found.raise_for_status().json()["model_versions"]:
        key = {"name": MODEL, "version": version["version"]}
        if version["current_stage"] != "None":
            body = {**key, "stage": "None", "archive_existing_versions": False}
            await mlflow.post(f"{API}/model-versions/transition-stage", json=body)
        for tag in version.get("tags", ()):
            if tag["key"].startswith("rollout."):
                body = {**key, "key": tag["key"]}
                await mlflow.request("DELETE", f"{API}/model-versions/delete-tag", json=body)


@contextlib.contextmanager
def _view(console: Console) -> Any:
    if not console.is_terminal:
        yield LineView(console)
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield LiveView(live)


class _Stage:
    """Where the story is played: promotes, and looks at what comes of it."""

    def __init__(self, home: Home, addresses: Addresses, mlflow: httpx.AsyncClient):
        self.home = home
        self.addresses = addresses
        self._store = FolderStore(home)
        self._mlflow = mlflow
        self._began = time.monotonic()

    async def promote(self, version: str) -> None:
        """Set a version to Production in MLflow, as a person would."""
        target = {"name": MODEL, "version": version, "stage": "Production"}
        path = f"{API}/model-versions/transition-stage"
        answer = await self._mlflow.post(path, json={**target, "archive_existing_versions": True})
        answer.raise_for_status()

    async def tags(self, version: str) -> Mapping[str, str]:
        """Return the verdict that MLflow holds of a version."""
        query = {"name": MODEL, "version": version}
        answer = await self._mlflow.get(f"{API}/model-versions/get", params=query)
        tags = answer.raise_for_status().json()["model_version"].get("tags", ())
        return {t["key"]: t["value"] for t in tags if t["key"].startswith("rollout.")}

    @property
    def status(self) -> Status:
        """Return the served model's status."""
        served = self._store.read(NAME)
        return (served.status if served else None) or Status()

    @property
    def tally(self) -> Mapping[str, Any]:
        """Return what the client saw."""
        return read_json(self.home.root / "traffic.json") or {}

    async def picture(self, experiments: httpx.AsyncClient) -> Picture:
        """Look at everything that is shown."""
        status = self.status
        return Picture(
            status=status,
            analysis=await _analysis(experiments, status.rollout),
            tally=self.tally,
            events=self._store.events(NAME),
            seconds=time.monotonic() - self._began,
        )

    async def show_until(
        self, condition: Callable[[Status], bool], within: float, view: View
    ) -> bool:
        """Show pictures until something is so; False when it was not in time."""
        deadline = time.monotonic() + within
        url = self.addresses.url("experiments")
        async with httpx.AsyncClient(base_url=url, trust_env=False) as experiments:
            while time.monotonic() < deadline:
                picture = await self.picture(experiments)
                view.show(picture)
                if condition(picture.status):
                    return True
                await asyncio.sleep(LOOK_EVERY)
        return False


async def _analysis(experiments: httpx.AsyncClient, rollout: Rollout | None) -> Analysis | None:
    if rollout is None or rollout.step is None:
        return None
    try:
        answer = await experiments.get(f"/v1/rollouts/{rollout.id}/analysis")
    except httpx.HTTPError:
        return None
    return read_analysis(answer.json()) if answer.is_success else None


async def _acts(stage: _Stage, supervisor: Supervisor, view: View) -> list[Verdict]:
    await stage.promote(FIRST)
    if not await stage.show_until(lambda s: s.stable == FIRST, ACT_WITHIN, view):
        raise FairleadError(f"version {FIRST} does not serve; see {stage.home.logs}")
    supervisor.run_beside(_traffic(stage.home, stage.addresses))
    return [await _act(act, stage, view) for act in ACTS]


def _calendar(home: Home) -> Path:
    """Return the file that tells the client which month the story has reached."""
    return home.root / "calendar.json"


def _traffic(home: Home, addresses: Addresses) -> ProcessSpec:
    return ProcessSpec(
        workload="traffic",
        replica=0,
        command=(
            *(sys.executable, "-m", "fairlead_rollout.entrypoints.demo.traffic"),
            *("--gateway", addresses.url("gateway")),
            *("--experiments", addresses.url("experiments")),
            *("--data", str(home.root / "data" / "heldout")),
            *("--report", str(home.root / "traffic.json"), "--rate", str(RATE)),
            *("--calendar", str(_calendar(home))),
        ),
    )


async def _act(act: Act, stage: _Stage, view: View) -> Verdict:
    def is_over(status: Status) -> bool:
        rollout = status.rollout
        return rollout is not None and rollout.candidate == act.version and not rollout.is_active

    write_json(_calendar(stage.home), {"month": act.month})
    began, failed = time.monotonic(), stage.tally.get("failed", 0)
    await stage.promote(act.version)
    decided = await stage.show_until(is_over, ACT_WITHIN, view)
    return Verdict(
        act=act,
        rollout=stage.status.rollout if decided else None,
        seconds=time.monotonic() - began,
        failed=stage.tally.get("failed", 0) - failed,
    )


async def _until(condition: Callable[[], bool], within: float, what: str) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise FairleadError(f"waited {within:g} s in vain for {what}")
        await asyncio.sleep(0.1)


async def _sum_up(console: Console, stage: _Stage, verdicts: list[Verdict]) -> None:
    await _until(lambda: not stage.status.writeback, 30.0, "the verdicts to be written to MLflow")
    console.print(_verdict_table(verdicts))
    console.print(await _tag_table(stage, verdicts))
    tally = stage.tally
    console.print(
        f"{tally.get('sent', 0):,} requests, {tally.get('failed', 0)} failed because of Fairlead, "
        f"{tally.get('failed_by_model', 0)} because a model raised"
    )
    if tally.get("first_failure"):
        console.print(f"the first failure: {tally['first_failure']}", style="red")
    for listener, what in (("mlflow", "MLflow"), ("experiments", "experiments API, /docs")):
        console.print(f"{what}: {stage.addresses.url(listener)}", highlight=False)
    console.print(f"fairlead --home {stage.home.root} explain {NAME}", highlight=False)


def _verdict_table(verdicts: list[Verdict]) -> Table:
    table = Table(title="Four promotions and what became of them")
    columns = (
        "version",
        "what it is",
        "verdict",
        "effect",
        "95 % sequence",
        "units",
        "s",
        "failed",
    )
    for column in columns:
        table.add_column(column)
    for verdict in verdicts:
        table.add_row(*_verdict_row(verdict), style="" if verdict.is_expected else "red")
    return table


def _verdict_row(verdict: Verdict) -> tuple[str, ...]:
    act, rollout = verdict.act, verdict.rollout
    if rollout is None:
        word, numbers = f"held (expected {act.state})", None
    else:
        word, numbers = f"{rollout.state}: {rollout.reason}", rollout.numbers
        if not verdict.is_expected:
            word += f" (expected {act.state}: {act.reason})"
    effect = interval = units = "-"
    if numbers is not None and numbers.effect is not None:
        effect = f"{numbers.effect:+.4f}"
    if numbers is not None and numbers.ci_low is not None and numbers.ci_high is not None:
        interval = f"{numbers.ci_low:+.4f} to {numbers.ci_high:+.4f}"
    if numbers is not None and numbers.units_candidate is not None:
        units = f"{numbers.units_stable:,} / {numbers.units_candidate:,}"
    seconds, failed = f"{verdict.seconds:.0f}", str(verdict.failed)
    return act.version, act.title, word, effect, interval, units, seconds, failed


async def _tag_table(stage: _Stage, verdicts: list[Verdict]) -> Table:
    table = Table(title="What MLflow says now: tags of the versions")
    table.add_column("version")
    table.add_column("rollout.status")
    table.add_column("rollout.reason")
    for verdict in verdicts:
        tags = await stage.tags(verdict.act.version)
        version = verdict.act.version
        table.add_row(version, tags.get("rollout.status", "-"), tags.get("rollout.reason", "-"))
    return table

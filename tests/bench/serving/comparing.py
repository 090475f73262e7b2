"""Measures servers side by side: who sits beside whom, in which order, and what became of each."""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from environments import python_of
from figures import BASE, Cell, Figures, is_there, summarise
from peers import PEERS, Place
from rich.progress import Progress
from running import Measured, Server, ServerFailedError, free_ports, started

IDLE_SECONDS = 3.0
Runs = dict[str, dict[Cell, list[Measured]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        cells: Rows and connections.
        rounds: How often each server meets each cell.
        kept: How many of those rounds count.
        seconds: Of load, in each cell and round.
        starts: How often each server is started.
        port: The first that is tried.
    """

    cells: Sequence[Cell]
    rounds: int
    kept: int
    seconds: int
    starts: int
    port: int


class Comparison:
    """The measuring of all servers with one model.

    Args:
        model: The model's folder.
        scratch: A folder for what servers write.
        plan: What is measured, and how often.
        progress: Where it is told.
    """

    def __init__(self, model: Path, scratch: Path, plan: Plan, progress: Progress) -> None:
        self._model = model
        self._scratch = scratch
        self._plan = plan
        self._progress = progress

    def fill(self, figures: dict[str, Figures]) -> None:
        """Measure every server that is not known to be missing."""
        there = [peer for peer, one in figures.items() if not one.failed]
        for sitting in sittings(there):
            again = [peer for peer in sitting if figures[peer].cells]
            for peer, measured in self._sit(sitting, again).items():
                if not figures[peer].cells:
                    figures[peer] = measured

    def _sit(self, peers: Sequence[str], again: Sequence[str]) -> dict[str, Figures]:
        """Measure some servers interleaved; those that fail on the way have a reason instead.

        A server that was measured before is started once, being there only for the others' x.
        """
        figures: dict[str, Figures] = {peer: Figures() for peer in peers}
        runs: Runs = defaultdict(lambda: defaultdict(list))
        with ExitStack() as stack:
            servers: dict[str, Server] = {}
            for peer in peers:
                try:
                    starts = 1 if peer in again else self._plan.starts
                    servers[peer] = self._bring_up(stack, peer, figures[peer], starts)
                except ServerFailedError as error:
                    figures[peer].failed = str(error)
                self._tell(peer, figures[peer].failed or "is up")
            self._go_round(servers, figures, runs)
            for peer, server in servers.items():
                _finish(
                    server, figures[peer], [run for cell in runs[peer].values() for run in cell]
                )
        base = runs[BASE] if is_there(figures, BASE) else {}
        for peer, one in figures.items():
            if not one.failed:
                one.cells = {
                    cell: summarise(found, base.get(cell), self._plan.kept)
                    for cell, found in runs[peer].items()
                }
        return figures

    def _bring_up(self, stack: ExitStack, peer: str, figures: Figures, starts: int) -> Server:
        """Start a server as often as asked for; the last one stays."""
        for _ in range(starts - 1):
            with self._started(peer) as (_, seconds):
                figures.starts.append(seconds)
        with ExitStack() as own:
            server, seconds = own.enter_context(self._started(peer))
            figures.starts.append(seconds)
            server.verify()
            server.measure(1, 16, 1)  # What is slow only once is not what is measured.
            figures.idle = server.idle(IDLE_SECONDS)
            server.freeze()
            stack.push(own.pop_all())
        return server

    def _started(self, peer: str) -> AbstractContextManager[tuple[Server, float]]:
        entry = PEERS[peer]
        first, second, third = free_ports(self._plan.port, 3)
        place = Place(
            model=self._model,
            tools=python_of(entry.environment).parent,
            ports=(first, second, third),
            scratch=Path(tempfile.mkdtemp(prefix="", dir=self._scratch)),
        )
        log = place.scratch / "log"
        return started(entry.launch(place), self._model, log, freezes=not entry.alone)

    def _go_round(
        self, servers: dict[str, Server], figures: dict[str, Figures], runs: Runs
    ) -> None:
        turns = list(turns_of(self._plan.rounds, self._plan.cells, servers))
        task = self._progress.add_task(self._model.name, total=len(turns))
        for peer, cell in turns:
            self._progress.advance(task)
            if figures[peer].failed:
                continue
            try:
                with servers[peer].awake():
                    runs[peer][cell].append(servers[peer].measure(*cell, self._plan.seconds))
            except ServerFailedError as error:
                figures[peer].failed = str(error)
                self._tell(peer, str(error))

    def _tell(self, peer: str, text: str) -> None:
        self._progress.console.print(f"{self._model.name} {peer}: {text}", markup=False)


def _finish(server: Server, figures: Figures, runs: Sequence[Measured]) -> None:
    """See what the load has left of a server."""
    if figures.failed:
        return
    try:
        with server.awake():
            server.verify()
            figures.rss, figures.pss = server.memory()
    except ServerFailedError as error:
        figures.failed = f"after the load: {error}"
    errors = sum(run.errors for run in runs)
    if errors:
        figures.failed = f"{errors} requests failed under load"


def sittings(peers: Sequence[str]) -> Iterator[list[str]]:
    """Say who is measured beside whom: what cannot be stopped meets the baseline only."""
    base = [peer for peer in peers if peer == BASE]
    alone = [peer for peer in peers if PEERS[peer].alone]
    together = [peer for peer in peers if peer not in alone]
    if together != base or not alone:
        yield together
    for peer in alone:
        yield [*base, peer]


def turns_of(
    rounds: int, cells: Sequence[Cell], peers: Iterable[str]
) -> Iterator[tuple[str, Cell]]:
    """Give the order of the runs: neighbours in time are different servers in the same cell."""
    for _ in range(rounds):
        for cell in cells:
            for peer in peers:
                yield peer, cell

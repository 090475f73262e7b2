"""Runs the local stack's processes, as a kubelet would: start, probe, restart, stop, report."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from fairlead_rollout.adapters import processes
from fairlead_rollout.adapters.files import read_json, write_json
from fairlead_rollout.adapters.folder_cluster import forget
from fairlead_rollout.adapters.home import Home
from fairlead_rollout.adapters.stack import Addresses, services, serving, termination_log
from fairlead_rollout.domain.processes import ProcessSpec, restart_wait
from fairlead_rollout.domain.status import format_time

log = logging.getLogger(__name__)

TICK = 0.1  # seconds; how soon a killed process is noticed
PROBE_EVERY = 0.2  # seconds, until ready
PROBE_READY_EVERY = 1.0
PROBE_TIMEOUT = 1.0
LEFTOVER_GRACE = timedelta(minutes=1)  # longer than most requests that one left may still answer
START_EVERY = 1.0  # of a process that the machine will not start just now
MISSES = 3  # unanswered probes in a row until a ready process is taken as not ready


@dataclass(kw_only=True)
class Child:
    """A process under watch, and what is known of it."""

    spec: ProcessSpec
    running: processes.Running | None = None
    is_ready: bool = False
    restarts: int = 0  # failed starts in a row
    failure: Mapping[str, Any] | None = None
    stopping_since: float | None = None
    start_at: float = 0.0
    probe_at: float = 0.0
    misses: int = 0
    probing: asyncio.Task[None] | None = None

    @property
    def is_gone(self) -> bool:
        """Say whether it was asked to end and has ended."""
        return self.stopping_since is not None and self.running is None


class Supervisor:
    """Keeps what runs equal to what is wanted.

    What is wanted is read at each tick; what runs is in the table of processes. Only how often a
    start has failed is remembered here.
    """

    def __init__(self, home: Home, addresses: Addresses):
        self._home = home
        self._addresses = addresses
        self._beside: dict[str, ProcessSpec] = {}
        self._children: dict[str, Child] = {}
        self._http = httpx.AsyncClient(timeout=PROBE_TIMEOUT, trust_env=False)

    async def run(self, stop: asyncio.Event) -> None:
        """Run the stack until told to stop, then end all of it."""
        self._adopt()
        await asyncio.gather(*(self._probe(child) for child in self._children.values()))
        try:
            while not stop.is_set():
                self._tick_safely()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), TICK)
        finally:
            await self._stop_all()
            await self._http.aclose()

    def _tick_safely(self) -> None:
        """Go on after a full disk or table of processes: what serves must not end with it."""
        try:
            self.tick(self._wanted())
        except OSError:
            log.exception("cannot look after the processes just now; trying again")

    def tick(self, wanted: Mapping[str, ProcessSpec]) -> None:
        """Bring what runs a step nearer to what is wanted, and report what is seen."""
        now = time.monotonic()
        for key, spec in wanted.items():
            self._children.setdefault(key, Child(spec=spec))
        for key, child in self._children.items():
            self._notice_end(child, now)
            self._steer(child, wanted.get(key), now)
            self._start_probe(child, now)
        self._children = {k: c for k, c in self._children.items() if not c.is_gone or k in wanted}
        self._report()

    def run_beside(self, spec: ProcessSpec) -> None:
        """Keep one more process running beside the stack's own."""
        self._beside[spec.key] = spec

    @property
    def is_ready(self) -> bool:
        """Say whether every service of the stack answers."""
        wanted = [spec.key for spec in services(self._home, self._addresses)]
        return all(k in self._children and self._children[k].is_ready for k in wanted)

    def _wanted(self) -> dict[str, ProcessSpec]:
        specs = list(services(self._home, self._addresses))
        for path in sorted(self._home.workloads.glob("*/spec.json")):
            specs.extend(self._serving(path))
        return {spec.key: spec for spec in specs} | self._beside

    def _serving(self, path: Path) -> Iterable[ProcessSpec]:
        """Return the processes of a workload; what cannot be read just now stays as it is."""
        try:
            workload = read_json(path)
        except OSError:
            log.exception("cannot read %s just now; its processes stay", path)
            ours = (c for c in self._children.values() if c.spec.workload == path.parent.name)
            return [child.spec for child in ours if child.stopping_since is None]
        return () if workload is None else serving(self._home, self._addresses, workload)

    def _adopt(self) -> None:
        """Take over what an earlier supervisor left; end what is not wanted as it is.

        What is not wanted at all, as fewer processes of a version are by now, may still get
        requests: it is taken over too, and ends as ever.
        """
        wanted = self._wanted()
        for running in processes.find(self._home.root):
            spec = wanted.get(running.key) or _leftover(running.key)
            if spec.is_outdated(running.digest) or running.key in self._children:
                running.kill()
                continue
            self._children[running.key] = Child(spec=spec, running=running)

    def _notice_end(self, child: Child, now: float) -> None:
        running = child.running
        if running is None or running.is_alive:
            return
        code = running.exit_code()
        running.kill()  # what it started must not outlive it
        child.running, child.is_ready = None, False
        if child.stopping_since is None:
            child.failure = self._failure(child, code)
            child.start_at = now + restart_wait(child.restarts).total_seconds()
            child.restarts += 1

    def _failure(self, child: Child, code: int | None) -> dict[str, Any]:
        log = termination_log(self._home, child.spec.workload, child.spec.replica)
        with contextlib.suppress(OSError):
            reason = log.read_text("utf-8").partition("\n")[0].strip().rstrip(".")
            log.unlink()
            if reason:
                return _failed(code, reason)
        how = f"was killed by signal {-code}" if code is not None and code < 0 else None
        return _failed(code, f"its process {how or f'ended with exit code {code}'}")

    def _steer(self, child: Child, wanted: ProcessSpec | None, now: float) -> None:
        """Start, stop or replace one process."""
        if wanted is not None and child.is_gone:
            self._renew(child, wanted)
        if wanted is None or wanted.is_outdated(child.spec.digest):
            self._stop(child, now)
            return
        child.spec = wanted  # for the next start, if it is another one
        if child.running is None and child.stopping_since is None and now >= child.start_at:
            self._start(child, now)

    def _start(self, child: Child, now: float) -> None:
        """Start a process; one that cannot be started must not keep the others unattended."""
        output = self._home.logs / f"{child.spec.workload}-{child.spec.replica}.log"
        try:
            child.running = processes.start(child.spec, self._home.root, output)
        except OSError as error:
            log.exception("cannot start %s just now; trying again", child.spec.key)
            child.failure = _failed(None, f"its process cannot be started: {error}")
            child.start_at = now + START_EVERY
            return
        child.probe_at, child.misses = now, 0

    @staticmethod
    def _renew(child: Child, spec: ProcessSpec) -> None:
        child.spec, child.stopping_since, child.start_at = spec, None, 0.0
        child.restarts, child.failure = 0, None

    @staticmethod
    def _stop(child: Child, now: float) -> None:
        if child.stopping_since is None:
            child.stopping_since, child.is_ready = now, False
            if child.running is not None:
                child.running.terminate()
        elif (
            child.running is not None
            and now - child.stopping_since > child.spec.grace.total_seconds()
        ):
            child.running.kill()

    def _start_probe(self, child: Child, now: float) -> None:
        """Probe beside the loop: a process that hangs must not hide that another one ended."""
        if child.running is None or child.stopping_since is not None or now < child.probe_at:
            return
        if child.probing is None or child.probing.done():
            child.probing = asyncio.create_task(self._probe(child))

    async def _probe(self, child: Child) -> None:
        running = child.running
        if running is None:
            return
        answers = await self._answers(child.spec, running.port)
        if child.running is not running or child.stopping_since is not None:
            return  # it ended while it was asked
        child.misses = 0 if answers else child.misses + 1
        child.is_ready = answers or (child.is_ready and child.misses < MISSES)
        if answers:
            child.restarts, child.failure = 0, None
        child.probe_at = time.monotonic() + (PROBE_READY_EVERY if answers else PROBE_EVERY)

    async def _answers(self, spec: ProcessSpec, port: int | None) -> bool:
        if spec.probe is None:
            return True
        url = f"http://127.0.0.1:{spec.probe_port or port}{spec.probe}"
        try:
            return (await self._http.get(url)).is_success
        except httpx.HTTPError:
            return False

    def _report(self) -> None:
        """Write each workload's status, and forget workloads that are over."""
        _write_if_changed(self._home.root / "processes.json", self._processes())
        for folder in self._home.workloads.glob("*"):
            children = [c for c in self._children.values() if c.spec.workload == folder.name]
            if children:
                _write_if_changed(folder / "status.json", _workload_status(folder, children))
            else:
                forget(folder)

    def _processes(self) -> dict[str, Any]:
        return {
            key: {
                "pid": child.running.process.pid if child.running else None,
                "port": child.running.port if child.running else None,
                "ready": child.is_ready,
                "restarts": child.restarts,
            }
            for key, child in sorted(self._children.items())
        }

    async def _stop_all(self) -> None:
        """End everything: first who gives orders, then who takes requests, then who keeps."""
        last = ("mlflow", "experiments")
        rest = [c for c in self._children.values() if c.spec.workload not in ("controller", *last)]
        await self._stop_these(
            [c for c in self._children.values() if c.spec.workload == "controller"]
        )
        await self._stop_these(rest)
        await self._stop_these([c for c in self._children.values() if c.spec.workload in last])
        self._report()

    async def _stop_these(self, children: Iterable[Child]) -> None:
        left = [child for child in children if child.running is not None]
        while left:
            now = time.monotonic()
            for child in left:
                self._stop(child, now)
                self._notice_end(child, now)
            left = [child for child in left if child.running is not None]
            await asyncio.sleep(TICK if left else 0)


def _leftover(key: str) -> ProcessSpec:
    """Return what is known of a process that is wanted no more."""
    workload, _, replica = key.partition("/")
    return ProcessSpec(
        workload=workload,
        replica=int(replica),
        command=(),
        grace=LEFTOVER_GRACE,
        is_replaced=False,
    )


def _failed(code: int | None, reason: str) -> dict[str, Any]:
    return {"exitCode": code, "reason": reason, "at": format_time(datetime.now(UTC))}


def _workload_status(folder: Path, children: list[Child]) -> dict[str, Any]:
    spec = read_json(folder / "spec.json") or read_json(folder / "status.json") or {}
    failures = [c.failure for c in children if c.failure is not None]
    return {
        "workload": folder.name,
        "model": spec.get("model"),
        "version": spec.get("version"),
        "endpoints": [
            {
                "address": "127.0.0.1",
                "port": child.running.port,
                "ready": child.is_ready,
                "pid": child.running.process.pid,
            }
            for child in children
            if child.running is not None
        ],
        "restarts": max(child.restarts for child in children),
        "failure": failures[-1] if failures else None,
    }


def _write_if_changed(path: Path, document: Any) -> None:
    with contextlib.suppress(OSError):  # what cannot be read is written anew
        if read_json(path) == document:
            return
    write_json(path, document)

"""What one controller costs with many ServedModels, and how soon it acts on a promotion.

Run as `python tests/bench/controller.py --count 1000`; it needs a kubeconfig of a cluster where it
may make a namespace. The controller is the real process, the API server is the real one. MLflow,
the gateway's agent and the experiments service are stand-ins in this process.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from counting import CountingDoor
from estate import LEASE, SERVICE, Estate, registered_model, served_model, wait_for
from outside import Agent, Registry, experiments, serve
from rich.console import Console
from rich.table import Table

from fairlead_rollout.adapters.http import client
from fairlead_rollout.adapters.k8s.api import connect
from fairlead_rollout.adapters.mlflow_registry import POLL_EVERY, MlflowRegistry
from fairlead_rollout.domain.platform import parse_settings

METRICS = "http://127.0.0.1:8080"
MOST_CORES, MOST_MEGABYTES, MOST_SECONDS = 0.1, 300.0, 5.0
PASSES = "fairlead_controller_reconcile_duration_seconds_count"
NEW_VERSION = 2
MEGABYTE = 1_000_000
QUIET = 10.0  # seconds without a pass: everything is as it should be
START = 900.0  # seconds the first look at all of them may take


@dataclass(frozen=True, kw_only=True)
class Steady:
    """What the process used while nothing happened."""

    seconds: float
    cores: float
    megabytes_mean: float
    megabytes_most: float
    requests_per_second: float
    requests: dict[str, int]
    passes: float


@dataclass(frozen=True, kw_only=True)
class Promotions:
    """Seconds from a moved pointer to a rollout in the status."""

    p50: float
    most: float
    seconds: list[float]


@dataclass(frozen=True, kw_only=True)
class Poll:
    """What one look at MLflow costs the controller, without MLflow's own time."""

    megabytes: float
    cpu_milliseconds: float
    cores: float


class Bench:
    """One controller and what is around it."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self._options = options
        self._folder = folder
        self.names = [registered_model(n) for n in range(options.count)]
        self.registry = Registry(self.names, options.mlflow_seconds)
        connection = connect()
        self.estate = Estate(options.namespace, connection)
        self.door = CountingDoor(connection.configuration, folder)

    def prepare(self) -> None:
        """Make the models and all that the controller talks to."""
        urls = (serve(self.registry.answer), serve(experiments))
        settings = _settings(self._options.namespace, *urls)
        agent = Agent()
        port = serve(agent.answer, "0.0.0.0")  # noqa: S104 -- the EndpointSlice says by which
        self.estate.build(self._options.count, port, parse_settings(settings).serving)
        agent.take(self.estate.digests())
        self.door.start()
        _write(self._folder / "kubeconfig.json", self.door.kubeconfig())
        _write(self._folder / "settings.json", settings)

    @contextmanager
    def controller(self) -> Iterator[None]:
        """Run the controller."""
        self._start()
        try:
            yield
        finally:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        command = ["fairlead", "controller", "--settings", str(self._folder / "settings.json")]
        environment = os.environ | {
            "KUBECONFIG": str(self._folder / "kubeconfig.json"),
            "POD_NAME": "bench",  # the same after a restart: it need not wait for itself
        }
        with (self._folder / "controller.log").open("ab") as log:
            self._process = psutil.Popen(command, env=environment, stdout=log, stderr=log)
        wait_for(self._answers, 300, "the controller to answer on port 8080", every=0.1)

    def _answers(self) -> bool:
        self._check_it_runs()
        try:
            return httpx.get(f"{METRICS}/livez", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def _check_it_runs(self) -> None:
        if self._process.poll() is not None:
            raise SystemExit(f"the controller has ended; see {self._folder / 'controller.log'}")

    def settle(self) -> float:
        """Wait until every ServedModel was looked at; return the seconds the first look took."""
        started = time.monotonic()
        wait_for(self._has_looked, START, "all ServedModels to be looked at", every=0.5)
        took = time.monotonic() - started
        seen, quiet_since = self.passes(), time.monotonic()
        while time.monotonic() - quiet_since < QUIET:
            time.sleep(0.5)
            if self.passes() != seen:
                seen, quiet_since = self.passes(), time.monotonic()
        return took

    def _has_looked(self) -> bool:
        self._check_it_runs()
        return self.passes() >= self._options.count

    def passes(self) -> float:
        """Return how many passes over a ServedModel the controller has made."""
        lines = httpx.get(f"{METRICS}/metrics", trust_env=False).text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(PASSES)), 0.0)

    def steady(self) -> Steady:
        """Measure while nothing happens."""
        process = self._process
        before, passes, requests = _cpu(process), self.passes(), Counter(self.door.counts)
        started, memory = time.monotonic(), []
        while time.monotonic() - started < self._options.seconds:
            self._check_it_runs()
            memory.append(process.memory_info().rss / MEGABYTE)
            time.sleep(1)
        seconds = time.monotonic() - started
        made = Counter(self.door.counts) - requests
        return Steady(
            seconds=seconds,
            cores=(_cpu(process) - before) / seconds,
            megabytes_mean=statistics.fmean(memory),
            megabytes_most=max(memory),
            requests_per_second=made.total() / seconds,
            requests={" ".join(what): n for what, n in made.most_common()},
            passes=self.passes() - passes,
        )

    def promotions(self) -> Promotions:
        """Move pointers one by one, at moments that have nothing to do with the poll's."""
        chance = random.Random(4)
        numbers = chance.sample(range(self._options.count), self._options.promotions)
        seconds = []
        for number in numbers:
            time.sleep(chance.uniform(0, 2 * POLL_EVERY.total_seconds()))
            seconds.append(self.promote(number))
        return Promotions(p50=statistics.median(seconds), most=max(seconds), seconds=seconds)

    def promote(self, number: int) -> float:
        """Move one pointer; return the seconds until its ServedModel says that it is on trial."""
        self.registry.promote(self.names[number], NEW_VERSION)
        started = time.monotonic()
        wait_for(
            lambda: self.estate.candidate(number) == str(NEW_VERSION),
            120,
            f"{served_model('', number)['metadata']['name']} to be put on trial",
            every=0.05,
        )
        return time.monotonic() - started

    def poll_cost(self) -> Poll:
        """Measure one look at MLflow, in this process and without MLflow's own time."""
        registry = Registry(self.names, 0)
        looks = MlflowRegistry(client(f"http://127.0.0.1:{serve(registry.answer)}"))
        looks.poll()
        started, times = time.thread_time(), 20
        for _ in range(times):
            looks.poll()
        each = (time.thread_time() - started) / times
        every = POLL_EVERY.total_seconds() + self._options.mlflow_seconds
        return Poll(
            megabytes=len(registry.body()) / MEGABYTE,
            cpu_milliseconds=each * 1_000,
            cores=each / every,
        )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.touch(mode=0o600)
    path.write_text(json.dumps(document, indent=1), "utf-8")


def _settings(namespace: str, mlflow: int, experiments_port: int) -> dict[str, Any]:
    return {
        "namespaces": [namespace],
        "identity": {"namespace": namespace, "lease": LEASE},
        "mlflow": {"url": f"http://127.0.0.1:{mlflow}"},
        "experiments": {"url": f"http://127.0.0.1:{experiments_port}"},
        "gateway": {"namespace": namespace, "service": SERVICE},
        "serving": {
            "image": "registry.invalid/fairlead/serving:bench",
            "imagePullPolicy": "IfNotPresent",
            "imagePullSecrets": [],
            "mlflowUrl": "http://mlflow.invalid:5000",
            "credentialsSecret": "",
            "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}},
            "networkPolicy": {"enabled": True, "ingressFrom": [{"podSelector": {}}], "egress": []},
        },
    }


def measure(options: argparse.Namespace, say: Console) -> dict[str, Any]:
    """Run the whole bench and clean up after it."""
    folder = options.out.resolve().parent  # a kubeconfig's paths are relative to its own
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "controller.log").unlink(missing_ok=True)
    bench = Bench(options, folder)
    bench.estate.remove()
    try:
        say.print(f"making {options.count} ServedModels in {options.namespace}")
        bench.prepare()
        with bench.controller():
            say.print("the controller runs; it looks at all of them")
            first = bench.settle()
            say.print(f"done after {first:.0f} s; measuring for {options.seconds} s")
            steady = bench.steady()
            say.print(f"{steady.cores:.3f} cores; {options.promotions} promotions follow")
            promotions = bench.promotions()
        with bench.controller():
            again = bench.promote(_untouched(options))
    finally:
        say.print(f"removing {options.namespace}")
        bench.estate.remove()
    return {
        "count": options.count,
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "first_look_seconds": first,
        "steady": asdict(steady),
        "promotions": asdict(promotions),
        "promotion_after_restart_seconds": again,
        "poll": asdict(bench.poll_cost()),
    }


def _untouched(options: argparse.Namespace) -> int:
    """Return a model that was not promoted before: the last that a new controller comes to."""
    taken = random.Random(4).sample(range(options.count), options.promotions)
    return max(set(range(options.count)) - set(taken))


def _table(result: dict[str, Any]) -> tuple[Table, bool]:
    steady, promotions, poll = result["steady"], result["promotions"], result["poll"]
    table = Table(title=f"One controller, {result['count']} ServedModels", title_justify="left")
    for column in ("what", "measured", "limit"):
        table.add_column(column)
    limited = [
        ("processor, steady (cores)", steady["cores"], MOST_CORES),
        ("memory, most (MB)", steady["megabytes_most"], MOST_MEGABYTES),
        ("promotion acted on, slowest (s)", promotions["most"], MOST_SECONDS),
    ]
    for what, value, limit in limited:
        table.add_row(what, f"{value:.3g}", f"{limit:g}")
    for what, value in (
        ("promotion acted on, p50 (s)", promotions["p50"]),
        (
            "... while it looks at all after a restart (s)",
            result["promotion_after_restart_seconds"],
        ),
        ("API requests a second, steady", steady["requests_per_second"]),
        ("one answer of MLflow (MB)", poll["megabytes"]),
        ("reading it (ms of processor time)", poll["cpu_milliseconds"]),
        ("... of the steady use (cores)", poll["cores"]),
        ("first look at all (s)", result["first_look_seconds"]),
    ):
        table.add_row(what, f"{value:.3g}", "")
    return table, all(value <= limit for _, value, limit in limited)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON; 1 when a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000, help="ServedModels (1000)")
    parser.add_argument("--seconds", type=int, default=120, help="of steady state (120)")
    parser.add_argument("--promotions", type=int, default=20, help="how many are timed (20)")
    parser.add_argument("--namespace", default="fairlead-bench", help="made, and deleted again")
    parser.add_argument(
        "--mlflow-seconds", type=float, default=1.0, help="MLflow's answer to a search (1.0)"
    )
    out = Path(".fairlead/bench/controller.json")
    parser.add_argument("--out", type=Path, default=out, help=f"the figures ({out})")
    options = parser.parse_args(argv)
    say = Console()
    result = measure(options, say)
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    table, is_within = _table(result)
    say.print(table)
    say.print(f"figures: {options.out}; the controller's log: {options.out.parent}/controller.log")
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())

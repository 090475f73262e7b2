"""Measures the experiments service: exposures a second on one core, and the time of an analysis.

Runs `fairlead-experiments serve` over SQLite and over PostgreSQL, in turns, and sends batches of
1,000 as the gateway's agent does: units come back, steps follow each other, batches are replayed,
outcomes come later. The service and its database are held to one core, so the sender has another.
Beside what the clock says it prints what a core would do if it had nothing else to do: exposures
by seconds of processor time of the service and the database together. That figure is the steadier.

Then the rollout is filled up (`--fill`) beside the service, counted afresh and analysed.
`--full` fills it to 10 million exposures of 1 million units. Ends with 1 if a count is wrong.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).parents[2] / "services/experiments/tests"))

from experiments_postgresql import PostgresServer
from experiments_process import Server, serving

from fairlead_experiments.adapters.database import open_engine

BATCH = 1000
REPLAYED = 50  # One batch in so many comes twice.
LOOKS = 5
GOALS = {"sqlite": 3000, "postgresql": 5000}  # Exposures a second on one core.
ANALYSIS = 1.0  # Seconds, at 10 million exposures.
STEPS = (100, 1000, 5000)
# As an operator would have it, but for the socket folder: a commit waits for the disk.
SETTINGS = ("unix_socket_directories=", "listen_addresses=127.0.0.1")
DAY = 86_400


def main() -> int:
    """Measure both databases; answer 0 if every count was right."""
    options = _options()
    figures = {name: measure(name, options) for name in options.databases.split(",")}
    if options.json:
        document = {"machine": _machine(), "exposures": options.exposures, "databases": figures}
        Path(options.json).write_text(json.dumps(document, indent=2) + "\n")
    wrong = [name for name, found in figures.items() if not found["isRight"]]
    if wrong:
        say(f"wrong counts: {', '.join(wrong)}")
    return int(bool(wrong))


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one database, and say what was found."""
    say(f"{name}: {options.exposures:,} exposures of {options.units:,} units")
    with database(name) as (url, server_pid), serving(url) as server:
        server.call("/v1/rollouts/bench", record(0.2), "PUT")
        found = ingest(server, server_pid, options)
        found |= analyse(server, url, options)
        found["residentMiB"] = psutil.Process(server.process.pid).memory_info().rss / 2**20
    found["goal"] = GOALS[name]
    for title, key, unit in ROWS:
        say(f"  {title:44} {found[key]:12,.3f} {unit}")
    return found


ROWS = (
    ("exposures, by the clock", "exposuresPerSecond", "/s"),
    ("exposures, by processor time", "exposuresPerCoreSecond", "/s"),
    ("goal", "goal", "/s"),
    ("outcomes, by processor time", "outcomesPerCoreSecond", "/s"),
    ("exposures in the rollout", "analysedExposures", ""),
    ("units in the rollout", "analysedUnits", ""),
    ("counting all of it afresh", "countSeconds", "s"),
    ("an analysis (median)", "analysisSeconds", "s"),
    ("memory of the service at the end", "residentMiB", "MiB"),
)


def ingest(server: Server, server_pid: int | None, options: argparse.Namespace) -> dict[str, Any]:
    """Send exposures, then outcomes of half of them."""
    batches = list(exposures(options))
    sent = [b for n, b in enumerate(batches) for _ in range(1 + (n % REPLAYED == REPLAYED // 2))]
    with on_one_core(server.process.pid, server_pid):
        before = processor_time(server.process.pid, server_pid)
        clock = send(server, "/v1/exposures", [{"exposures": b} for b in sent])
        middle = processor_time(server.process.pid, server_pid)
        later = [{"outcomes": outcomes(batch)} for batch in batches]
        send(server, "/v1/outcomes", later)
        after = processor_time(server.process.pid, server_pid)
    found = server.call("/v1/rollouts/bench/analysis")
    requests = sum(arm["requests"] for arm in found["arms"].values())
    measured = sum(arm["outcomes"] for arm in found["arms"].values())
    wanted = sum(map(len, batches)), sum(len(batch["outcomes"]) for batch in later)
    return {
        "exposuresPerSecond": BATCH * len(sent) / clock,
        "exposuresPerCoreSecond": BATCH * len(sent) / (middle - before),
        "outcomesPerCoreSecond": wanted[1] / (after - middle),
        "isRight": (requests, measured) == wanted,
    }


def send(server: Server, path: str, bodies: list[dict[str, Any]]) -> float:
    """Send bodies one after the other, each until it is taken; answer the seconds it took."""
    encoded = [orjson.dumps(body) for body in bodies]
    began = time.perf_counter()
    for body in encoded:
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}{path}",
            data=body,
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - a loopback address
            answer.read()
    return time.perf_counter() - began


def exposures(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Answer batches in the order of time: a few units come often, many come seldom."""
    rng = random.Random(20261130)
    total = options.exposures // BATCH
    began = time.time() - 20 * DAY
    for number in range(total):
        step = len(STEPS) * number // total
        yield [
            exposure(
                rng,
                int(options.units * rng.random() ** 2),
                step,
                began + 20 * DAY * (number + n / BATCH) / total,
            )
            for n in range(BATCH)
        ]


def exposure(rng: random.Random, unit: int, step: int, at: float) -> dict[str, Any]:
    """Answer one exposure; a unit's arm is a function of the unit, as at the gateway."""
    is_candidate = unit * 7919 % 10_000 < STEPS[step]
    return {
        "inferenceId": f"{rng.getrandbits(128):032x}",
        "rollout": "bench",
        "step": step,
        "arm": "candidate" if is_candidate else "stable",
        "version": "4" if is_candidate else "3",
        "unit": f"user-{unit}",
        "at": moment(at),
        "code": 500 if rng.random() < 0.005 else 200,
        "attempts": 1,
        "durationMs": rng.expovariate(1 / 50),
    }


def outcomes(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answer the outcomes of every other exposure of a batch."""
    now = moment(time.time())
    return [
        {
            "inferenceId": e["inferenceId"],
            "outcome": "y",
            "value": e["durationMs"],
            "observedAt": now,
        }
        for e in batch[::2]
    ]


def moment(at: float) -> str:
    """Write a time as the agent does."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at * 1000) % 1000:03}Z"


def record(slower_than: float) -> dict[str, Any]:
    """Answer the rollout's record; another bound makes the service count afresh."""
    return {
        "model": "bench",
        "stable": "3",
        "candidate": "4",
        "startedAt": moment(time.time() - 20 * DAY),
        "state": "running",
        "steps": [{"index": index, "weight": weight} for index, weight in enumerate(STEPS)],
        "objective": {"outcome": "y", "better": "lower", "minimumEffect": 0.01},
        "guardrails": {
            "errors": {"margin": 0.25},
            "latency": {"slowerThan": slower_than, "margin": 0.25},
        },
    }


# --- analysis -------------------------------------------------------------------------------


def analyse(server: Server, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fill the rollout up, have it counted afresh, and time its analysis."""
    fill(url, options)
    began = time.perf_counter()
    without = {**record(0.2), "objective": None}
    server.call("/v1/rollouts/bench", without, "PUT", timeout=3600)
    server.call("/v1/rollouts/bench", record(0.3), "PUT", timeout=3600)
    counted = time.perf_counter() - began
    times = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        found = server.call("/v1/rollouts/bench/analysis")
        times.append(time.perf_counter() - began)
    return {
        "countSeconds": counted,
        "analysisSeconds": statistics.median(times),
        "analysedExposures": sum(arm["requests"] for arm in found["arms"].values()),
        "analysedUnits": sum(arm["units"] for arm in found["arms"].values()),
    }


def fill(url: str, options: argparse.Namespace) -> None:
    """Add exposures of units of their own beside the service, ten of each unit, in three steps."""
    engine = open_engine(url)
    series = (
        "(WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < {0} - 1)"
        " SELECT n FROM s)"
        if engine.dialect.name == "sqlite"
        else "generate_series(0, {0} - 1) AS s(n)"
    )
    units, at = options.fill // 10, int((time.time() - 10 * DAY) * 1e6)
    arm = "CASE WHEN n * 7919 % 10000 < 5000 THEN 'candidate' ELSE 'stable' END"
    version = "CASE WHEN n * 7919 % 10000 < 5000 THEN '4' ELSE '3' END"
    with engine.begin() as connection:
        for turn in range(10 if units else 0):
            made = series.format(units)
            connection.execute(
                text(
                    f"INSERT INTO exposures SELECT 'fill-{turn}-' || n, 'bench', {turn % 3}, {arm},"  # noqa: S608
                    f" {version}, 'unit-' || n, {at} + n, 200, 1, n % 300 FROM {made}"
                )
            )
        for step in range(3 if units else 0):
            made = series.format(units)
            connection.execute(
                text(f"INSERT INTO units SELECT 'bench', 'unit-' || n, {step}, {arm} FROM {made}")  # noqa: S608
            )
            connection.execute(
                text(
                    f"INSERT INTO unit_outcomes SELECT 'bench', 'unit-' || n, 'y', {step}, {arm}, 1,"  # noqa: S608
                    f" n % 1000 FROM {made}"
                )
            )
    engine.dispose()


# --- processes ------------------------------------------------------------------------------


@contextmanager
def database(name: str) -> Iterator[tuple[str, int | None]]:
    """An empty database: its address, and the process of its server."""
    if name == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/experiments.db", None
        return
    server = PostgresServer(SETTINGS)
    try:
        server.start()
        yield server.create_database(), server.pid
    finally:
        server.remove()


def family(*pids: int | None) -> list[psutil.Process]:
    """Answer processes with all their children."""
    roots = [psutil.Process(pid) for pid in pids if pid is not None]
    return list(itertools.chain(roots, *(root.children(recursive=True) for root in roots)))


def processor_time(*pids: int | None) -> float:
    """Answer the seconds that processes and their children have computed."""
    total = 0.0
    for process in family(*pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            total += used.user + used.system + used.children_user + used.children_system
    return total


@contextmanager
def on_one_core(*pids: int | None) -> Iterator[None]:
    """Hold processes to the last core, and this one to the others."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        yield
        return
    for process in family(*pids):
        process.cpu_affinity(cores[-1:])
    os.sched_setaffinity(0, cores[:-1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        for process in family(*pids):
            process.cpu_affinity(cores)


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _machine() -> dict[str, Any]:
    return {
        "at": moment(time.time()),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--databases", default="sqlite,postgresql", help="which, in this order")
    parser.add_argument("--exposures", type=int, default=50_000, help="how many are sent")
    parser.add_argument("--units", type=int, default=10_000, help="of how many units")
    parser.add_argument("--fill", type=int, default=100_000, help="how many more are analysed")
    parser.add_argument("--full", action="store_true", help="analyse 10 million of 1 million units")
    parser.add_argument("--json", metavar="FILE", help="where the figures go, too")
    options = parser.parse_args()
    if options.full:
        options.fill = 10_000_000 - options.exposures
    return options


if __name__ == "__main__":
    sys.exit(main())

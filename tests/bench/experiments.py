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
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
from rich.console import Console
from rich.progress import track
from sqlalchemy import Table

sys.path.insert(0, str(Path(__file__).parents[2] / "services/experiments/tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests/support"))

from experiments_postgresql import PostgresServer
from experiments_process import Server, serving

from fairlead_experiments.adapters.bulk import insert_rows
from fairlead_experiments.adapters.database import open_engine, writing
from fairlead_experiments.adapters.partitions import make_room
from fairlead_experiments.adapters.schema import EXPOSURES, OUTCOMES, UNIT_OUTCOMES, UNITS

BATCH = 1000
REPLAYED = 50  # One batch in so many comes twice.
LOOKS = 5
GOALS = {"sqlite": 3000, "postgresql": 5000}  # Exposures a second on one core.
ANALYSIS = 1.0  # Seconds, at 10 million exposures.
STEPS = (100, 1000, 5000)
# As an operator would have it, but for the socket folder: a commit waits for the disk.
SETTINGS = ("unix_socket_directories=", "listen_addresses=127.0.0.1")
DAY = 86_400
UNAVAILABLE = 503
HOUR = 3_600_000_000  # Microseconds.
CHUNK = 10_000  # Units that are filled in at once.
DETAILED = {"window": 3600, "covariate": "x"}


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
    ("a batch meanwhile, at most", "longestWaitSeconds", "s"),
    ("an analysis (median)", "analysisSeconds", "s"),
    ("with window and covariate, counting afresh", "detailedCountSeconds", "s"),
    ("a batch meanwhile, at most", "detailedLongestWaitSeconds", "s"),
    ("with window and covariate, an analysis", "detailedAnalysisSeconds", "s"),
    ("units measured then", "measuredUnits", ""),
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


def record(slower_than: float, **objective: Any) -> dict[str, Any]:
    """Answer the rollout's record; another bound makes the service count afresh."""
    return {
        "model": "bench",
        "stable": "3",
        "candidate": "4",
        "startedAt": moment(time.time() - 20 * DAY),
        "state": "running",
        "steps": [{"index": index, "weight": weight} for index, weight in enumerate(STEPS)],
        "objective": {"outcome": "y", "better": "lower", "minimumEffect": 0.01, **objective},
        "guardrails": {
            "errors": {"margin": 0.25},
            "latency": {"slowerThan": slower_than, "margin": 0.25},
        },
    }


# --- analysis -------------------------------------------------------------------------------


def analyse(server: Server, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fill the rollout up, have it counted afresh, and time its analysis."""
    fill(url, options)
    server.call("/v1/rollouts/bench", {**record(0.2), "objective": None}, "PUT", timeout=3600)
    counted, waited = count(server, record(0.3))
    plain, found = look(server)
    detailed_counted, detailed_waited = count(server, record(0.3, **DETAILED))
    detailed, of_details = look(server)
    arms = found["arms"].values()
    return {
        "countSeconds": counted,
        "longestWaitSeconds": waited,
        "analysisSeconds": plain,
        "detailedCountSeconds": detailed_counted,
        "detailedLongestWaitSeconds": detailed_waited,
        "detailedAnalysisSeconds": detailed,
        "analysedExposures": sum(arm["requests"] for arm in arms),
        "analysedUnits": sum(arm["units"] for arm in arms),
        "measuredUnits": of_details["objective"]["unitsStable"]
        + of_details["objective"]["unitsCandidate"],
    }


def count(server: Server, changed: dict[str, Any]) -> tuple[float, float]:
    """Have all counted afresh; answer the seconds it took, and those a batch waited at most."""
    began = time.perf_counter()
    with sending(server) as waits:
        server.call("/v1/rollouts/bench", changed, "PUT", timeout=3600)
        while asked(server) is None:
            time.sleep(0.1)  # The controller asks every two seconds.
        counted = time.perf_counter() - began
    return counted, max(waits)


@contextmanager
def sending(server: Server) -> Iterator[list[float]]:
    """Send exposures of another rollout one by one meanwhile; give how long each took."""
    waits: list[float] = []
    is_over = threading.Event()

    def go_on() -> None:
        while not is_over.wait(0.1):
            given = exposure(random.Random(-1 - len(waits)), 0, 0, time.time())
            given["rollout"] = "another"
            waits.append(until_taken(server, {"exposures": [given]}))

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield waits
    finally:
        is_over.set()
        thread.join()


def until_taken(server: Server, body: dict[str, Any]) -> float:
    """Send a batch again and again, as the gateway's agent does; answer the seconds it took."""
    began = time.perf_counter()
    while True:
        try:
            send(server, "/v1/exposures", [body])
        except urllib.error.HTTPError as error:
            with error:
                if error.code != UNAVAILABLE:
                    raise
        else:
            return time.perf_counter() - began


def look(server: Server) -> tuple[float, dict[str, Any]]:
    """Analyse some times; answer the median of the seconds, and the analysis.

    Windows that have ended are counted by the first looks, which are told to come again.
    """
    times: list[float] = []
    found: dict[str, Any] = {}
    while len(times) < LOOKS:
        began = time.perf_counter()
        answer = asked(server)
        if answer is not None:
            found = answer
            times.append(time.perf_counter() - began)
    return statistics.median(times), found


def asked(server: Server) -> dict[str, Any] | None:
    """Answer the analysis, or None while some of it is being counted."""
    try:
        found: dict[str, Any] = server.call("/v1/rollouts/bench/analysis", timeout=60)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != UNAVAILABLE:
                raise
        return None
    return found


def fill(url: str, options: argparse.Namespace) -> None:
    """Add rows of units of their own beside the service, in the store's own way: by COPY.

    Each unit has ten exposures in three steps, an outcome of its first in each step, and an older
    one of its own. What is counted of them is counted when the record changes.
    """
    engine = open_engine(url)
    units, at = options.fill // 10, int((time.time() - 10 * DAY) * 1e6)
    chunks = range(0, units, CHUNK)
    for start in track(chunks, "  filling", console=Console(stderr=True)):
        some = range(start, min(start + CHUNK, units))
        with writing(engine, is_long=True) as connection:
            times = (at - HOUR, at, at + units)
            for table, rows in filled(some, at).items():
                if table in (EXPOSURES, OUTCOMES):
                    make_room(connection, table, times)
                insert_rows(connection, table, rows)
    engine.dispose()


def filled(units: range, at: int) -> dict[Table, list[tuple[Any, ...]]]:
    """Answer the rows of some units, for each table."""
    rows: dict[Table, list[tuple[Any, ...]]] = defaultdict(list)
    for n in units:
        unit, is_candidate = f"unit-{n}", n * 7919 % 10_000 < 5000
        arm, version = ("candidate", "4") if is_candidate else ("stable", "3")
        for turn in range(10):
            key = f"fill-{turn}-{n}", "bench", turn % 3, arm, version, unit
            rows[EXPOSURES].append((*key, at + n, 200, 1, float(n % 300)))
        for step in range(3):
            value = float(n * (step + 7) % 1000)
            rows[UNITS].append(("bench", unit, step, arm))
            rows[UNIT_OUTCOMES].append(("bench", unit, "y", step, arm, 1, value))
            given = f"fill-{step}-{n}"
            told = f"inference:{given}", "y", 0, value, at + n, given, None, None
            rows[OUTCOMES].append(told)
        before = at - HOUR
        own = f"unit:bench:{unit}", "x", before, float(n % 500), before, None, "bench", unit
        rows[OUTCOMES].append(own)
    return rows


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

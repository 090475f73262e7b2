"""What a thousand models cost one gateway, beside what one model costs it.

Run as `python tests/bench/gateway.py`. Two gateways run side by side: a real Envoy and a real agent
each, one with a single model, one with many. Each change is made to both in turn, so that a busy
machine slows both; what counts is the time from the rename of the plan to the first answer that
follows it, and the CPU that Envoy's main thread and the agent took for it. Then the gateway with
many models changes weights under load, and says how much memory and how large a scrape it needs.
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2] / "services/gateway/tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests/support"))

from gateway_client import Load, answered_within
from gateway_lab import Gateway, plan, running, wait_for, write

from fairlead_gateway.domain.plan import parse_plan, plan_digest

MODEL = "iris"
RUSH, RUSH_SECONDS = 100, 5.0  # So many weights in so many seconds, under load.
MOST_SECONDS, MOST_MEMORY, MOST_SCRAPE = 0.1, 250e6, 3e6
TIMED = "a weight takes effect within 100 ms"
PATIENCE = 600.0
TICK = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """What one change cost."""

    seconds: float
    envoy: float
    agent: float


def main() -> int:
    """Measure.

    Returns:
        0 if every goal but that of the time is met, which a busy machine misses; else 1.
    """
    options = _options()
    with ExitStack() as stack:
        few, many = (stack.enter_context(_filled(others)) for others in (0, options.models - 1))
        figures: dict[str, Any] = {
            "models": options.models,
            "changes": _changes(few, many, options.changes),
        }
        figures |= {"rush": _rush(many), "footprint": _footprint(many)}
    _print(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(not all(met for name, met in _goals(figures).items() if name != TIMED))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=1000, help="how many (%(default)s)")
    parser.add_argument("--changes", type=int, default=20, help="of each kind (%(default)s)")
    parser.add_argument("--json", type=Path, help="a file for the figures, too")
    return parser.parse_args()


@contextmanager
def _filled(others: int) -> Iterator[Gateway]:
    """Run a gateway with one model that answers, and others, every fiftieth in a rollout."""
    with TemporaryDirectory() as folder, running(Path(folder)) as made:
        for index in range(others):
            _add(made, f"model-{index}", rollout=index % 50 == 0)
        for version in ("3", "4"):
            made.upstream(version, MODEL)
        made.put(plan(MODEL, 0))
        wait_for(lambda: len(_followed(made)) == others + 1, PATIENCE)
        yield made


def _add(gateway: Gateway, name: str, *, rollout: bool) -> None:
    write(
        gateway.home / "served-models" / name / "status.json",
        {"traffic": plan(name, 1000 if rollout else None)},
    )
    for version in ("3", "4") if rollout else ("3",):
        endpoints = [{"address": f"127.0.0.{last}", "port": 9, "ready": True} for last in (8, 9)]
        document = {"workload": f"{name}-v{version}", "model": name, "version": version}
        write(
            gateway.home / "workloads" / f"{name}-v{version}" / "status.json",
            document | {"endpoints": endpoints},
        )


def _followed(gateway: Gateway) -> list[str]:
    models = gateway.applied()
    return [name for name, facts in models.items() if facts["digest"] is not None]


# --- changes --------------------------------------------------------------------------------------


def _changes(few: Gateway, many: Gateway, count: int) -> dict[str, dict[str, Any]]:
    """Make each kind of change to both gateways in turn."""
    return {name: _compared(few, many, wanted, count) for name, wanted in _kinds().items()}


def _kinds() -> dict[str, Callable[[int], dict[str, Any]]]:
    return {
        "a weight": lambda turn: plan(MODEL, 10_000 if turn % 2 else 0),
        "a rollout begins or ends": lambda turn: plan(MODEL, 10_000 if turn % 2 else None),
    }


def _compared(
    few: Gateway, many: Gateway, wanted: Callable[[int], dict[str, Any]], count: int
) -> dict[str, Any]:
    costs: dict[str, list[Cost]] = {"few": [], "many": []}
    for turn in range(count):
        for name, gateway in (("few", few), ("many", many)):
            costs[name].append(_changed(gateway, wanted(turn + 1)))
    found = {name: _summary(each) for name, each in costs.items()}
    ratio = found["many"]["envoyCpuMs"] / max(found["few"]["envoyCpuMs"], 1000 / TICK / count)
    return found | {"envoyCpuRatio": round(ratio, 2)}


def _changed(gateway: Gateway, document: dict[str, Any]) -> Cost:
    """Make a change and wait until an answer follows it; then until the agent has seen so, too."""
    arm = document["arms"][0]["arm"] if document["arms"][0]["weight"] else "stable"
    before = _cpu(gateway, "envoy"), _cpu(gateway, "agent")
    gateway.put(document)
    started = time.perf_counter()
    answered_within(gateway.port, f"/models/{MODEL}/invocations", arm, PATIENCE)
    seconds = time.perf_counter() - started
    digest = plan_digest(parse_plan(document))
    wait_for(lambda: gateway.applied().get(MODEL, {}).get("digest") == digest, PATIENCE)
    return Cost(seconds, _cpu(gateway, "envoy") - before[0], _cpu(gateway, "agent") - before[1])


def _cpu(gateway: Gateway, name: str) -> float:
    """Return the CPU seconds of Envoy's main thread, or of the agent."""
    pid = gateway.processes[name].pid
    path = f"/proc/{pid}/task/{pid}/stat" if name == "envoy" else f"/proc/{pid}/stat"
    fields = Path(path).read_text("ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def _summary(costs: list[Cost]) -> dict[str, float]:
    seconds = sorted(cost.seconds for cost in costs)
    return {
        "medianMs": round(statistics.median(seconds) * 1000, 1),
        "worstMs": round(seconds[-1] * 1000, 1),
        "envoyCpuMs": round(statistics.mean(cost.envoy for cost in costs) * 1000, 1),
        "agentCpuMs": round(statistics.mean(cost.agent for cost in costs) * 1000, 1),
    }


# --- under load -----------------------------------------------------------------------------------


def _rush(gateway: Gateway) -> dict[str, Any]:
    """Change the weight a hundred times, evenly over five seconds, under load."""
    load = Load(gateway.port, f"/models/{MODEL}/invocations")
    began = time.perf_counter()

    def rush() -> None:
        for turn in range(RUSH):
            gateway.put(plan(MODEL, 100 * turn))
            time.sleep(max(began + (turn + 1) * RUSH_SECONDS / RUSH - time.perf_counter(), 0))

    load.during(rush)
    seconds = time.perf_counter() - began
    return {
        "weights": RUSH,
        "seconds": round(seconds, 1),
        "requests": len(load.answers),
        "failures": len(load.failures),
    }


def _footprint(gateway: Gateway) -> dict[str, int]:
    scrape = gateway.client.get(
        f"http://127.0.0.1:{gateway.admin}/stats/prometheus", timeout=PATIENCE
    )
    own = gateway.agent("/metrics")
    return {
        "envoyBytes": _memory(gateway, "envoy"),
        "agentBytes": _memory(gateway, "agent"),
        "envoyScrapeBytes": len(scrape.content),
        "agentScrapeBytes": 0 if own is None else len(own.content),
    }


def _memory(gateway: Gateway, name: str) -> int:
    status = Path(f"/proc/{gateway.processes[name].pid}/status").read_text("ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) << 10 if found else 0


# --- the end --------------------------------------------------------------------------------------


def _goals(figures: dict[str, Any]) -> dict[str, bool]:
    footprint = figures["footprint"]
    scrapes = footprint["envoyScrapeBytes"], footprint["agentScrapeBytes"]
    return {
        TIMED: figures["changes"]["a weight"]["many"]["medianMs"] < MOST_SECONDS * 1000,
        "no request fails": figures["rush"]["failures"] == 0,
        "Envoy's memory": footprint["envoyBytes"] < MOST_MEMORY,
        "each scrape": max(scrapes) < MOST_SCRAPE,
    }


def _print(figures: dict[str, Any]) -> None:
    say = sys.stdout.write
    for name, found in figures["changes"].items():
        for side, count in (("few", 1), ("many", figures["models"])):
            say(f"{name:26} {count:5} models: {found[side]}\n")
    say(f"weights under load: {figures['rush']}\n{figures['footprint']}\n")
    for name, met in _goals(figures).items():
        say(f"{'met   ' if met else 'MISSED'} {name}\n")


if __name__ == "__main__":
    sys.exit(main())

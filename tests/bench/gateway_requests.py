"""What a request costs at the gateway: with a shadow beside one without, and with each optional filter.

Run as `python tests/bench/gateway_requests.py`. One real Envoy and agent; each case is a model of its
own before the same upstream. In each turn every case has a block of requests, one after the other
over one connection, in an order that turns; what counts is the ratio to the block without in the same
turn, and of those the median over the turns, so that a busy machine slows both. Times are the client's.
CPU is that of all of Envoy's threads, in nanoseconds from the kernel's scheduler. The model takes 5 ms
where shadows are measured, and answers at once where filters are.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2] / "services/gateway/tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests/support"))

from gateway_client import Connection, Headers
from gateway_lab import Gateway, plan, running
from gateway_tokens import Issuer
from test_keys import basic, entry

HANGS = "0.5"  # Seconds until the shadow that hangs answers.
MOST_P50, MOST_P99 = 1.25, 1.5
MOST_CPU = 2.0
ISSUER = Issuer()
OFTEN = {"by": "unit", "requests": 1_000_000, "seconds": 1}
BASE = "none"


class Case(NamedTuple):
    """One model and how it is asked.

    Attributes:
        changes: What its plan has beside what every plan has.
        headers: What each request has beside its unit.
    """

    changes: dict[str, Any]
    headers: Headers = {}  # noqa: RUF012 -- nobody writes to it


class Block(NamedTuple):
    """What some requests in a row took.

    Attributes:
        seconds: Of each request.
        cpu: Envoy's processor time for all of them, in seconds.
    """

    seconds: list[float]
    cpu: float


# What the model takes beside which a copy is seen; the shadows take their own time.
MODEL = {"x-test-delay": "0.005", "x-test-only": "3"}
SHADOWS = {
    BASE: Case({}, MODEL),
    "a shadow of all": Case({"shadow": [{"version": "5", "share": 10_000}]}, MODEL),
    "a shadow that hangs": Case({"shadow": [{"version": "6", "share": 10_000}]}, MODEL),
}
KEY = {"authorization": basic("tester")}
FILTERS = {
    BASE: Case({}),
    "API key": Case({"apiKeys": [entry("tester"), entry("dashboard", "2")]}, KEY),
    "JWT": Case({"jwt": ISSUER.jwt()}, ISSUER.bearer()),
    "rate limit": Case({"rateLimit": OFTEN}),
    "API key and rate limit": Case({"apiKeys": [entry("tester")], "rateLimit": OFTEN}, KEY),
    "a body limit of 1 KiB": Case({"limits": {"maxBodyBytes": 1024}}),
    "90 headers, 10 KiB": Case({}, {f"x-more-{n}": "x" * 100 for n in range(90)}),
}


def main() -> int:
    """Measure.

    Returns:
        0 if every request was answered by its model; goals of time a busy machine may miss.
    """
    options = _options()
    with TemporaryDirectory() as folder, running(Path(folder)) as gateway:
        with _copied(gateway):
            shadows = _measured(gateway, SHADOWS, options)
        filters = _measured(gateway, FILTERS, options)
    figures = {"shadows": shadows, "filters": filters, "requests": options.requests}
    figures |= {"turns": options.turns}
    _print(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20, help="of every case (%(default)s)")
    parser.add_argument("--requests", type=int, default=500, help="of a turn (%(default)s)")
    parser.add_argument("--json", type=Path, help="a file for the figures, too")
    return parser.parse_args()


@contextmanager
def _copied(gateway: Gateway) -> Iterator[None]:
    """Run the two shadows: one as quick as stable, one that hangs."""
    started = [gateway.upstream("5", "copies"), gateway.upstream("6", "copies", DELAY=HANGS)]
    yield
    for name in started:
        gateway.kill(name)


def _measured(
    gateway: Gateway, cases: dict[str, Case], options: argparse.Namespace
) -> dict[str, Any]:
    """Ask every case in turn, and say what it took beside the one without."""
    models = {name: f"model-{index}" for index, name in enumerate(cases)}
    for name, case in cases.items():
        _serve(gateway, models[name], case)
    blocks: dict[str, list[Block]] = {name: [] for name in cases}
    for turn in range(options.turns + 1):  # The first one warms up.
        for name in _turned(list(cases), turn):
            blocks[name].append(_block(gateway, models[name], cases[name], options.requests))
    return {name: _summary(found[1:], blocks[BASE][1:]) for name, found in blocks.items()}


def _serve(gateway: Gateway, model: str, case: Case) -> None:
    gateway.borrow("3", model)
    for version in {copy["version"] for copy in case.changes.get("shadow", ())}:
        gateway.workloads[f"{model}-v{version}"] = gateway.workloads[f"copies-v{version}"]
        gateway.publish(version, model)
    gateway.apply(plan(model, None, **case.changes))


def _turned(names: list[str], turn: int) -> list[str]:
    first = turn % len(names)
    return names[first:] + names[:first]


def _block(gateway: Gateway, model: str, case: Case, requests: int) -> Block:
    before = _cpu(gateway)
    seconds = asyncio.run(_ask(gateway.port, model, case, requests))
    return Block(seconds, _cpu(gateway) - before)


async def _ask(port: int, model: str, case: Case, requests: int) -> list[float]:
    connection, seconds = Connection(lambda: port), []
    try:
        for number in range(requests):
            headers = {"x-unit-id": f"u{number}", **case.headers}
            began = time.perf_counter()
            answer = await connection.ask(f"/models/{model}/invocations", headers)
            seconds.append(time.perf_counter() - began)
            if (answer.code, answer.headers.get("x-model-version")) != (200, "3"):
                raise SystemExit(f"{model} was answered {answer.code} {answer.body!r}")
    finally:
        connection.close()
    return seconds


def _cpu(gateway: Gateway) -> float:
    """Return the CPU seconds of all of Envoy's threads."""
    tasks = Path(f"/proc/{gateway.processes['envoy'].pid}/task").glob("*/schedstat")
    return sum(int(task.read_text("ascii").split()[0]) for task in tasks) / 1e9


def _summary(blocks: Sequence[Block], base: Sequence[Block]) -> dict[str, float]:
    kinds: dict[str, tuple[Callable[[Block], float], float]] = {
        "p50": (lambda block: statistics.median(block.seconds), 1e3),
        "p99": (lambda block: statistics.quantiles(block.seconds, n=100)[98], 1e3),
        "cpu": (lambda block: block.cpu / len(block.seconds), 1e6),
    }
    found: dict[str, float] = {}
    for name, (of, scale) in kinds.items():
        ratios = [of(block) / of(without) for block, without in zip(blocks, base, strict=True)]
        found[name] = round(statistics.median(map(of, blocks)) * scale, 3)
        found[f"{name}Ratio"] = round(statistics.median(ratios), 2)
    return found


def _goals(figures: dict[str, Any]) -> dict[str, bool]:
    copied = [found for name, found in figures["shadows"].items() if name != BASE]
    costs = [found["cpuRatio"] for found in figures["filters"].values()]
    return {
        f"with a shadow p50 is at most {MOST_P50} times": all(
            found["p50Ratio"] <= MOST_P50 for found in copied
        ),
        f"with a shadow p99 is at most {MOST_P99} times": all(
            found["p99Ratio"] <= MOST_P99 for found in copied
        ),
        f"no filter takes more than {MOST_CPU} times the CPU": max(costs) <= MOST_CPU,
    }


def _print(figures: dict[str, Any]) -> None:
    say = sys.stdout.write
    say(
        f"{'':26} {'p50 ms':>9} {'times':>6} {'p99 ms':>9} {'times':>6} {'CPU us':>8} {'times':>6}\n"
    )
    for group in ("shadows", "filters"):
        for name, found in figures[group].items():
            p50, p99 = (f"{found[k]:9.3f} {found[f'{k}Ratio']:6.2f}" for k in ("p50", "p99"))
            say(f"{name:26} {p50} {p99} {found['cpu']:8.1f} {found['cpuRatio']:6.2f}\n")
    for name, met in _goals(figures).items():
        say(f"{'met   ' if met else 'MISSED'} {name}\n")


if __name__ == "__main__":
    sys.exit(main())

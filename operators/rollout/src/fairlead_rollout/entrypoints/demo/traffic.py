"""The demo's client: asks about held-out flights through the gateway, and reports what happened.

A request is one plane in one month with all its departures; the unit is the plane's tail number,
because a plane is what a planner follows, and its flights are alike. The outcome is the mean
squared error of the predicted probabilities, posted some seconds after the answer, as the truth
would come later. The calendar file says which month it is at least: the client skips to it.
"""

import argparse
import asyncio
import itertools
import json
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from fairlead_rollout.adapters.files import read_json, write_json
from fairlead_rollout.entrypoints.demo.story import NAME, OUTCOME

CONNECTIONS = 16
OUTCOME_DELAY = 1.5  # seconds after the answer
REPORT_EVERY = 0.25
BATCH = 1_000
MODEL_ERROR = "MODEL_ERROR"  # the serving process says: the model itself raised


@dataclass(kw_only=True)
class Tally:
    """What the client saw.

    Attributes:
        failed_by_model: Answers that say that the model itself raised.
        failed: All other requests that got no prediction; Fairlead's own failures.
        first_failure: What the first of `failed` was.
    """

    sent: int = 0
    answered: int = 0
    failed_by_model: int = 0
    failed: int = 0
    outcomes: int = 0
    month: int = 0
    first_failure: str = ""


class Client:
    """Sends requests at a steady pace over a fixed number of connections."""

    def __init__(self, gateway: httpx.AsyncClient, experiments: httpx.AsyncClient):
        self.tally = Tally()
        self._gateway = gateway
        self._experiments = experiments
        self._later: deque[tuple[float, dict[str, Any]]] = deque()

    async def run(
        self, requests: Iterator[dict[str, Any]], columns: list[str], rate: float
    ) -> None:
        """Send until cancelled; `rate` is in requests a second."""
        pace = _Pace(rate)

        async def work() -> None:
            for request in requests:
                await pace.wait()
                await self._ask(request, columns)

        await asyncio.gather(self._post_outcomes(), *(work() for _ in range(CONNECTIONS)))

    async def _ask(self, request: dict[str, Any], columns: list[str]) -> None:
        body = {"dataframe_split": {"columns": columns, "data": request["rows"]}}
        self.tally.sent += 1
        self.tally.month = request["month"]
        try:
            answer = await self._gateway.post(
                f"/models/{NAME}/invocations", json=body, headers={"x-unit-id": request["unit"]}
            )
        except httpx.HTTPError as error:
            self._note_failure(type(error).__name__)
            return
        if answer.status_code == httpx.codes.OK:
            self.tally.answered += 1
            self._remember(answer, request["late"])
        elif _error_code(answer) == MODEL_ERROR:
            self.tally.failed_by_model += 1
        else:
            self._note_failure(f"{answer.status_code} {answer.text[:200]}")

    def _note_failure(self, what: str) -> None:
        self.tally.failed += 1
        self.tally.first_failure = self.tally.first_failure or what

    def _remember(self, answer: httpx.Response, late: list[int]) -> None:
        predicted = [probabilities[1] for probabilities in answer.json()["predictions"]]
        errors = [(p - y) ** 2 for p, y in zip(predicted, late, strict=True)]
        outcome = {
            "inferenceId": answer.headers["x-inference-id"],
            "outcome": OUTCOME,
            "value": sum(errors) / len(errors),
            "observedAt": datetime.now(UTC).isoformat(),
        }
        self._later.append((time.monotonic() + OUTCOME_DELAY, outcome))

    async def _post_outcomes(self) -> None:
        """Post what has become known; what could not be posted is tried again."""
        while True:
            await asyncio.sleep(REPORT_EVERY)
            now = time.monotonic()
            due = [o for at, o in itertools.islice(self._later, BATCH) if at <= now]
            if not due:
                continue
            try:
                answer = await self._experiments.post("/v1/outcomes", json={"outcomes": due})
            except httpx.HTTPError:
                continue
            if answer.is_success:
                for _ in due:
                    self._later.popleft()
                self.tally.outcomes += len(due)


class _Pace:
    """Lets one through every so often, without catching up after a stall."""

    def __init__(self, rate: float):
        self._interval = 1 / rate
        self._next = time.monotonic()

    async def wait(self) -> None:
        now = time.monotonic()
        self._next = max(self._next + self._interval, now - self._interval)
        await asyncio.sleep(max(0.0, self._next - now))


def _error_code(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error_code"])
    except (ValueError, KeyError, TypeError):
        return ""


class Calendar:
    """The month of the story, as a file says."""

    def __init__(self, path: Path):
        self.month = 1
        self._path = path

    async def follow(self) -> None:
        """Look at the file over and over."""
        while True:
            self.month = (read_json(self._path) or {}).get("month", self.month)
            await asyncio.sleep(REPORT_EVERY)


def _requests(path: Path, calendar: Calendar) -> Iterator[dict[str, Any]]:
    """Return the held-out requests in time order from the calendar's month on, over and over."""
    while True:
        with path.open(encoding="utf-8") as lines:
            for request in map(json.loads, lines):
                if request["month"] >= calendar.month:
                    yield request


async def _report(client: Client, path: Path) -> None:
    while True:
        write_json(path, asdict(client.tally))
        await asyncio.sleep(REPORT_EVERY)


async def _run(arguments: argparse.Namespace) -> None:
    columns = json.loads((arguments.data / "columns.json").read_text("utf-8"))["columns"]
    limits = httpx.Limits(max_connections=CONNECTIONS)
    async with (
        httpx.AsyncClient(base_url=arguments.gateway, limits=limits, trust_env=False) as gateway,
        httpx.AsyncClient(base_url=arguments.experiments, trust_env=False) as experiments,
    ):
        client = Client(gateway, experiments)
        calendar = Calendar(arguments.calendar)
        requests = _requests(arguments.data / "requests.jsonl", calendar)
        work = asyncio.gather(
            calendar.follow(),
            client.run(requests, columns, arguments.rate),
            _report(client, arguments.report),
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            write_json(arguments.report, asdict(client.tally))


def main(argv: Sequence[str] | None = None) -> int:
    """Send until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--experiments", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--calendar", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=100.0)
    asyncio.run(_run(parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

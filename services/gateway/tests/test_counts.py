"""What clients saw is what is counted, whatever is killed: agent, experiments service, database."""

import http.client
import json
import os
import random
import statistics
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from free_ports import free_port
from gateway_client import Answer, ask_all
from gateway_lab import ROLLOUT, Gateway, plan, running, wait_for

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments/tests"))

from experiments_postgresql import PostgresServer
from experiments_process import Server

PATH = "/models/iris/invocations"
SEED = int(os.environ.get("FAIRLEAD_KILL_SEED", "20261130"))
UNANSWERED = (OSError, ValueError, http.client.HTTPException)
TURNS, REQUESTS, UNITS = 6, 300, 120
RECORD = {
    "model": "iris",
    "stable": "3",
    "candidate": "4",
    "startedAt": "2026-01-01T00:00:00Z",
    "state": "running",
    "steps": [{"index": 0, "weight": 5000}],
    "objective": {"outcome": "y", "better": "lower", "minimumEffect": 0.1},
    "guardrails": {"errors": {"margin": 0.25}},
}


@dataclass
class Seen:
    """What clients saw: who answered which request of which unit, and what they reported."""

    arms: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)

    def take(self, answers: list[Answer]) -> list[str]:
        """Note answers; return their inference ids."""
        assert {answer.code for answer in answers} == {200}
        ids = [answer.headers["x-inference-id"] for answer in answers]
        for key, answer in zip(ids, answers, strict=True):
            self.arms[key] = answer.headers["x-rollout-arm"]
        return ids

    def totals(self) -> dict[str, tuple[int, int, int, float]]:
        """Return requests, units, outcomes and the mean of the units' means, for each arm."""
        found = {}
        for arm in ("stable", "candidate"):
            mine = [key for key, of in self.arms.items() if of == arm]
            by_unit: dict[str, list[float]] = defaultdict(list)
            for key in mine:
                if key in self.values:
                    by_unit[self.units[key]].append(self.values[key])
            mean = statistics.fmean(statistics.fmean(of) for of in by_unit.values())
            told = sum(map(len, by_unit.values()))
            found[arm] = len(mine), len({self.units[key] for key in mine}), told, mean
        return found


class Lab:
    """A gateway that ships to a real experiments service over a real PostgreSQL."""

    def __init__(self, gateway: Gateway, database: PostgresServer, port: int) -> None:
        """Start the service."""
        self.gateway, self.database, self.port = gateway, database, port
        self.service = self.new_service()

    def new_service(self) -> Server:
        """Start the service at its port."""
        return Server(self.database.url(), port=self.port)

    def kill(self, victim: str) -> None:
        """Kill with SIGKILL."""
        if victim == "agent":
            self.gateway.kill("agent")
        elif victim == "service":
            self.service.close()
        else:
            server = psutil.Process(self.database.pid)
            processes = [server, *server.children()]
            for process in processes:
                process.kill()
            psutil.wait_procs(processes, timeout=60)

    def start(self, victim: str) -> None:
        """Start again what was killed, or what ended with it."""
        if victim == "agent":
            self.gateway.start_agent()
        elif victim == "service":
            self.service = self.new_service()
        else:
            self.database.start()

    def analysis(self) -> dict[str, Any]:
        """Ask for the analysis."""
        found: dict[str, Any] = self.service.call(f"/v1/rollouts/{ROLLOUT}/analysis")
        return found

    def counted(self) -> dict[str, tuple[int, int, int, float]]:
        """Return what is counted, for each arm."""
        found = self.analysis()
        return {
            arm: (of["requests"], of["units"], of["outcomes"], found["steps"][0][arm]["mean"])
            for arm, of in found["arms"].items()
        }

    def report(self, values: dict[str, float]) -> None:
        """Post outcomes until they are taken, as a client that keeps them."""
        outcomes = [
            {
                "inferenceId": key,
                "outcome": "y",
                "value": value,
                "observedAt": "2026-01-01T00:00:00Z",
            }
            for key, value in values.items()
        ]

        def is_taken() -> bool:
            try:
                answer = self.service.call("/v1/outcomes", {"outcomes": outcomes})
            except UNANSWERED:
                return False
            assert not answer["rejected"]
            return True

        if outcomes:
            wait_for(is_taken, 120)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Give a lab, its rollout at one half, and leave no process behind."""
    database, port = PostgresServer(), free_port()
    try:
        database.start()
        (tmp_path / "gateway").mkdir()
        options = ("--experiments-url", f"http://127.0.0.1:{port}", "--log-limit", "100000")
        with running(tmp_path / "gateway", *options) as gateway:
            made = Lab(gateway, database, port)
            try:
                made.service.wait()
                made.service.call(f"/v1/rollouts/{ROLLOUT}", RECORD, "PUT")
                gateway.upstream("3")
                gateway.upstream("4")
                gateway.apply(plan(weight=5000))
                yield made
            finally:
                made.service.close()
    finally:
        database.remove()


def test_counts_equal_what_clients_saw(lab: Lab) -> None:
    """All three killed in any order while requests, exposures and outcomes are under way."""
    rng, seen, told = random.Random(SEED), Seen(), {}
    for turn in range(TURNS):
        work = []
        for number in range(REQUESTS):
            key, unit = f"{turn}-{number}", f"u{rng.randrange(UNITS)}"
            seen.units[key] = unit
            work.append((PATH, {"x-inference-id": key, "x-unit-id": unit, "x-test-delay": "0.005"}))
        answers: list[Answer] = []
        threads = [
            threading.Thread(
                target=lambda w=work, a=answers: a.extend(ask_all(lab.gateway.port, w))
            ),
            threading.Thread(target=lab.report, args=(told,)),
        ]
        for thread in threads:
            thread.start()
        victims = rng.sample(["agent", "service", "database"], rng.randint(1, 3))
        for victim in victims:
            threads[0].join(rng.uniform(0, 0.4))
            lab.kill(victim)
        for victim in rng.sample(victims, len(victims)):
            threads[0].join(rng.uniform(0, 0.4))
            lab.start(victim)
        for thread in threads:
            thread.join(180)
            assert not thread.is_alive(), f"seed {SEED}, turn {turn}, {victims}"
        ids = seen.take(answers)
        seen.values |= told
        told = {key: float(rng.randrange(10)) for key in ids if rng.random() < 0.7}
    lab.report(told)
    seen.values |= told
    assert len(seen.arms) == TURNS * REQUESTS

    def is_all() -> bool:
        try:
            return sum(of[0] for of in lab.counted().values()) >= len(seen.arms)
        except UNANSWERED:
            return False

    wait_for(is_all, 120)
    assert_same(lab, seen)

    for victim in ("agent", "service"):
        lab.kill(victim)
        lab.start(victim)
    lab.service.wait()
    lab.report(seen.values)
    wait_for(lambda: lab.gateway.applied().get("iris"))
    assert_same(lab, seen)


def assert_same(lab: Lab, seen: Seen) -> None:
    """Compare what is counted with what clients saw."""
    counted, wanted = lab.counted(), seen.totals()
    for arm, expected in wanted.items():
        assert counted[arm][:3] == expected[:3], (SEED, json.dumps(lab.analysis()["arms"]))
        assert counted[arm][3] == pytest.approx(expected[3], rel=1e-12)

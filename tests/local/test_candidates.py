"""Several candidates by alias on one machine, with the real Envoy, MLflow and serving processes."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]
Stack = Any
NAME = "flight-delay-eu"
ALIASES = ("challenger-a", "challenger-b")


@pytest.fixture
def challenged(stack: Stack, spec: Any) -> Iterator[Stack]:
    """Have version 1 serve, and two aliases name candidates."""
    stack.settle_on("1")
    candidates = [{"alias": alias} for alias in ALIASES]
    stack.apply({**spec, "registry": {"candidates": candidates}})
    yield stack
    for alias in ALIASES:
        stack.unalias(alias)
    stack.apply()


class Outcomes:
    """Reports the outcome of each unit once: better by 1 for one version's."""

    def __init__(self, stack: Stack, load: Any, good: str) -> None:
        """Remember whose they are."""
        self._stack, self._load, self._good = stack, load, good
        self._told: set[tuple[str, str]] = set()

    def decide(self) -> bool:
        """Report of the units that are new; say whether the good version has become stable."""
        versions = {r["id"]: version for version, r in self._stack.trials().items()}
        news = [key for key in list(self._load.units) if key[0] in versions]
        self._report({key: versions[key[0]] for key in news if key not in self._told})
        return bool(self._stack.status()["stable"] == self._good)

    def _report(self, units: dict[tuple[str, str], str]) -> None:
        self._told |= units.keys()
        outcomes = [self._outcome(key, version) for key, version in units.items()]
        if outcomes:
            url = f"{self._stack.url('experiments')}/v1/outcomes"
            answer = httpx.post(url, json={"outcomes": outcomes}, timeout=30).raise_for_status()
            assert answer.json()["rejected"] == []

    def _outcome(self, key: tuple[str, str], version: str) -> dict[str, Any]:
        is_better = version == self._good and self._load.units[key] == "candidate"
        return {
            "model": NAME,
            "unit": key[1],
            "outcome": "score",
            "value": int(key[1].rpartition("-")[2]) % 5 / 10 + is_better,
            "observedAt": datetime.now(UTC).isoformat(),
        }


def ended(stack: Stack, version: str) -> tuple[str, str]:
    """Return how a version's last rollout ended, and why."""
    last = [r for r in stack.status()["history"] if r["candidate"] == version][-1]
    return last["state"], last["reason"]


def test_the_better_of_two_challengers_becomes_stable(
    challenged: Stack, until: Callable[..., Any]
) -> None:
    """Each has its own units, the better one wins, MLflow is told, and no request fails."""
    stack = challenged
    with stack.load(200, 4_000) as load:
        for alias, version in zip(ALIASES, ("2", "3"), strict=True):
            stack.alias(alias, version)
        until(lambda: stack.lanes() == {"2": 5_000, "3": 5_000}, what="both are at the last step")
        until(stack.is_applied)
        until(Outcomes(stack, load, good="3").decide, "version 3 has won")
        stack.await_version("3")
        until(load.has_sent(200))
    assert load.failures == []
    assert load.moved == []
    met = {(unit, version) for unit, version in _candidates_met(stack, load)}
    assert len(met) == len({unit for unit, _ in met})
    assert ended(stack, "3") == ("promoted", "ObjectiveBetter")
    assert ended(stack, "2") == ("aborted", "OtherPromoted")
    until(lambda: stack.version("3")["current_stage"] == "Production")
    until(lambda: stack.tags("2").get("rollout.status") == "aborted")
    assert "version 3 was promoted" in stack.tags("2")["rollout.reason"]
    told = stack.run("explain", NAME).stdout
    assert "serves version 3" in told


def _candidates_met(stack: Stack, load: Any) -> list[tuple[str, str]]:
    """Return the units that have met a candidate in the last two rollouts, each with its version."""
    last = {r["id"]: r["candidate"] for r in stack.status()["history"][-2:]}
    seen = load.units.items()
    return [(u, last[r]) for (r, u), arm in seen if r in last and arm == "candidate"]


def test_a_broken_challenger_is_dropped_and_the_other_still_wins(
    challenged: Stack, until: Callable[..., Any]
) -> None:
    """It never gets a request, and the other one goes on in its lane, also when the controller is killed."""
    stack = challenged
    with stack.load(200, 4_000) as load:
        for alias, version in zip(ALIASES, ("4", "2"), strict=True):
            stack.alias(alias, version)
        until(lambda: stack.tags("4").get("rollout.status") == "aborted")
        until(lambda: stack.lanes() == {"2": 5_000}, what="version 2 is at the last step")
        stack.kill("controller/0")
        assert stack.run("abort", NAME, "--candidate", "4").returncode == 1
        until(Outcomes(stack, load, good="2").decide, "version 2 has won")
        stack.await_version("2")
        until(load.has_sent(200))
    assert load.failures == []
    assert load.moved == []
    assert "4" not in load.first
    assert ended(stack, "4") == ("aborted", "CandidateFailed")
    assert ended(stack, "2") == ("promoted", "ObjectiveBetter")

"""Rollout policies on one machine, with the real Envoy, MLflow and serving processes."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]
Stack = Any
NAME = "flight-delay-eu"
MODEL = "Flight Delay (EU) – 2026.v1"
CALLERS = 1_200  # An objective wants 500 units of each arm; this many are split evenly enough.
PREDICTED = "fairlead_serving_merged_requests_sum"


# Two processes of a version, and none of one that serves no more.
SERVER: dict[str, Any] = {"replicas": 2, "keep": {"versions": 0}}
STEP = {"weight": 20, "for": "1h"}  # Longer than any test: what ends it is what is tested.


@pytest.fixture
def under(stack: Stack) -> Iterator[Callable[..., Stack]]:
    """Return what has version 1 serve, and the next one put on trial by these rules."""

    def apply(*steps: dict[str, Any], server: dict[str, Any] = SERVER, **rules: Any) -> Stack:
        stack.settle_on("1")
        rollout = {"steps": steps, "minimumRequests": 10, "guardrails": {}, **rules}
        stack.apply({"model": MODEL, "rollout": rollout, "server": server})
        return stack

    yield apply
    if stack.is_on_trial():
        stack.run("abort", NAME)
    stack.promote(stack.status()["stable"])
    stack.apply()


def done(stack: Stack, verb: str) -> None:
    """Do something by hand, with the command."""
    command = stack.run(verb, NAME)
    assert command.returncode == 0, command.stderr


def predictions(stack: Stack, version: str) -> float:
    """Return how many predictions a version's processes have made."""
    prefix = stack.version_prefix(version)
    ports = [p["port"] for key, p in stack.processes().items() if key.startswith(prefix)]
    total = 0.0
    for port in ports:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
        lines = [line for line in text.splitlines() if line.startswith(PREDICTED)]
        total += sum(float(line.rsplit(" ", 1)[1]) for line in lines)
    return total


def set_tag(stack: Stack, version: str, value: str) -> None:
    """Approve as a person does in MLflow."""
    url = f"{stack.url('mlflow')}/api/2.0/mlflow/model-versions/set-tag"
    tag = {"name": MODEL, "version": version, "key": "rollout.approve", "value": value}
    httpx.post(url, json=tag, timeout=30).raise_for_status()


def told_alike(stack: Stack, until: Callable[..., Any]) -> None:
    """Check that status, API, explain and MLflow ask the same of a person."""
    rollout, status = stack.rollout(), stack.status()
    url = f"{stack.url('experiments')}/v1/rollouts/{rollout['id']}/decisions"

    def asked() -> list[dict[str, Any]]:
        kept = httpx.get(url, timeout=30).raise_for_status().json()["decisions"]
        return [decision for decision in kept if decision["verdict"] == "awaiting"]

    until(lambda: len(asked()) == 2, what="both questions are kept")
    last = asked()[-1]
    assert (last["reason"], last["message"]) == (rollout["reason"], rollout["message"])
    (progressing,) = [c for c in status["conditions"] if c["type"] == "Progressing"]
    assert (progressing["reason"], progressing["message"]) == (last["reason"], last["message"])
    told = stack.run("explain", NAME).stdout
    assert [d["summary"] for d in asked() if d["summary"] not in told] == []
    wanted = f"{last['reason']}: {last['message']}"
    until(lambda: stack.tags("2")["rollout.reason"] == wanted, what="MLflow has the question")


def test_a_candidate_is_shadowed_and_then_goes_as_far_as_people_approve(
    under: Callable[..., Stack], until: Callable[..., Any]
) -> None:
    """Copies only, then a tag in MLflow, a weight, and a person's word; no request fails."""
    steps = ({"shadow": 100, "until": "approved"}, {"weight": 20, "for": "2s"})
    stack = under(*steps, promotion="approved")
    with stack.load(40) as load:
        stack.promote("2")
        until(lambda: stack.rollout().get("awaiting"), what="an approval is asked for")
        before = predictions(stack, "2")
        until(lambda: predictions(stack, "2") > before, what="version 2 gets copies")
        until(load.has_sent(100))
        assert "2" not in load.first
        assert stack.weight() == 0
        until(lambda: stack.rollout().get("approvalSeen") is not None)
        set_tag(stack, "2", "true")
        stack.await_weight(2_000)
        until(lambda: stack.tags("2")["rollout.approve"].startswith("counted for step 0"))
        until(lambda: "2" in load.first, what="version 2 answers")
        until(lambda: stack.rollout().get("awaiting"), what="the promotion is asked for")
        stack.kill("controller/0")
        until(load.has_sent(100))
        assert stack.status()["stable"] == "1"
        told_alike(stack, until)
        done(stack, "approve")
        stack.await_version("2")
        until(load.has_sent(100))
    assert load.failures == []
    assert load.moved == []
    assert stack.rollout()["reason"] == "ApprovedByPerson"
    nothing = stack.run("approve", NAME)
    assert (nothing.returncode, "no version is on trial" in nothing.stderr) == (1, True)


def report(stack: Stack, load: Any, rollout: str) -> None:
    """Report an outcome of every unit the load has met: the candidate's are better by 1."""
    now = datetime.now(UTC).isoformat()
    outcomes = [
        {"unit": unit, "model": NAME, "outcome": "score", "value": value, "observedAt": now}
        for number, ((seen, unit), arm) in enumerate(sorted(load.units.copy().items()))
        if seen == rollout
        for value in [(arm == "candidate") + number % 10 / 10]
    ]
    url = f"{stack.url('experiments')}/v1/outcomes"
    answer = httpx.post(url, json={"outcomes": outcomes}, timeout=30).raise_for_status().json()
    assert (answer["accepted"], answer["rejected"]) == (len(outcomes), [])


def test_a_split_holds_its_weight_whatever_is_found_until_a_person_ends_it(
    under: Callable[..., Stack], until: Callable[..., Any]
) -> None:
    """An objective that is clearly better promotes nothing, nor does a new controller."""
    objective = {"outcome": "score", "better": "higher", "minimumEffect": 0.1}
    step = {"weight": 50, "until": "stopped"}
    stack = under(step, objective=objective, maxDuration="28d")
    with stack.load(200, CALLERS) as load:
        stack.promote("2")
        stack.await_weight(5_000)
        rollout = stack.rollout()["id"]
        until(lambda: sum(key[0] == rollout for key in list(load.units)) == CALLERS)
        report(stack, load, rollout)
        until(lambda: stack.analysis(rollout)["verdict"] == "better", what="it is better")
        stack.kill("controller/0")
        until(load.has_sent(200))
        told = stack.run("explain", NAME).stdout
        assert (stack.weight(), stack.status()["stable"]) == (5_000, "1")
        assert (stack.rollout()["id"], stack.rollout()["state"]) == (rollout, "running")
        assert "fairlead promote" in told
        done(stack, "promote")
        stack.await_version("2")
        until(load.has_sent(100))
    assert load.failures == []
    assert load.moved == []
    assert stack.rollout()["reason"] == "PromotedByPerson"


def test_a_version_that_arrives_waits_until_the_trial_is_decided(
    under: Callable[..., Stack], until: Callable[..., Any]
) -> None:
    """The trial goes on under a new controller, is promoted, and the next one begins."""
    stack = under(STEP, onNewVersion="queue")
    with stack.load() as load:
        stack.promote("2")
        stack.await_weight(2_000)
        first = stack.rollout()["id"]
        stack.promote("3")
        until(lambda: stack.tags("3").get("rollout.status") == "pending", what="version 3 waits")
        stack.kill("controller/0")
        until(load.has_sent(100))
        assert (stack.rollout()["id"], stack.weight()) == (first, 2_000)
        assert (stack.status()["waiting"], "3" in load.first) == ("3", False)
        done(stack, "promote")
        until(lambda: stack.rollout()["candidate"] == "3", what="version 3 has its turn")
        stack.await_weight(2_000)
        until(lambda: "3" in load.first, what="version 3 answers")
        assert (stack.status()["stable"], stack.status()["waiting"]) == ("2", None)
        done(stack, "abort")
        until(load.has_sent(100))
    assert load.failures == []
    assert load.moved == []


def test_a_version_that_arrives_is_refused_until_a_person_wants_it(
    under: Callable[..., Stack], until: Callable[..., Any]
) -> None:
    """It stays out after the trial too, and `fairlead retry` puts it on trial."""
    stack = under(STEP, onNewVersion="refuse")
    with stack.load() as load:
        stack.promote("2")
        stack.await_weight(2_000)
        first = stack.rollout()["id"]
        stack.promote("3")
        until(lambda: stack.tags("3").get("rollout.status") == "refused", what="it is refused")
        assert (stack.rollout()["id"], stack.weight()) == (first, 2_000)
        done(stack, "abort")
        stack.await_version("1")
        stack.kill("controller/0")
        until(load.has_sent(200))
        assert stack.rollout()["id"] == first
        assert "3" not in load.first
        done(stack, "retry")
        until(lambda: "3" in load.first, what="version 3 answers")
        assert stack.rollout()["candidate"] == "3"
        done(stack, "abort")
        until(load.has_sent(100))
    assert load.failures == []
    assert load.moved == []


@pytest.mark.parametrize("way", ["command", "pointer"])
def test_an_immediate_rollback_takes_all_traffic_without_a_step(
    under: Callable[..., Stack], until: Callable[..., Any], way: str
) -> None:
    """By the command, which moves MLflow's pointer, or by a person who moves it back."""
    keep = {"replicas": 2, "keep": {"versions": 1, "for": "1h"}}
    stack = under(STEP, rollback="immediate", server=keep)
    with stack.load() as load:
        stack.promote("2")
        stack.await_weight(2_000)
        done(stack, "promote")
        stack.await_version("2")
        kept = set(stack.pids(stack.version_prefix("1")).values())
        if way == "command":
            done(stack, "rollback")
        else:
            stack.promote("1")
        until(lambda: stack.rollout()["candidate"] == "1", what="version 1 is asked for")
        stack.await_version("1")
        until(load.has_sent(100))
    rollout = stack.rollout()
    assert load.failures == []
    assert load.moved == []
    assert (rollout["state"], rollout["reason"]) == ("promoted", "RolledBack")
    assert [key for key in load.answers if key[0] == rollout["id"] and key[1] == "candidate"] == []
    assert set(stack.pids(stack.version_prefix("1")).values()) == kept
    assert stack.version("1")["current_stage"] == "Production"


def test_without_the_fast_path_a_rollback_is_put_on_trial(
    under: Callable[..., Stack], until: Callable[..., Any]
) -> None:
    """The older version gets the steps of any other, and moving the pointer again ends it."""
    stack = under(STEP)
    with stack.load() as load:
        stack.promote("2")
        stack.await_weight(2_000)
        done(stack, "promote")
        stack.await_version("2")
        done(stack, "rollback")
        until(lambda: stack.rollout()["candidate"] == "1", what="version 1 is put on trial")
        stack.await_weight(2_000)
        until(load.has_sent(100))
        assert stack.status()["stable"] == "2"
        stack.promote("2")
        until(lambda: stack.rollout()["reason"] == "ProductionMovedBack")
        stack.await_version("2")
        until(load.has_sent(100))
    assert load.failures == []
    assert load.moved == []

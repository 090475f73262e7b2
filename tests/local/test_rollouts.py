"""Rollouts on one machine under steady load: nobody notices, whatever happens."""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]
Stack = Any
NAME = "flight-delay-eu"


def test_promote_ramp_supersede_promote_abort_without_a_failed_request(
    stack: Stack, until: Callable[..., Any]
) -> None:
    """Start, each step, supersede, promote and abort: zero failures, and units stay."""
    stack.settle_on("1")
    with stack.load() as load:
        stack.promote("2")
        stack.await_weight(2_000)
        stack.await_weight(5_000)
        until(load.has_sent(200))
        stack.promote("3")
        until(lambda: stack.rollout().get("candidate") == "3", what="version 3 supersedes")
        stack.await_weight(5_000)
        assert stack.run("promote", NAME).returncode == 0
        stack.await_version("3")
        until(load.has_sent(200))
        stack.promote("2")
        stack.await_weight(2_000)
        assert stack.run("abort", NAME).returncode == 0
        until(lambda: stack.weight() == 0)
        until(load.has_sent(400))
        stack.promote("3")
    assert load.failures == []
    assert load.moved == []
    history = [(r["candidate"], r["state"]) for r in stack.status()["history"]]
    assert history[-3:] == [("2", "superseded"), ("3", "promoted"), ("2", "aborted")]


def test_the_first_request_comes_within_5_s_of_the_promotion_beyond_loading(
    stack: Stack, until: Callable[..., Any]
) -> None:
    """From the promotion to the candidate's first answer, less its own start."""
    stack.settle_on("1")
    prefix = stack.version_prefix("3")
    until(lambda: not stack.pids(prefix), what="version 3 is gone")
    with stack.load() as load:
        promoted = stack.promote("3")
        pid = until(lambda: list(stack.pids(prefix).values()))[0]
        started = psutil.Process(pid).create_time()
        until(lambda: all(p["ready"] for k, p in stack.processes().items() if k.startswith(prefix)))
        ready = time.time()
        until(lambda: "3" in load.first, what="version 3 has answered")
    assert load.first["3"] - promoted - (ready - started) <= 5.0
    stack.run("abort", NAME)
    stack.promote("1")


def test_kill_9_of_any_process_fails_no_request(stack: Stack, until: Callable[..., Any]) -> None:
    """A stable replica, the candidate, controller, agent and experiments, each killed on trial."""
    stack.settle_on("1")
    with stack.load() as load:
        stack.promote("2")
        stack.await_weight(5_000)
        rollout = stack.rollout()["id"]
        stable, candidate = (stack.pids(stack.version_prefix(v)) for v in ("1", "2"))
        for key in (min(stable), min(candidate), "controller/0", "agent/0"):
            stack.kill(key)
            until(load.has_sent(100))
        stack.kill("experiments/0")
        until(load.has_sent(100))
        assert stack.rollout()["id"] == rollout
        assert stack.run("promote", NAME).returncode == 0
        stack.await_version("2")
        until(load.has_sent(200))
    assert load.failures == []
    assert load.moved == []
    _counted_once(stack, load, rollout, until)


def _counted_once(stack: Stack, load: Any, rollout: str, until: Callable[..., Any]) -> None:
    """Every answer of a rollout the client saw is one request of the analysis."""
    seen = {
        arm: sum(n for (r, a, _), n in load.answers.items() if (r, a) == (rollout, arm))
        for arm in ("stable", "candidate")
    }

    def counted() -> dict[str, int]:
        arms = stack.analysis(rollout)["arms"]
        return {arm: arms[arm]["requests"] for arm in seen}

    until(lambda: counted() == seen, f"{counted()} becomes {seen}")
    assert stack.analysis(rollout)["arms"]["candidate"]["fallbacks"] > 0


def test_mlflow_stopped_for_a_minute_fails_no_request(
    stack: Stack, until: Callable[..., Any]
) -> None:
    """The registry hangs for a minute mid-rollout: traffic, steps and an abort go on."""
    stack.settle_on("1")
    with stack.load(60) as load:
        stack.promote("2")
        stack.await_weight(2_000)
        group = os.getpgid(stack.pids("mlflow")["mlflow/0"])
        os.killpg(group, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            stack.await_weight(5_000)
            conditions = lambda: {c["type"] for c in stack.status()["conditions"]}  # noqa: E731
            until(lambda: "RegistryUnavailable" in conditions())
            stack.kill(min(stack.pids(stack.version_prefix("1"))))
            assert stack.run("abort", NAME).returncode == 0
            assert stack.weight() == 0
            until(lambda: time.monotonic() - stopped > 60)
        finally:
            os.killpg(group, signal.SIGCONT)
        until(lambda: "RegistryUnavailable" not in conditions())
        until(lambda: stack.tags("2").get("rollout.status") == "aborted")
    assert load.failures == []
    stack.promote("1")


def test_a_version_that_cannot_load_never_gets_traffic(
    stack: Stack, until: Callable[..., Any]
) -> None:
    """It is aborted by itself, with its reason in status, MLflow and explain."""
    stack.settle_on("1")
    with stack.load() as load:
        stack.promote("4")
        until(lambda: stack.rollout().get("candidate") == "4")
        until(lambda: stack.rollout()["state"] == "aborted")
        until(load.has_sent(50))
    assert load.failures == []
    assert "4" not in load.first
    until(lambda: stack.tags("4").get("rollout.status") == "aborted")
    assert "CandidateFailed" in stack.tags("4")["rollout.reason"]
    assert "RuntimeError" in stack.run("explain", NAME).stdout
    stack.promote("1")


def test_the_gateway_answers_bad_input_with_4xx_that_name_the_field(stack: Stack) -> None:
    """Bad requests get a clear refusal through the gateway; never a 5xx, never an echo."""
    stack.settle_on("1")
    secret = "do-not-echo-4711"  # noqa: S105
    bad: dict[str, Any] = {
        "wrong type": {"json": {"dataframe_split": {"columns": ["x"], "data": [[secret]]}}},
        "missing column": {"json": {"dataframe_split": {"columns": ["y"], "data": [[secret]]}}},
        "not JSON": {"content": b"{" + secret.encode()},
        "empty": {"content": b""},
        "deep": {"content": b"[" * 100_000},
        "large": {"content": b"x" * (11 * 1024 * 1024)},
        "content type": {"content": secret.encode(), "headers": {"content-type": "image/png"}},
    }
    with httpx.Client(base_url=stack.url("gateway"), trust_env=False, timeout=30) as http:
        for what, request in bad.items():
            headers = {"content-type": "application/json", "x-unit-id": "u"}
            request["headers"] = headers | request.get("headers", {})
            answer = http.post(f"/models/{NAME}/invocations", **request)
            assert 400 <= answer.status_code < 500, (what, answer.status_code, answer.text)
            assert secret not in answer.text, what
            assert answer.json()["message"], what
        unknown = http.post("/models/nobody/invocations", json={})
        assert unknown.status_code == 404
        answer = http.post(f"/models/{NAME}/invocations", json=bad["wrong type"]["json"])
        assert "x" in answer.json()["message"]


def test_a_lost_status_takes_no_traffic_and_is_rebuilt(
    stack: Stack, until: Callable[..., Any]
) -> None:
    """The status vanishes mid-rollout while agent and controller are killed: nobody notices."""
    stack.settle_on("1")
    with stack.load() as load:
        stack.promote("2")
        stack.await_weight(5_000)
        before = stack.rollout()
        until(lambda: not stack.status()["writeback"])
        until(load.has_sent(100))
        (stack.home / "served-models" / NAME / "status.json").unlink()
        stack.kill("agent/0")
        stack.kill("controller/0")
        stack.await_weight(5_000)
        until(load.has_sent(100))
    assert load.failures == []
    assert load.moved == []
    assert (stack.rollout()["id"], stack.status()["stable"]) == (before["id"], "1")
    stack.run("abort", NAME)
    stack.promote("1")


def test_explain_the_api_the_page_and_mlflow_tell_one_story(
    stack: Stack, until: Callable[..., Any]
) -> None:
    """A rollout that a person aborts: the same decisions wherever one reads them."""
    stack.settle_on("1")
    with stack.load() as load:
        stack.promote("2")
        stack.await_weight(2_000)
        until(load.has_sent(200))
        assert stack.run("abort", NAME).returncode == 0
    until(lambda: not stack.status()["writeback"])
    rollout = stack.rollout()["id"]
    url = f"{stack.url('experiments')}/v1/rollouts/{rollout}/decisions"
    kept = httpx.get(url, timeout=30).json()["decisions"]
    changes = [decision for decision in kept if decision["verdict"] != "hold"]
    first, *steps, last = (decision["verdict"] for decision in changes)
    assert (first, set(steps), last) == ("started", {"step"}, "aborted")
    assert len(kept) > len(changes)
    explained = stack.run("explain", NAME).stdout
    assert [d["summary"] for d in changes if d["summary"] not in explained] == []
    assert json.loads(stack.artifact("2", "rollout.json"))["decisions"] == kept
    assert stack.artifact("2", "rollout.html") == stack.run("report", NAME, "--output", "-").stdout
    assert "Rollout aborted" in stack.version("2")["description"]
    stack.promote("1")

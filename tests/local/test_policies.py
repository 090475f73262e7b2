"""Rollout policies on one machine, with the real Envoy, MLflow and serving processes."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.local, pytest.mark.timeout(300)]
Stack = Any
NAME = "flight-delay-eu"
MODEL = "Flight Delay (EU) – 2026.v1"
PREDICTED = "fairlead_serving_merged_requests_sum"


@pytest.fixture
def careful(stack: Stack) -> Iterator[Stack]:
    """Have version 1 serve, and the next one shadowed first and promoted by people only."""
    stack.settle_on("1")
    rollout = {
        "steps": [{"shadow": 100, "until": "approved"}, {"weight": 20, "for": "2s"}],
        "promotion": "approved",
        "minimumRequests": 10,
        "guardrails": {},
    }
    server = {"replicas": 2, "keep": {"versions": 0}}
    stack.apply({"model": MODEL, "rollout": rollout, "server": server})
    yield stack
    if stack.rollout().get("state") in {"pending", "running"}:
        stack.run("abort", NAME)
    stack.promote(stack.status()["stable"])
    stack.apply()


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


def test_a_candidate_is_shadowed_and_then_goes_as_far_as_people_approve(
    careful: Stack, until: Callable[..., Any]
) -> None:
    """Copies only, then a tag in MLflow, a weight, and a person's word; no request fails."""
    stack = careful
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
        approved = stack.run("approve", NAME)
        assert approved.returncode == 0, approved.stderr
        stack.await_version("2")
        until(load.has_sent(100))
    assert load.failures == []
    assert load.moved == []
    assert stack.rollout()["reason"] == "ApprovedByPerson"
    nothing = stack.run("approve", NAME)
    assert (nothing.returncode, "no version is on trial" in nothing.stderr) == (1, True)

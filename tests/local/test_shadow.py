"""A shadow on one machine: copies, the comparison, and the gate before the first step."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]
Stack = Any
NAME = "flight-delay-eu"
REQUESTS = 400
GATE = {"maxDisagreement": 0.02, "minimumPairs": 100}


@pytest.fixture
def shadowed(
    stack: Stack, disagreeing: str, spec: Mapping[str, Any], until: Callable[..., Any]
) -> Iterator[str]:
    """Version 1 serves, and a version that disagrees on one request in ten gets copies of all."""
    stack.settle_on("1")
    stack.stage(disagreeing)
    patient = {**spec, "traffic": {"timeout": "30s"}}  # What is tested is not how fast it is.
    stack.apply({**patient, "registry": {"shadow": {"stage": "Staging"}}})
    wanted = [{"version": disagreeing, "share": 10_000}]
    until(lambda: (stack.status().get("traffic") or {}).get("shadow") == wanted)
    until(stack.is_applied)
    yield disagreeing
    if stack.is_on_trial():
        stack.run("abort", NAME)
    stack.apply(spec)
    stack.promote("1")


def ask(stack: Stack, path: str, bodies: list[Any]) -> list[httpx.Response]:
    """Send predictions one after the other."""
    headers = {"x-unit-id": "u"}
    with httpx.Client(base_url=stack.url("gateway"), trust_env=False, timeout=30) as http:
        return [http.post(path, json=body, headers=headers) for body in bodies]


def rows(x: float) -> dict[str, Any]:
    """The body of a request of one row."""
    return {"dataframe_split": {"columns": ["x"], "data": [[x]]}}


def test_what_a_shadow_predicts_is_compared_and_gates_its_promotion(
    stack: Stack, shadowed: str, spec: Mapping[str, Any], until: Callable[..., Any]
) -> None:
    """Every request is one pair with the right agreement; the gate aborts, or lets it answer."""
    bodies = [rows(float(k % 10)) for k in range(REQUESTS)]
    answers = ask(stack, f"/models/{NAME}/invocations", bodies)
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert {answer.headers["x-model-version"] for answer in answers} == {"1"}
    assert {answer.json()["predictions"][0] for answer in answers} == {1.0}

    until(lambda: [c["pairs"] for c in stack.comparisons(shadowed)] == [REQUESTS])
    (compared,) = stack.comparisons(shadowed)
    assert (compared["stable"], compared["shadow"]) == ("1", shadowed)
    assert (compared["compared"], compared["disagreed"]) == (REQUESTS, REQUESTS // 10)
    assert compared["numbers"]["mean"] == pytest.approx(0.2)
    assert compared["numbers"]["quantiles"]["95"] == 2.0
    assert stack.comparisons(shadowed, tolerance=2.0)[0]["disagreed"] == 0
    told = stack.run("explain", NAME).stdout
    assert f"Version {shadowed} gets copies of 100 % of the predictions" in told
    assert "disagrees on 10.00%" in told

    gated = {**spec["rollout"], "guardrails": {"shadow": GATE}}
    stack.apply({**spec, "rollout": gated})
    stack.promote(shadowed)
    until(lambda: stack.rollout().get("candidate") == shadowed)
    until(lambda: stack.rollout()["state"] == "aborted")
    assert stack.rollout()["reason"] == "ShadowWorse"
    assert stack.analysis(stack.rollout()["id"])["shadow"]["disagreed"] == REQUESTS // 10
    until(lambda: "ShadowWorse" in stack.tags(shadowed).get("rollout.reason", ""))

    tolerant = {**gated, "guardrails": {"shadow": {**GATE, "tolerance": 2.0}}}
    stack.apply({**spec, "rollout": tolerant})
    assert stack.run("retry", NAME).returncode == 0
    stack.await_weight(2_000)


def test_predictions_by_the_open_inference_protocol_are_compared_too(
    stack: Stack, shadowed: str, until: Callable[..., Any]
) -> None:
    """Which protocol asks makes no difference to the comparison."""
    tensors = [
        {"inputs": [{"name": "x", "shape": [2, 1], "datatype": "FP64", "data": [x, x]}]}
        for x in (1.0, 9.0)
    ]
    answers = ask(stack, f"/v2/models/{NAME}/infer", tensors * 5)
    assert {answer.status_code for answer in answers} == {200}

    until(lambda: [c["pairs"] for c in stack.comparisons(shadowed)] == [10])
    (compared,) = stack.comparisons(shadowed)
    assert (compared["compared"], compared["disagreed"], compared["unread"]) == (10, 5, 0)

"""Envoy and `assign` give every unit to the same arm."""

import json
import urllib.parse

import pytest
from client import Answer, ask_all, seen
from conftest import Gateway, plan

from fairlead_gateway.domain.assignment import assign
from fairlead_gateway.domain.plan import parse_plan

PATH = "/models/iris/invocations"
ODD = ["a b", "ü-1", "x%41", "a+b", "a&b=c", "a/b?c", "日本", "a,b", "a'b", "#1", "1" * 300]


def arms_of(answers: list[Answer]) -> dict[str, str]:
    """Map the inference id, which the test gave, to the arm."""
    return {a.headers["x-inference-id"]: a.headers["x-rollout-arm"] for a in answers}


@pytest.mark.parametrize("weight", [100, 1000, 5000])
def test_ten_thousand_units_match(gateway: Gateway, weight: int) -> None:
    """At 1, 10 and 50 percent no unit of 10,000 is given to another arm than `assign` says."""
    gateway.upstream("3")
    gateway.upstream("4")
    document = plan(weight=weight)
    gateway.apply(document)
    units = [f"N{i}" for i in range(10_000)]
    work = [(PATH, {"x-unit-id": unit, "x-inference-id": unit}) for unit in units]
    got = arms_of(ask_all(gateway.port, work))
    parsed = parse_plan(document)
    assert got == {unit: str(assign(parsed, unit)) for unit in units}
    assert abs(list(got.values()).count("candidate") - weight) < 4 * (weight**0.5)


def test_candidate_never_loses_a_unit(iris: Gateway) -> None:
    """While the weight grows, units only ever come to the candidate."""
    units = [f"u{i}" for i in range(600)]
    work = [(PATH, {"x-unit-id": unit, "x-inference-id": unit}) for unit in units]
    before: set[str] = set()
    for weight in (100, 1000, 5000, 10_000):
        iris.apply(plan(weight=weight))
        arms = arms_of(ask_all(iris.port, work))
        now = {unit for unit, arm in arms.items() if arm == "candidate"}
        assert before <= now
        before = now
    assert before == set(units)


def test_header_cookie_and_query_agree(iris: Gateway) -> None:
    """The same value is the same unit, wherever it is found, and is logged as it was hashed."""
    specs = {"iris": {"header": "x-unit-id"}, "by-c": {"cookie": "Sid"}, "by-q": {"query": "u.id"}}
    for model, unit in specs.items():
        iris.upstream("3", model)
        iris.upstream("4", model)
        iris.apply(plan(model, 5000, unit=unit))
    units = [f"N{i}" for i in range(500)] + ODD
    for index, unit in enumerate(units):
        query = urllib.parse.quote(unit, safe="")
        work = [
            (PATH, {"x-unit-id": unit, "x-inference-id": f"h{index}"}),
            (
                "/models/by-c/invocations",
                {"cookie": f'sid=no; Sid="{unit}"; z=1', "x-inference-id": f"c{index}"},
            ),
            (f"/models/by-q/invocations?a=1&u.id={query}&b=2", {"x-inference-id": f"q{index}"}),
        ]
        arms = arms_of(ask_all(iris.port, work, 1)) if index >= 500 else {}
        wanted = str(assign(parse_plan(plan(weight=5000)), unit))
        assert set(arms.values()) <= {wanted}, unit
    work = []
    for index, unit in enumerate(units[:500]):
        work += [
            (PATH, {"x-unit-id": unit, "x-inference-id": f"h{index}"}),
            ("/models/by-c/invocations", {"cookie": f"Sid={unit}", "x-inference-id": f"c{index}"}),
            (f"/models/by-q/invocations?u.id={unit}", {"x-inference-id": f"q{index}"}),
        ]
    arms = arms_of(ask_all(iris.port, work))
    for index, unit in enumerate(units[:500]):
        wanted = str(assign(parse_plan(plan(weight=5000)), unit))
        assert {arms[f"{kind}{index}"] for kind in "hcq"} == {wanted}
    logged = wait_logged(iris, len(units) * 3 - 500 * 0 + 0)
    for line in logged:
        assert line["unit"] == units[int(line["id"][1:])], line
        assert line["arm"] == str(assign(parse_plan(plan(weight=5000)), line["unit"]))


def wait_logged(gateway: Gateway, least: int) -> list[dict[str, object]]:
    """Wait until so many requests are in the log."""
    from conftest import wait_for

    return wait_for(lambda: len(gateway.log()) >= least and gateway.log())


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-unit-id": ""}, {"x-fairlead-from-header-x-unit-id": "N1", "x-fairlead-unit": "N1"}],
    ids=["absent", "empty", "forged"],
)
def test_without_a_unit_stable_answers(iris: Gateway, headers: dict[str, str]) -> None:
    """Absent, empty, or forged under an internal name: no unit, so stable."""
    iris.apply(plan(weight=10_000))
    answers = ask_all(iris.port, [(PATH, headers)] * 20, 2)
    assert {a.headers["x-rollout-arm"] for a in answers} == {"stable"}
    assert {a.headers["x-model-version"] for a in answers} == {"3"}


def test_each_request_a_unit(iris: Gateway) -> None:
    """With `request` as the unit the split follows the inference id, given or made."""
    document = plan(weight=5000, unit={"request": {}})
    iris.apply(document)
    answers = ask_all(iris.port, [(PATH, {})] * 400)
    arms = arms_of(answers)
    assert len(arms) == 400
    assert 130 < list(arms.values()).count("candidate") < 270
    parsed = parse_plan(document)
    assert all(arm == str(assign(parsed, unit)) for unit, arm in arms.items())
    assert {line["unit"] == line["id"] for line in wait_logged(iris, 400)} == {True}


def test_clients_cannot_forge_our_headers(iris: Gateway) -> None:
    """What a client says about arms, versions, rollouts and timeouts has no effect."""
    forged = {
        "x-rollout-arm": "candidate",
        "x-rollout-id": "mine",
        "x-model-version": "9",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-max-retries": "9",
        "x-test-delay": "0.05",
        "x-request-id": "same",
    }
    answers = ask_all(iris.port, [(PATH, forged)] * 3, 1)
    for answer in answers:
        assert answer.code == 200
        assert answer.headers["x-rollout-arm"] == "stable"
        assert answer.headers["x-model-version"] == "3"
        assert seen(answer)["headers"]["x-rollout-id"] != "mine"
        assert "x-envoy-max-retries" not in json.dumps(seen(answer))
    assert len({answer.headers["x-inference-id"] for answer in answers}) == 3

"""Envoy and `assign` give every unit to the same arm."""

import socket
import urllib.parse

import pytest
from gateway_client import Answer, ask_all, seen
from gateway_lab import Served, plan

from fairlead_gateway.domain.assignment import assign
from fairlead_gateway.domain.plan import parse_plan

ODD = ["a b", "ü-1", "x%41", "a+b", "a&b=c", "a/b?c", "日本", "a,b", "a'b", "#1", "1" * 300]


def arms_of(answers: list[Answer]) -> dict[str, str]:
    """Map the inference id, which the test gave, to the arm."""
    return {a.headers["x-inference-id"]: a.headers["x-rollout-arm"] for a in answers}


def expected(unit: str, weight: int = 5000) -> str:
    """Return the arm `assign` says."""
    return str(assign(parse_plan(plan(weight=weight)), unit))


@pytest.mark.parametrize("weight", [100, 1000, 5000])
def test_ten_thousand_units_match(served: Served, weight: int) -> None:
    """At 1, 10 and 50 percent no unit of 10,000 is given to another arm than `assign` says."""
    served.apply(weight)
    units = [f"N{i}" for i in range(10_000)]
    got = arms_of(served.ask(*({"x-unit-id": unit, "x-inference-id": unit} for unit in units)))
    assert got == {unit: expected(unit, weight) for unit in units}
    assert abs(list(got.values()).count("candidate") - weight) < 4 * (weight**0.5)


def test_candidate_never_loses_a_unit(served: Served) -> None:
    """While the weight grows, units only ever come to the candidate."""
    units = [f"u{i}" for i in range(600)]
    before: set[str] = set()
    for weight in (100, 1000, 5000, 10_000):
        served.apply(weight)
        arms = arms_of(served.ask(*({"x-unit-id": u, "x-inference-id": u} for u in units)))
        now = {unit for unit, arm in arms.items() if arm == "candidate"}
        assert before <= now
        before = now
    assert before == set(units)


@pytest.mark.parametrize("kind", ["header", "cookie", "query"])
def test_units_agree_wherever_they_are_found(served: Served, kind: str) -> None:
    """The same value is the same unit in header, cookie or query, and is logged as hashed."""
    name = {"header": "x-unit-id", "cookie": "Sid", "query": "u.id"}[kind]
    served.apply(5000, unit={kind: name})
    units = [f"N{i}" for i in range(300)] + ODD
    work = []
    for index, unit in enumerate(units):
        headers = {"x-inference-id": f"i-{index}"}
        if kind == "header":
            headers[name] = unit
        if kind == "cookie":
            headers["cookie"] = f'sid=no; {name}="{unit}"; {name}=later'
        query = f"?a=1&{name}={urllib.parse.quote(unit, safe='')}&b=2" if kind == "query" else ""
        work.append((served.path + query, headers))
    arms = arms_of(ask_all(served.gateway.port, work))
    assert arms == {f"i-{index}": expected(unit) for index, unit in enumerate(units)}
    for line in served.log(len(units)):
        assert line["unit"] == units[int(line["id"][2:])]
        assert line["arm"] == expected(line["unit"])


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-unit-id": ""}, {"x-fairlead-from-header-x-unit-id": "N1", "x-fairlead-unit": "N1"}],
    ids=["absent", "empty", "forged"],
)
def test_without_a_unit_stable_answers(served: Served, headers: dict[str, str]) -> None:
    """Absent, empty, or forged under an internal name: no unit, so stable."""
    served.apply(10_000)
    answers = served.ask(*[headers] * 20)
    assert {a.headers["x-rollout-arm"] for a in answers} == {"stable"}
    assert {a.headers["x-model-version"] for a in answers} == {"3"}
    assert {line["unit"] for line in served.log(20)} == {None}


def test_each_request_a_unit(served: Served) -> None:
    """With `request` as the unit the split follows the inference id, given or made."""
    served.apply(5000, unit={"request": {}})
    arms = arms_of(served.ask(*[{}] * 400))
    assert len(arms) == 400
    assert 130 < list(arms.values()).count("candidate") < 270
    assert arms == {unit: expected(unit) for unit in arms}
    assert all(line["unit"] == line["id"] for line in served.log(400))


def test_the_first_of_two_units_counts(served: Served) -> None:
    """A header that is sent twice is one unit, its first value, in the split and in the log."""
    served.apply(5000)
    work = [{"x-unit-id": f"a{i}\r\nx-unit-id: b{i}", "x-inference-id": f"a{i}"} for i in range(50)]
    arms = arms_of(served.ask(*work))
    assert arms == {unit: expected(unit) for unit in arms}
    assert all(line["unit"] == line["id"] for line in served.log(50))


def test_clients_cannot_forge_our_headers(served: Served) -> None:
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
    answers = served.ask(*[forged] * 3)
    for answer in answers:
        assert answer.code == 200
        assert answer.headers["x-rollout-arm"] == "stable"
        assert answer.headers["x-model-version"] == "3"
        assert seen(answer)["headers"]["x-rollout-id"] != "mine"
        assert "x-envoy-max-retries" not in seen(answer)["headers"]
    assert len({answer.headers["x-inference-id"] for answer in answers}) == 3


def test_what_a_query_value_is(served: Served) -> None:
    """A query value is compared decoded, and a plus sign stays one."""
    served.apply(5000, unit={"query": "u"})
    written = {"a+b": "a+b", "a%2Bc": "a+c", "%61d": "ad", "a%20e": "a e"}
    ids = dict(enumerate(written))
    work = [(f"{served.path}?u={ids[i]}", {"x-inference-id": str(i)}) for i in ids]
    arms = arms_of(ask_all(served.gateway.port, work))
    assert arms == {str(i): expected(written[ids[i]]) for i in ids}
    units = {line["id"]: line["unit"] for line in served.log(len(ids))}
    assert units == {str(i): written[ids[i]] for i in ids}


@pytest.mark.parametrize("kind", ["header", "cookie"])
def test_bytes_that_are_no_text_are_no_unit(served: Served, kind: str) -> None:
    """A unit that is not UTF-8 counts as absent, in the split and in the log."""
    served.apply(10_000, unit={kind: "u"})
    name = b"u: " if kind == "header" else b"cookie: u="
    raw = b"POST %b HTTP/1.1\r\nhost: x\r\n%b\xe9\xff\r\ncontent-length: 0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.gateway.port)) as connection:
        connection.sendall(raw % (served.path.encode(), name))
        answer = connection.recv(65536)
    assert b"x-rollout-arm: stable" in answer
    assert served.log(1)[0]["unit"] is None

"""Decisions of a rollout: kept once, in order, as they were sent."""

import json
from collections.abc import Callable
from typing import Any

import pytest

Build = Callable[..., dict[str, Any]]


def decision(**changed: Any) -> dict[str, Any]:
    """Build the decision of contracts.md, with what is given changed."""
    return {
        "at": "2026-01-01T06:00:00.000Z",
        "check": "objective_open",
        "verdict": "promoting",
        "reason": "ObjectiveBetter",
        "message": "version 4 is better",
        "summary": "Version 4 is to be promoted: version 4 is better (ObjectiveBetter).",
        "from": {"state": "running", "step": 2, "weight": 5000},
        "to": {"state": "running", "step": 2, "weight": 5000},
        "rules": "0123456789ab",
        "thresholds": {"minimumRequests": 50},
        "inputs": {"production": "4", "analysis": {"verdict": "better", "at": None}},
        **changed,
    }


def listed(client: Any) -> list[dict[str, Any]]:
    """Return the decisions of the rollout r1."""
    answer = client.get("/v1/rollouts/r1/decisions")
    assert answer.status_code == 200, answer.text
    assert answer.json()["rollout"] == "r1"
    found: list[dict[str, Any]] = answer.json()["decisions"]
    return found


def test_a_decision_comes_back_as_it_was_sent_and_counts_once(client: Any, record: Build) -> None:
    """Sent three times, before and after the record, there is one, with its id."""
    for _ in range(2):
        assert client.put("/v1/rollouts/r1/decisions/a", json=decision()).status_code == 200
    client.put("/v1/rollouts/r1", json=record())
    client.put("/v1/rollouts/r1/decisions/a", json=decision(id="another"))

    assert listed(client) == [{"id": "a", **decision()}]


def test_a_question_to_a_person_is_listed_and_in_the_report(client: Any, record: Build) -> None:
    """It changed the rollout: the page has it in the words it was asked in, and counts no look."""
    client.put("/v1/rollouts/r1", json=record())
    asked = decision(
        verdict="awaiting",
        check="approval_needed",
        reason="AwaitingApproval",
        message="a person has to approve its promotion",
        summary="Version 4 waits for a person at 50 %: a person has to approve its promotion.",
    )
    client.put("/v1/rollouts/r1/decisions/a", json=asked)

    page = client.get("/v1/rollouts/r1/report").text

    assert listed(client) == [{"id": "a", **asked}]
    assert asked["summary"] in page
    assert ">awaiting<" in page
    assert "looks in between" not in page


def test_decisions_are_listed_by_their_time_whatever_came_first(client: Any, record: Build) -> None:
    """The earliest is first; the analysis tells when the newest was taken."""
    client.put("/v1/rollouts/r1", json=record())
    assert client.get("/v1/rollouts/r1/analysis").json()["lastDecisionAt"] is None
    for hour in (6, 2, 4):
        sent = decision(at=f"2026-01-01T0{hour}:00:00.250Z")
        client.put(f"/v1/rollouts/r1/decisions/d{hour}", json=sent)
    client.put("/v1/rollouts/r2/decisions/d9", json=decision(at="2026-01-01T09:00:00Z"))

    assert [found["id"] for found in listed(client)] == ["d2", "d4", "d6"]
    last = client.get("/v1/rollouts/r1/analysis").json()["lastDecisionAt"]
    assert last == "2026-01-01T06:00:00.250000Z"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"at": "yesterday"}, "at"),
        ({"check": None}, "check"),
        ({"check": "x" * 65}, "check"),
        ({"verdict": ""}, "verdict"),
        ({"verdict": "x" * 65}, "verdict"),
        ({"reason": 7}, "reason"),
        ({"message": "x" * 5001}, "message"),
        ({"summary": "a\x00b"}, "summary"),
        ({"from": []}, "from"),
        ({"to": None}, "to"),
        ({"rules": 7}, "rules"),
        ({"rules": "x" * 65}, "rules"),
        ({"inputs": "s3cr3t"}, "inputs"),
        ({"thresholds": None}, "thresholds"),
    ],
)
def test_a_bad_decision_names_its_field_and_is_not_kept(
    client: Any, record: Build, changes: dict[str, Any], field: str
) -> None:
    """A wrong field is a 422 that names it and never repeats it."""
    client.put("/v1/rollouts/r1", json=record())

    answer = client.put("/v1/rollouts/r1/decisions/a", json=decision(**changes))

    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert "s3cr3t" not in answer.text
    assert listed(client) == []


@pytest.mark.parametrize(
    "value",
    ["1e999", '"\\ud800"', "[" * 2_000 + "]" * 2_000],
    ids=["infinite", "half a character", "bottomless"],
)
def test_what_json_cannot_say_again_is_refused(client: Any, value: str) -> None:
    """A number without end, half a character, a bottomless list: the sender's mistake, not our failure."""
    sent = json.dumps(decision(inputs={"x": None})).replace('"x": null', f'"x": {value}')

    answer = client.put(
        "/v1/rollouts/r1/decisions/a",
        content=sent.encode(),
        headers={"content-type": "application/json"},
    )

    assert (answer.status_code, answer.json()["field"]) in {(422, "inputs"), (400, None)}


def test_a_large_decision_is_refused(client: Any) -> None:
    """A decision is some kilobytes; 64 are a mistake."""
    answer = client.put("/v1/rollouts/r1/decisions/a", json=decision(inputs={"x": "y" * 70_000}))

    assert (answer.status_code, answer.json()["error_code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_decisions_of_an_unknown_rollout_are_not_found(client: Any) -> None:
    """Without a record nobody can say what the decisions were about."""
    client.put("/v1/rollouts/r1/decisions/a", json=decision())

    assert client.get("/v1/rollouts/r1/decisions").status_code == 404
    assert client.put("/v1/rollouts/r1/decisions/a%20b", json=decision()).json()["field"] == "id"

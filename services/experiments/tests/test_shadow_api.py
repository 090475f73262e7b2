"""The HTTP interface of shadows: reports in, comparisons and the gate out."""

import json
from collections.abc import Callable
from typing import Any

import pytest

Build = Callable[..., dict[str, Any]]
SECRET = "s3cr3t-payload"  # noqa: S105 - a marker that must not come back
GATE = {"maxDisagreement": 0.05, "tolerance": 0.1, "minimumPairs": 50}


def report(request: int, version: str, prediction: Any) -> dict[str, Any]:
    """Build the report of contracts.md; version 4 is the shadow."""
    return {
        "inferenceId": f"i{request}",
        "model": "flight-delay",
        "version": version,
        "shadow": version == "4",
        "at": "2026-01-01T00:00:00.123Z",
        "code": 200,
        "durationMs": 3.2,
        "rows": 1,
        "prediction": prediction,
    }


def halves(requests: range, difference: float) -> dict[str, Any]:
    """Build a batch in which the shadow's numbers differ by so much."""
    both = [
        (report(request, "3", 1.5), report(request, "4", 1.5 + difference)) for request in requests
    ]
    return {"predictions": [half for pair in both for half in pair]}


def test_reports_become_a_comparison(client: Any) -> None:
    """What two versions predicted for the same requests is compared by the tolerance asked for."""
    taken = client.post("/v1/predictions", json=halves(range(20), 0.25))
    strict = client.get("/v1/models/flight-delay/shadow").json()["comparisons"]
    loose = client.get("/v1/models/flight-delay/shadow?tolerance=0.5&shadow=4&stable=3").json()

    assert taken.json() == {"accepted": 40, "duplicates": 0, "rejected": []}
    assert [(one["stable"], one["shadow"], one["pairs"]) for one in strict] == [("3", "4", 20)]
    assert (strict[0]["disagreed"], strict[0]["numbers"]["mean"]) == (20, 0.25)
    assert loose["comparisons"][0]["disagreed"] == 0
    assert client.get("/v1/models/other/shadow").json() == {"comparisons": []}


def test_the_gate_is_part_of_the_analysis(client: Any, record: Build) -> None:
    """A rollout that asks for it says whether its candidate may answer."""
    rollout = record(guardrails={"errors": None, "latency": None, "shadow": GATE})
    kept = client.put("/v1/rollouts/r1", json=rollout).json()
    before = client.get("/v1/rollouts/r1/analysis").json()
    client.post("/v1/predictions", json=halves(range(150), 0.05))
    agreeing = client.get("/v1/rollouts/r1/analysis").json()
    client.post("/v1/predictions", json=halves(range(150, 300), 0.5))
    worse = client.get("/v1/rollouts/r1/analysis").json()

    assert kept["guardrails"]["shadow"] == GATE
    assert (before["shadow"]["state"], before["shadow"]["compared"]) == ("insufficient", 0)
    assert (agreeing["shadow"]["state"], agreeing["shadow"]["disagreed"]) == ("holding", 0)
    assert (worse["shadow"]["state"], worse["verdict"]) == ("worse", "worse")
    assert worse["reason"] == worse["shadow"]["reason"]
    assert "150 of 300" in worse["reason"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"inferenceId": SECRET + "/"}, "inferenceId"),
        ({"model": "No_Label"}, "model"),
        ({"model": None}, "model"),
        ({"version": 4}, "version"),
        ({"version": ""}, "version"),
        ({"version": "x" * 65}, "version"),
        ({"shadow": SECRET}, "shadow"),
        ({"shadow": None}, "shadow"),
        ({"at": SECRET}, "at"),
        ({"at": "2026-01-03T00:00:00Z"}, "at"),
        ({"code": "200"}, "code"),
        ({"code": 600}, "code"),
        ({"durationMs": -1}, "durationMs"),
        ({"durationMs": 1.1e9}, "durationMs"),
        ({"rows": 1.5}, "rows"),
        ({"rows": -1}, "rows"),
        ({"rows": 10_000_001}, "rows"),
        ({"prediction": SECRET * 10}, "prediction"),
        ({"prediction": [SECRET]}, "prediction"),
        ({"prediction": 1e101}, "prediction"),
        ({"prediction": 10**400}, "prediction"),
    ],
)
def test_a_bad_report_is_named_and_the_rest_kept(
    client: Any, changes: dict[str, Any], field: str
) -> None:
    """One bad report is rejected with its field, and never repeated."""
    batch = [{**report(1, "3", 1.5), **changes}, report(2, "3", 1.5)]

    answer = client.post("/v1/predictions", json={"predictions": batch})

    assert answer.status_code == 200
    assert [item["field"] for item in answer.json()["rejected"]] == [field]
    assert answer.json()["accepted"] == 1
    assert SECRET not in answer.text


def test_half_a_surrogate_pair_is_named(client: Any) -> None:
    """A text that no answer could repeat is rejected by itself."""
    body = json.dumps({"predictions": [report(1, "3", "a\ud800")]})
    headers = {"content-type": "application/json"}

    answer = client.post("/v1/predictions", content=body, headers=headers).json()

    assert [item["field"] for item in answer["rejected"]] == ["prediction"]


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf", SECRET])
def test_a_bad_tolerance_is_named(client: Any, tolerance: str) -> None:
    """A tolerance that is no number from 0 is a 422 that names it."""
    answer = client.get(f"/v1/models/m/shadow?tolerance={tolerance}")

    assert (answer.status_code, answer.json()["field"]) == (422, "tolerance")
    assert SECRET not in answer.text

"""The HTTP interface: contract, bad input, failures."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from sqlalchemy import Engine, text

from fairlead_experiments.entrypoints.cli import main, openapi

Build = Callable[..., dict[str, Any]]
JSON = {"content-type": "application/json"}
SECRET = "s3cr3t-payload"  # noqa: S105 - a marker that must not come back


def is_error(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Assert our error shape; answer it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error_code", "message", "field"}
    return answer.json()


def test_an_exposure_and_its_outcome_reach_the_analysis(
    client: Any, exposure: Build, outcome: Build, record: Build
) -> None:
    """What is sent is what is analysed."""
    assert client.put("/v1/rollouts/r1", json=record()).status_code == 200
    taken = client.post("/v1/exposures", json={"exposures": [exposure(), exposure()]})
    assert taken.json() == {"accepted": 1, "duplicates": 1, "rejected": []}
    assert client.post("/v1/outcomes", json=outcome()).json()["accepted"] == 1
    assert client.post("/v1/outcomes", json={"outcomes": [outcome()]}).json()["duplicates"] == 1

    found = client.get("/v1/rollouts/r1/analysis").json()

    assert found["at"] == "2026-01-01T12:00:00Z"
    assert found["verdict"] == "insufficient"
    assert found["arms"]["candidate"]["outcomes"] == 1
    assert found["steps"][0]["candidate"]["mean"] == 0.04


def test_an_interval_of_all_numbers_is_none(
    client: Any, exposure: Build, outcome: Build, record: Build
) -> None:
    """One value that dwarfs the smallest effect worth finding leaves an analysis, in JSON."""
    objective = {**record()["objective"], "minimumEffect": 1e-100}
    met = [
        exposure(inferenceId=f"i{n}", unit=f"u{n}", arm=("stable", "candidate")[n % 2])
        for n in range(4)
    ]
    told = [outcome(inferenceId=f"i{n}", value=0 if n else 1e100) for n in range(4)]
    client.put("/v1/rollouts/r1", json=record(objective=objective))
    client.post("/v1/exposures", json={"exposures": met})
    client.post("/v1/outcomes", json={"outcomes": told})

    answer = client.get("/v1/rollouts/r1/analysis")

    assert answer.status_code == 200
    found = answer.json()["objective"]
    assert (found["effect"], found["ciLow"], found["ciHigh"]) == (-5e99, None, None)


def test_a_record_comes_back_as_it_was_put(client: Any, record: Build) -> None:
    """PUT, GET and the list answer the same record with its id."""
    wanted = {"id": "r1", **record()}

    assert client.put("/v1/rollouts/r1", json=record()).json() == wanted
    assert client.get("/v1/rollouts/r1").json() == wanted
    assert client.get("/v1/rollouts?model=flight-delay").json() == {"rollouts": [wanted]}
    assert client.get("/v1/rollouts?model=other").json() == {"rollouts": []}


EXPOSURE_FAULTS = [
    ("inferenceId", None),
    ("inferenceId", "x" * 65),
    ("inferenceId", "a b"),
    ("rollout", 7),
    ("step", -1),
    ("step", True),
    ("step", 1.5),
    ("step", 1_000),
    ("step", 10**30),
    ("arm", SECRET),
    ("arm", ["stable"]),
    ("version", 4),
    ("version", "x" * 65),
    ("unit", "x" * 257),
    ("unit", "a\x00b"),
    ("unit", {}),
    ("unit", "a\ud800"),
    ("at", "yesterday"),
    ("at", "2026-01-01T00:00:00"),
    ("at", "2026-13-01T00:00:00Z"),
    ("at", "2026-01-03T00:00:00Z"),
    ("at", "0001-01-01T00:00:00+23:59"),
    ("at", 1767225600),
    ("code", 99),
    ("code", 600),
    ("code", "200"),
    ("code", False),
    ("attempts", -1),
    ("attempts", 1_001),
    ("attempts", None),
    ("durationMs", -0.1),
    ("durationMs", 1.1e9),
    ("durationMs", "12"),
    ("durationMs", 10**400),
]


@pytest.mark.parametrize(("field", "value"), EXPOSURE_FAULTS)
def test_a_bad_exposure_is_named_and_the_rest_is_taken(
    client: Any, exposure: Build, field: str, value: object
) -> None:
    """A wrong field is named by index, field and reason; the good items around it are kept."""
    batch = [
        exposure(),
        exposure(**{"inferenceId": "bad", field: value}),
        exposure(inferenceId="z"),
    ]

    answer = client.post("/v1/exposures", content=json.dumps({"exposures": batch}), headers=JSON)

    assert answer.status_code == 200
    assert answer.json()["accepted"] == 2
    (rejected,) = answer.json()["rejected"]
    assert (rejected["index"], rejected["field"]) == (1, field)
    assert rejected["reason"]
    assert SECRET not in answer.text


def test_a_missing_field_is_called_missing(client: Any, exposure: Build) -> None:
    """Every field but version and unit must be there."""
    for field in set(exposure()) - {"version", "unit"}:
        item = exposure()
        del item[field]
        rejected = client.post("/v1/exposures", json={"exposures": [item]}).json()["rejected"]
        assert rejected == [{"index": 0, "field": field, "reason": "is missing"}]


OUTCOME_FAULTS = [
    ({"outcome": "a b"}, "outcome"),
    ({"outcome": "x" * 65}, "outcome"),
    ({"value": "0.1"}, "value"),
    ({"value": None}, "value"),
    ({"value": 1e101}, "value"),
    ({"value": 10**400}, "value"),
    ({"value": []}, "value"),
    ({"observedAt": SECRET}, "observedAt"),
    ({"observedAt": None}, "observedAt"),
    ({"observedAt": "2026-01-03T00:00:00Z"}, "observedAt"),
    ({"inferenceId": None}, "inferenceId"),
    ({"inferenceId": SECRET + "/"}, "inferenceId"),
    ({"unit": "u"}, "unit"),
    ({"inferenceId": None, "unit": "u"}, "model"),
    ({"inferenceId": None, "model": "m"}, "unit"),
    ({"inferenceId": None, "model": "m", "unit": ""}, "unit"),
    ({"inferenceId": None, "model": "m", "unit": "x" * 257}, "unit"),
    ({"inferenceId": None, "model": "m", "unit": "a\x00b"}, "unit"),
    ({"inferenceId": None, "unit": "u", "model": 7}, "model"),
    ({"inferenceId": None, "unit": "u", "model": "Not_A_Label"}, "model"),
]


@pytest.mark.parametrize(("changes", "field"), OUTCOME_FAULTS)
def test_a_bad_outcome_is_a_422_alone_and_named_in_a_batch(
    client: Any, outcome: Build, changes: dict[str, Any], field: str
) -> None:
    """One bad outcome is refused with its field; in a batch it is named and the rest kept."""
    bad = outcome(**changes)

    alone = is_error(client.post("/v1/outcomes", json=bad), 422)
    batch = client.post("/v1/outcomes", json={"outcomes": [bad, outcome()]})

    assert alone["field"] == field
    assert [item["field"] for item in batch.json()["rejected"]] == [field]
    assert batch.json()["accepted"] == 1
    assert SECRET not in batch.text + alone["message"]


@pytest.mark.parametrize("value", [True, False, 1, -2.5])
def test_booleans_and_numbers_are_outcomes(client: Any, outcome: Build, value: object) -> None:
    """True counts as 1, false as 0."""
    assert client.post("/v1/outcomes", json=outcome(value=value)).json()["accepted"] == 1


BODIES = [
    pytest.param(b"", JSON, 400, id="empty"),
    pytest.param(b"  \n", JSON, 400, id="blank"),
    pytest.param(b'{"exposures": [' + SECRET.encode(), JSON, 400, id="cut off"),
    pytest.param(b"\xff\xfe", JSON, 400, id="not UTF-8"),
    pytest.param(b'{"exposures": NaN}', JSON, 400, id="NaN"),
    pytest.param(b"[" * 100_000 + b"]" * 100_000, JSON, 400, id="deep"),
    pytest.param(b"[]", JSON, 422, id="a list"),
    pytest.param(b'"x"', JSON, 422, id="a string"),
    pytest.param(b'{"exposures": {}}', JSON, 422, id="not a list"),
    pytest.param(b'{"exposures": []}', JSON, 422, id="no items"),
    pytest.param(b'{"exposures": [' + b"0," * 10_000 + b"0]}", JSON, 422, id="too many items"),
    pytest.param(b'{"x": "' + b"y" * (16 << 20) + b'"}', JSON, 413, id="too large"),
    pytest.param(b"{}", {"content-type": "text/plain"}, 415, id="text"),
    pytest.param(b"{}", {}, 415, id="no type"),
    pytest.param(b"{}", JSON | {"content-encoding": "gzip"}, 415, id="compressed"),
]


@pytest.mark.parametrize(("body", "headers", "status"), BODIES)
def test_a_body_that_cannot_be_taken(
    client: Any, body: bytes, headers: dict[str, str], status: int
) -> None:
    """A body that is no batch is refused whole, in our shape, without repeating it."""
    error = is_error(client.post("/v1/exposures", content=body, headers=headers), status)

    assert SECRET not in json.dumps(error)


def test_items_that_are_no_objects_are_named(client: Any) -> None:
    """Whatever JSON an item is, the answer names it."""
    items = [None, 1, "x", [], True, {}]

    answer = client.post("/v1/exposures", json={"exposures": items})

    assert [item["index"] for item in answer.json()["rejected"]] == [0, 1, 2, 3, 4, 5]


def test_a_record_that_is_no_object_is_refused(client: Any, record: Build) -> None:
    """A list is no record, and an id has a form."""
    is_error(client.put("/v1/rollouts/r1", json=[]), 422)
    assert is_error(client.put("/v1/rollouts/a%20b", json=record()), 422)["field"] == "id"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/rollouts/none", 404),
        ("GET", "/v1/rollouts/none/analysis", 404),
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v1/rollouts/r1", 405),
        ("GET", "/v1/exposures", 405),
    ],
)
def test_what_is_not_there(client: Any, method: str, path: str, status: int) -> None:
    """Unknown rollouts, paths and methods have our error shape."""
    is_error(client.request(method, path), status)


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/v1/rollouts/%00", 404, None),
        ("/v1/rollouts/r%00/analysis", 404, None),
        ("/v1/rollouts/%00/decisions", 404, None),
        ("/v1/rollouts/%00/report", 404, None),
        ("/v1/rollouts?model=%00", 422, "model"),
        ("/v1/models/m%00/shadow", 422, "model"),
        ("/v1/models/m/shadow?stable=%00", 422, "stable"),
        ("/v1/models/m/shadow?shadow=%00", 422, "shadow"),
    ],
)
def test_what_no_database_can_be_asked_for(
    client: Any, path: str, status: int, field: str | None
) -> None:
    """PostgreSQL takes no NUL in a text: whoever asks for one is told so, on both databases."""
    assert is_error(client.get(path), status)["field"] == field


def test_an_unknown_rollouts_exposures_are_kept(
    client: Any, exposure: Build, record: Build
) -> None:
    """The record may come after its exposures; nothing is lost."""
    client.post("/v1/exposures", json={"exposures": [exposure()]})
    client.put("/v1/rollouts/r1", json=record())

    found = client.get("/v1/rollouts/r1/analysis").json()

    assert found["arms"]["candidate"]["requests"] == 1


def test_a_database_that_does_not_answer_is_a_503(
    client: Any, engine: Engine, exposure: Build
) -> None:
    """Without its tables nothing is answered for: 503, retry, and not ready only if it is down."""
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE units"))

    answer = client.post("/v1/exposures", json={"exposures": [exposure()]})

    is_error(answer, 503)
    assert answer.headers["retry-after"] == "1"
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM exposures")) == 0


def test_probes_and_metrics(client: Any, exposure: Build) -> None:
    """The probes answer, and the metrics count what became of exposures."""
    client.post("/v1/exposures", json={"exposures": [exposure(), exposure(), {}]})

    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200
    metrics = client.get("/metrics").text
    for result in ("accepted", "duplicate", "rejected"):
        assert f'fairlead_experiments_exposures_total{{result="{result}"}} 1.0' in metrics


def test_the_published_document_is_complete_and_stable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`openapi` prints the same text twice, every reference leads somewhere, examples are valid."""
    assert main(["openapi"]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == openapi()
    document = json.loads(printed)
    schemas = document["components"]["schemas"]
    for reference in {part.split('"')[0] for part in printed.split('"#/components/schemas/')[1:]}:
        assert reference in schemas
    for path in ("/v1/exposures", "/v1/outcomes", "/v1/rollouts/{rollout}/analysis"):
        assert path in document["paths"]
    for schema in schemas.values():
        for example in schema.get("examples", []):
            Draft202012Validator({**schema, "components": document["components"]}).validate(example)


def test_answers_fit_the_published_document(
    client: Any, exposure: Build, outcome: Build, record: Build
) -> None:
    """The analysis has exactly the keys the document publishes."""
    document = json.loads(openapi())
    client.put("/v1/rollouts/r1", json=record())
    client.post("/v1/exposures", json={"exposures": [exposure()]})
    client.post("/v1/outcomes", json=outcome())
    components = json.loads(json.dumps(document["components"]))
    for schema in components["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
            schema["required"] = sorted(schema["properties"])

    found = client.get("/v1/rollouts/r1/analysis").json()

    Draft202012Validator(
        {"$ref": "#/components/schemas/AnalysisDocument", "components": components}
    ).validate(found)

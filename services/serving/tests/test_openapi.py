"""The OpenAPI document of every kind of model: valid, true, with examples that work."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from serving_asgi import COLUMNS, EXAMPLE, Client
from signatures import CASES

from fairlead_serving.domain.signature import ArrayOf, Column, Kind, Signature

V2 = "/v2/models/flights/infer"
INTEGER = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}


def _client(name: str) -> Client:
    signature, example, answer = CASES[name]
    return Client(answer, signature, example=example)


def _document(client: Client) -> dict[str, Any]:
    document: dict[str, Any] = client.send("GET", "/openapi.json").json()
    return document


class Posted(NamedTuple):
    """An example of the document."""

    path: str
    kind: str
    schema: Mapping[str, Any]
    example: Any


def _examples(document: Mapping[str, Any]) -> Iterator[Posted]:
    for path, item in document["paths"].items():
        for kind, media in item.get("post", {}).get("requestBody", {}).get("content", {}).items():
            if "example" in media:
                yield Posted(path, kind, media["schema"], media["example"])


def _check(document: Mapping[str, Any], schema: Mapping[str, Any], value: object) -> None:
    whole = {**schema, "components": document["components"]}
    Draft202012Validator.check_schema(whole)
    Draft202012Validator(whole).validate(value)


def _check_answer(document: Mapping[str, Any], path: str, answer: httpx.Response) -> None:
    method = answer.request.method.lower()
    described = document["paths"][path][method]["responses"][str(answer.status_code)]
    kind = answer.headers["content-type"].partition(";")[0]
    schema = described["content"][kind].get("schema", {})
    _check(document, schema, answer.json() if kind == "application/json" else answer.text)


@pytest.mark.parametrize("name", CASES)
def test_document_is_valid(name: str) -> None:
    """The document of any signature is valid OpenAPI 3.1."""
    validate(_document(_client(name)))


@pytest.mark.parametrize("name", CASES)
def test_examples_are_of_their_schemas_and_work(name: str) -> None:
    """Each example is what its schema describes, is answered with 200, and as described."""
    client = _client(name)
    document = _document(client)
    examples = list(_examples(document))
    assert {example.path for example in examples} >= {"/invocations"}
    for path, kind, schema, example in examples:
        _check(document, schema, example)
        body = example.encode() if isinstance(example, str) else example
        answer = client.post(body, {"content-type": kind}, path)
        assert answer.status_code == 200, (path, kind, answer.text)
        _check_answer(document, path, answer)


def test_examples_come_in_every_form_that_can_say_them() -> None:
    """Flat columns are shown as JSON, as CSV and as an infer request."""
    shown = {(one.path, one.kind): one.example for one in _examples(_document(_client("mixed")))}
    assert shown["/invocations", "text/csv"] == (
        "carrier,when,photo,height\nAA,2013-01-01T05:00:00,AQI=,\n,2013-01-02T00:00:00,AA==,1.5\n"
    )
    inputs = shown[V2, "application/json"]["inputs"]
    assert [tensor["name"] for tensor in inputs] == ["carrier", "when", "photo", "height"]
    assert shown[V2, "application/json"]["parameters"] == {"factor": 2.0, "bands": [1, 2]}


@pytest.mark.parametrize("name", CASES)
def test_all_that_is_read_answers_as_described(name: str) -> None:
    """Every path that is read answers with a code and a body of the document."""
    client = _client(name)
    document = _document(client)
    for path, item in document["paths"].items():
        if "get" in item:
            answer = client.send("GET", path)
            assert answer.status_code == 200
            _check_answer(document, path, answer)


@pytest.mark.parametrize("path", ["/readyz", "/v2/health/ready", "/v2/models/flights/ready"])
@pytest.mark.parametrize("state", [{"served": None}, {"draining": True}], ids=["loading", "drain"])
def test_what_is_not_ready_answers_as_described(path: str, state: Mapping[str, Any]) -> None:
    """A 503 is in the document too."""
    document = _document(Client())
    answer = Client(state=state).send("GET", path)
    assert answer.status_code == 503
    _check_answer(document, path, answer)


@pytest.mark.parametrize(
    "path", ["/openapi.json", "/v2/models/flights", "/v2/models/flights/infer"]
)
def test_what_needs_the_model_says_when_to_come_back(path: str) -> None:
    """While the model is loaded, its paths answer a described 503 with Retry-After."""
    document = _document(Client())
    method = "POST" if path.endswith("infer") else "GET"
    answer = Client(state={"served": None}).send(method, path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    _check_answer(document, path, answer)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {"content-type": "application/json"}, 400),
        (b" " * 1001, {"content-type": "application/json"}, 413),
        (b"{}", {"content-type": "text/xml"}, 415),
    ],
)
def test_refusals_answer_as_described(body: bytes, headers: dict[str, str], status: int) -> None:
    """Errors have the schema that the document gives them."""
    client = Client()
    answer = client.post(body, headers)
    assert answer.status_code == status
    _check_answer(_document(client), "/invocations", answer)


@pytest.mark.parametrize("raised", [ValueError("x"), SystemExit(1)])
@pytest.mark.parametrize("path", ["/invocations", V2])
def test_failures_answer_as_described(raised: BaseException, path: str) -> None:
    """A model that raises is in the document of both protocols."""
    client = Client(raised)
    document = _document(client)
    example = next(one.example for one in _examples(document) if one.path == path)
    answer = client.post(example, path=path)
    assert answer.status_code == 500
    _check_answer(document, path, answer)


def test_record_has_the_models_own_fields() -> None:
    """Columns, their types, which are required, and the input example are there."""
    document = _document(Client())
    record = document["components"]["schemas"]["Record"]
    assert record["required"] == ["hour"]
    assert record["properties"]["hour"]["type"] == ["number", "null"]
    assert record["properties"]["gate"] == {"type": ["string", "null"]}
    body = document["paths"]["/invocations"]["post"]["requestBody"]
    assert body["content"]["application/json"]["example"] == EXAMPLE


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        pytest.param(Column("c", Kind.BOOLEAN), [True, False], [None, "true"], id="boolean"),
        pytest.param(Column("c", Kind.INTEGER), [1, -(2**31)], [None, 1.5, 2**31], id="integer"),
        pytest.param(Column("c", Kind.LONG), [2**63 - 1], [None, 2**63, "1"], id="long"),
        pytest.param(Column("c", Kind.FLOAT), [1.5, 1, None], [1e39, "1"], id="float"),
        pytest.param(Column("c", Kind.DOUBLE), [1e39, None], [10**400, True], id="double"),
        pytest.param(Column("c", Kind.STRING), ["", None], [1], id="string"),
        pytest.param(Column("c", Kind.BINARY), ["", "AQI=", "AQ=="], ["x", None], id="binary"),
        pytest.param(
            Column("c", Kind.DATETIME),
            ["2020-02-29", "2020-01-02T03:04:05", "2020-01-02T03:04:05.5+02:00", None],
            ["1677-01-01", "2262-01-01", "2020-13-01", "2020-04-31", "2020-01-02T24:00", 1],
            id="datetime",
        ),
        pytest.param(
            Column("c", Kind.INTEGER, required=False), [1, None], [1.5], id="optional integer"
        ),
        pytest.param(Column("c", ArrayOf(Kind.LONG)), [[1], []], [1, [None]], id="list"),
    ],
)
def test_values_of_a_type_are_described_as_they_are_taken(
    column: Column, good: list[Any], bad: list[Any]
) -> None:
    """What the schema of a type allows is answered; what it forbids is not MLflow's own form."""
    client = Client(signature=Signature(columns=(column, Column("other", Kind.LONG))))
    schema = _document(client)["components"]["schemas"]["Record"]["properties"]["c"]
    checked = Draft202012Validator(schema)
    assert [value for value in good if not checked.is_valid(value)] == []
    assert [value for value in bad if checked.is_valid(value)] == []
    for value in good:
        answer = client.post({"dataframe_records": [{"c": value, "other": 1}]})
        assert answer.status_code == 200, (value, answer.text)


def test_example_of_another_signature_is_left_out() -> None:
    """An example that the model does not take any more would only be refused."""
    document = _document(Client(example={"inputs": {"wrong": [1]}}))
    assert list(_examples(document)) == []


def test_form_that_cannot_say_the_example_has_none() -> None:
    """CSV has no empty bytes, so an example with some is not shown as CSV."""
    signature = Signature(columns=(Column("c", Kind.BINARY), Column("n", Kind.LONG)))
    client = Client(signature=signature, example={"inputs": {"c": [""], "n": [1]}})
    kinds = [one.kind for one in _examples(_document(client)) if one.path == "/invocations"]
    assert kinds == ["application/json"]


def test_model_without_an_example_has_none() -> None:
    """Nothing is made up."""
    assert list(_examples(_document(Client(example=None)))) == []


def test_fields_of_integers_are_described_in_full() -> None:
    """An integer has its range, so that a client's mistake shows before it is sent."""
    fields = _document(_client("numbers"))["components"]["schemas"]["Record"]["properties"]
    assert fields["late"] == INTEGER


def test_names_that_no_address_may_hold_are_escaped() -> None:
    """A model's name with a brace is no parameter of the path."""
    client = Client(name="a {b}")
    document = _document(client)
    validate(document)
    assert "/v2/models/a%20%7Bb%7D/infer" in document["paths"]
    assert client.send("GET", "/v2/models/a%20%7Bb%7D").status_code == 200


def test_params_of_the_model_are_described() -> None:
    """Parameters have their types and defaults, and no other is allowed."""
    params = _document(Client())["components"]["schemas"]["Params"]
    assert params["properties"]["factor"]["default"] == 1.0
    assert params["additionalProperties"] is False
    assert COLUMNS.params[0].name == "factor"

"""The HTTP interface, over ASGI, in front of a model that answers what it is told."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_asgi import COLUMNS, EXAMPLE, JSON, Client

from fairlead_serving.app.lane import Limits
from fairlead_serving.domain.signature import Column, Kind, Signature, Tensor

CANARY = "c4n4ry"


def test_predictions_are_answered() -> None:
    """A good payload gives one prediction for each row, in MLflow's form."""
    answer = Client().post({"dataframe_records": [{"hour": 1}, {"hour": 2}]})
    assert (answer.status_code, answer.json()) == (200, {"predictions": [0.0, 0.0]})


def test_csv_is_answered() -> None:
    """CSV predicts as JSON does."""
    answer = Client().post(b"hour\n1\n2\n", {"content-type": "text/csv; charset=utf-8"})
    assert answer.json() == {"predictions": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        pytest.param(b"", JSON, 400, "BAD_REQUEST", id="empty"),
        pytest.param(b"{", JSON, 400, "BAD_REQUEST", id="not JSON"),
        pytest.param(b"\xff", JSON, 400, "BAD_REQUEST", id="not UTF-8"),
        pytest.param(b'{"inputs": {"hour": [-Infinity]}}', JSON, 400, "BAD_REQUEST", id="infinity"),
        pytest.param(b'{"inputs": {"hour": [1e999]}}', JSON, 400, "BAD_REQUEST", id="1e999"),
        pytest.param(b"[" * 900, JSON, 400, "BAD_REQUEST", id="deep and cut off"),
        pytest.param(
            b'{"inputs": ' + b"[" * 490 + b"]" * 490 + b"}", JSON, 400, "BAD_REQUEST", id="deep"
        ),
        pytest.param(b"x" * 1001, JSON, 413, "PAYLOAD_TOO_LARGE", id="too long"),
        pytest.param(b"{}", {}, 415, "UNSUPPORTED_MEDIA_TYPE", id="no type"),
        pytest.param(
            b"{}",
            {"content-type": "application/json; charset=latin-1"},
            415,
            "UNSUPPORTED_MEDIA_TYPE",
            id="another charset",
        ),
        pytest.param(
            b"{}", {"content-type": "text/xml"}, 415, "UNSUPPORTED_MEDIA_TYPE", id="another type"
        ),
        pytest.param(b"\xff", {"content-type": "text/csv"}, 400, "BAD_REQUEST", id="CSV not UTF-8"),
    ],
)
def test_bad_body_is_a_4xx(body: bytes, headers: Mapping[str, str], status: int, code: str) -> None:
    """A body that cannot be read is the caller's mistake, and says which."""
    answer = Client().post(body, headers)
    assert answer.status_code == status
    assert answer.json().keys() == {"error_code", "message", "field"}
    assert answer.json()["error_code"] == code


@pytest.mark.parametrize("path", ["/invocations", "/v2/models/flights/versions/4/infer"])
@pytest.mark.parametrize(
    "encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "x", "identity, gzip"]
)
def test_compressed_body_is_refused_by_name(path: str, encoding: str) -> None:
    """A body that is not sent as it is gets a 415 that names the header and the remedy."""
    body = gzip.compress(json.dumps(EXAMPLE).encode())
    client = Client()
    answer = client.post(body, {**JSON, "content-encoding": encoding}, path)
    assert answer.status_code == 415
    words = answer.json().get("message") or answer.json()["error"]
    assert "content-encoding" in words
    assert "without that header" in words
    document = client.send("GET", "/openapi.json").json()
    assert "compressed" in document["paths"][path]["post"]["responses"]["415"]["description"]


def test_identity_is_no_compression() -> None:
    """The encoding that changes nothing is taken."""
    client = Client(limits=Limits(timeout=600.0))  # A busy machine imports pandas for long.
    assert client.post(EXAMPLE, {**JSON, "content-encoding": "identity"}).status_code == 200


def test_body_of_unknown_length_is_limited() -> None:
    """A body without an announced length is cut off at the limit."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    answer = Client().send("POST", "/invocations", content=parts(), headers=JSON)
    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/invocations", "/v2/models/flights/infer"])
def test_rows_are_limited(path: str) -> None:
    """More rows than are allowed are refused before the model sees them."""
    many = [1.0] * 51
    body: dict[str, Any] = {"inputs": {"hour": many}}
    if "v2" in path:
        tensor = {"name": "hour", "shape": [51], "datatype": "FP64", "data": many}
        body = {"inputs": [tensor]}
    answer = Client().post(body, path=path)
    assert answer.status_code == 413
    assert "51 rows; 50 are allowed" in answer.text


def test_overload_says_when_to_come_back() -> None:
    """A full queue and a slow model are a 503 with Retry-After; the slot is free again."""

    async def calls() -> None:
        client = Client(limits=Limits(queue=0))
        async with client.connected() as http:
            answer = await http.post("/invocations", json=EXAMPLE)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error_code"] == "OVERLOADED"
            tensor = {"name": "hour", "shape": [1], "datatype": "FP64", "data": [1]}
            answer = await http.post("/v2/models/flights/infer", json={"inputs": [tensor]})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            metrics = (await http.get("/metrics")).text
            assert 'requests_in_flight{model="flights",version="4"} 0.0' in metrics

    asyncio.run(calls())


def test_wrong_field_is_named_and_the_payload_is_not_repeated() -> None:
    """The message names the column; what was sent stays out of it."""
    answer = Client().post({"inputs": {"hour": [CANARY]}})
    assert answer.json()["field"] == "hour"
    assert CANARY not in answer.text


@pytest.mark.parametrize(
    "raised", [ValueError(CANARY), KeyError(CANARY), RecursionError(CANARY), MemoryError()]
)
def test_model_that_raises_is_a_500(raised: Exception) -> None:
    """The class of what the model raised is named, its text is not."""
    answer = Client(raised).post(EXAMPLE)
    assert (answer.status_code, answer.json()["error_code"]) == (500, "MODEL_ERROR")
    assert type(raised).__name__ in answer.json()["message"]
    assert CANARY not in answer.text


def test_prediction_that_is_not_json_is_a_500() -> None:
    """A model that gives what JSON has no word for has failed."""
    answer = Client(object()).post(EXAMPLE)
    assert (answer.status_code, answer.json()["error_code"]) == (500, "MODEL_ERROR")


def test_model_that_exits_is_a_500() -> None:
    """A model that calls `exit` fails its request, not the process."""
    answer = Client(SystemExit(3)).post(EXAMPLE)
    assert (answer.status_code, answer.json()["message"]) == (500, "The model raised SystemExit.")


def test_prediction_without_a_tensor_is_a_500() -> None:
    """What no output tensor can hold is the model's failure, in the protocol's own form."""
    tensor = {"name": "hour", "shape": [1], "datatype": "FP64", "data": [1]}
    answer = Client([{"a": object()}]).post({"inputs": [tensor]}, path="/v2/models/flights/infer")
    assert (answer.status_code, list(answer.json())) == (500, ["error"])


def test_long_body_is_read_beside_the_probes() -> None:
    """While a body of megabytes is read, probes are answered."""

    async def calls() -> None:
        client = Client(max_body_bytes=50_000_000, limits=Limits(rows=10_000_000))
        long = b'{"inputs": {"hour": [' + b",".join([b'"1.5"'] * 1_000_000) + b"]}}"
        async with client.connected() as http:
            asked = asyncio.create_task(http.post("/invocations", content=long, headers=JSON))
            probes = 0
            while not asked.done():
                assert (await http.get("/livez")).status_code == 200
                await asyncio.sleep(0)  # Without a socket nothing else lets the loop go on.
                probes += 1
            assert (await asked).status_code == 200
            assert probes > 5

    asyncio.run(calls())


def test_nan_prediction_is_null() -> None:
    """JSON has no NaN, so a missing prediction is null."""
    assert Client([float("nan")]).post(EXAMPLE).text == '{"predictions":[null]}'


@pytest.mark.parametrize(
    ("state", "livez", "readyz", "predicts"),
    [
        pytest.param({}, 200, 200, 200, id="ready"),
        pytest.param({"served": None}, 200, 503, 503, id="loading"),
        pytest.param({"draining": True}, 200, 503, 200, id="draining"),
    ],
)
def test_probes(state: Mapping[str, Any], livez: int, readyz: int, predicts: int) -> None:
    """Alive while it runs; ready only with a warm model and no drain, which still answers."""
    client = Client(state=state)
    assert client.send("GET", "/livez").status_code == livez
    assert client.send("GET", "/readyz").status_code == readyz
    answer = client.post(EXAMPLE)
    assert answer.status_code == predicts
    assert (answer.headers.get("connection") == "close") is bool(state.get("draining"))


def test_metrics_count_requests_and_rows() -> None:
    """Durations by code class, rows, requests in flight, the model's name and version."""

    async def calls() -> str:
        async with Client().connected() as http:
            await http.post("/invocations", json={"inputs": {"hour": [1, 2]}})
            await http.post("/invocations", json={})
            return (await http.get("/metrics")).text

    text = asyncio.run(calls())
    names = 'model="flights",version="4"'
    prefix = "fairlead_serving_"
    assert f'{prefix}request_duration_seconds_count{{code="2xx",{names}}} 1.0' in text
    assert f'{prefix}request_duration_seconds_count{{code="4xx",{names}}} 1.0' in text
    assert f"{prefix}rows_total{{{names}}} 2.0" in text
    assert f"{prefix}requests_in_flight{{{names}}} 0.0" in text
    assert f"{prefix}model_info{{{names}}} 1.0" in text


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", "/invocations", 405, {"POST"}),
        ("OPTIONS", "/invocations", 405, {"POST"}),
        ("POST", "/livez", 405, {"GET", "HEAD"}),
        ("GET", "/nothing", 404, None),
        ("POST", "/invocations/", 404, None),
        ("GET", "/v2/models/flights/infer", 405, {"POST"}),
        ("POST", "/v2", 405, {"GET", "HEAD"}),
        ("GET", "/v2/nothing", 404, None),
    ],
)
def test_wrong_paths_and_methods_are_told_in_the_protocols_form(
    method: str, path: str, status: int, allowed: set[str] | None
) -> None:
    """What no route takes is an error of the protocol that was spoken to, never plain text."""
    answer = Client().send(method, path)
    assert answer.status_code == status
    keys = {"error"} if path.startswith("/v2") else {"error_code", "message", "field"}
    assert answer.json().keys() == keys
    given = answer.headers.get("allow")
    assert (given and set(given.split(", "))) == allowed


def test_docs_find_their_document_behind_the_gateway() -> None:
    """The page asks for its document by a relative address."""
    page = Client().send("GET", "/docs")
    assert page.status_code == 200
    assert "url: 'openapi.json'" in page.text


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.just(CANARY),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["hour", "gate", "data", "columns", CANARY]), inner)
    ),
    max_leaves=8,
)
_FORMS = st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs", "params"])


@settings(max_examples=200, deadline=None)
@given(
    payload=_VALUES | st.dictionaries(_FORMS, _VALUES, max_size=2),
    signature=st.sampled_from(
        [
            COLUMNS,
            Signature(columns=(Column(None, Kind.LONG),)),
            Signature(tensors=(Tensor(None, "float32", (-1, 2)),)),
            Signature(tensors=(Tensor("hour", "int8", (-1,)), Tensor("gate", "str", (-1,)))),
            Signature(),
        ]
    ),
)
def test_no_payload_is_a_5xx_nor_repeated(payload: object, signature: Signature) -> None:
    """Whatever comes, the answer is predictions or a 4xx that does not repeat it."""
    answer = Client(signature=signature).post(payload)
    assert answer.status_code in (200, 400, 413)
    assert CANARY not in answer.text

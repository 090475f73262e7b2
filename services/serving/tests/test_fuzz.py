"""What nobody meant to send: every answer is described, none is a 5xx, none repeats the payload."""

import asyncio
import copy
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from serving_asgi import JSON, Client
from signatures import CASES

CANARY = "c4n4ry"
V2 = "/v2/models/flights/infer"
LIMITS = (
    r"There are no rows",
    r"in row \d+ must be .*, not null",
    r"differ in (length|how many rows they have)",
    r"do not fill the shape",
    r"names a tensor twice",
    r"lists of different lengths or depths",
    r"must hold JSON",
    r"must have the shape",
    r"must be a date and time",
    r"The rows differ in length",
    r"Expected `int`, got `float` - at `\$\.inputs\[\d+\]\.shape",
    r"values in row \d+; \d+ are named",
)
"""What JSON Schema cannot say: lengths that depend on each other, days that exist, JSON in text,
a length that is written 2.0."""
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,unsupported_method"
)
"""Not `negative_data_rejection`: numbers as text and the like are taken as MLflow takes them.
Not `positive_data_acceptance`: it knows no LIMITS; a test of its own does."""


def _client(name: str, **options: Any) -> Client:
    signature, example, answer = CASES[name]
    answer = 0.0 if answer is None and not signature.has_inputs else answer
    return Client(answer, signature, example=example, max_body_bytes=1_000_000, **options)


@pytest.mark.parametrize(
    "name", ["mixed", "optional", "nested", "tensor", "named tensors", "no signature"]
)
def test_schemathesis_finds_nothing(name: str, tmp_path: Path) -> None:
    """Whatever its document allows or forbids, a server answers as the document says."""
    with _client(name).listening() as url:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                *("run", f"{url}/openapi.json", "--checks", CHECKS, "--generation-deterministic"),
                *("--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--no-color"),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d{3,} generated, \d{3,} passed", done.stdout)


def _document(name: str) -> dict[str, Any]:
    document: dict[str, Any] = _client(name).send("GET", "/openapi.json").json()
    return document


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, "/invocations") for name in CASES]
    + [(name, V2) for name in ("mixed", "nested", "no names", "image")],
)
def test_what_the_document_allows_is_taken(name: str, path: str) -> None:
    """A body of the schema is answered, or refused for what no schema can say."""
    client = _client(name)
    document = _document(name)
    body = document["paths"][path]["post"]["requestBody"]
    body["content"] = {"application/json": body["content"]["application/json"]}
    operation = schemathesis.openapi.from_dict(document)[path]["POST"]
    bodies = operation.as_strategy(GenerationMode.POSITIVE)

    @settings(
        max_examples=25,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bodies)
    def take(case: schemathesis.Case) -> None:
        answer = client.post(case.body, path=path)
        if answer.status_code != 200:
            assert answer.status_code == 400
            assert any(re.search(limit, answer.text) for limit in LIMITS), answer.text

    take()


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the way to every value inside another."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _paths(value[key], (*path, key))


def _with(document: Any, path: tuple[Any, ...], value: object) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


HOLE = "@hole@"
RAW = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "0.1e-400", "01", "+1", "1."),
    *("null", "true", "{}", "[]", '""', "[[]]", "[null]", "-9223372036854775809", "1e39"),
    *('"\\ud800"', '"\\u0000"', '"\x00"', "\ufeff1", f'"{CANARY}"', f'["{CANARY}"]'),
    *(f'{{"{CANARY}": 1}}', f'{{"a": 1, "a": "{CANARY}"}}', f'{{"{CANARY}": {{"{CANARY}": []}}}}'),
    *("[" * 2000 + "]" * 2000, "[" * 2000, '{"a":' * 600 + "1" + "}" * 600),
    *(f'"{CANARY * 2000}"', f'"\\u00e9{CANARY}', CANARY, f"{CANARY}]", "'a'"),
)
BYTES = (b"\xff", b"\xc3\x28", b"\x00", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"{", b"]", b",", b'"')


def _holes(document: Any) -> st.SearchStrategy[bytes]:
    """A document with something else in the place of one of its values."""

    def fill(path: tuple[Any, ...], raw: str) -> bytes:
        text = json.dumps(_with(document, path, HOLE))
        return text.replace(f'"{HOLE}"', raw).encode("utf-8", "surrogatepass")

    return st.builds(fill, st.sampled_from(list(_paths(document))), st.sampled_from(RAW))


def _keys(document: Any) -> st.SearchStrategy[bytes]:
    """A document with one of its keys renamed, or there twice."""
    keys = sorted({path[-1] for path in _paths(document) if path and isinstance(path[-1], str)})

    def rename(key: str, other: str) -> bytes:
        return json.dumps(document).replace(f'"{key}":', f'"{other}":', 1).encode()

    def repeat(key: str) -> bytes:
        return json.dumps(document).replace(f'"{key}":', f'"{key}": "{CANARY}", "{key}":').encode()

    chosen = st.sampled_from(keys)
    return st.builds(rename, chosen, chosen | st.just(CANARY)) | st.builds(repeat, chosen)


def _broken(body: bytes) -> st.SearchStrategy[bytes]:
    """A body that is cut off, or has bytes in it that do not belong there."""

    def insert(at: int, more: bytes) -> bytes:
        return body[:at] + more + body[at:]

    place = st.integers(0, len(body))
    return place.map(lambda at: body[:at]) | st.builds(insert, place, st.sampled_from(BYTES))


class Calls:
    """One loop and one application for many requests."""

    def __init__(self, name: str) -> None:
        self._client = _client(name)
        self._runner = asyncio.Runner()
        self._connected = self._client.connected()

    def __enter__(self) -> Self:
        self._http = self._runner.run(self._connected.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._connected.__aexit__(None, None, None))
        self._runner.close()

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """Send one body."""
        return self._runner.run(self._http.post(path, content=body, headers=headers))


def _check(path: str, answer: httpx.Response) -> None:
    assert answer.status_code in {200, 400, 413}, answer.text
    if answer.status_code != 200:
        keys = {"error"} if path == V2 else {"error_code", "message", "field"}
        assert answer.json().keys() == keys
        assert CANARY not in answer.text


@pytest.mark.parametrize("path", ["/invocations", V2])
@pytest.mark.parametrize("name", CASES)
def test_mutated_bodies_are_refused_or_answered(name: str, path: str) -> None:
    """Cut off, of other types, nested too deep, with words JSON lacks: a 4xx in the right form."""
    content = _document(name)["paths"][path]["post"]["requestBody"]["content"]
    document = content["application/json"].get("example", {"inputs": []})
    bodies = _holes(document) | _keys(document) | _broken(json.dumps(document).encode())
    with Calls(name) as calls:

        @settings(max_examples=200, derandomize=True, deadline=None)
        @given(bodies)
        def send(body: bytes) -> None:
            _check(path, calls.post(path, body, JSON))

        send()


@pytest.mark.parametrize("name", ["numbers", "mixed", "tensor", "no signature, a frame"])
def test_mutated_csv_is_refused_or_answered(name: str) -> None:
    """Lines that are cut off, doubled or filled with something else: a 4xx in the right form."""
    text = _document(name)["paths"]["/invocations"]["post"]["requestBody"]["content"]["text/csv"]
    cells = re.split(r"([,\n])", text.get("example", "a,b\n1,2\n"))
    wrong = st.sampled_from(
        [
            CANARY,
            "",
            '"',
            f'"{CANARY}\n',
            "nan",
            "inf",
            "1e999",
            "9" * 400,
            "\x00",
            "é",
            "1,2",
            "\n",
        ]
    )

    def fill(at: int, cell: str) -> bytes:
        return "".join([*cells[:at], cell, *cells[at + 1 :]]).encode()

    bodies = st.builds(fill, st.integers(0, len(cells) - 1), wrong)
    bodies |= _broken("".join(cells).encode())
    with Calls(name) as calls:

        @settings(max_examples=200, derandomize=True, deadline=None)
        @given(bodies)
        def send(body: bytes) -> None:
            _check("/invocations", calls.post("/invocations", body, {"content-type": "text/csv"}))

        send()


@pytest.mark.parametrize("path", ["/invocations", V2])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 100_000, id="brackets"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="closed brackets"),
        pytest.param(b'{"inputs":' * 100_000, id="objects"),
        pytest.param(b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deep inputs"),
        pytest.param(b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deep beside"),
        pytest.param(b'{"inputs": "' + CANARY.encode() * 100_000 + b'"}', id="a long string"),
        pytest.param(b'{"' + CANARY.encode() * 100_000 + b'": 1}', id="a long key"),
        pytest.param(b'{"inputs": ' + b"9" * 500_000 + b"}", id="a long number"),
        pytest.param(b'{"inputs": {"hour": [' + b"1," * 400_000 + b"x]}}", id="wrong at the end"),
        pytest.param(b"\x00" * 1000, id="NUL"),
        pytest.param(b" " * 900_000, id="blanks"),
    ],
)
@pytest.mark.parametrize("name", ["numbers", "tensor", "nested"])
def test_hostile_bodies_are_refused(name: str, path: str, body: bytes) -> None:
    """A hundred thousand brackets, a megabyte of one string: a 400 in the right form."""
    answer = _client(name).post(body, path=path)
    assert answer.status_code == 400
    _check(path, answer)


@pytest.mark.parametrize(
    "length", ["abc", "-1", "9" * 5000, "1e3", "0", "1", "99999999", "0x10", "", "1,2", "²"]
)
def test_wrong_length_of_the_json_is_refused(length: str) -> None:
    """The header of the binary extension is checked like the body."""
    body = json.dumps({"inputs": [{"name": CANARY, "shape": [1], "datatype": "FP64"}]}).encode()
    headers = {"inference-header-content-length": length.encode()}
    answer = _client("tensor").send("POST", V2, content=body, headers=headers)
    assert answer.status_code == 400
    _check(V2, answer)


def _leaves(payload: Any) -> list[tuple[Any, ...]]:
    return [path for path in _paths(payload) if not isinstance(_at(payload, path), dict | list)]


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize("name", ["numbers", "mixed", "nested", "no names", "tensor", "image"])
def test_wrong_value_is_found_wherever_it_is(name: str) -> None:
    """Of a body with one wrong value, the answer names the field that holds it."""
    content = _document(name)["paths"]["/invocations"]["post"]["requestBody"]["content"]
    payload = content["application/json"]["example"]
    client = _client(name)
    names = {str(spec.name) for spec in client.signature.columns + client.signature.tensors}
    tried = 0
    for path in _leaves(payload):
        if "any" in path:  # Takes whatever comes.
            continue
        answer = client.post(_with(payload, path, {CANARY: CANARY}))
        assert answer.status_code == 400, path
        assert CANARY not in answer.text
        field = answer.json()["field"]
        owner = next((key for key in path if key in names), None)
        if path[0] == "params":
            assert field == f"params.{path[1]}"
        elif owner is not None:
            assert field.startswith(str(owner)), (path, answer.text)
        elif client.signature.tensors:
            indexes = "".join(f"[{index}]" for index in path if isinstance(index, int))
            assert field.endswith(indexes), (path, answer.text)
        else:
            assert field, (path, answer.text)
        tried += 1
    assert tried


def _exchange(url: str, request: bytes) -> bytes:
    """Send bytes as they are; give all that comes back."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        parts = iter(lambda: connection.recv(65536), b"")
        return b"".join(parts)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param("Content-Length: abc", id="no number"),
        pytest.param("Content-Length: -1", id="negative"),
        pytest.param("Content-Length: 2\r\nContent-Length: 3", id="twice"),
        pytest.param("Content-Length: 99999999999999999999999", id="too large a number"),
        pytest.param("Content-Length: 2\r\nTransfer-Encoding: chunked", id="two ways"),
        pytest.param("Transfer-Encoding: chunked", id="no chunks"),
        pytest.param(f"{CANARY}\x00: 1", id="a header with NUL"),
    ],
)
def test_what_is_not_http_is_a_400_in_json(head: str) -> None:
    """Wrong lengths and broken heads are refused in the form of MLflow's protocol."""
    request = f"POST /invocations HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n{{}}xx".encode()
    with _client("numbers").listening() as url:
        answer = _exchange(url, request)
    head_, _, body = answer.partition(b"\r\n\r\n")
    assert head_.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error_code"] == "BAD_REQUEST"
    assert CANARY.encode() not in answer


def test_body_that_ends_early_costs_nobody_else() -> None:
    """A caller that leaves in the middle of its body does not stop the next one."""
    request = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    with _client("numbers").listening() as url:
        _exchange(url, request)
        assert httpx.get(f"{url}/livez").status_code == 200

"""What the gateway answers by itself, and the headers it sets."""

import json
import socket

import httpx
import pytest
from gateway_client import Answer, seen
from gateway_lab import ROLLOUT, Served, wait_for


def error(answer: httpx.Response | Answer) -> dict[str, str]:
    """Read an error's body."""
    assert answer.headers["content-type"].startswith("application/json")
    body = answer.content if isinstance(answer, httpx.Response) else answer.body
    document = json.loads(body)
    assert {"error_code", "message"} <= set(document)
    return document


def get(served: Served, path: str, **more: object) -> httpx.Response:
    """Ask the gateway for a path."""
    return httpx.request(
        str(more.pop("method", "GET")),
        f"{served.gateway.url}{path}",
        trust_env=False,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "path",
    ["/", "/models/none/invocations", "/models/{m}", "/models/{m}/metrics", "/models/{m}x/docs"],
)
def test_unknown_paths(served: Served, path: str) -> None:
    """A model or a path that is not served is a 404 with a message."""
    answer = get(served, path.replace("{m}", served.model))
    assert answer.status_code == 404
    assert error(answer)["error_code"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("path", "upstream"),
    [
        ("/models/{m}/openapi.json", "/openapi.json"),
        ("/models/{m}/docs?a=1", "/docs?a=1"),
        ("/v2/models/{m}", "/v2/models/{m}"),
        ("/v2/models/{m}/ready", "/v2/models/{m}/ready"),
        ("/models/{m}/invocations", "/invocations"),
    ],
)
def test_known_paths(served: Served, path: str, upstream: str) -> None:
    """Each path reaches stable under the name the serving process knows."""
    answer = get(served, path.replace("{m}", served.model), headers={"x-unit-id": "a"})
    assert answer.json()["line"] == f"GET {upstream.replace('{m}', served.model)} HTTP/1.1"
    assert answer.headers["x-model-version"] == "3"


def test_v2_inference_is_split(served: Served) -> None:
    """An Open Inference Protocol request is split as an invocation is."""
    served.apply(10_000)
    path = f"/v2/models/{served.model}/infer"
    answer = get(served, path, method="POST", headers={"x-unit-id": "a"})
    assert answer.headers["x-rollout-arm"] == "candidate"
    assert answer.json()["line"] == f"POST {path} HTTP/1.1"


@pytest.mark.parametrize("given", ["", "a b", "a" * 65, "ä", "a b\r\nx-inference-id: b"])
def test_bad_inference_id(served: Served, given: str) -> None:
    """An inference id that breaks the rule is a 400 that names the header and the rule."""
    (answer,) = served.ask({"x-inference-id": given})
    assert answer.code == 400
    assert error(answer)["field"] == "x-inference-id"
    assert "1 to 64" in error(answer)["message"]


def test_headers_of_an_answer(served: Served) -> None:
    """Every answer tells the id, the version, the arm and the rollout; upstream sees them, too."""
    (answer,) = served.ask({"x-inference-id": "A.b_c:1-2", "x-unit-id": "a"})
    assert answer.headers["x-inference-id"] == "A.b_c:1-2"
    assert answer.headers["x-rollout-id"] == ROLLOUT
    assert seen(answer)["headers"]["x-inference-id"] == "A.b_c:1-2"
    assert seen(answer)["headers"]["x-rollout-arm"] == answer.headers["x-rollout-arm"]
    assert not [name for name in seen(answer)["headers"] if name.startswith("x-fairlead-from")]


def test_without_a_rollout(served: Served) -> None:
    """Outside a rollout the arm is stable and there is no rollout id."""
    served.apply(None)
    (answer,) = served.ask({"x-unit-id": "a"})
    assert answer.headers["x-rollout-arm"] == "stable"
    assert "x-rollout-id" not in answer.headers
    assert served.log(1)[0]["rollout"] is None


def test_too_large(served: Served) -> None:
    """A body above the plan's limit is a 413, with a length or in chunks."""
    served.apply(1000, limits={"maxBodyBytes": 1024})
    for content in (b"x" * 1025, iter([b"x" * 600] * 2)):
        answer = get(served, served.path, method="POST", content=content)
        assert answer.status_code == 413
        assert error(answer)["error_code"] == "PAYLOAD_TOO_LARGE"
        assert answer.headers["x-inference-id"]
    assert get(served, served.path, method="POST", content=b"x" * 1024).status_code == 200


def test_timeout(served: Served) -> None:
    """An answer later than the plan's timeout is a 504."""
    served.apply(1000, timeout=0.1)
    (answer,) = served.ask({"x-test-delay": "3"})
    assert answer.code == 504
    assert error(answer)["error_code"] == "TIMEOUT"
    assert answer.headers["x-rollout-arm"] == "stable"


def test_a_body_that_stops_arriving(served: Served) -> None:
    """A client that falls silent within its body gets a 408, and holds nothing for ever."""
    served.apply(1000, timeout=0.5)
    with socket.create_connection(("127.0.0.1", served.gateway.port), timeout=30) as client:
        head = f"POST {served.path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
        client.sendall(f"{head}{{".encode())
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive in time" in answer


def test_a_model_without_endpoints(served: Served) -> None:
    """A model with no replica at all is a 503 that names it, and its headers are there."""
    served.gateway.remove("3", served.model)
    served.gateway.remove("4", served.model)
    answer = wait_for(lambda: [a for a in served.ask({"x-unit-id": "a"}) if a.code == 503])[0]
    assert error(answer)["error_code"] == "UNAVAILABLE"
    assert served.model in error(answer)["message"]
    assert answer.headers["x-rollout-arm"]
    assert answer.headers["x-inference-id"]


def test_model_errors_pass(served: Served) -> None:
    """A model's own 500 comes back as it is, once, from the arm's own version."""
    served.apply(10_000)
    (answer,) = served.ask({"x-unit-id": "a", "x-test-code": "500"})
    assert answer.code == 500
    assert answer.headers["x-model-version"] == "4"
    assert served.log(1)[0]["attempts"] == 1


def test_shadow(served: Served) -> None:
    """A shadow gets its share of copies, and never answers."""
    served.upstream("5")
    served.apply(None, shadow=[{"version": "5", "share": 5000}])
    answers = served.ask(*[{}] * 200)
    assert {answer.headers["x-model-version"] for answer in answers} == {"3"}
    copied = f"cluster.{served.model}-v5.upstream_rq_total"
    assert wait_for(lambda: 60 < int(served.gateway.stat(copied)) < 140)

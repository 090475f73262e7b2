"""What the gateway answers by itself, and the headers it sets."""

import contextlib
import json
import socket
from collections.abc import Iterable

import httpx
import pytest
from gateway_client import Answer, seen
from gateway_lab import ROLLOUT, Served, black_hole, wait_for


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


def _ids(headers: Iterable[dict[str, str]], mark: str) -> set[str]:
    """The inference ids of the requests with a mark."""
    return {one["x-inference-id"] for one in headers if one.get("x-fairlead-compare") == mark}


def _noted(served: Served, name: str) -> list[dict[str, str]]:
    """The headers of the requests that an upstream has noted."""
    lines = (served.gateway.home / f"{name}.out").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize("weight", [None, 5000], ids=["stable alone", "during a rollout"])
def test_requests_and_their_copies_are_marked(served: Served, weight: int | None) -> None:
    """What is copied is marked on both sides, alike by its inference id, and nothing else is."""
    shares = {"5": 6000, "6": 2000}
    names = {version: served.upstream(version) for version in shares}
    served.apply(weight, shadow=[{"version": v, "share": s} for v, s in shares.items()])
    requests = [{"x-unit-id": f"u{k}", "x-test-note": "1"} for k in range(300)]
    answers = served.ask(*requests, {"x-fairlead-compare": "answer", "x-test-note": "1"})
    marked = _ids((seen(answer)["headers"] for answer in answers), "answer")

    copies = wait_for(lambda: (ids := _ids(_noted(served, names["5"]), "shadow")) >= marked and ids)
    assert copies == marked
    assert 120 < len(marked) < 240
    rarer = _ids(_noted(served, names["6"]), "shadow")
    assert rarer < marked
    assert 20 < len(rarer) < 100
    assert not _ids(_noted(served, names["5"]), "answer")


def test_a_mark_of_the_clients_own_never_passes(served: Served) -> None:
    """A client cannot have its requests reported."""
    for weight in (None, 5000):
        served.apply(weight)
        answers = served.ask(*[{"x-fairlead-compare": "answer"}] * 10)
        assert not _ids((seen(answer)["headers"] for answer in answers), "answer")


def test_only_predictions_are_copied(served: Served) -> None:
    """Documents and probes are no predictions: a shadow hears nothing of them."""
    name = served.upstream("5")
    served.apply(None, shadow=[{"version": "5", "share": 10_000}])
    get(served, f"/models/{served.model}/openapi.json", headers={"x-test-note": "1"})
    served.ask({"x-test-note": "1"})

    noted = wait_for(lambda: _noted(served, name))
    assert [one["x-fairlead-compare"] for one in noted] == ["shadow"]


@pytest.mark.parametrize("fault", ["hangs", "fails", "is killed", "cannot be reached"])
def test_a_broken_shadow_costs_no_answer(served: Served, fault: str) -> None:
    """Whatever a shadow does with its copies, every request gets its answer from stable."""
    env = {"hangs": {"DELAY": "3600"}, "fails": {"CODE": "500"}}.get(fault, {})
    name = served.upstream("5", **env)
    served.apply(None, shadow=[{"version": "5", "share": 10_000}])
    with contextlib.ExitStack() as stack:
        if fault == "is killed":
            served.gateway.kill(name)
        if fault == "cannot be reached":
            served.gateway.remove("5", served.model)
            served.gateway.black_hole("5", served.model, stack.enter_context(black_hole()))
        answers = served.ask(*[{}] * 100)

    assert {answer.code for answer in answers} == {200}
    assert {answer.headers["x-model-version"] for answer in answers} == {"3"}

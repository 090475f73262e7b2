"""What becomes of the API server's refusals, and of its silence."""

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration
from kubernetes.config import ConfigException

from fairlead_rollout.adapters.k8s.api import KubeApi, connect, path_of
from fairlead_rollout.domain.errors import (
    ConflictError,
    FairleadError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)

Document = dict[str, Any]

TOKEN = "eyJhbGciOi-a-secret-token"  # noqa: S105 -- a made-up one that must not show


class Server:
    """An API server that answers as it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b'{"items": []}'
        self.delay = 0.0
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append(
                    (self.command, self.path, {k.title(): v for k, v in self.headers.items()}, body)
                )
                time.sleep(outer.delay)
                with contextlib.suppress(OSError):  # who asked may have given up
                    self.send_response(outer.status)
                    self.send_header("Content-Length", str(len(outer.body)))
                    self.end_headers()
                    self.wfile.write(outer.body)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 -- the base's names

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base's name
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def refuses(self, status: int, message: str) -> None:
        """Answer with a Status as Kubernetes does."""
        self.status = status
        self.body = json.dumps({"kind": "Status", "message": message, "code": status}).encode()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)


@pytest.fixture
def server() -> Iterator[Server]:
    """Return a server that has no object."""
    server = Server()
    yield server
    server.close()


def configuration(url: str) -> Configuration:
    """Return the settings of a client with a token."""
    made = Configuration(host=url)
    made.api_key = {"BearerToken": f"Bearer {TOKEN}"}
    made.retries = False
    return made


@pytest.fixture
def api(server: Server) -> Iterator[KubeApi]:
    """Return the API under test."""
    client = ApiClient(configuration(server.url))
    yield KubeApi(client)
    client.rest_client.pool_manager.clear()


@pytest.mark.parametrize(
    ("status", "is_there"), [(200, True), (404, False), (403, True), (503, True), (401, True)]
)
def test_a_namespace_is_gone_only_by_a_plain_no(
    server: Server, api: KubeApi, status: int, is_there: bool
) -> None:
    """Who may not ask, or gets no answer, goes on as if it were there."""
    server.status = status
    assert api.has_namespace("team-a") is is_there
    assert server.asked[-1][:2] == ("GET", "/api/v1/namespaces/team-a")


CALLS: dict[str, Callable[[KubeApi], Any]] = {
    "get": lambda api: api.get("Pod", "ml", "x"),
    "list": lambda api: api.list("Pod", "ml", {}),
    "apply": lambda api: api.apply(document()),
    "create": lambda api: api.create(document()),
    "replace": lambda api: api.replace(document(), "status"),
    "patch": lambda api: api.patch("Pod", "ml", "x", {}),
}


def document() -> Document:
    """Return some object."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "ml"}}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, FairleadError),
        (403, RefusedError),
        (404, NotFoundError),
        (409, ConflictError),
        (422, RefusedError),
        (429, UnavailableError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
def test_a_refusal_is_an_error_of_ours(
    api: KubeApi, server: Server, call: str, status: int, error: type[FairleadError]
) -> None:
    """The kind says whether to look again; the message says what was refused, and why."""
    server.refuses(status, "spec.replicas: must not be negative")
    with pytest.raises(FairleadError) as caught:
        CALLS[call](api)
    assert type(caught.value) is error
    assert str(status) in str(caught.value)
    assert "spec.replicas: must not be negative" in str(caught.value)
    assert "namespaces/ml/pods" in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_what_is_not_there_is_deleted_already(api: KubeApi, server: Server) -> None:
    """A deletion can be repeated."""
    server.refuses(404, "not found")
    api.delete("Pod", "ml", "x", "uid-1")
    server.refuses(403, "forbidden")
    with pytest.raises(FairleadError, match="403 forbidden"):
        api.delete("Pod", "ml", "x", "uid-1")


def test_a_server_that_does_not_listen_is_unavailable() -> None:
    """Nobody there is a reason to try again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = KubeApi(ApiClient(configuration(f"http://127.0.0.1:{port}")))
    with pytest.raises(UnavailableError) as caught:
        api.get("Pod", "ml", "x")
    assert "GET api/v1/namespaces/ml/pods/x" in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_server_that_hangs_is_unavailable(
    server: Server,
) -> None:
    """No pass waits for ever."""
    api = KubeApi(ApiClient(configuration(server.url)), timeout=(1.0, 0.1))
    server.delay = 0.5
    with pytest.raises(UnavailableError, match="Timeout"):
        api.get("Pod", "ml", "x")


def test_an_answer_cut_short_is_unavailable() -> None:
    """A connection that breaks in the middle of an answer is an outage, not a crash."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        connection.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    api = KubeApi(ApiClient(configuration(f"http://127.0.0.1:{listener.getsockname()[1]}")))
    with pytest.raises(UnavailableError):
        api.get("Pod", "ml", "x")
    thread.join(timeout=10)
    listener.close()


@pytest.mark.parametrize("body", [b"<html>", b"", b"\xff"])
def test_an_answer_that_is_not_json_is_unavailable(
    api: KubeApi, server: Server, body: bytes
) -> None:
    """A proxy's page in the API server's stead is an outage as well."""
    server.body = body
    with pytest.raises(UnavailableError, match="GET api/v1"):
        api.get("Pod", "ml", "x")


def test_a_refusal_without_a_status_document_still_says_which(api: KubeApi, server: Server) -> None:
    """A proxy's page is not repeated."""
    server.status, server.body = 502, b"<html>a long page</html>"
    with pytest.raises(UnavailableError, match="502") as caught:
        api.get("Pod", "ml", "x")
    assert "html" not in str(caught.value)


def test_a_field_that_kubernetes_does_not_know_is_a_refusal(api: KubeApi, server: Server) -> None:
    """Server-side apply answers 500 to a misspelt field of a pod template; waiting mends it not."""
    why = "failed to create typed patch object (ml/x; /v1, Kind=Pod): .spec.nodeSelecter: field not declared in schema"
    server.refuses(500, why)
    with pytest.raises(RefusedError, match="nodeSelecter: field not declared"):
        api.apply(document())


@pytest.mark.parametrize("body", [b'"upstream error"', b"[]", b"null", b'{"message": null}'])
def test_a_refusal_in_another_documents_form_is_a_refusal(
    api: KubeApi, server: Server, body: bytes
) -> None:
    """A load balancer's JSON is none of Kubernetes'; it must not end the renewal of a Lease."""
    server.status, server.body = 503, body
    with pytest.raises(UnavailableError, match="503"):
        api.get("Pod", "ml", "x")


@pytest.mark.parametrize("error", [ConfigException("the token file is empty"), OSError("gone")])
def test_a_token_that_cannot_be_read_just_now_is_an_outage(
    server: Server, error: Exception
) -> None:
    """Kubelet changes a pod's token while it runs."""

    def refresh(_: Configuration) -> None:
        raise error

    made = configuration(server.url)
    made.refresh_api_key_hook = refresh
    with pytest.raises(UnavailableError, match="token"):
        KubeApi(ApiClient(made)).get("Pod", "ml", "x")
    assert server.asked == []


@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"get", "list"}))
def test_who_may_not_write_writes_nothing(server: Server, call: str) -> None:
    """A pass that goes on after the lead was lost changes nothing under its successor."""
    api = KubeApi(ApiClient(configuration(server.url)), may_write=lambda: False)
    with pytest.raises(UnavailableError, match="lead"):
        CALLS[call](api)
    with pytest.raises(UnavailableError, match="lead"):
        api.delete("Pod", "ml", "x", "uid-1")
    assert server.asked == []
    api.list("Pod", "ml", {})
    assert len(server.asked) == 1


def test_the_token_goes_into_the_header_and_nowhere_else(api: KubeApi, server: Server) -> None:
    """Neither paths nor bodies carry it."""
    api.list("Pod", "ml", {"a": "b", "c": "d"})
    ((method, path, headers, body),) = server.asked
    assert (method, path) == ("GET", "/api/v1/namespaces/ml/pods?labelSelector=a%3Db%2Cc%3Dd")
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN.encode() not in body


def test_applying_names_the_manager_and_takes_fields_over(api: KubeApi, server: Server) -> None:
    """Server-side apply, by force: what somebody changed by hand is put right."""
    api.apply(document(), manager="other")
    ((method, path, headers, body),) = server.asked
    assert method == "PATCH"
    assert path == "/api/v1/namespaces/ml/pods/x?fieldManager=other&force=true"
    assert headers["Content-Type"] == "application/apply-patch+yaml"
    assert json.loads(body) == document()


def test_a_deletion_is_meant_for_one_object_alone(api: KubeApi, server: Server) -> None:
    """One that was made under the same name meanwhile stays."""
    api.delete("Pod", "ml", "x", "uid-1")
    ((method, path, _, body),) = server.asked
    assert (method, path) == ("DELETE", "/api/v1/namespaces/ml/pods/x")
    assert json.loads(body)["preconditions"] == {"uid": "uid-1"}
    assert json.loads(body)["propagationPolicy"] == "Background"
    server.refuses(409, "Precondition failed: UID in precondition: uid-1")
    with pytest.raises(ConflictError):
        api.delete("Pod", "ml", "x", "uid-1")


def test_fields_of_others_are_taken_by_force_only_if_asked(api: KubeApi, server: Server) -> None:
    """The number of pods is the autoscaler's, if it has changed it."""
    api.apply(document(), manager="other", force=False)
    ((_, path, _, _),) = server.asked
    assert path.endswith("?fieldManager=other&force=false")


@pytest.mark.parametrize("name", ["../secrets", "a/b", "a?b", "ä"])
def test_a_name_cannot_lead_to_another_path(name: str) -> None:
    """Names are quoted, whatever they hold."""
    path = path_of("Pod", "ml", name)
    assert path.startswith("api/v1/namespaces/ml/pods/")
    assert "/" not in path.removeprefix("api/v1/namespaces/ml/pods/")
    assert "?" not in path


def test_without_a_cluster_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Outside a pod and without a kubeconfig the error says what to set."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none")
    )
    with pytest.raises(FairleadError, match="set KUBECONFIG"):
        connect()


def test_a_kubeconfig_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside a pod the current context counts."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    file = tmp_path / "config"
    authority = base64.b64encode(b"none").decode()
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    cluster = {"server": "http://127.0.0.1:1", "certificate-authority-data": authority}
    file.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [context],
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": TOKEN}}],
            }
        ),
        "utf-8",
    )
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    assert connect().configuration.host == "http://127.0.0.1:1"

"""Kubernetes: the ServedModels and EndpointSlices of some namespaces, listed and then watched.

Objects are read as plain JSON: the client's generated models would cost several times the memory,
and know no ServedModel.
"""

import contextlib
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import orjson
import urllib3
from kubernetes import client, config
from kubernetes.utils.keepalive import tcp_keepalive_socket_options

from fairlead_gateway.app.ports import Snapshot
from fairlead_gateway.app.view import ClusterView
from fairlead_gateway.domain.objects import (
    MODEL_LABEL,
    ObjectKey,
    key_of,
    parse_served_model,
    parse_slice,
)

_log = logging.getLogger(__name__)

_Object = TypeVar("_Object")

_PAGE = 500  # Objects in one answer: bounds what is held as JSON at a time.
_CONNECT_TIMEOUT = 5.0
_READ_TIMEOUT = 30.0
_WATCH = (240, 480)  # Seconds a watch may last; apart, so that not all end together.
_SHORTEST_WAIT = 0.2
_LONGEST_WAIT = 10.0
GONE_WAIT = 30.0  # Seconds until a namespace that is gone is looked for again.


class ClusterAddressError(RuntimeError):
    """It is not known where the API server is, or as whom to talk to it."""


class _RefusedError(Exception):
    """The API server did not do what it was asked for.

    Args:
        status: What it answered with.
        message: What it said.
    """

    def __init__(self, status: int | None, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status = status


class _GoneError(Exception):
    """The namespace does not exist."""


def connect() -> client.ApiClient:
    """Make a client: by the pod's service account, or else by the kubeconfig.

    Raises:
        ClusterAddressError: There is neither.
    """
    settings = client.Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(settings)  # type: ignore[no-untyped-call]
        else:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                # The library looks at the environment once, when it is imported.
                config_file=os.environ.get("KUBECONFIG"),
                client_configuration=settings,
            )
    except (config.ConfigException, OSError) as error:
        raise ClusterAddressError(
            f"the API server cannot be found ({error}); run in a pod that has a service account's "
            "token mounted, or set KUBECONFIG"
        ) from error
    settings.retries = False  # We try again by ourselves, and know what was read before.
    # A connection whose other end has vanished is noticed after 25 seconds.
    settings.socket_options = tcp_keepalive_socket_options(idle=10, interval=5, count=3)
    made = client.ApiClient(settings)
    made.user_agent = "fairlead-gateway"
    return made


class KubernetesSource:
    """What is wanted, as the objects in a cluster say.

    Args:
        namespaces: Where to look.
        connect: Makes a client; called again after each failure, as tokens and certificates of
            authority are exchanged.
    """

    def __init__(
        self, namespaces: Sequence[str], connect: Callable[[], client.ApiClient] = connect
    ) -> None:
        self._connect = connect
        self._stop = threading.Event()
        names = [(name, namespace) for namespace in namespaces for name in _LISTS]
        self._view = ClusterView(f"{name} in {namespace}" for name, namespace in names)
        self._followers = [
            _Follower(_LISTS[name](self._view, namespace), self._view, connect, self._stop)
            for name, namespace in names
        ]

    def start(self) -> None:
        """Start to read.

        Raises:
            ClusterAddressError: It is not known where the API server is.
        """
        self._connect().close()  # type: ignore[no-untyped-call]
        for follower in self._followers:
            follower.start()

    def close(self) -> None:
        """Stop to read."""
        self._stop.set()
        for follower in self._followers:
            follower.close()

    def read(self) -> Snapshot:
        """Return what is wanted now; the same object as before if nothing has changed.

        It is complete once every list has been read; what was read last stays while the API
        server is away.
        """
        return self._view.read()


@dataclass(frozen=True, slots=True, kw_only=True)
class _List(Generic[_Object]):
    """One kind of objects in one namespace, and who is told of them."""

    name: str
    namespace: str
    path: str
    selector: Mapping[str, str]
    parse: Callable[[Mapping[str, Any]], _Object]
    replace: Callable[[Sequence[_Object]], None]
    put: Callable[[_Object], None]
    remove: Callable[[ObjectKey], None]

    def take(self, kind: str, document: Mapping[str, Any]) -> None:
        """Take one event of a watch."""
        if kind == "DELETED":
            self.remove(key_of(document))
        else:
            self.put(self.parse(document))


def _served_models(view: ClusterView, namespace: str) -> _List[Any]:
    return _List(
        name=f"ServedModels in {namespace}",
        namespace=namespace,
        path=f"/apis/fairlead.dev/v1alpha1/namespaces/{namespace}/servedmodels",
        selector={},
        parse=parse_served_model,
        replace=lambda found: view.replace_models(namespace, found),
        put=view.put_model,
        remove=view.remove_model,
    )


def _slices(view: ClusterView, namespace: str) -> _List[Any]:
    return _List(
        name=f"EndpointSlices in {namespace}",
        namespace=namespace,
        path=f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
        selector={"labelSelector": MODEL_LABEL},
        parse=parse_slice,
        replace=lambda found: view.replace_slices(namespace, found),
        put=view.put_slice,
        remove=view.remove_slice,
    )


_LISTS: Mapping[str, Callable[[ClusterView, str], _List[Any]]] = {
    "ServedModels": _served_models,
    "EndpointSlices": _slices,
}


class _Follower:
    """Reads one list whole, then follows its changes, in a thread of its own.

    A watch that ends or breaks goes on where it was. One that cannot be opened, or has no history
    any more (410 Gone), makes the list be read again: whoever was away may have come back with an
    older store. A namespace that is gone, and the right to read it with it, counts as empty.
    """

    def __init__(
        self,
        what: _List[Any],
        view: ClusterView,
        connect: Callable[[], client.ApiClient],
        stop: threading.Event,
    ) -> None:
        self._list = what
        self._view = view
        self._connect = connect
        self._stop = stop
        self._failures = 0
        self._reported = ""
        self._response: urllib3.BaseHTTPResponse | None = None
        self._thread = threading.Thread(target=self._run, name=what.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Break off what is being waited for."""
        open_socket = getattr(getattr(self._response, "connection", None), "sock", None)
        if open_socket is not None:
            with contextlib.suppress(OSError):
                # Around TLS, whose own shutdown would pull it away from under the reader.
                socket.socket.shutdown(open_socket, socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._connect() as api:
                    self._follow(api)
            except Exception as error:  # noqa: BLE001 - whatever it is, what was read last stays.
                if self._stop.is_set():
                    return
                reason = _reason(error)
                self._view.trouble(self._list.name, reason)
                if reason != self._reported:
                    _log.warning("Kubernetes", extra={"list": self._list.name, "reason": reason})
                self._reported = reason
                self._stop.wait(GONE_WAIT if isinstance(error, _GoneError) else self._pause())

    def _pause(self) -> float:
        longest = min(_SHORTEST_WAIT * 2**self._failures, _LONGEST_WAIT)
        self._failures = min(self._failures + 1, 10)
        return random.uniform(longest / 2, longest)  # noqa: S311 - no secret.

    def _follow(self, api: client.ApiClient) -> None:
        try:
            version = self._read(api)
        except _RefusedError as error:
            if error.status == HTTPStatus.FORBIDDEN and self._is_gone(api):
                self._list.replace([])
                self._view.listed(self._list.name)
                raise _GoneError(f"namespace {self._list.namespace} does not exist") from error
            raise
        self._view.listed(self._list.name)
        self._view.trouble(self._list.name, "")
        while not self._stop.is_set():
            version = self._watch(api, version)

    def _is_gone(self, api: client.ApiClient) -> bool:
        """Tell whether the API server says that there is no such namespace."""
        try:
            self._open(api, {}, _READ_TIMEOUT, f"/api/v1/namespaces/{self._list.namespace}")
        except _RefusedError as error:
            return error.status == HTTPStatus.NOT_FOUND
        return False

    def _read(self, api: client.ApiClient) -> str:
        """Read the whole list, in pages; return the version it has."""
        found: list[Any] = []
        query = {**self._list.selector, "limit": str(_PAGE)}
        while True:
            page = orjson.loads(self._open(api, query, _READ_TIMEOUT).data)
            found += map(self._list.parse, page["items"])
            query["continue"] = page["metadata"].get("continue") or ""
            if not query["continue"]:
                self._list.replace(found)
                return str(page["metadata"]["resourceVersion"])

    def _watch(self, api: client.ApiClient, version: str) -> str:
        """Follow the changes since a version; return the version at which the watch ended."""
        seconds = random.randint(*_WATCH)  # noqa: S311 - no secret.
        started = time.monotonic()
        query = {
            **self._list.selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        response = self._open(api, query, seconds + _READ_TIMEOUT)
        self._reported = ""  # What comes next is another outage.
        before = version
        try:
            for line in _lines(response):
                version = self._take(orjson.loads(line))
                self._failures = 0
        except (urllib3.exceptions.HTTPError, OSError) as error:
            _log.info("A watch broke", extra={"list": self._list.name, "reason": _reason(error)})
        finally:
            response.close()
        if version == before and time.monotonic() - started < 1:
            self._stop.wait(self._pause())  # A server that ends each watch at once.
        return version

    def _take(self, event: Mapping[str, Any]) -> str:
        """Take one event; return the version it has."""
        kind, document = event["type"], event["object"]
        if kind == "ERROR":
            raise _RefusedError(document.get("code"), str(document.get("message")))
        if kind != "BOOKMARK":
            self._list.take(kind, document)
        return str(document["metadata"]["resourceVersion"])

    def _open(
        self, api: client.ApiClient, query: Mapping[str, str], read_timeout: float, path: str = ""
    ) -> urllib3.BaseHTTPResponse:
        request = api.param_serialize(
            "GET",
            path or self._list.path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],  # Asked for each time, as the token is exchanged.
        )
        timeouts = (_CONNECT_TIMEOUT, read_timeout)
        answer = api.call_api(*request, _request_timeout=timeouts)
        response: urllib3.BaseHTTPResponse = answer.response
        self._response = response
        if response.status != HTTPStatus.OK:
            raise _RefusedError(response.status, _message(response.data))
        return response


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    for chunk in response.stream():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)


def _message(body: bytes) -> str:
    """Return what a Status says, else how the body begins."""
    with contextlib.suppress(ValueError, AttributeError):
        return str(orjson.loads(body).get("message"))
    return body[:200].decode("utf-8", "replace")


def _reason(error: Exception) -> str:
    """Say what is wrong; a library's own error first by its kind, as its text may be empty."""
    known = isinstance(error, _RefusedError | _GoneError | ClusterAddressError)
    return str(error) if known else f"{type(error).__name__}: {error}"

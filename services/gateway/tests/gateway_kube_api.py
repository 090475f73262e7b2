"""A small API server: list and watch, with versions, pages, bookmarks, 410 and tokens."""

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Document = dict[str, Any]
Event = tuple[int, str, str, Document]
"""Version, kind of event, path of the collection, object."""


class KubeApi:
    """An API server that holds objects in memory, and can be made to fail."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        """Start to listen; over TLS with a certificate and a key."""
        self.changed = threading.Condition()
        self.version = 100
        self.clock = 0
        self.compacted = 0
        self.generation = 0
        self.bookmarks = 0
        self.bookmarks_sent = 0
        self.token: str | None = None
        self.refusal: tuple[int, str] | None = None
        self.gone: dict[str, int] = {}
        """Namespaces in which nothing may be read, and what is answered to who asks for one."""
        self.objects: dict[str, dict[str, Document]] = {}
        self.events: list[Event] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.watches = 0
        self._tls = tls
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    # Being there, or not

    def start(self) -> None:
        """Listen, at the same port as before."""
        self._server = _Server(("127.0.0.1", self.port), _Handler, self)
        if self._tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Break every connection, and refuse new ones."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.hang_up()
        self.end_watches()

    def end_watches(self) -> None:
        """Break the watches that are open."""
        with self.changed:
            self.generation += 1
            self.changed.notify_all()

    def compact(self) -> None:
        """Forget the history."""
        with self.changed:
            self.version += 1
            self.compacted = self.version
            self.events.clear()

    def expire(self) -> None:
        """Forget the history, and tell the open watches so in mid-stream."""
        self.compact()
        with self.changed:
            gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
            self.events.append((self.version + 1, "ERROR", "*", gone))
            self.version += 1
            self.changed.notify_all()

    def bookmark(self) -> int:
        """Send a bookmark to every watch; return its version."""
        with self.changed:
            self.version += 1
            self.bookmarks = self.version
            self.changed.notify_all()
            return self.version

    # Objects

    def put(self, path: str, document: Document) -> None:
        """Make an object, or replace it."""
        with self.changed:
            name = document["metadata"]["name"]
            old = self.objects.get(path, {}).get(name)
            self._record("ADDED" if old is None else "MODIFIED", path, document)

    def get(self, path: str, name: str) -> Document:
        """Return a copy of an object."""
        copy: Document = json.loads(json.dumps(self.objects[path][name]))
        return copy

    def delete(self, path: str, name: str) -> None:
        """Take an object away."""
        with self.changed:
            self._record("DELETED", path, self.get(path, name))

    def _record(self, kind: str, path: str, document: Document) -> None:
        self.version += 1
        document["metadata"]["resourceVersion"] = str(self.version)
        found = self.objects.setdefault(path, {})
        if kind == "DELETED":
            del found[document["metadata"]["name"]]
        else:
            found[document["metadata"]["name"]] = document
        self.events.append((self.version, kind, path, document))
        self.changed.notify_all()

    def lists(self, path: str) -> int:
        """Count the lists asked for."""
        return sum(seen == path and "watch" not in query for seen, query in self.requests)

    def watched(self, path: str) -> list[str]:
        """Return the versions watches were asked for from."""
        return [
            query["resourceVersion"]
            for seen, query in self.requests
            if seen == path and "watch" in query
        ]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: Any, api: KubeApi) -> None:
        self.api = api
        self.connections: list[socket.socket] = []
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Remember each connection."""
        made = super().get_request()
        self.connections.append(made[0])
        return made

    def hang_up(self) -> None:
        """Break every connection."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """List or watch."""
        api = self.server.api
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        api.requests.append((parts.path, query))
        if api.token is not None and self.headers["authorization"] != f"bearer {api.token}":
            return self._status(401, "Unauthorized")
        if api.refusal is not None:
            return self._status(*api.refusal)
        _, _, below = parts.path.partition("/namespaces/")
        namespace, _, kind = below.partition("/")
        if not kind:
            return self._status(api.gone.get(namespace, 200), f"namespace {namespace}")
        if namespace in api.gone:
            return self._status(403, f"{kind} is forbidden")
        if "watch" in query:
            return self._watch(parts.path, query)
        return self._list(parts.path, query)

    def _status(self, code: int, message: str) -> None:
        self._json(code, {"kind": "Status", "code": code, "message": message})

    def _json(self, code: int, document: Document) -> None:
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _list(self, path: str, query: dict[str, str]) -> None:
        api = self.server.api
        with api.changed:
            found = [one for one in api.objects.get(path, {}).values() if _selected(one, query)]
            version = api.version
            start = int(query.get("continue") or 0)
            end = start + int(query.get("limit") or len(found) + 1)
            metadata = {"resourceVersion": str(version)}
            if end < len(found):
                metadata["continue"] = str(end)
            document = {"metadata": metadata, "items": found[start:end]}
        self._json(200, document)

    def _watch(self, path: str, query: dict[str, str]) -> None:
        api = self.server.api
        since = int(query["resourceVersion"])
        if since < api.compacted:
            return self._status(410, "too old resource version")
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        api.watches += 1
        try:
            for event in self._events(path, query, since):
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
                api.bookmarks_sent += event["type"] == "BOOKMARK"
        finally:
            api.watches -= 1
        self.close_connection = True
        return None

    def _events(self, path: str, query: dict[str, str], since: int) -> Iterator[Document]:
        api = self.server.api
        generation, bookmarked = api.generation, api.bookmarks
        while True:
            with api.changed:
                while not self._is_due(generation, bookmarked, since):
                    api.changed.wait()
                if api.generation != generation:
                    return
                due = [event for event in api.events if event[0] > since]
                since = due[-1][0] if due else since
                if api.bookmarks > bookmarked:
                    bookmarked = since = api.bookmarks
                    due.append((since, "BOOKMARK", "*", {}))
            yield from self._wanted(due, path, query)

    def _is_due(self, generation: int, bookmarked: int, since: int) -> bool:
        api = self.server.api
        newer = api.events and api.events[-1][0] > since
        return bool(api.generation != generation or api.bookmarks > bookmarked or newer)

    def _wanted(self, due: list[Event], path: str, query: dict[str, str]) -> Iterator[Document]:
        for version, kind, where, document in due:
            if kind == "BOOKMARK":
                bookmark = {"metadata": {"resourceVersion": str(version)}}
                yield {"type": kind, "object": bookmark}
            elif kind == "ERROR" or (where == path and _selected(document, query)):
                yield {"type": kind, "object": document}


def _selected(document: Document, query: dict[str, str]) -> bool:
    label = query.get("labelSelector")
    return label is None or label in (document["metadata"].get("labels") or {})


# --- the same for the fake and for a real cluster ------------------------------------------------

MODELS = "/apis/fairlead.dev/v1alpha1/namespaces/{}/servedmodels"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"


def served_model(namespace: str, name: str, **metadata: Any) -> Document:
    """Make a ServedModel."""
    return {
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": "ServedModel",
        "metadata": {"namespace": namespace, "name": name, **metadata},
        "spec": {"model": name},
    }


def endpoint(address: str, **conditions: bool) -> Document:
    """Make one endpoint of an EndpointSlice; ready unless said otherwise."""
    return {"addresses": [address], "conditions": {"ready": True, **conditions}}


def endpoint_slice(
    namespace: str, name: str, version: str, endpoints: list[Document], **changes: Any
) -> Document:
    """Make an EndpointSlice of a version of the model `iris`."""
    labels = {"fairlead.dev/model": "iris", "fairlead.dev/version": version}
    made = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [
            {"name": "metrics", "port": 9090, "protocol": "TCP"},
            {"name": "http", "port": 8080, "protocol": "TCP"},
        ],
    }
    return made | changes


class FakeCluster:
    """Two namespaces of the API server above, with what a real one does to objects."""

    namespaces = ("one", "two")

    def __init__(self, folder: Path) -> None:
        """Start it, with a kubeconfig that leads to it."""
        self.api = KubeApi()
        path = folder / "kubeconfig"
        path.write_text(kubeconfig(self.api.port), "utf-8")
        self.kubeconfig: str | None = str(path)

    def create(self, document: Document) -> None:
        """Make an object."""
        made = json.loads(json.dumps(document))
        self.api.clock += 1
        metadata = made["metadata"]
        metadata["uid"] = metadata.get("uid") or f"uid-{self.api.clock:06}"
        metadata["creationTimestamp"] = f"2026-01-01T00:00:{self.api.clock:02}Z"
        self.api.put(path_of(made), made)

    def replace(self, document: Document) -> None:
        """Replace an object's spec, labels and finalizers."""
        old = self.api.get(path_of(document), document["metadata"]["name"])
        metadata = {**old["metadata"], "finalizers": [], **document["metadata"]}
        new = {**old, **document, "metadata": metadata}
        self.api.put(path_of(document), new)
        if metadata.get("deletionTimestamp") and not metadata["finalizers"]:
            self.api.delete(path_of(document), metadata["name"])

    def status(self, namespace: str, name: str, status: Document | None) -> None:
        """Replace a ServedModel's status; take it away with None."""
        path = MODELS.format(namespace)
        new = self.api.get(path, name)
        new.pop("status", None)
        self.api.put(path, new if status is None else {**new, "status": status})

    def delete(self, document: Document) -> None:
        """Delete an object; one with finalizers stays until they are gone."""
        path, name = path_of(document), document["metadata"]["name"]
        old = self.api.get(path, name)
        if old["metadata"].get("finalizers"):
            old["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"
            self.api.put(path, old)
        else:
            self.api.delete(path, name)

    def tick(self) -> None:
        """Do nothing: each object is a second younger than the one before."""

    def close(self) -> None:
        """Stop it."""
        self.api.stop()


def path_of(document: Document) -> str:
    """Return the path of an object's collection."""
    pattern = MODELS if document["kind"] == "ServedModel" else SLICES
    return pattern.format(document["metadata"]["namespace"])


def kubeconfig(port: int, **user: str) -> str:
    """Write a kubeconfig for a server on loopback."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "fake", "user": user}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        "current-context": "fake",
    }
    return json.dumps(document)

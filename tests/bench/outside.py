"""What the controller talks to besides Kubernetes, as small servers in this process.

MLflow answers the poll as slowly and with as many bytes as the real one does for as many models;
the gateway's agent says that every plan is applied; the experiments service knows no rollout.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Document = dict[str, Any]
Answer = Callable[[str, str], Any]  # of method and path
STAGES = ("Production", "Staging", "Archived", "None")
LONG_AGO = 1_790_000_000_000  # milliseconds since the epoch


class Registry:
    """MLflow's registered models: as many as asked for, version 1 of each in Production.

    Args:
        seconds: How long one search takes.
    """

    def __init__(self, names: list[str], seconds: float):
        self._production = dict.fromkeys(names, 1)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._models = {name: _registered(name, 1) for name in names}
        self.tags: dict[str, dict[str, str]] = {}

    def promote(self, name: str, version: int) -> None:
        """Move Production of a model to a version."""
        with self._lock:
            self._models[name] = _registered(name, version)

    def body(self) -> bytes:
        """Return the answer to a search, as MLflow writes it: indented."""
        with self._lock:
            models = ",\n".join(self._models.values())
        return f'{{\n  "registered_models": [\n{models}\n  ]\n}}'.encode()

    def answer(self, method: str, path: str) -> Any:
        """Answer as MLflow's REST API."""
        if path.endswith("/registered-models/search"):
            body = self.body()  # what was so when the question came
            time.sleep(self._seconds)
            return body
        return {}


def _registered(name: str, production: int) -> str:
    """Write a registered model with a version in each stage, as MLflow does."""
    versions = [_version(name, str(production + n), stage) for n, stage in enumerate(STAGES)]
    model = {
        "name": name,
        "creation_timestamp": LONG_AGO,
        "last_updated_timestamp": LONG_AGO,
        "latest_versions": versions,
        "tags": [{"key": "fairlead.managed", "value": "true"}, {"key": "team", "value": "bench"}],
    }
    return json.dumps(model, indent=2)


def _version(name: str, number: str, stage: str) -> Document:
    return {
        "name": name,
        "version": number,
        "creation_timestamp": LONG_AGO,
        "last_updated_timestamp": LONG_AGO,
        "current_stage": stage,
        "description": "",
        "source": "models:/m-0123456789abcdef0123456789abcdef",
        "run_id": "0123456789abcdef0123456789abcdef",
        "status": "READY",
        "tags": [{"key": f"tag-{n}", "value": "some value"} for n in range(3)],
        "run_link": "",
    }


class Agent:
    """The agent of one gateway replica that applies every plan at once."""

    def __init__(self) -> None:
        self._body = b'{"models": {}}'

    def take(self, digests: Mapping[str, str]) -> None:
        """Say from now on that these plans are applied."""
        models = {
            name: {
                "digest": digest,
                "appliedAt": "2026-01-01T00:00:00Z",
                "versions": {"1": {"healthy": 1, "total": 1}},
            }
            for name, digest in digests.items()
        }
        self._body = json.dumps({"models": models}).encode()

    def answer(self, method: str, path: str) -> Any:
        """Answer as `/v1/applied`."""
        return self._body


def experiments(method: str, path: str) -> Any:
    """Answer as an experiments service without any rollout."""
    return {"rollouts": []} if path == "/v1/rollouts" else {}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: who asked was killed, as the bench does with a controller."""


def serve(answer: Answer, host: str = "127.0.0.1") -> int:
    """Serve in a thread of its own; return the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            made = answer(self.command, urlsplit(self.path).path)
            body = made if isinstance(made, bytes) else json.dumps(made).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # who asked may have been killed
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815 -- the base's names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base's name
            """Say nothing: there are thousands of requests."""

    server = _Server((host, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])

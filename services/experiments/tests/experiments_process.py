"""The service as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from free_ports import free_port

from fairlead_experiments.entrypoints.cli import URL_VARIABLE

COMMAND = "from fairlead_experiments.entrypoints.cli import main; raise SystemExit(main())"


class Server:
    """The service over the database at an address."""

    def __init__(self, url: str, options: Sequence[str] = (), port: int | None = None) -> None:
        self.port = port or free_port()
        self._ready = threading.Event()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "serve", "--port", str(self.port), *options],
            env={**os.environ, URL_VARIABLE: url},
            stderr=self._errors,
        )

    def wait(self, path: str = "/readyz") -> None:
        """Wait until it answers a path with success."""
        for _ in range(1200):
            assert self.process.poll() is None, self.errors()
            try:
                self.call(path)
            except OSError:
                self._ready.wait(0.05)
            else:
                return
        pytest.fail(f"the service did not start: {self.errors()}")

    def errors(self) -> str:
        """Answer what it wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read()

    def call(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        method: str | None = None,
        *,
        timeout: float = 30,
    ) -> Any:
        """Send a request; answer its JSON."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
            return json.load(answer)

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def close(self) -> None:
        """End it, if it runs."""
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
        self._errors.close()


@contextmanager
def serving(url: str, ready: str = "/readyz", options: Sequence[str] = ()) -> Iterator[Server]:
    """Run a server that never outlives its test."""
    server = Server(url, options)
    try:
        server.wait(ready)
        yield server
    finally:
        server.close()

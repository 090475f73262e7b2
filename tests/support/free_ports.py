"""Ports for the servers that tests start."""

import contextlib
import os
import random
import socket

_given: set[int] = set()


def free_port() -> int:
    """Find a port of the loopback interface that nobody listens at.

    It is below those the system hands out to clients, and in a range of this test worker's own:
    between being found and being listened at, or while its server is restarted, nobody else may
    take it, nor can a client that calls a dead server be connected with itself.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 12_000 + 2_000 * (worker % 10)
    while True:
        port = random.randrange(first, first + 2_000)
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port

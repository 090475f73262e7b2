"""A fast client for the tests: one task per connection, plain HTTP/1.1."""

import asyncio
import json
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Headers = dict[str, str]


@dataclass
class Answer:
    """What came back."""

    code: int
    headers: Headers
    body: bytes
    port: int = 0


class Connection:
    """A connection that is kept."""

    def __init__(self, find: Callable[[], int], tls: ssl.SSLContext | None = None) -> None:
        """Remember how to find the port to connect to."""
        self.find = find
        self.tls = tls
        self.port = 0
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, path: str, headers: Headers, method: str = "POST") -> Answer:
        """Send one request and wait for the answer."""
        if self.writer is None:
            self.port = self.find()
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self.tls
            )
        lines = [f"{method} {path} HTTP/1.1", "host: x", "content-length: 2"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", "{}"]).encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        got = dict(line.split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(got.get("content-length", 0)))
        if got.get("connection") == "close":
            self.close()
        return Answer(int(head[0].split()[1]), got, body, self.port)

    def close(self) -> None:
        """Close the connection."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


async def _worker(port: int, work: Any, done: list[Answer]) -> None:
    connection = Connection(lambda: port)
    try:
        for path, headers in work:
            done.append(await connection.ask(path, headers))
    finally:
        connection.close()


def ask_all(port: int, work: Iterable[tuple[str, Headers]], connections: int = 16) -> list[Answer]:
    """Send all requests over some connections; answers come in any order."""

    async def run() -> list[Answer]:
        todo, done = iter(list(work)), []
        await asyncio.gather(*(_worker(port, todo, done) for _ in range(connections)))
        return done

    return asyncio.run(run())


@dataclass
class Load:
    """Steady load, while something else happens.

    `fresh` of the connections are opened anew for each request; `find` chooses the port of a new
    connection, as a load balancer would.
    """

    port: int
    path: str = "/models/iris/invocations"
    connections: int = 16
    fresh: int = 0
    find: Callable[[], int] | None = None
    tls: ssl.SSLContext | None = None
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def during(self, happening: Callable[[], None]) -> "Load":
        """Keep the load on while this runs in a thread."""
        asyncio.run(self._run(happening))
        return self

    async def _run(self, happening: Callable[[], None]) -> None:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(self._loop(stop, i)) for i in range(self.connections)]
        try:
            await asyncio.to_thread(happening)
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _loop(self, stop: asyncio.Event, number: int) -> None:
        connection = Connection(self.find or (lambda: self.port), self.tls)
        count = 0
        while not stop.is_set():
            count += 1
            try:
                headers = {"x-unit-id": f"u{number}-{count}", "x-test-delay": "0.005"}
                answer = await connection.ask(self.path, headers)
                self.answers.append(answer)
                if number < self.fresh:
                    connection.close()
                if answer.code != 200:
                    self.failures.append(f"{answer.code} {answer.body!r}")
            except (OSError, EOFError) as error:
                self.failures.append(repr(error))
                connection.close()
        connection.close()


def answered_within(port: int, path: str, arm: str, limit: float) -> None:
    """Ask for a unit again and again over one connection, until an arm answers."""

    async def run() -> None:
        connection = Connection(lambda: port)
        try:
            while (await connection.ask(path, {"x-unit-id": "a"})).headers["x-rollout-arm"] != arm:
                pass
        finally:
            connection.close()
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), limit))


def versions(answers: list[Answer]) -> dict[str, int]:
    """Count who answered."""
    counted: dict[str, int] = {}
    for answer in answers:
        version = answer.headers.get("x-model-version", "none")
        counted[version] = counted.get(version, 0) + 1
    return counted


def seen(answer: Answer) -> dict[str, Any]:
    """Return what the upstream saw."""
    return json.loads(answer.body)

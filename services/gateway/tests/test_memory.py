"""Envoy sheds load before the memory it may use runs out."""

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gateway_lab import Gateway, plan, wait_for

MIB = 1 << 20
LIMIT = 256 * MIB
BODY = 8 * MIB
UPLOADS = 60
PIECE = 8 << 10
BLANK = bytes(BODY)
HEAD = f"POST /models/iris/invocations HTTP/1.1\r\nhost: x\r\ncontent-length: {BODY}\r\n\r\n"
CUT, HELD = 0, 1  # In place of an answer's code: the connection was cut, or none has come yet.


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Gateway]:
    """Give a gateway whose Envoy may use little memory."""
    made = Gateway(tmp_path)
    try:
        made.start_envoy("--memory-limit", str(LIMIT))
        made.start_agent()
        made.upstream("3")
        made.apply(plan(weight=None))
        yield made
    finally:
        made.stop()


def anonymous(gateway: Gateway) -> int:
    """Return the bytes that count against Envoy's limit: the binary's own pages can be dropped."""
    status = Path(f"/proc/{gateway.processes['envoy'].pid}/status").read_text("ascii")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


class Upload:
    """A body that is sent but for its last byte, so that Envoy must hold what it has taken."""

    def __init__(self) -> None:
        """Have sent nothing."""
        self.left = BODY - 1

    async def open(self, port: int) -> None:
        """Send the head."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        self.answer = asyncio.create_task(self._read())
        self.writer.write(HEAD.encode())

    async def send(self, most: int) -> None:
        """Send so much of the body, unless an answer comes first."""
        most = min(most, self.left)
        self.left -= most
        if self.answer.done():
            return
        self.writer.write(BLANK[:most])
        sending = asyncio.create_task(self._drain())
        await asyncio.wait([sending, self.answer], return_when=asyncio.FIRST_COMPLETED)
        sending.cancel()

    async def finish(self) -> int:
        """Send the last byte, and return the code of the answer."""
        self.writer.write(b"0")
        await self.answer
        return await self.leave()

    async def leave(self) -> int:
        """Close the connection, and return what had been answered."""
        code = self.answer.result() if self.answer.done() else HELD
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
        await self.answer
        return code

    async def _drain(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def _read(self) -> int:
        with contextlib.suppress(ConnectionError):
            answer = await self.reader.read(1 << 16)
            code = int(answer.split(maxsplit=2)[1]) if answer else CUT
            assert code != 503 or b"UNAVAILABLE" in answer
            return code
        return CUT


async def upload_in_turn(gateway: Gateway) -> list[int]:
    """Send one body after another, each once those before are sent; as slowly as below."""
    uploads = [Upload() for _ in range(UPLOADS)]
    for each in uploads:
        await each.open(gateway.port)
        while each.left and not each.answer.done():
            await each.send(32 * PIECE)
            await asyncio.to_thread(gateway.stat, "server.live")
    return [await uploads[0].finish(), *[await each.leave() for each in uploads[1:]]]


async def upload_at_once(gateway: Gateway) -> list[int]:
    """Send all heads, then all bodies side by side.

    No faster than Envoy's main thread answers: on a machine that starves it a client on loopback
    is faster than any network.
    """
    uploads = [Upload() for _ in range(UPLOADS)]
    for each in uploads:
        await each.open(gateway.port)
    while any(each.left and not each.answer.done() for each in uploads):
        await asyncio.gather(*(each.send(PIECE) for each in uploads))
        await asyncio.to_thread(gateway.stat, "server.live")
    return [await each.leave() for each in uploads]


@contextlib.contextmanager
def peak(gateway: Gateway) -> Iterator[list[int]]:
    """Give a list of what Envoy takes meanwhile, looked at again and again."""
    seen, stop = [anonymous(gateway)], threading.Event()

    def look() -> None:
        while not stop.wait(0.005):
            seen.append(anonymous(gateway))

    with ThreadPoolExecutor() as pool:
        looking = pool.submit(look)
        try:
            yield seen
        finally:
            stop.set()
            looking.result()


def test_new_requests_are_refused_while_memory_is_short(small: Gateway) -> None:
    """What fits is answered, what comes beyond gets a 503; afterwards all is as before."""
    with peak(small) as seen:
        codes = asyncio.run(upload_in_turn(small))
    assert codes[0] == 200
    assert codes.count(503) > 0
    assert codes.count(HELD) > 0
    assert set(codes) <= {200, 503, HELD, CUT}
    assert max(seen) < LIMIT
    wait_for(lambda: small.post().status_code == 200)


def test_requests_under_way_are_refused_before_memory_runs_out(small: Gateway) -> None:
    """Bodies of requests that Envoy has accepted, and cannot hold together, do not end it."""
    with peak(small) as seen:
        codes = asyncio.run(upload_at_once(small))
    assert codes.count(503) > 0
    assert set(codes) <= {503, HELD, CUT}
    assert max(seen) < LIMIT
    assert small.processes["envoy"].poll() is None
    wait_for(lambda: small.post().status_code == 200)

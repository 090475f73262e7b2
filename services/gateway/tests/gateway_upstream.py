"""A small model server for the tests: answers every request with what it got, as JSON.

Asked to note a request (`x-test-note`), it writes the headers out, as nobody sees what it answers to a
copy. Asked for half an answer (`x-test-half`), it stops there, and closes the connection or stalls.
Asked to wait for a crowd (`x-test-crowd`), it answers once so many requests wait. From a SIGUSR1 on
it answers 503, as a server that is overloaded does.
Asked for none (`x-test-half: none`), it closes the connection at once.
What is asked of one version alone (`x-test-only`) the others do not do.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable

OVERLOADED = asyncio.Event()
CROWD: list[Callable[[], None]] = []


class Upstream(asyncio.Protocol):
    """Enough of HTTP/1.1 for Envoy."""

    def __init__(self, version: str) -> None:
        """Remember the version."""
        self.version = version
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every whole request."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            lines = self.buffer[:end].decode("latin-1").split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:])
            if headers.get("transfer-encoding") == "chunked":
                size = self.buffer.find(b"0\r\n\r\n", end)
                if size < 0:
                    return
                after = size + 5
            else:
                after = end + 4 + int(headers.get("content-length", 0))
            if len(self.buffer) < after:
                return
            self.buffer = self.buffer[after:]
            if headers.get("x-test-only", self.version) != self.version:
                headers = {n: v for n, v in headers.items() if not n.startswith("x-test-")}
            self.wait(lines[0], headers)

    def wait(self, line: str, headers: dict[str, str]) -> None:
        """Answer after a while, or with the last of a crowd."""
        if (crowd := int(headers.get("x-test-crowd", 0))) == 0:
            delay = float(headers.get("x-test-delay", os.environ.get("DELAY", "0")))
            asyncio.get_running_loop().call_later(delay, self.answer, line, headers)
            return
        CROWD.append(lambda: self.answer(line, headers))
        while len(CROWD) >= crowd:
            CROWD.pop()()
            crowd = 1

    def answer(self, line: str, headers: dict[str, str]) -> None:
        """Tell what came."""
        if self.transport.is_closing():
            return
        if "x-test-note" in headers:
            sys.stdout.write(f"{json.dumps(headers)}\n")
            sys.stdout.flush()
        body = json.dumps({"version": self.version, "line": line, "headers": headers}).encode()
        usual = os.environ.get("CODE", "200")
        code = "503" if OVERLOADED.is_set() else headers.get("x-test-code", usual)
        head = b"HTTP/1.1 %b X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        half = headers.get("x-test-half")
        if half == "none":
            self.transport.close()
            return
        sent = body[: len(body) // 2] if half else body
        self.transport.write(head % (code.encode(), len(body)) + sent)
        if half == "close":
            self.transport.close()


async def main() -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, OVERLOADED.set)
    server = await loop.create_server(
        lambda: Upstream(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

"""Writes the head and the body of an answer together."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_ANSWER = b"HTTP/1.1 200"


class JoiningProtocol(HttpToolsProtocol):
    """uvicorn's protocol with one write for each answer, where uvicorn makes two.

    A write is the dearest step of a small answer: a call of the kernel, a packet, and the client
    woken up by a head that it can do nothing with.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection.

        Args:
            transport: The connection.
        """
        super().connection_made(cast("asyncio.Transport", _Joining(transport, self)))


class _Joining:
    """A transport that keeps the head of a good answer until its body comes."""

    def __init__(self, transport: Any, protocol: JoiningProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(_ANSWER) and self._protocol.scope["method"] == "POST":
            self._head = data
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

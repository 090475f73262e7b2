"""Calls of gRPC cut off wherever a test wants, frame by frame: no client library sends half of one.

Frames as in RFC 9113, section 4.1: length (3 bytes), type, flags, stream (4 bytes), payload.
"""

import asyncio
import struct
from collections.abc import Sequence
from contextlib import suppress

from echoing import LIMIT
from serving_rpc import INFER

_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW = 4
_HEAD = 9


def _frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    """Write a header as it is: not indexed, not compressed (RFC 7541, section 6.2.2)."""
    parts = (part.encode() for part in (name, value))
    return b"\0" + b"".join(bytes([len(part)]) + part for part in parts)


_FIELDS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": INFER,
    ":authority": "x",
    "te": "trailers",
    "content-type": "application/grpc",
}
_BLOCK = b"".join(_literal(*field) for field in _FIELDS.items())
_MESSAGE = b"\0" + struct.pack(">I", 100) + bytes(100)  # Not compressed, 100 bytes.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
OPEN = PREFACE + _frame(_SETTINGS, 0, 0, b"")
HEADERS = _frame(_HEADERS, _END_HEADERS, 1, _BLOCK)

HALVES: dict[str, list[bytes]] = {
    "nothing": [],
    "half a preface": [PREFACE[:10]],
    "no settings": [PREFACE],
    "no call": [OPEN],
    "half a frame of headers": [OPEN + HEADERS[:40]],
    "headers without an end": [OPEN + _frame(_HEADERS, 0, 1, _BLOCK[:40])],
    "headers byte by byte": [OPEN, *(bytes([one]) for one in HEADERS[:-1])],
    "no message": [OPEN + HEADERS],
    "half a message": [OPEN + HEADERS + _frame(_DATA, 0, 1, _MESSAGE[:50])],
    "half a frame": [OPEN + HEADERS + _frame(_DATA, 0, 1, _MESSAGE[:50], len(_MESSAGE))],
    "a message byte by byte": [
        OPEN + HEADERS,
        *(_frame(_DATA, 0, 1, bytes([one])) for one in _MESSAGE[:-1]),
    ],
}

BETWEEN_FRAMES = {"no call", "no message", "half a message"}
"""Where other frames may be sent yet, so that a peer shows that it lives."""


async def send_half(port: int, half: str) -> bytes:
    """Send one of `HALVES` and stay.

    Args:
        port: The server's.
        half: Which one.

    Returns:
        What came back until the server closed the connection.
    """
    return await _stay(port, HALVES[half], is_alive=half in BETWEEN_FRAMES)


async def take_no_answer(port: int, message: bytes) -> bytes:
    """Send a whole call, but leave no room for its answer, and stay.

    Args:
        port: The server's.
        message: The call's message.

    Returns:
        What came back until the server closed the connection.
    """
    no_room = _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW, 0))
    whole = b"\0" + struct.pack(">I", len(message)) + message
    call = PREFACE + no_room + HEADERS + _frame(_DATA, _END_STREAM, 1, whole)
    return await _stay(port, [call], is_alive=True)


async def _stay(port: int, parts: Sequence[bytes], *, is_alive: bool) -> bytes:
    """Send parts, a moment between them, and read; answer pings, where a peer can."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = bytearray()

    async def listen() -> None:
        with suppress(ConnectionError):
            while head := await reader.read(_HEAD):
                head += await reader.readexactly(_HEAD - len(head))
                payload = await reader.readexactly(int.from_bytes(head[:3]))
                found.extend(head + payload)
                if is_alive and head[3] in {_SETTINGS, _PING} and not head[4] & _ACK:
                    writer.write(_frame(head[3], _ACK, 0, payload if head[3] == _PING else b""))

    if parts:
        writer.write(parts[0])
    listening = asyncio.create_task(listen())
    async with asyncio.timeout(LIMIT):
        for part in parts[1:]:
            if listening.done():
                break
            writer.write(part)
            await asyncio.wait({listening}, timeout=0.05)
        await listening
    writer.close()
    return bytes(found)

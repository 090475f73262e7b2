"""Writes sampled requests and answers to files, beside the requests and never in their way."""

import base64
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from fairlead_serving.adapters.backlog import Backlog

_log = logging.getLogger(__name__)
_FILES = 8
_BACKLOG_BYTES = 64 * 1024 * 1024


class Payload(NamedTuple):
    """One request and its answer.

    Attributes:
        at: When it came, in seconds since 1970.
        fields: What else there is to say of it.
        bodies: The bytes of the request and of the answer by their names.
    """

    at: float
    fields: Mapping[str, object]
    bodies: Mapping[str, bytes]


class PayloadLog:
    """Files of JSON lines in one folder, the oldest deleted when there are too many.

    Args:
        folder: The folder; it is made.
        most_bytes: What all files together may hold.

    Attributes:
        counts: How many payloads were `kept`, and how many `dropped`, as the disk was slow, full
            or away.

    Raises:
        OSError: The folder cannot be made or written to.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.counts = {"kept": 0, "dropped": 0}
        self._folder = folder
        self._most_bytes = most_bytes // _FILES
        self._file: Any = None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open()
        self._backlog = Backlog(
            "payloads", most_bytes=_BACKLOG_BYTES, most_items=1, size=_size, handle=self._write_all
        )

    def add(self, payload: Payload) -> None:
        """Take a payload; it is written soon, or counted as dropped. Never waits for a disk."""
        if not self._backlog.add(payload):
            self.counts["dropped"] += 1

    def close(self) -> None:
        """Write what was taken, and end."""
        self._backlog.close()
        if self._file is not None:
            self._file.close()

    def _write_all(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            try:
                self._write(payload)
                self.counts["kept"] += 1
            except OSError as error:
                self.counts["dropped"] += 1
                if self._file is not None:  # Once for each time that it fails.
                    _log.warning("Payloads cannot be written: %s", error.strerror)
                    self._file = None

    def _write(self, payload: Payload) -> None:
        if self._file is None or self._file.tell() >= self._most_bytes:
            self._open()
        self._file.write(_line(payload))
        self._file.flush()

    def _open(self) -> None:
        if self._file is not None:
            self._file.close()
        for old in sorted(self._folder.glob("payloads-*.jsonl"))[: 1 - _FILES]:
            old.unlink(missing_ok=True)
        path = self._folder / f"payloads-{time.time_ns():020d}.jsonl"
        self._file = path.open("xb")
        path.chmod(0o600)


def _size(payload: Payload) -> int:
    return sum(map(len, payload.bodies.values()))


def _line(payload: Payload) -> bytes:
    at = datetime.fromtimestamp(payload.at, UTC).isoformat(timespec="milliseconds")
    # A message of gRPC may look like text by chance.
    write = _encoded if payload.fields.get("contentType") == "application/grpc" else _readable
    bodies = dict(write(name, body) for name, body in payload.bodies.items())
    return orjson.dumps({"at": at, **payload.fields, **bodies}, option=orjson.OPT_APPEND_NEWLINE)


def _readable(name: str, body: bytes) -> tuple[str, object]:
    """Give a body as JSON, else as text, else in base64 under a name that says so."""
    try:
        return name, orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return name, body.decode()
    except UnicodeDecodeError:
        return _encoded(name, body)


def _encoded(name: str, body: bytes) -> tuple[str, object]:
    return f"{name}Base64", base64.b64encode(body).decode()

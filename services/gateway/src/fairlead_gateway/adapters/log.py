"""Envoy's access log: read from front to back, over rotations and restarts."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from fairlead_gateway.adapters.files import write_atomically
from fairlead_gateway.domain.exposure import LogLine

_log = logging.getLogger(__name__)

_CHUNK = 1 << 20


def decode_line(line: bytes) -> LogLine | None:
    """Read one line of the log; None if it is malformed.

    An Envoy that was killed may leave half a line, which the next one completes with its own
    first line: what follows one of the braces is then whole. Values may have braces, too.
    """
    start = 0
    while start >= 0:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            return _DECODER.decode(line[start:])
        start = line.find(b'{"', start + 1)
    return None


_DECODER = msgspec.json.Decoder(LogLine)


class Position:
    """How far a log has been dealt with, in a file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> tuple[int, int]:
        """Return the log file's inode and the offset in it; zeros if unknown."""
        try:
            document = json.loads(self._path.read_bytes())
            return int(document["inode"]), int(document["offset"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0, 0

    def save(self, inode: int, offset: int) -> None:
        """Replace the position, or forget it where it finds no room: lines are then sent again.

        A full volume may have room only once the log that has been read to its end is gone.
        """
        try:
            write_atomically(self._path, json.dumps({"inode": inode, "offset": offset}).encode())
        except OSError as error:
            _log.warning("The log's position is not saved", extra={"reason": str(error)})
            self._path.unlink(missing_ok=True)


class LogTail:
    """Reads a log that grows and is rotated.

    A rotated log lies beside the log as `<name>.1` until it has been read to its end. Envoy opens
    a new file only after its last write to the old one: once there is a new file, the old one's
    end is final.

    Args:
        path: The log.
        position: Where to start, and what `commit` saves; None to start at the log's end.
        most: The most lines one `read` returns.
    """

    def __init__(self, path: Path, position: Position | None, most: int = 1000) -> None:
        self._path = path
        self._rotated = path.with_name(f"{path.name}.1")
        self._position = position
        self._most = most
        self._file: BinaryIO | None = None
        self._inode = 0
        self._offset = 0
        self._committed = 0
        self._rest = b""
        self._open_first()

    def open(self) -> None:
        """Open the log if it has come, without reading it."""
        if self._file is None:
            self._follow()

    def read(self) -> Sequence[bytes]:
        """Return the next whole lines, without those already returned; empty if there are none."""
        has_successor = self._has_successor()
        lines = self._read_lines()
        if not lines and has_successor:
            self._follow()
            lines = self._read_lines()
        return lines

    def commit(self) -> None:
        """Remember that all lines returned so far are done with, and survive a restart."""
        self._committed = self._offset
        if self._position is not None:
            self._position.save(self._inode, self._offset)

    def skip(self) -> int:
        """Go on with the new file at once, if there is one; return how many lines were left."""
        if not self._has_successor():
            return 0
        lines = self._rest.count(b"\n")
        if self._file is not None:
            lines += sum(
                chunk.count(b"\n") for chunk in iter(partial(self._file.read, _CHUNK), b"")
            )
        self._follow()
        return lines

    def backlog(self) -> int:
        """Return how many bytes are not done with."""
        size = 0 if self._file is None else os.fstat(self._file.fileno()).st_size
        following = _size(self._path) if self._has_successor() else 0
        return max(size - self._committed, 0) + following

    @property
    def size(self) -> int:
        """How large the file being read is."""
        return 0 if self._file is None else os.fstat(self._file.fileno()).st_size

    def is_reading(self, path: Path) -> bool:
        """Tell whether this is the file being read."""
        return self._file is not None and _inode(path) == self._inode

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open_first(self) -> None:
        """Open the file the position tells of, else the oldest one there is."""
        if self._position is None:
            self._open(self._path, _size(self._path))
            return
        inode, offset = self._position.load()
        for path in (self._rotated, self._path):
            if inode and _inode(path) == inode:
                # A file that is shorter was emptied since, or has the inode of one that is gone.
                self._open(path, offset if offset <= _size(path) else 0)
                return
        if not self._open(self._rotated, 0):
            self._open(self._path, 0)

    def _open(self, path: Path, offset: int) -> bool:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return False
        self.close()
        self._file, self._inode = file, os.fstat(file.fileno()).st_ino
        self._offset = self._committed = offset
        self._rest = b""
        file.seek(offset)
        return True

    def _has_successor(self) -> bool:
        return self._file is None or _inode(self._path) not in (0, self._inode)

    def _follow(self) -> None:
        """Go on with the new file, now that the old one has been read to its end."""
        if self._open(self._path, 0):
            self.commit()

    def _read_lines(self) -> list[bytes]:
        """Read up to the limit; what follows the last line break waits."""
        if self._file is None:
            return []
        if os.fstat(self._file.fileno()).st_size < self._offset:
            self._file.seek(0)  # Somebody emptied the log.
            self._offset, self._rest = 0, b""
        if b"\n" not in self._rest:
            self._rest += self._file.read(_CHUNK)
        lines = self._rest.split(b"\n", self._most)
        self._rest = lines.pop()
        self._offset += sum(len(line) + 1 for line in lines)
        if not lines and len(self._rest) > _CHUNK:
            # No line is that long. Its bytes are given out as one, so that memory stays bounded.
            lines, self._rest = [self._rest], b""
            self._offset += len(lines[0])
        return lines


class Rotation:
    """Starts a new log once the old one is large and done with.

    A log that is not done with, while nobody takes exposures, may only grow so far: on a volume
    that is full Envoy could not be told anything new, and a node ends the pods that fill one.

    Args:
        path: The log.
        tail: Who ships it.
        limit: How many bytes are large.
        most: How many bytes both files together may have; then the older one goes.
        dropped: Told how many lines went with it.
    """

    def __init__(
        self,
        path: Path,
        tail: LogTail,
        limit: int,
        most: int,
        dropped: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._rotated = path.with_name(f"{path.name}.1")
        self._tail = tail
        self._limit = min(limit, most // 2)
        self._most = most
        self._dropped = dropped

    def step(self) -> bool:
        """Do what is due; return whether Envoy must open its log anew."""
        if self._rotated.exists():
            if self._is_full() and (left := self._tail.skip()):
                self._dropped(left)
            if self._tail.is_reading(self._path):
                self._rotated.unlink()  # Read to its end, and the position has moved on.
            return not self._path.exists()
        if not self._path.exists():
            return True  # Somebody removed it, or Envoy has not begun.
        if self._tail.size < self._limit or not self._tail.is_reading(self._path):
            return False
        self._path.rename(self._rotated)
        return True

    def _is_full(self) -> bool:
        """Tell whether there is no room for both; the new log must fit once it is the old one."""
        size = _size(self._path)
        return size > self._most // 2 or size + _size(self._rotated) > self._most


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

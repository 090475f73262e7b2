"""Downloads the files of a folder over HTTP: several at once, and going on where it stopped."""

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import httpx

from fairlead_serving.adapters.cache import checksum
from fairlead_serving.app.ports import Progress
from fairlead_serving.domain.errors import CannotFetchError

_log = logging.getLogger(__name__)

_PARALLEL = 8
_ATTEMPTS = 5
_FIRST_WAIT = 0.2  # seconds; each further wait is twice as long
_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})
_REPORT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file to download.

    Attributes:
        path: Where it belongs, relative to the folder.
        address: The path to ask the server for.
        size: Bytes, as the server listed them; None if it did not.
    """

    path: str
    address: str
    size: int | None


class LoggedProgress:
    """Writes a line into the log every few seconds."""

    def __init__(self) -> None:
        self._due = time.monotonic() + _REPORT_SECONDS

    def __call__(self, done: int, total: int) -> None:
        """See `Progress`."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _REPORT_SECONDS
        _log.info("Fetched %.0f of %.0f MB", done / 1e6, total / 1e6)


class _IncompleteError(Exception):
    """An answer was not the file; asking again may help."""


class _StoppedError(Exception):
    """Another file failed for good."""


class Download:
    """The download of one folder, which a killed process leaves behind for the next.

    Files that are whole lie in `files`, and the journal names them with their SHA-256; those that
    are not lie in `parts` under the SHA-256 of their path.

    Args:
        client: Asks the server.
        folder: Where all of this is kept.
        failure: Makes an exception of an answer that is none.
        is_checked: Whether the files will be compared with a digest that is known already. If
            not, the rest of a file is taken only if the server vouches by its ETag that the
            file is still the same.
        progress: Hears how far it is.
    """

    def __init__(
        self,
        client: httpx.Client,
        folder: Path,
        failure: Callable[[httpx.Response], Exception],
        *,
        is_checked: bool,
        progress: Progress,
    ) -> None:
        self._client = client
        self._files, self._parts = folder / "files", folder / "parts"
        self._journal = folder / "journal"
        self._failure = failure
        self._is_checked = is_checked
        self._progress = progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._here: dict[str, int] = {}  # bytes, by path
        self._total = 0

    @property
    def files(self) -> Path:
        """The folder that all files are in when the download is over."""
        return self._files

    def run(self, files: Sequence[RemoteFile]) -> Mapping[str, str]:
        """Download what is not here yet; any other file is removed.

        Args:
            files: All that the folder holds.

        Returns:
            The SHA-256 of each file in hexadecimal, by path.

        Raises:
            httpx.HTTPError: The server went away.
            CannotFetchError: A file did not come whole, however often it was asked for.
            CannotLoadError: The server does not have a file that it listed.
        """
        self._files.mkdir(parents=True, exist_ok=True)
        self._parts.mkdir(exist_ok=True)
        whole = self._whole(frozenset(file.path for file in files))
        self._remove_others(whole)
        self._total = sum(file.size or 0 for file in files)
        self._here = {file.path: file.size or 0 for file in files if file.path in whole}
        if whole:
            _log.info("%d of %d files were here already", len(whole), len(files))
        return {**whole, **self._run([file for file in files if file.path not in whole])}

    def _run(self, files: Sequence[RemoteFile]) -> Mapping[str, str]:
        arrived = {}
        with ThreadPoolExecutor(_PARALLEL, "fetch") as pool, self._journal.open("a") as journal:
            started = {pool.submit(self._fetch, file): file for file in files}
            try:
                for done in as_completed(started):
                    path = started[done].path
                    arrived[path] = done.result()
                    journal.write(json.dumps([path, arrived[path]]) + "\n")
                    journal.flush()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return arrived

    def _whole(self, listed: frozenset[str]) -> Mapping[str, str]:
        """Find the files that came whole before, and still are what came."""
        return {
            path: recorded
            for path, recorded in self._noted()
            if path in listed and _is(self._files / path, recorded)
        }

    def _noted(self) -> Iterator[tuple[str, str]]:
        if not self._journal.exists():
            return
        for line in self._journal.read_text(encoding="utf-8").splitlines():
            try:
                path, recorded = json.loads(line)
            except ValueError:
                continue  # The line that was being written when the process was killed.
            yield path, recorded

    def _remove_others(self, whole: Mapping[str, str]) -> None:
        for path in list(self._files.rglob("*")):
            if path.is_file() and path.relative_to(self._files).as_posix() not in whole:
                path.unlink()

    def _fetch(self, file: RemoteFile) -> str:
        """Fetch one file; give its SHA-256."""
        part = self._parts / hashlib.sha256(file.path.encode()).hexdigest()
        self._try(file, part)
        arrived = checksum(part)
        target = self._files / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        return arrived

    def _try(self, file: RemoteFile, part: Path) -> None:
        for left in reversed(range(_ATTEMPTS)):
            had = _size(part)
            try:
                self._attempt(file, part)
            except (httpx.TransportError, _IncompleteError) as error:
                # Whoever sends nothing until the time is over would do so again.
                silent = isinstance(error, httpx.TimeoutException) and _size(part) == had
                if silent or not left:
                    raise _given_up(error) from error
                _log.debug("Asking for '%s' again: %s", file.path, type(error).__name__)
                self._stop.wait(_FIRST_WAIT * 2 ** (_ATTEMPTS - 1 - left))
            else:
                return

    def _attempt(self, file: RemoteFile, part: Path) -> None:
        tag = part.with_suffix(".etag")
        had = _size(part)
        headers = {"accept-encoding": "identity", **self._range(file, had, tag)}
        with self._client.stream("GET", file.address, headers=headers) as response:
            self._raise_for(response)
            goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT
            if goes_on and not _starts_at(response, had):
                part.unlink()
                raise _IncompleteError("it is not the rest of the file")
            if not goes_on:
                part.unlink(missing_ok=True)
                tag.write_text(response.headers.get("etag", ""), encoding="utf-8")
            self._write(response, part, file.path)
        _check_size(file, part)

    def _range(self, file: RemoteFile, had: int, tag: Path) -> Mapping[str, str]:
        """Ask for the rest, if it is sure to belong to what is here."""
        if not had or file.size is None or had >= file.size:
            return {}
        rest = {"range": f"bytes={had}-"}
        if self._is_checked:
            return rest
        etag = tag.read_text(encoding="utf-8") if tag.exists() else ""
        return {**rest, "if-range": etag} if etag.startswith('"') else {}

    def _raise_for(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        response.read()
        if response.status_code in _TRY_AGAIN:
            raise _IncompleteError(str(self._failure(response)))
        raise self._failure(response)

    def _write(self, response: httpx.Response, part: Path, path: str) -> None:
        with part.open("ab") as file:
            for chunk in response.iter_raw():
                if self._stop.is_set():
                    raise _StoppedError
                file.write(chunk)
                self._report(path, file.tell())
            file.flush()
            os.fsync(file.fileno())  # A machine that loses power leaves no hole either.

    def _report(self, path: str, size: int) -> None:
        with self._lock:
            self._here[path] = size
            self._progress(sum(self._here.values()), self._total)


def _is(path: Path, recorded: str) -> bool:
    return path.is_file() and checksum(path) == recorded


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _starts_at(response: httpx.Response, offset: int) -> bool:
    return bool(re.match(rf"bytes {offset}-", response.headers.get("content-range", "")))


def _check_size(file: RemoteFile, part: Path) -> None:
    size = _size(part)
    if file.size is None or size == file.size:
        return
    if size > file.size:
        part.unlink()
    raise _IncompleteError(
        f"The registry sent {size} bytes of the file '{file.path}', which has {file.size}."
    )


def _given_up(error: Exception) -> Exception:
    return CannotFetchError(str(error)) if isinstance(error, _IncompleteError) else error

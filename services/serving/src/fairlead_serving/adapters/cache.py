"""The folder in which fetched versions are kept, whole or not at all."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fairlead_serving.domain.digest import digest_of

_MARKER = "fairlead-complete.json"


@dataclass(frozen=True, slots=True)
class Source:
    """Where the files of a version are, and what they are.

    Attributes:
        uri: The address of their folder.
        digest: Their digest; empty as long as nobody recorded one.
    """

    uri: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """What was recorded of a version's folder when its files were whole.

    Attributes:
        source: Where they came from, with the digest seen first.
        paths: All that there were, relative to the folder.
    """

    source: Source
    paths: frozenset[str]


def read_kept(folder: Path) -> Kept | None:
    """Read what was recorded of a version's folder.

    Args:
        folder: The folder in the cache.

    Returns:
        The record; None if the folder is not there or was never whole.
    """
    try:
        record = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        return Kept(Source(record["uri"], record["digest"]), frozenset(record["paths"]))
    except (OSError, ValueError, KeyError):
        return None


def is_unaltered(folder: Path, kept: Kept) -> bool:
    """Tell whether the files of a version are those that were recorded.

    What was added since is removed: Python keeps the compiled code of a model beside it.

    Args:
        folder: The version's folder in the cache.
        kept: What was recorded.
    """
    for path in list(_files(folder)):
        if path.relative_to(folder).as_posix() not in kept.paths:
            path.unlink()
    return digest_folder(folder) == kept.source.digest


def keep(files: Path, folder: Path, source: Source) -> None:
    """Put whole files in the place of what was kept before.

    Args:
        files: The folder they are in now.
        folder: The version's folder in the cache.
        source: What is recorded with them.
    """
    paths = sorted(path.relative_to(files).as_posix() for path in _files(files))
    record = {"uri": source.uri, "digest": source.digest, "paths": paths}
    # The marker comes last and the rename is atomic: what was killed before is never a model.
    (files / _MARKER).write_text(json.dumps(record), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    files.rename(folder)


def digest_folder(folder: Path) -> str:
    """Digest the files of a folder; see `fairlead_serving.domain.digest`.

    Args:
        folder: The model's folder.

    Returns:
        The digest in hexadecimal.
    """
    return digest_of(
        (path.relative_to(folder).as_posix(), checksum(path)) for path in _files(folder)
    )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path != folder / _MARKER)


def checksum(path: Path) -> str:
    """Give the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time write; the others find what it made whole.

    Args:
        path: The lock file, which is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

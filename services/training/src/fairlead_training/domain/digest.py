"""Digests that say whether two folders hold the same."""

import hashlib
from collections.abc import Mapping
from typing import Final

#: MLflow writes it into a folder it downloads a registered version to.
NOT_PART_OF_THE_MODEL: Final = "registered_model_meta"


def folder_digest(files: Mapping[str, str]) -> str:
    """Return the digest of a folder.

    Args:
        files: SHA-256 in hexadecimal of each file, by its path with forward slashes.

    Returns:
        SHA-256 in hexadecimal of, for each file sorted by path: the path, NUL, the file's
        digest, newline. Files called `registered_model_meta` do not count.
    """
    whole = hashlib.sha256()
    for path in sorted(files):
        if path.rsplit("/", 1)[-1] != NOT_PART_OF_THE_MODEL:
            whole.update(f"{path}\0{files[path]}\n".encode())
    return whole.hexdigest()

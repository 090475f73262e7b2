"""The digest of a model's files, which the version tag `fairlead.digest` records."""

import hashlib
from collections.abc import Iterable

DIGEST_TAG = "fairlead.digest"
LEFT_OUT = "registered_model_meta"
"""A file that MLflow's client adds when it downloads a version."""


def digest_of(files: Iterable[tuple[str, str]]) -> str:
    """Digest the files of a model folder.

    The SHA-256 over, for each file sorted by path: the path in UTF-8, a NUL byte, the SHA-256
    of the file's bytes in hexadecimal, a newline. Files named `registered_model_meta` are left
    out, and nothing else.

    Args:
        files: The path of each file relative to the folder, with slashes, and the SHA-256 of
            its bytes in hexadecimal.

    Returns:
        The digest in hexadecimal.
    """
    digest = hashlib.sha256()
    for path, checksum in sorted(files):
        if path.rpartition("/")[2] != LEFT_OUT:
            digest.update(path.encode() + b"\0" + checksum.encode() + b"\n")
    return digest.hexdigest()

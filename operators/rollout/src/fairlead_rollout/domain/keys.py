"""Keys of clients: made once, told once, and kept as a hash."""

import base64
import hashlib
import re

from fairlead_rollout.domain.errors import FairleadError

KEY_BYTES = 32  # nobody can try so many; so the hash needs neither salt nor slowness

_CLIENT = re.compile(r"[A-Za-z0-9._-]{1,64}")


def hash_key(client: str, key: str) -> str:
    """Return what is kept of a key: the client's name and the key's hash, as htpasswd writes it.

    SHA-1 is the one hash Envoy checks. What is known to be broken of it, two inputs with one hash,
    is no help against a random key.

    Raises:
        FairleadError: The name cannot stand there.
    """
    if not _CLIENT.fullmatch(client):
        raise FairleadError("the client's name must be 1 to 64 of A-Z a-z 0-9 . _ -")
    digest = hashlib.sha1(key.encode(), usedforsecurity=False).digest()
    return f"{client}:{{SHA}}{base64.b64encode(digest).decode()}"

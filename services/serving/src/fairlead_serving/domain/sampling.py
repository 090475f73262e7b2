"""Chooses a share of keys, the same ones in every process."""

from hashlib import blake2b

_ALL = 2**64


def is_sampled(key: str | bytes, share: float) -> bool:
    """Tell whether a key is among a share of all keys.

    It depends on the key alone: every replica and every start chooses the same ones, and a larger
    share holds all that a smaller one does. It has nothing in common with the assignment to arms.

    Args:
        key: A unit or the id of a request.
        share: From 0 for none to 1 for all.

    Returns:
        Whether it is.
    """
    words = key.encode() if isinstance(key, str) else key
    number = int.from_bytes(blake2b(words, digest_size=8, person=b"fl-sample").digest())
    return number < share * _ALL

"""The headers of a request as ASGI gives them."""

from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case, and values; a name may come several times."""


def header(headers: Headers, wanted: bytes) -> bytes:
    """Find the first header of a name.

    Args:
        headers: All headers.
        wanted: The name in lower case.

    Returns:
        The value; empty if there is none.
    """
    for name, value in headers:
        if name == wanted:
            return value
    return b""

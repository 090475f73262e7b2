"""How the controller talks HTTP: short limits, one kind of error."""

from typing import Any

import httpx

from fairlead_rollout.domain.errors import UnavailableError

TIMEOUT = httpx.Timeout(2.0, connect=1.0)
WRITE_TIMEOUT = httpx.Timeout(5.0, connect=1.0)


def client(base_url: str) -> httpx.Client:
    """Return a client that reads no proxy settings: everything it talks to is ours."""
    return httpx.Client(base_url=base_url, timeout=TIMEOUT, trust_env=False)


def call(http: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request.

    Raises:
        UnavailableError: No answer, or one with a 5xx or a 429.
    """
    try:
        response = http.request(method, path, **options)
    except httpx.HTTPError as error:
        kind = type(error).__name__
        raise UnavailableError(f"{method} {path}: {kind}") from error
    if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR or response.status_code == 429:  # noqa: PLR2004
        raise UnavailableError(f"{method} {path}: {response.status_code}")
    return response

"""How the controller talks HTTP: short limits, one kind of error."""

import os
from collections.abc import Callable
from typing import Any

import httpx

from fairlead_rollout.domain.errors import UnavailableError

TIMEOUT = httpx.Timeout(2.0, connect=1.0)
WRITE_TIMEOUT = httpx.Timeout(5.0, connect=1.0)
_REFUSED = frozenset({401, 403})


def client(
    base_url: str,
    auth: tuple[str, str] | None = None,
    may_write: Callable[[], bool] = lambda: True,
) -> httpx.Client:
    """Return a client that reads no proxy settings: everything it talks to is ours.

    Args:
        base_url: Where it talks to.
        auth: The account.
        may_write: Asked before every write: another replica may have taken over.
    """

    def fence(request: httpx.Request) -> None:
        if request.method != "GET" and not may_write():
            what = f"{request.method} {request.url.path}"
            raise UnavailableError(f"{what}: not sent, as this replica does not lead")

    hooks = {"request": [fence]}
    return httpx.Client(
        base_url=base_url, timeout=TIMEOUT, trust_env=False, auth=auth, event_hooks=hooks
    )


def mlflow_account() -> tuple[str, str] | None:
    """Return the account at MLflow by the names MLflow's own clients use, or None."""
    username = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    return (username, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if username else None


def call(http: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request.

    Raises:
        UnavailableError: No answer, one with a 5xx or a 429, or our account is refused. The
            message names the address and never the account.
    """
    what = f"{http.base_url.scheme}://{http.base_url.netloc.decode()}"
    try:
        response = http.request(method, path, **options)
    except httpx.HTTPError as error:
        raise UnavailableError(f"{what} does not answer ({type(error).__name__})") from error
    if response.status_code in _REFUSED:
        raise UnavailableError(
            f"{what} refuses our account for {method} {path} ({response.status_code})"
        )
    if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR or response.status_code == 429:  # noqa: PLR2004
        raise UnavailableError(f"{what} answers {response.status_code} to {method} {path}")
    return response

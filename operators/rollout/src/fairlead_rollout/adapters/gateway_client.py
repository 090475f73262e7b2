"""The gateway's agent over HTTP."""

from typing import Any

import httpx

from fairlead_rollout.adapters.http import call
from fairlead_rollout.domain.errors import UnavailableError
from fairlead_rollout.domain.snapshot import Applied


class GatewayClient:
    """Reads what the gateway routes by."""

    def __init__(self, http: httpx.Client):
        self._http = http

    def applied(self, name: str) -> Applied | None:
        """Return what the gateway routes by, or None while the agent does not answer."""
        try:
            response = call(self._http, "GET", "/v1/applied")
        except UnavailableError:
            return None
        if not response.is_success:
            return None
        model: dict[str, Any] = response.json()["models"].get(name) or {}
        healthy = {v: seen["healthy"] for v, seen in model.get("versions", {}).items()}
        return Applied(digests={"gateway": model.get("digest")}, healthy=healthy)

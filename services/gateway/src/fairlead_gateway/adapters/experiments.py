"""The experiments service, over HTTP."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import httpx
import orjson

from fairlead_gateway.app.ports import Delivery
from fairlead_gateway.domain.exposure import Exposure

_NEVER = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
}
"""Answers that say the batch itself is wrong; every other failure may pass."""


class HttpExperiments:
    """Hands exposures to the experiments service.

    Args:
        url: Its address.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url.rstrip("/"), timeout=10.0, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def send(self, exposures: Sequence[Exposure]) -> Delivery:
        """Hand exposures over."""
        body = orjson.dumps({"exposures": [_document(exposure) for exposure in exposures]})
        headers = {"content-type": "application/json"}
        try:
            answer = self._client.post("/v1/exposures", content=body, headers=headers)
        except httpx.HTTPError as error:
            return Delivery(taken=False, reason=type(error).__name__)
        if not answer.is_success:
            refused = answer.status_code in _NEVER
            return Delivery(taken=False, refused=refused, reason=f"HTTP {answer.status_code}")
        return Delivery(taken=True, rejected=_rejected(answer))


def _document(exposure: Exposure) -> dict[str, Any]:
    at = datetime.fromtimestamp(exposure.at_milliseconds / 1000, UTC)
    return {
        "inferenceId": exposure.inference_id,
        "rollout": exposure.rollout,
        "step": exposure.step,
        "arm": exposure.arm,
        "version": exposure.version,
        "unit": exposure.unit,
        "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "code": exposure.code,
        "attempts": exposure.attempts,
        "durationMs": exposure.duration_milliseconds,
    }


def _rejected(answer: httpx.Response) -> dict[str, int]:
    """Count the rejected items by field; their reasons might quote them."""
    try:
        items = orjson.loads(answer.content).get("rejected") or []
        return dict(Counter(str(item.get("field")) for item in items))
    except (ValueError, AttributeError):
        return {}

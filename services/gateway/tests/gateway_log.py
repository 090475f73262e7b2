"""Lines as Envoy writes them."""

import json
from typing import Any

from gateway_lab import ROLLOUT


def line(number: int, **changes: Any) -> bytes:
    """Make a line of the log."""
    fields = {
        "id": f"i{number}",
        "model": "iris",
        "rollout": ROLLOUT,
        "step": 0,
        "arm": "candidate",
        "cluster": "iris-v4",
        "version": "4",
        "unit": f"u{number}",
        "start": "1795262721850",
        "code": 200,
        "flags": "-",
        "details": "via_upstream",
        "attempts": 1,
        "duration": 3,
    }
    return json.dumps(fields | changes).encode() + b"\n"

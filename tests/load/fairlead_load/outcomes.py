"""Outcomes on their way to the experiments service: some seconds late, in batches, each once."""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

BATCH: Final = 1_000
PATIENCE: Final = 30.0
"""Seconds a batch is sent again while the service says that nothing was kept."""

_OK, _AGAIN = 200, 503

Send = Callable[[bytes], tuple[int, bytes]]
"""Posts a body; answers status (0 for none) and body."""


@dataclass(frozen=True, slots=True)
class Posted:
    """What became of a batch: `complaint` is empty when it was taken whole."""

    outcomes: int
    complaint: str = ""


class Outcomes:
    """Keeps what is known until it is told.

    Args:
        delay: Seconds between an answer and what came of it.
    """

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._later: deque[tuple[float, dict[str, Any]]] = deque()
        self._refused_since: float | None = None

    def __len__(self) -> int:
        return len(self._later)

    def add(self, inference_id: str, value: float, now: float) -> None:
        """Remember an outcome."""
        outcome = {
            "inferenceId": inference_id,
            "outcome": "squared_error",
            "value": value,
            "observedAt": datetime.now(UTC).isoformat(),
        }
        self._later.append((now + self._delay, outcome))

    def post(self, send: Send, now: float, *, is_last: bool = False) -> Posted | None:
        """Post what is due; None when nothing is, or the service asks to come again.

        Args:
            send: Posts a body.
            now: Seconds on the clock of `add`.
            is_last: Everything is due, and there is no other time.
        """
        due: list[tuple[float, dict[str, Any]]] = []
        while self._later and len(due) < BATCH and (is_last or self._later[0][0] <= now):
            due.append(self._later.popleft())
        if not due:
            return None
        status, body = send(json.dumps({"outcomes": [outcome for _, outcome in due]}).encode())
        if status == _OK:
            self._refused_since = None
            return Posted(len(due), _rejected(body))
        since = now if self._refused_since is None else self._refused_since
        if status not in {_AGAIN, 0} or is_last or now - since > PATIENCE:
            return Posted(len(due), f"HTTP {status}" if status else "no answer")
        self._refused_since = since
        self._later.extendleft(reversed(due))
        return None


def _rejected(body: bytes) -> str:
    try:
        rejected = json.loads(body)["rejected"]
    except (ValueError, KeyError, TypeError):
        return "the answer is no receipt"
    return f"{len(rejected)} rejected, the first for its {rejected[0]['field']}" if rejected else ""

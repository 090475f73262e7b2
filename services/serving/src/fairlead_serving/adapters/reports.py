"""Reports what was predicted for compared requests to the experiments service."""

import logging
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from fairlead_serving.adapters.backlog import Backlog
from fairlead_serving.domain.predictions import UNREAD, Predicted, read_predicted

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger(__name__)

_BACKLOG_BYTES = 16 * 1024 * 1024
_BATCH = 500
_GATHER = 0.2  # seconds in which reports come together: one request for many
_TIMEOUT, _CONNECT_TIMEOUT = 10.0, 2.0  # seconds
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0  # seconds between attempts, while the service is away
_GIVEN_UP = 60.0  # seconds: the other half of a pair waits no longer than a few minutes
_FAREWELL = 3.0
_OVERHEAD = 500  # bytes of an item beside its body


class Report(NamedTuple):
    """An answer to a compared request.

    Attributes:
        inference_id: The request's.
        is_shadow: Whether it was a copy.
        at: When it came, in seconds since 1970.
        status: The answer's HTTP status.
        seconds: How long it took.
        body: The answer's body.
    """

    inference_id: str
    is_shadow: bool
    at: float
    status: int
    seconds: float
    body: bytes


class Reports:
    """Sends reports in batches from a thread of its own; what it cannot send it drops and counts.

    Args:
        url: The address of the experiments service.
        model: The name of the model.
        version: Its version.

    Attributes:
        counts: How many were `reported`, `rejected` by the service, and `dropped`.
    """

    def __init__(self, url: str, model: str, version: str) -> None:
        self.counts = {"reported": 0, "rejected": 0, "dropped": 0}
        self._counting = threading.Lock()
        self._model, self._version = model, version
        self._url = url.rstrip("/")
        self._is_closing = threading.Event()
        self._is_away = False
        self._backlog = Backlog(
            "reports",
            most_bytes=_BACKLOG_BYTES,
            most_items=_BATCH,
            size=lambda report: len(report.body) + _OVERHEAD,
            handle=self._handle,
        )

    def add(self, report: Report) -> None:
        """Take a report; it is sent soon, or counted as dropped. Never waits for the service."""
        if not self._backlog.add(report):
            self._count("dropped", 1)

    def close(self) -> None:
        """Send what was taken if the service takes it at once, and end."""
        self._is_closing.set()
        is_ended = self._backlog.close(_FAREWELL)
        if is_ended and "_client" in vars(self):  # Else the thread uses it still, or never did.
            self._client.close()

    @cached_property
    def _client(self) -> "httpx.Client":
        # It takes half as long to import as all else, and most processes are never compared.
        import httpx  # noqa: PLC0415

        timeout = httpx.Timeout(_TIMEOUT, connect=_CONNECT_TIMEOUT)
        return httpx.Client(base_url=self._url, timeout=timeout, trust_env=False)

    def _count(self, what: str, more: int) -> None:
        with self._counting:
            self.counts[what] += more

    def _handle(self, reports: Sequence[Report]) -> None:
        documents = [self._document(report) for report in reports]
        body = orjson.dumps({"predictions": documents})
        rejected = self._deliver(body)
        if rejected is None:
            self._count("dropped", len(reports))
        else:
            self._count("rejected", rejected)
            self._count("reported", len(reports) - rejected)
        self._is_closing.wait(_GATHER)

    def _deliver(self, body: bytes) -> int | None:
        """Send until the service takes it.

        Returns:
            How many items it rejected; None if it takes none of it, or not in time.
        """
        import httpx  # noqa: PLC0415  # As above.

        end, wait = time.monotonic() + _GIVEN_UP, _FIRST_WAIT
        while True:
            try:
                answer = self._post(body)
            except httpx.HTTPError as error:
                self._note(type(error).__name__)
            else:
                if answer.is_success:
                    self._is_away = False
                    return len(answer.json()["rejected"])
                self._note(f"HTTP {answer.status_code}")
                if answer.is_client_error:
                    return None  # It never will.
            if time.monotonic() + wait > end or self._is_closing.wait(wait):
                return None
            wait = min(2 * wait, _LONGEST_WAIT)

    def _post(self, body: bytes) -> "httpx.Response":
        headers = {"content-type": "application/json"}
        return self._client.post("/v1/predictions", content=body, headers=headers)

    def _note(self, reason: str) -> None:
        if not self._is_away:  # Once for each time that it is away.
            _log.warning("Predictions cannot be reported: %s", reason)
            self._is_away = True

    def _document(self, report: Report) -> dict[str, Any]:
        at = datetime.fromtimestamp(report.at, UTC).isoformat(timespec="milliseconds")
        rows, value = _predicted(report)
        return {
            "inferenceId": report.inference_id,
            "model": self._model,
            "version": self._version,
            "shadow": report.is_shadow,
            "at": at.replace("+00:00", "Z"),
            "code": report.status,
            "durationMs": round(report.seconds * 1000, 3),
            "rows": rows,
            **({} if value is UNREAD else {"prediction": value}),
        }


def _predicted(report: Report) -> Predicted:
    if report.status != HTTPStatus.OK:
        return Predicted(0, UNREAD)
    try:
        answer = orjson.loads(report.body)
    except orjson.JSONDecodeError:
        answer = None  # The binary tensor extension, or gRPC.
    return read_predicted(answer, report.inference_id)

"""What looks at answered requests: the access log, the sample of payloads, and reports."""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.adapters.payloads import Payload, PayloadLog
from fairlead_serving.adapters.reports import Report, Reports
from fairlead_serving.domain.errors import CannotStartError
from fairlead_serving.domain.sampling import is_sampled
from fairlead_serving.entrypoints.headers import Headers, header
from fairlead_serving.entrypoints.settings import Settings

_ID = b"x-inference-id"
_COMPARE = b"x-fairlead-compare"
_COPY = b"shadow"
_chance = random.SystemRandom()
_log = logging.getLogger("fairlead_serving.access")


class Seen(NamedTuple):
    """A request that was answered.

    Attributes:
        path: Of HTTP, or of the gRPC method.
        headers: The request's.
        request: Its body.
        status: The answer's HTTP status, or the one that a gRPC code stands for.
        response: The answer's body.
        seconds: The time between the two.
    """

    path: str
    headers: Headers
    request: bytes
    status: int
    response: bytes
    seconds: float


Watch = Callable[[Seen], None]


@contextmanager
def open_watches(settings: Settings, metrics: Metrics) -> Iterator[Sequence[Watch]]:
    """Look at answered requests as far as the settings ask for it.

    Args:
        settings: What to log and to keep.
        metrics: Shows how many payloads were kept, and how many predictions were reported.

    Yields:
        The watches; what they took is written and sent at the end.

    Raises:
        CannotStartError: There is no place for payloads.
    """
    watches = [_watch_access(settings.access_log)] if settings.access_log else []
    with ExitStack() as stack:
        if settings.experiments:
            reports = Reports(settings.experiments, settings.name, settings.version)
            stack.callback(reports.close)
            metrics.predictions = lambda: reports.counts
            watches.append(_watch_compared(reports))
        if settings.payload_folder is not None:
            log = _open_payloads(settings.payload_folder, settings.payload_bytes)
            stack.callback(log.close)
            metrics.payloads = lambda: log.counts
            watches.append(_watch_payloads(settings, log))
        yield watches


def _open_payloads(folder: Path, most_bytes: int) -> PayloadLog:
    try:
        return PayloadLog(folder, most_bytes)
    except OSError as error:
        raise CannotStartError(
            f"Payloads cannot be kept in '{folder}': {error.strerror}."
        ) from error


def _watch_compared(reports: Reports) -> Watch:
    """Report what was predicted for the requests that the gateway has marked, and for no others."""

    def watch(seen: Seen) -> None:
        mark = header(seen.headers, _COMPARE)
        if not mark:
            return
        inference_id = header(seen.headers, _ID).decode(errors="replace")
        at = time.time() - seen.seconds
        reports.add(
            Report(inference_id, mark == _COPY, at, seen.status, seen.seconds, seen.response)
        )

    return watch


def _watch_access(share: float) -> Watch:
    """Log a share of the requests, chosen by inference id, and every failure of the server."""

    def watch(seen: Seen) -> None:
        inference_id = header(seen.headers, _ID)
        is_failure = seen.status >= 500  # noqa: PLR2004
        if not is_failure and not is_sampled(inference_id or _chance.randbytes(8), share):
            return
        fields = {
            "path": seen.path,
            "status": seen.status,
            "seconds": round(seen.seconds, 6),
            "request_bytes": len(seen.request),
            "response_bytes": len(seen.response),
            "inference_id": inference_id.decode(errors="replace"),
        }
        words = " ".join(f"{name}={value}" for name, value in fields.items() if value != "")
        _log.info("%s", words, extra=fields)

    return watch


def _watch_payloads(settings: Settings, log: PayloadLog) -> Watch:
    """Keep the payloads of a share of the units.

    A request without the header is taken by its inference id, or else by chance.
    """
    name = settings.payload_key.lower().encode()

    def watch(seen: Seen) -> None:
        unit, inference_id = header(seen.headers, name), header(seen.headers, _ID)
        if not is_sampled(unit or inference_id or _chance.randbytes(8), settings.payload_share):
            return
        fields = {
            "model": settings.name,
            "version": settings.version,
            "inferenceId": inference_id.decode(errors="replace") or None,
            "unit": unit.decode(errors="replace") or None,
            "path": seen.path,
            "contentType": header(seen.headers, b"content-type").decode(errors="replace"),
            "status": seen.status,
            "seconds": round(seen.seconds, 6),
        }
        bodies = {"request": seen.request, "response": seen.response}
        log.add(Payload(time.time() - seen.seconds, fields, bodies))

    return watch

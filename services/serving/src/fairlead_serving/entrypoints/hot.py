"""The way of a prediction: a bare ASGI application in front of the one that does all else.

Every layer that a framework puts between the socket and the model costs more than most models
do, so the paths that predict have none; all other paths go to the application behind.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from fairlead_serving.adapters.arrays import as_mlflow_writes
from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.adapters.outputs import answer_infer, to_outputs
from fairlead_serving.app.lane import Told
from fairlead_serving.domain.answers import (
    Answer,
    answer_error,
    answer_predictions,
    answer_v2_error,
)
from fairlead_serving.domain.data import Request
from fairlead_serving.domain.errors import (
    BadInputError,
    ClientLeftError,
    ModelRaisedError,
    RequestError,
    TooLargeError,
    UnsupportedTypeError,
)
from fairlead_serving.domain.v2 import Infer, read_infer
from fairlead_serving.entrypoints.headers import Headers, header
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.state import State
from fairlead_serving.entrypoints.watches import Seen, Watch

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

_JSON = b"application/json"
_CSV = b"text/csv"
_BINARY = b"application/octet-stream"
_JSON_LENGTH = b"inference-header-content-length"
_DIGITS = 18
LONG = 256 * 1024
"""Bodies above so many bytes are read in a thread, lest they hold the probes up."""
_PATIENCE = 10
"""How many times the largest body is read and thrown away before the connection is closed."""

REFUSED = "fairlead.refused"
"""Where a scope holds the error that its caller was told before the body had ended."""

_log = logging.getLogger(__name__)


class Reading(NamedTuple):
    """A request that was read: what is predicted on, and what makes the answer of it."""

    request: Request
    complete: Callable[[Any], Answer]


class Route(NamedTuple):
    """A path that predicts: how it reads a request, and how it refuses one in its own words."""

    path: str
    read: Callable[[Headers, bytes], Reading]
    refuse: Callable[[RequestError], Answer]


class Exchange(NamedTuple):
    """A request on its way; the headers' names are in lower case."""

    route: Route
    headers: Headers
    body: bytes
    started: float


class HotPath:
    """Answers predictions; gives any other request to the application behind it.

    Args:
        settings: The settings of the process.
        state: Holds the model as soon as it is loaded.
        metrics: Counts what is answered.
        behind: The application for all other requests.
        watches: Look at each answered request.

    Attributes:
        routes: What each path is for.
        short: The most bytes of a body that is read in the event loop.
    """

    def __init__(
        self,
        settings: Settings,
        state: State,
        metrics: Metrics,
        behind: Asgi,
        watches: Sequence[Watch] = (),
    ) -> None:
        self.short = min(LONG, settings.max_body_bytes)
        self._limit = settings.max_body_bytes
        self._state = state
        self._metrics = metrics
        self._behind = behind
        self._watches = watches
        self._name, self._version = settings.name, settings.version
        infer = f"/v2/models/{settings.name}"
        paths = (f"{infer}/infer", f"{infer}/versions/{settings.v2_version}/infer")
        self.routes: Mapping[str, Route] = {
            "/invocations": Route("/invocations", self._read_invocation, answer_error),
            **{path: Route(path, self._read_infer, answer_v2_error) for path in paths},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI scope."""
        route = self.routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or scope["method"] != "POST":
            await self._behind(scope, receive, send)
            return
        exchange = self._begin(route, scope["headers"])
        try:
            self._state.loaded()
            exchange = exchange._replace(body=await self._body(scope, receive))
            answer = await self._answer(exchange, receive)
        except Exception as error:  # noqa: BLE001  # Whatever it is, it has an answer.
            answer = route.refuse(to_request_error(error))
        self._end(exchange, answer)
        headers = self.head(answer)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    def answer_short(
        self, route: Route, headers: Headers, body: bytes, send: Callable[[Answer], None]
    ) -> Told | None:
        """Answer a request whose whole body is there, without the price of a task.

        Args:
            route: What the path is for.
            headers: The request's.
            body: The whole body, not above `short`.
            send: Is called with the answer, unless the caller leaves.

        Returns:
            What to tell when the caller leaves; None if the answer is sent already.
        """
        exchange = self._begin(route, headers, body)
        try:
            request, complete = route.read(headers, body)
            waiting = Told(partial(self._conclude, exchange, complete, send))
            self._state.loaded()[1].queue(request, waiting)
        except Exception as error:  # noqa: BLE001  # As above.
            send(self._end(exchange, route.refuse(to_request_error(error))))
            return None
        return waiting

    def count_refused(self, route: Route, headers: Headers, error: RequestError) -> None:
        """Count a request that was refused before its body had ended.

        Args:
            route: What the path is for.
            headers: The request's.
            error: What its caller was told.
        """
        self._end(self._begin(route, headers), route.refuse(error))

    def _conclude(
        self,
        exchange: Exchange,
        complete: Callable[[Any], Answer],
        send: Callable[[Answer], None],
        predictions: Any,
        error: Exception | None,
    ) -> None:
        if error is None:
            try:
                answer = complete(predictions)
            except Exception as raised:  # noqa: BLE001  # As above.
                error = raised
        if error is not None:
            answer = exchange.route.refuse(to_request_error(error))
        self._end(exchange, answer)
        if not isinstance(error, ClientLeftError):
            send(answer)

    def _begin(self, route: Route, headers: Headers, body: bytes = b"") -> Exchange:
        self._metrics.in_flight += 1
        return Exchange(route, headers, body, time.perf_counter())

    def _end(self, exchange: Exchange, answer: Answer) -> Answer:
        self._metrics.in_flight -= 1
        seconds = time.perf_counter() - exchange.started
        self._metrics.observe(answer.status, seconds)
        if self._watches:
            path, sent = exchange.route.path, exchange.body
            seen = Seen(path, exchange.headers, sent, answer.status, answer.body, seconds)
            for watch in self._watches:
                watch(seen)
        return answer

    def head(self, answer: Answer) -> list[tuple[bytes, bytes]]:
        """Give the headers of an answer."""
        kind = _JSON if answer.json_length is None else _BINARY
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(answer.body))]
        if answer.json_length is not None:
            headers.append((_JSON_LENGTH, b"%d" % answer.json_length))
        if self._state.draining or answer.status == 413:  # noqa: PLR2004
            headers.append((b"connection", b"close"))
        if answer.status == 503:  # noqa: PLR2004
            headers.append((b"retry-after", b"1"))
        return headers

    async def _answer(self, exchange: Exchange, receive: Receive) -> Answer:
        read = partial(exchange.route.read, exchange.headers)
        body = exchange.body
        is_short = len(body) <= self.short
        request, complete = read(body) if is_short else await asyncio.to_thread(read, body)
        waiting = self._state.loaded()[1].submit(request)
        return complete(await _unless_left(waiting, receive))

    def _read_invocation(self, headers: Headers, body: bytes) -> Reading:
        served, _ = self._state.loaded()
        _check_plain(headers)
        is_csv = _content_type(headers) == _CSV
        read = served.reader.read_csv if is_csv else served.reader.read_json
        return Reading(read(body), _answer_invocation)

    def _read_infer(self, headers: Headers, body: bytes) -> Reading:
        served, _ = self._state.loaded()
        _check_plain(headers)
        infer = read_infer(body, _json_length(headers), served.signature)
        return Reading(infer.request, partial(self._answer_infer, infer))

    def _answer_infer(self, infer: Infer, predictions: Any) -> Answer:
        served, _ = self._state.loaded()
        outputs = to_outputs(predictions, infer.request.data.rows, served.signature.outputs)
        return answer_infer(self._name, self._version, infer, outputs)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Read the body, but keep no more of it than is allowed.

        What is too long is still read for a while: closing a connection on a caller who is
        sending resets it, and the answer is lost.
        """
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body") or len(body) > self._limit or not body:
            body = await self._long_body(scope, message, receive)
        return body

    async def _long_body(self, scope: Scope, message: Message, receive: Receive) -> bytes:
        parts, size = [message.get("body", b"")], len(message.get("body", b""))
        while message.get("more_body") and size <= _PATIENCE * self._limit:
            message = await receive()
            size += len(message.get("body", b""))
            if size <= self._limit:
                parts.append(message.get("body", b""))
        if message["type"] == "http.disconnect":
            raise scope.get(REFUSED) or ClientLeftError()
        if size > self._limit:
            raise TooLargeError(f"The body is longer than {self._limit} bytes.")
        if not size:
            raise BadInputError("The body is empty.")
        return b"".join(parts)


def _answer_invocation(predictions: object) -> Answer:
    return answer_predictions(as_mlflow_writes(predictions))


def to_request_error(error: Exception) -> RequestError:
    """Tell what a request failed with, if it is not told yet: what the model gave, most likely."""
    if isinstance(error, RequestError):
        return error
    _log.warning("A request failed: %s", type(error).__name__)
    _log.debug("The traceback", exc_info=error)
    return ModelRaisedError(type(error).__name__)


async def _unless_left(waiting: asyncio.Future[Any], receive: Receive) -> Any:
    """Wait for predictions, but no longer than the caller does."""
    leaving = asyncio.ensure_future(receive())
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise ClientLeftError
    finally:
        waiting.cancel()
        leaving.cancel()


def _check_plain(headers: Headers) -> None:
    """Refuse a compressed body by its name: its bytes would only be no valid JSON."""
    if header(headers, b"content-encoding").lower() not in {b"", b"identity"}:
        raise UnsupportedTypeError(
            "The header content-encoding says that the body is compressed; "
            "send it as it is, without that header."
        )


def _json_length(headers: Headers) -> int | None:
    """Read the header of the binary tensor extension: how many bytes of the body are JSON."""
    given = header(headers, _JSON_LENGTH)
    if not given:
        return None
    if not given.isdigit() or len(given) > _DIGITS:
        raise BadInputError(f"{_JSON_LENGTH.decode()} must be a number.")
    return int(given)


def _content_type(headers: Headers) -> bytes:
    given = header(headers, b"content-type")
    if given == _JSON:
        return _JSON
    kind, *parameters = given.lower().split(b";")
    charsets = [value.strip() for value in parameters if value.strip().startswith(b"charset=")]
    if kind.strip() not in {_JSON, _CSV} or any(
        charset.removeprefix(b"charset=").strip(b'"') != b"utf-8" for charset in charsets
    ):
        raise UnsupportedTypeError(
            f"The content type must be {_JSON.decode()} or {_CSV.decode()}, in UTF-8."
        )
    return kind.strip()

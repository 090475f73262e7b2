"""The way of a prediction: a bare ASGI application in front of the one that does all else.

Every layer that a framework puts between the socket and the model costs more than most models
do, so the paths that predict have none; all other paths go to the application behind.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.adapters.outputs import answer_infer
from fairlead_serving.domain.answers import (
    Answer,
    answer_error,
    answer_predictions,
    answer_v2_error,
)
from fairlead_serving.domain.errors import (
    BadInputError,
    ModelRaisedError,
    RequestError,
    TooLargeError,
    UnsupportedTypeError,
)
from fairlead_serving.domain.v2 import read_infer
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.state import State
from fairlead_serving.entrypoints.v2 import predict_tensors

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Read = TypeVar("Read")
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

_JSON = b"application/json"
_CSV = b"text/csv"
_BINARY = b"application/octet-stream"
_JSON_LENGTH = b"inference-header-content-length"
_LONG = 256 * 1024
_PATIENCE = 10
"""How many times the largest body is read and thrown away before the connection is closed."""

_log = logging.getLogger(__name__)


class _Route(NamedTuple):
    """A path that predicts: how it is answered, and how it is refused in its own words."""

    answer: Callable[[Scope, bytes], Awaitable[Answer]]
    refuse: Callable[[RequestError], Answer]


class HotPath:
    """Answers predictions; gives any other request to the application behind it.

    Args:
        settings: The settings of the process.
        state: Holds the model as soon as it is loaded.
        metrics: Counts what is answered.
        behind: The application for all other requests.
    """

    def __init__(self, settings: Settings, state: State, metrics: Metrics, behind: Asgi) -> None:
        self._limit = settings.max_body_bytes
        self._state = state
        self._metrics = metrics
        self._behind = behind
        self._name, self._version = settings.name, settings.version
        mlflow = _Route(self._invoke, answer_error)
        v2 = _Route(self._infer, answer_v2_error)
        infer = f"/v2/models/{settings.name}"
        self._routes: Mapping[str, _Route] = {
            "/invocations": mlflow,
            f"{infer}/infer": v2,
            f"{infer}/versions/{settings.v2_version}/infer": v2,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI scope."""
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or scope["method"] != "POST":
            await self._behind(scope, receive, send)
            return
        started = time.perf_counter()
        self._metrics.in_flight += 1
        try:
            answer = await route.answer(scope, await self._body(receive))
        except RequestError as error:
            answer = route.refuse(error)
        except Exception as error:  # noqa: BLE001  # Of what the model gave, most likely.
            _log.warning("A request failed: %s", type(error).__name__)
            _log.debug("The traceback", exc_info=True)
            answer = route.refuse(ModelRaisedError(type(error).__name__))
        finally:
            self._metrics.in_flight -= 1
        self._metrics.observe(answer.status, time.perf_counter() - started)
        await send(self._head(answer))
        await send({"type": "http.response.body", "body": answer.body})

    def _head(self, answer: Answer) -> Message:
        kind = _JSON if answer.json_length is None else _BINARY
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(answer.body))]
        if answer.json_length is not None:
            headers.append((_JSON_LENGTH, b"%d" % answer.json_length))
        if self._state.draining or answer.status == 413:  # noqa: PLR2004
            headers.append((b"connection", b"close"))
        if answer.status == 503:  # noqa: PLR2004
            headers.append((b"retry-after", b"1"))
        return {"type": "http.response.start", "status": answer.status, "headers": headers}

    async def _invoke(self, scope: Scope, body: bytes) -> Answer:
        served, lane = self._state.loaded()
        is_csv = _content_type(scope) == _CSV
        read = served.reader.read_csv if is_csv else served.reader.read_json
        request = await _off_loop_if_long(read, body)
        return answer_predictions(await lane.submit(request))

    async def _infer(self, scope: Scope, body: bytes) -> Answer:
        served, lane = self._state.loaded()
        json_length = _json_length(scope)
        read = partial(read_infer, json_length=json_length, signature=served.signature)
        infer = await _off_loop_if_long(read, body)
        outputs = await predict_tensors(served, lane, infer)
        return answer_infer(self._name, self._version, infer, outputs)

    async def _body(self, receive: Receive) -> bytes:
        """Read the body, but keep no more of it than is allowed.

        What is too long is still read for a while: closing a connection on a caller who is
        sending resets it, and the answer is lost.
        """
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body") or len(body) > self._limit or not body:
            body = await self._long_body(message, receive)
        return body

    async def _long_body(self, message: Message, receive: Receive) -> bytes:
        parts, size = [message.get("body", b"")], len(message.get("body", b""))
        while message.get("more_body") and size <= _PATIENCE * self._limit:
            message = await receive()
            size += len(message.get("body", b""))
            if size <= self._limit:
                parts.append(message.get("body", b""))
        if message["type"] == "http.disconnect":
            raise BadInputError("The body ended early.")
        if size > self._limit:
            raise TooLargeError(f"The body is longer than {self._limit} bytes.")
        if not size:
            raise BadInputError("The body is empty.")
        return b"".join(parts)


async def _off_loop_if_long(read: Callable[[bytes], Read], body: bytes) -> Read:
    """Read a body: at once, or in a thread if it would hold up the probes."""
    return read(body) if len(body) <= _LONG else await asyncio.to_thread(read, body)


def _json_length(scope: Scope) -> int | None:
    """Read the header of the binary tensor extension: how many bytes of the body are JSON."""
    given = _header(scope, _JSON_LENGTH)
    if not given:
        return None
    if not given.isdigit():
        raise BadInputError(f"{_JSON_LENGTH.decode()} must be a number.")
    return int(given)


def _header(scope: Scope, wanted: bytes) -> bytes:
    for name, value in scope["headers"]:
        if name == wanted:
            found: bytes = value
            return found
    return b""


def _content_type(scope: Scope) -> bytes:
    given = _header(scope, b"content-type")
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

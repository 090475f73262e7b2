"""The HTTP interface of a serving process."""

import asyncio
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import orjson
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.app.serving import Served
from fairlead_serving.domain.csv import read_csv
from fairlead_serving.domain.errors import BadInputError, ModelRaisedError
from fairlead_serving.domain.openapi import build_openapi
from fairlead_serving.entrypoints.settings import Settings

_JSON = "application/json"
_CSV = "text/csv"
_CLOSE = {"connection": "close"}
_PATIENCE = 10
"""How many times the largest body is read and thrown away before the connection is closed."""


@dataclass(slots=True)
class State:
    """What changes while a process runs: set by the server, read by the routes."""

    served: Served | None = None
    draining: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether new traffic is welcome."""
        return self.served is not None and not self.draining


class _RefusedError(Exception):
    """A request that is answered before the model sees it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    rows: int = 0


def create_app(settings: Settings, state: State, worker: Executor) -> FastAPI:
    """Make the web application of one model.

    Args:
        settings: The settings of the process.
        state: Holds the model as soon as it is loaded.
        worker: Predicts, on one thread, so that the event loop keeps answering probes.

    Returns:
        The application.
    """
    app = FastAPI(title=settings.name, openapi_url=None, docs_url=None, redoc_url=None)
    metrics = Metrics(settings.name, settings.version)
    invocations = _Invocations(settings, state, worker, metrics)
    app.add_route("/invocations", invocations.answer, methods=["POST"])
    _add_probes(app, state, metrics)
    _add_documents(app, settings, state)
    return app


def _add_probes(app: FastAPI, state: State, metrics: Metrics) -> None:
    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def readyz(_: Request) -> Response:
        if state.is_ready:
            return PlainTextResponse("ok")
        return PlainTextResponse("draining" if state.draining else "loading", 503)

    async def render_metrics(_: Request) -> Response:
        return Response(metrics.render(ready=state.is_ready), media_type=metrics.content_type)

    app.add_route("/livez", livez)
    app.add_route("/readyz", readyz)
    app.add_route("/metrics", render_metrics)


def _add_documents(app: FastAPI, settings: Settings, state: State) -> None:
    async def openapi(_: Request) -> Response:
        served = state.served
        if served is None:
            return _error(503, "UNAVAILABLE", "The model is still being loaded.")
        document = build_openapi(
            settings.name, settings.version, served.signature, served.folder.example
        )
        return Response(orjson.dumps(document), media_type=_JSON)

    async def docs(_: Request) -> HTMLResponse:
        # Relative, so that it works behind the gateway's path as well.
        return get_swagger_ui_html(openapi_url="openapi.json", title=settings.name)

    app.add_route("/openapi.json", openapi)
    app.add_route("/docs", docs)


class _Invocations:
    def __init__(
        self, settings: Settings, state: State, worker: Executor, metrics: Metrics
    ) -> None:
        self._limit = settings.max_body_bytes
        self._state = state
        self._worker = worker
        self._metrics = metrics

    async def answer(self, request: Request) -> Response:
        started = time.perf_counter()
        with self._metrics.in_flight.track_inprogress():
            answer = await self._guarded(request)
        self._metrics.observe(answer.status, time.perf_counter() - started, answer.rows)
        headers = _CLOSE if self._state.draining or answer.status == 413 else None  # noqa: PLR2004
        return Response(answer.body, answer.status, headers, _JSON)

    async def _guarded(self, request: Request) -> _Answer:
        try:
            return await self._answer(request)
        except _RefusedError as error:
            return _Answer(error.status, _error_body(error.code, str(error)))
        except ClientDisconnect:
            return _Answer(400, _error_body("BAD_REQUEST", "The body ended early."))

    async def _answer(self, request: Request) -> _Answer:
        served = self._state.served
        if served is None:
            raise _RefusedError(503, "UNAVAILABLE", "The model is still being loaded.")
        kind = _content_type(request)
        body = await self._body(request)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, partial(_predict, served, kind, body))

    async def _body(self, request: Request) -> bytes:
        """Read the body, but keep no more of it than is allowed.

        What is too long is still read for a while: closing a connection on a caller who is
        sending resets it, and the answer is lost.
        """
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size <= self._limit:
                parts.append(part)
            elif size > _PATIENCE * self._limit:
                break
        if size > self._limit:
            raise _RefusedError(
                413, "PAYLOAD_TOO_LARGE", f"The body is longer than {self._limit} bytes."
            )
        if not size:
            raise _RefusedError(400, "BAD_REQUEST", "The body is empty.")
        return b"".join(parts)


def _content_type(request: Request) -> str:
    kind, *parameters = request.headers.get("content-type", "").lower().split(";")
    charsets = [value.strip() for value in parameters if value.strip().startswith("charset=")]
    if kind.strip() not in {_JSON, _CSV} or any(
        charset.removeprefix("charset=").strip('"') != "utf-8" for charset in charsets
    ):
        raise _RefusedError(
            415, "UNSUPPORTED_MEDIA_TYPE", f"The content type must be {_JSON} or {_CSV}, in UTF-8."
        )
    return kind.strip()


def _predict(served: Served, kind: str, body: bytes) -> _Answer:
    """Answer on the worker thread: parsing a large body must not hold up the probes."""
    try:
        predictions, rows = _read_and_predict(served, kind, body)
        return _Answer(200, _encode(predictions), rows)
    except BadInputError as error:
        return _Answer(400, _error_body("BAD_REQUEST", error.message, error.field))
    except ModelRaisedError as error:
        return _Answer(500, _error_body("MODEL_ERROR", str(error)))


def _read_and_predict(served: Served, kind: str, body: bytes) -> tuple[object, int]:
    if kind == _CSV:
        return served.predict_columns(read_csv(_text(body), served.signature))
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # Only the position is passed on; the parser's message is about what was sent.
        raise BadInputError(
            f"The body is not valid JSON at line {error.lineno}, column {error.colno}."
        ) from error
    return served.predict_json(payload)


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise BadInputError("The body is not in UTF-8.") from error


def _encode(predictions: object) -> bytes:
    try:
        return orjson.dumps({"predictions": predictions}, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise ModelRaisedError(type(error).__name__) from error


def _error(status: int, code: str, message: str) -> Response:
    return Response(_error_body(code, message), status, media_type=_JSON)


def _error_body(code: str, message: str, field: str | None = None) -> bytes:
    return orjson.dumps({"error_code": code, "message": message, "field": field})

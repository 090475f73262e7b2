"""The HTTP interface of a serving process: the paths that predict, and all that is beside them."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as installed

import orjson
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.domain.answers import answer_error, answer_v2_error
from fairlead_serving.domain.errors import (
    NoSuchPathError,
    NotReadyError,
    RequestError,
    WrongMethodError,
)
from fairlead_serving.domain.openapi import Subject, build_openapi
from fairlead_serving.entrypoints.hot import HotPath
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.state import State
from fairlead_serving.entrypoints.v2 import RETRY_LATER, add_v2
from fairlead_serving.entrypoints.watches import Watch

_JSON = "application/json"
_ROUTING: Mapping[int, Callable[[], RequestError]] = {404: NoSuchPathError, 405: WrongMethodError}


def create_app(
    settings: Settings, state: State, metrics: Metrics, watches: Sequence[Watch] = ()
) -> HotPath:
    """Make the web application of one model.

    Args:
        settings: The settings of the process.
        state: Holds the model as soon as it is loaded.
        metrics: What the process counts.
        watches: Look at each answered request.

    Returns:
        The application.
    """
    app = FastAPI(
        title=settings.name,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _refuse_route},
        # Ours is around all paths and leaves the probes out; see `adapters.tracing`.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    # It is answered before it comes here, unless the method is another.
    app.add_route("/invocations", _not_found, methods=["POST"])
    _add_probes(app, state, metrics)
    _add_documents(app, settings, state)
    add_v2(app, settings, state)
    return HotPath(settings, state, metrics, app, watches)


async def _not_found(_: Request) -> Response:
    raise HTTPException(404)


async def _refuse_route(request: Request, error: Exception) -> Response:
    """Answer what no route takes in the words of the protocol that was spoken to."""
    assert isinstance(error, HTTPException)
    refused = _ROUTING[error.status_code]()
    is_v2 = request.url.path.startswith("/v2")
    refusal = answer_v2_error(refused) if is_v2 else answer_error(refused)
    return Response(refusal.body, refusal.status, error.headers, media_type=_JSON)


def _add_probes(app: FastAPI, state: State, metrics: Metrics) -> None:
    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def readyz(_: Request) -> Response:
        if state.is_ready:
            return PlainTextResponse("ok")
        return PlainTextResponse("draining" if state.draining else "loading", 503)

    async def render_metrics(_: Request) -> Response:
        metrics.ready = state.is_ready
        return Response(metrics.render(), media_type=metrics.content_type)

    async def version(_: Request) -> Response:
        return PlainTextResponse(installed("fairlead-serving"))

    app.add_route("/livez", livez)
    app.add_route("/readyz", readyz)
    app.add_route("/version", version)
    # MLflow's own names for readiness, for those who come from `mlflow models serve`.
    app.add_route("/ping", readyz)
    app.add_route("/health", readyz)
    app.add_route("/metrics", render_metrics)


def _add_documents(app: FastAPI, settings: Settings, state: State) -> None:
    async def openapi(_: Request) -> Response:
        served = state.served
        if served is None:
            refusal = answer_error(NotReadyError())
            return Response(refusal.body, refusal.status, RETRY_LATER, media_type=_JSON)
        subject = Subject(
            name=settings.name,
            version=settings.version,
            signature=served.signature,
            example=served.folder.example,
            max_body_bytes=settings.max_body_bytes,
            max_rows=settings.limits.rows,
        )
        return Response(orjson.dumps(build_openapi(subject)), media_type=_JSON)

    async def docs(_: Request) -> HTMLResponse:
        # Relative, so that it works behind the gateway's path as well.
        return get_swagger_ui_html(openapi_url="openapi.json", title=settings.name)

    app.add_route("/openapi.json", openapi)
    app.add_route("/docs", docs)

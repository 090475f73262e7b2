"""The HTTP interface of a serving process: the paths that predict, and all that is beside them."""

from collections.abc import Sequence
from importlib.metadata import version as installed

import orjson
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.domain.answers import answer_error
from fairlead_serving.domain.errors import NotReadyError
from fairlead_serving.domain.openapi import build_openapi
from fairlead_serving.entrypoints.hot import HotPath
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.state import State
from fairlead_serving.entrypoints.v2 import add_v2
from fairlead_serving.entrypoints.watches import Watch

_JSON = "application/json"


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
        # Ours is around all paths and leaves the probes out; see `adapters.tracing`.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    _add_probes(app, state, metrics)
    _add_documents(app, settings, state)
    add_v2(app, settings, state)
    return HotPath(settings, state, metrics, app, watches)


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
            return Response(refusal.body, refusal.status, media_type=_JSON)
        document = build_openapi(
            settings.name, settings.version, served.signature, served.folder.example
        )
        return Response(orjson.dumps(document), media_type=_JSON)

    async def docs(_: Request) -> HTMLResponse:
        # Relative, so that it works behind the gateway's path as well.
        return get_swagger_ui_html(openapi_url="openapi.json", title=settings.name)

    app.add_route("/openapi.json", openapi)
    app.add_route("/docs", docs)

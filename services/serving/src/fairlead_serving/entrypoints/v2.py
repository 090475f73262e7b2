"""The paths of the Open Inference Protocol that predict nothing: health and metadata."""

from importlib.metadata import version as installed
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from fairlead_serving.adapters.outputs import describe
from fairlead_serving.domain.answers import answer_v2_error
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.state import State

_SERVER = "fairlead-serving"
_JSON = "application/json"


def server_metadata() -> dict[str, Any]:
    """Say what serves, and which extensions it knows."""
    return {"name": _SERVER, "version": installed(_SERVER), "extensions": ["binary_tensor_data"]}


def model_metadata(settings: Settings, state: State) -> dict[str, Any] | None:
    """Describe the model; None while it is not loaded."""
    if state.served is None:
        return None
    signature = state.served.signature
    return {
        "name": settings.name,
        "versions": [settings.version or "1"],
        "platform": "mlflow",
        "inputs": describe([*signature.columns, *signature.tensors], "input-1"),
        "outputs": describe(signature.outputs, "output-1"),
    }


def add_v2(app: FastAPI, settings: Settings, state: State) -> None:
    """Add the paths.

    Args:
        app: The application that gets them.
        settings: The settings of the process.
        state: Holds the model as soon as it is loaded.
    """
    paths = _Paths(settings, state)
    app.add_route("/v2", paths.server)
    app.add_route("/v2/", paths.server)
    app.add_route("/v2/health/live", paths.live)
    app.add_route("/v2/health/ready", paths.ready)
    for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.add_route(prefix, paths.model)
        app.add_route(f"{prefix}/ready", paths.model_ready)
        # The model's own are answered before they come here.
        app.add_route(f"{prefix}/infer", paths.unknown, methods=["POST"])


class _Paths:
    def __init__(self, settings: Settings, state: State) -> None:
        self._settings = settings
        self._state = state
        self._version = settings.version or "1"

    async def server(self, _: Request) -> Response:
        return _answer(200, server_metadata())

    async def live(self, _: Request) -> Response:
        return _answer(200, {"live": True})

    async def ready(self, _: Request) -> Response:
        return _answer(self._ready_status(), {"ready": self._state.is_ready})

    async def model(self, request: Request) -> Response:
        if not self._is_served(request):
            return await self.unknown(request)
        found = model_metadata(self._settings, self._state)
        if found is None:
            return _refuse(503, "The model is still being loaded.")
        return _answer(200, found)

    async def model_ready(self, request: Request) -> Response:
        if not self._is_served(request):
            return await self.unknown(request)
        document = {"name": self._settings.name, "ready": self._state.is_ready}
        return _answer(self._ready_status(), document)

    async def unknown(self, _: Request) -> Response:
        name = self._settings.name
        return _refuse(404, f"This process serves version {self._version} of '{name}' alone.")

    def _ready_status(self) -> int:
        return 200 if self._state.is_ready else 503

    def _is_served(self, request: Request) -> bool:
        given = request.path_params
        is_version = given.get("version", self._version) == self._version
        return is_version and bool(given["name"] == self._settings.name)


def _refuse(status: int, message: str) -> Response:
    refusal = answer_v2_error(status, message)
    return Response(refusal.body, refusal.status, media_type=_JSON)


def _answer(status: int, document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), status, media_type=_JSON)

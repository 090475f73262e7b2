"""The paths of the Open Inference Protocol that predict nothing: health and metadata."""

from importlib.metadata import version as installed
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from fairlead_serving.adapters.outputs import describe
from fairlead_serving.domain.answers import answer_v2_error
from fairlead_serving.domain.errors import RequestError, UnknownModelError
from fairlead_serving.domain.v2 import DEFAULT_OUTPUT
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.state import State

_SERVER = "fairlead-serving"
_JSON = "application/json"

RETRY_LATER = {"retry-after": "1"}
"""The header of an answer that has to be asked for again."""


def server_metadata() -> dict[str, Any]:
    """Say what serves, and which extensions it knows."""
    return {"name": _SERVER, "version": installed(_SERVER), "extensions": ["binary_tensor_data"]}


def check_model(settings: Settings, name: str, version: str) -> None:
    """Check that a request is for the model of this process.

    Args:
        settings: The settings of the process.
        name: The name in the request.
        version: The version in the request; empty for any.

    Raises:
        UnknownModelError: It is for another one.
    """
    if name != settings.name or version not in {"", settings.v2_version}:
        raise UnknownModelError(settings.name, settings.v2_version)


def model_metadata(settings: Settings, state: State) -> dict[str, Any]:
    """Describe the model.

    Raises:
        NotReadyError: It is still being loaded.
    """
    served, _ = state.loaded()
    signature = served.signature
    return {
        "name": settings.name,
        "versions": [settings.v2_version],
        "platform": "mlflow",
        "inputs": describe([*signature.columns, *signature.tensors], "input-1"),
        "outputs": describe(signature.outputs, DEFAULT_OUTPUT),
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

    async def server(self, _: Request) -> Response:
        return _answer(200, server_metadata())

    async def live(self, _: Request) -> Response:
        return _answer(200, {"live": True})

    async def ready(self, _: Request) -> Response:
        return _answer(self._ready_status(), {"ready": self._state.is_ready})

    async def model(self, request: Request) -> Response:
        try:
            self._check(request)
            return _answer(200, model_metadata(self._settings, self._state))
        except RequestError as error:
            return _refuse(error)

    async def model_ready(self, request: Request) -> Response:
        try:
            self._check(request)
        except RequestError as error:
            return _refuse(error)
        document = {"name": self._settings.name, "ready": self._state.is_ready}
        return _answer(self._ready_status(), document)

    async def unknown(self, _: Request) -> Response:
        return _refuse(UnknownModelError(self._settings.name, self._settings.v2_version))

    def _ready_status(self) -> int:
        return 200 if self._state.is_ready else 503

    def _check(self, request: Request) -> None:
        given = request.path_params
        check_model(self._settings, given["name"], given.get("version", ""))


def _refuse(error: RequestError) -> Response:
    refusal = answer_v2_error(error)
    headers = RETRY_LATER if error.status == 503 else None  # noqa: PLR2004
    return Response(refusal.body, refusal.status, headers, media_type=_JSON)


def _answer(status: int, document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), status, media_type=_JSON)

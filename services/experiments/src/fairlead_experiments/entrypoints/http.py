"""The HTTP interface."""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from fairlead_experiments.adapters.pages import Pages
from fairlead_experiments.app.documents import build_rollout
from fairlead_experiments.app.errors import BadRequestError, NotFoundError, StoreUnavailableError
from fairlead_experiments.app.service import Experiments, Receipt
from fairlead_experiments.app.validation import BATCH_LIMIT, read_tolerance
from fairlead_experiments.entrypoints import schemas
from fairlead_experiments.entrypoints.body import DECISION_LIMIT, Refused, read_items, read_json

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": schemas.ErrorBody, "description": "The body is empty or not JSON."},
    413: {"model": schemas.ErrorBody, "description": "The body is too large."},
    415: {"model": schemas.ErrorBody, "description": "The body is not application/json."},
    422: {"model": schemas.ErrorBody, "description": "A field is missing or wrong; it is named."},
    503: {"model": schemas.ErrorBody, "description": "The database does not answer; try again."},
}
_READ_ERRORS: dict[int | str, dict[str, Any]] = {code: _ERRORS[code] for code in (422, 503)}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": schemas.ErrorBody, "description": "No rollout has this id."}
}
_BODIES: tuple[type[BaseModel], ...] = (
    schemas.ExposureBatch,
    schemas.OutcomeBatch,
    schemas.RolloutRecord,
    schemas.DecisionBody,
    schemas.PredictionBatch,
)
_REFERENCE = "#/components/schemas/{model}"
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "x-content-type-options": "nosniff",
}
_BATCHES_AT_ONCE = 4
_QUIET = 10.0  # seconds
_log = logging.getLogger(__name__)
_CODES = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}


class Metrics:
    """What the service tells about itself, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.exposures = Counter(
            "fairlead_experiments_exposures",
            "Exposures by what became of them.",
            ["result"],
            registry=self.registry,
        )
        self.outcomes = Counter(
            "fairlead_experiments_outcomes",
            "Outcomes by what became of them.",
            ["result"],
            registry=self.registry,
        )
        self.predictions = Counter(
            "fairlead_experiments_predictions",
            "Predictions of compared requests by what became of them.",
            ["result"],
            registry=self.registry,
        )
        self.analysis = Histogram(
            "fairlead_experiments_analysis_duration_seconds",
            "Time to read and analyse a rollout.",
            registry=self.registry,
        )


class Ingest:
    """Takes batches a few at a time.

    The database has one writer. Batches that wait for it here hold neither a connection nor one of
    the threads that probes and analyses are answered by.
    """

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(_BATCHES_AT_ONCE)

    async def run(
        self, take: Callable[[list[object]], Receipt], items: list[object], counter: Counter
    ) -> Receipt:
        """Hand a batch to a use case, and count what became of its items."""
        receipt = await to_thread.run_sync(take, items, limiter=self._limiter)
        counter.labels("accepted").inc(receipt.accepted)
        counter.labels("duplicate").inc(receipt.duplicates)
        counter.labels("rejected").inc(len(receipt.rejected))
        return receipt


class Complaints:
    """Logs why the database did not answer: each reason at once, then every ten seconds."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}

    def log(self, reason: str) -> None:
        """Log a reason unless it was logged just now."""
        now = time.monotonic()
        recent = {known: at for known, at in self._logged.items() if now - at < _QUIET}
        if reason not in recent:
            recent[reason] = now
            _log.warning("The database did not answer: %s", reason)
        self._logged = recent


def create_app(experiments: Experiments) -> FastAPI:
    """Build the application over the use cases."""
    app = FastAPI(
        title="Fairlead experiments",
        version="1",
        summary="Takes exposures and outcomes, computes the analysis of a rollout.",
    )
    metrics = Metrics()
    app.include_router(_ingest_routes(experiments, metrics))
    app.include_router(_shadow_routes(experiments))
    app.include_router(_record_routes(experiments))
    app.include_router(_decision_routes(experiments))
    app.include_router(_analysis_routes(experiments, metrics))
    app.include_router(_operation_routes(experiments, metrics))
    _handle_errors(app)
    _publish(app)
    return app


def _body(*models: type[BaseModel]) -> dict[str, Any]:
    """The request body's part of the OpenAPI document."""
    kinds = [{"$ref": _REFERENCE.format(model=model.__name__)} for model in models]
    schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _publish(app: FastAPI) -> None:
    """Add the request bodies to the OpenAPI document: they are read by `app.validation`."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()
        known = document["components"]["schemas"]
        for model in _BODIES:
            schema = model.model_json_schema(ref_template=_REFERENCE)
            for name, part in {**schema.pop("$defs", {}), model.__name__: schema}.items():
                known.setdefault(name, part)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # As FastAPI's manual extends it.


def _ingest_routes(experiments: Experiments, metrics: Metrics) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["ingest"])
    ingest = Ingest()

    @router.post(
        "/exposures",
        responses={200: {"model": schemas.ReceiptBody}, **_ERRORS},
        openapi_extra=_body(schemas.ExposureBatch),
    )
    async def post_exposures(request: Request) -> Response:
        """Take a batch of exposures; each item stands alone, and counts once."""
        items = read_items(await read_json(request), "exposures", BATCH_LIMIT)
        receipt = await ingest.run(experiments.take_exposures, items, metrics.exposures)
        return JSONResponse(asdict(receipt))

    @router.post(
        "/outcomes",
        responses={200: {"model": schemas.ReceiptBody}, **_ERRORS},
        openapi_extra=_body(schemas.OutcomeBatch, schemas.OutcomeBody),
    )
    async def post_outcomes(request: Request) -> Response:
        """Take one outcome or a batch; the one observed last counts."""
        document = await read_json(request)
        is_single = isinstance(document, dict) and "outcomes" not in document
        items = [document] if is_single else read_items(document, "outcomes", BATCH_LIMIT)
        receipt = await ingest.run(experiments.take_outcomes, items, metrics.outcomes)
        if is_single and receipt.rejected:
            wrong = receipt.rejected[0]
            raise BadRequestError(wrong.reason, field=wrong.field)
        return JSONResponse(asdict(receipt))

    @router.post(
        "/predictions",
        responses={200: {"model": schemas.ReceiptBody}, **_ERRORS},
        openapi_extra=_body(schemas.PredictionBatch),
    )
    async def post_predictions(request: Request) -> Response:
        """Take a batch of predictions; a copy's is paired with the answer's, whichever comes first."""
        items = read_items(await read_json(request), "predictions", BATCH_LIMIT)
        receipt = await ingest.run(experiments.take_predictions, items, metrics.predictions)
        return JSONResponse(asdict(receipt))

    return router


def _shadow_routes(experiments: Experiments) -> APIRouter:
    router = APIRouter(prefix="/v1/models", tags=["shadows"])

    @router.get(
        "/{model}/shadow", responses={200: {"model": schemas.ComparisonList}, **_READ_ERRORS}
    )
    def get_shadow(
        model: str, stable: str | None = None, shadow: str | None = None, tolerance: str = "0"
    ) -> Response:
        """Answer how a model's shadows compare with what answered, the latest first."""
        found = experiments.compare(
            model, stable=stable, shadow=shadow, tolerance=read_tolerance(tolerance)
        )
        return JSONResponse({"comparisons": found})

    return router


def _record_routes(experiments: Experiments) -> APIRouter:
    router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])

    @router.put(
        "/{rollout}",
        responses={200: {"model": schemas.RolloutDocument}, **_ERRORS},
        openapi_extra=_body(schemas.RolloutRecord),
    )
    async def put_rollout(rollout: str, request: Request) -> Response:
        """Keep or replace the record of a rollout."""
        document = await read_json(request)
        kept = await run_in_threadpool(experiments.put_rollout, rollout, document)
        return JSONResponse(build_rollout(kept))

    @router.get("", responses={200: {"model": schemas.RolloutList}, **_READ_ERRORS})
    def list_rollouts(model: str | None = None) -> Response:
        """Answer all rollouts, or a model's, the latest start first."""
        found = experiments.list_rollouts(model)
        return JSONResponse({"rollouts": [build_rollout(rollout) for rollout in found]})

    @router.get(
        "/{rollout}",
        responses={200: {"model": schemas.RolloutDocument}, **_NOT_FOUND, **_READ_ERRORS},
    )
    def get_rollout(rollout: str) -> Response:
        """Answer the record of a rollout."""
        return JSONResponse(build_rollout(experiments.get_rollout(rollout)))

    return router


def _decision_routes(experiments: Experiments) -> APIRouter:
    router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])
    pages = Pages()

    @router.put(
        "/{rollout}/decisions/{decision}",
        responses={200: {"model": schemas.DecisionDocument}, **_ERRORS},
        openapi_extra=_body(schemas.DecisionBody),
    )
    async def put_decision(rollout: str, decision: str, request: Request) -> Response:
        """Keep a decision of a rollout; the same one again changes nothing."""
        document = await read_json(request, DECISION_LIMIT)
        kept = await run_in_threadpool(experiments.put_decision, rollout, decision, document)
        return JSONResponse(kept.document)

    @router.get(
        "/{rollout}/decisions",
        responses={200: {"model": schemas.DecisionList}, **_NOT_FOUND, **_READ_ERRORS},
    )
    def list_decisions(rollout: str) -> Response:
        """Answer the decisions of a rollout, the earliest first."""
        found = experiments.list_decisions(rollout)
        return JSONResponse({"rollout": rollout, "decisions": [d.document for d in found]})

    @router.get(
        "/{rollout}/report",
        response_class=HTMLResponse,
        responses={200: {"description": "One page of HTML."}, **_NOT_FOUND, **_READ_ERRORS},
    )
    def get_report(rollout: str) -> Response:
        """Answer the report of a rollout: a page that needs nothing from elsewhere."""
        return HTMLResponse(pages.render(experiments.report(rollout)), headers=_PAGE_HEADERS)

    return router


def _analysis_routes(experiments: Experiments, metrics: Metrics) -> APIRouter:
    router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])

    @router.get(
        "/{rollout}/analysis",
        responses={200: {"model": schemas.AnalysisDocument}, **_NOT_FOUND, **_READ_ERRORS},
    )
    def get_analysis(rollout: str) -> Response:
        """Answer what the numbers of a rollout say."""
        with metrics.analysis.time():
            return JSONResponse(experiments.analyse(rollout))

    return router


def _operation_routes(experiments: Experiments, metrics: Metrics) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/livez")
    async def livez() -> Response:
        return JSONResponse({"status": "ok"})

    @router.get("/readyz")
    def readyz() -> Response:
        try:
            experiments.check()
        except StoreUnavailableError as error:
            return _error(503, "TEMPORARILY_UNAVAILABLE", f"{error}: {error.reason}")
        return JSONResponse({"status": "ok"})

    @router.get("/metrics")
    def read_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    return router


# --- errors ---------------------------------------------------------------------------------


def _error(status: int, code: str, message: str, field: str | None = None) -> JSONResponse:
    body = {"error_code": code, "message": message, "field": field}
    return JSONResponse(body, status, headers={"Retry-After": "1"} if status == 503 else None)  # noqa: PLR2004


def _handle_errors(app: FastAPI) -> None:
    """Give every error our shape; FastAPI's own would repeat the payload."""

    async def refused(_request: Request, error: Refused) -> Response:
        return _error(error.status, error.code, error.message, error.field)

    async def bad_request(_request: Request, error: BadRequestError) -> Response:
        message = f"{error.field}: {error.message}" if error.field else error.message
        return _error(422, "INVALID_PARAMETER_VALUE", message, error.field)

    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        place = error.errors()[0]["loc"]
        field = str(place[-1]) if place else None
        return _error(422, "INVALID_PARAMETER_VALUE", f"{field}: is not valid", field)

    async def not_found(_request: Request, error: NotFoundError) -> Response:
        return _error(404, "NOT_FOUND", str(error))

    complaints = Complaints()

    async def unavailable(_request: Request, error: StoreUnavailableError) -> Response:
        complaints.log(error.reason)
        return _error(503, "TEMPORARILY_UNAVAILABLE", str(error))

    async def routed(_request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "BAD_REQUEST")
        answer = _error(error.status_code, code, code.replace("_", " ").lower())
        answer.headers.update(error.headers or {})
        return answer

    handlers: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
        Refused: refused,
        BadRequestError: bad_request,
        RequestValidationError: invalid,
        NotFoundError: not_found,
        StoreUnavailableError: unavailable,
        HTTPException: routed,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)

"""What the agent answers."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import FastAPI, Header, Response
from fastapi.responses import JSONResponse

from fairlead_gateway.adapters.envoy import EnvoyAdmin
from fairlead_gateway.adapters.metrics import PrometheusMeter
from fairlead_gateway.app.apply import Report, health_of
from fairlead_gateway.app.drain import Drained
from fairlead_gateway.domain.plan import plan_digest

DRAIN_HEADER = "x-fairlead-drain"
"""Whoever may scrape the agent chooses a path, but no header of this name: it tells who means it."""


def create_app(
    *,
    report: Callable[[], Report],
    envoy: EnvoyAdmin,
    meter: PrometheusMeter,
    drain: Callable[[], Drained],
) -> FastAPI:
    """Make the agent's web application.

    Args:
        report: Where the applier stands.
        envoy: The Envoy beside the agent.
        meter: What has been counted.
        drain: Takes that Envoy out of service, and returns when no request is under way.
    """
    app = FastAPI(title="Fairlead gateway agent", docs_url=None, redoc_url=None)

    @app.get("/livez")
    def livez() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> Response:
        """Tell whether Envoy has followed a full configuration, and what keeps it from more."""
        now = report()
        body = {"ready": now.ready, "problems": dict(now.problems)}
        return JSONResponse(body, status_code=200 if now.ready else 503)

    @app.get("/metrics")
    def metrics() -> Response:
        """Give the metrics."""
        return Response(meter.expose(report()), media_type="text/plain; version=0.0.4")

    @app.get("/v1/applied")
    def applied() -> dict[str, Any]:
        """Tell which plans Envoy follows, and the endpoints of every version."""
        return {"models": _models(report(), envoy)}

    @app.get("/v1/drain")
    def drained(meant: Annotated[str, Header(alias=DRAIN_HEADER)] = "") -> Response:
        """Take the gateway out of service; kubelet asks so before it ends Envoy."""
        if meant != "yes":
            return _refusal(f"a drain cannot be taken back; send the header {DRAIN_HEADER}: yes")
        now = drain()
        return JSONResponse(
            {"drained": now.done, "activeRequests": now.active, "seconds": round(now.seconds, 3)}
        )

    return app


def _refusal(message: str) -> Response:
    return JSONResponse({"error_code": "PERMISSION_DENIED", "message": message}, status_code=403)


def _models(report: Report, envoy: EnvoyAdmin) -> dict[str, Any]:
    health = {} if report.snapshot is None else health_of(report.snapshot, envoy.healthy())
    return {
        model: {
            **_plan_facts(report, model),
            "versions": {
                version: {"healthy": found.healthy, "total": found.total}
                for version, found in health.get(model, {}).items()
            },
        }
        for model in sorted(set(health) | set(report.applied))
    }


def _plan_facts(report: Report, model: str) -> dict[str, Any]:
    applied = report.applied.get(model)
    if applied is None:
        return {"digest": None, "appliedAt": None}
    at = datetime.fromtimestamp(applied.at, UTC).isoformat(timespec="milliseconds")
    return {"digest": plan_digest(applied.plan), "appliedAt": at.replace("+00:00", "Z")}

"""OpenTelemetry: a span for each request, in the trace that the caller began.

Configured by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`,
`OTEL_TRACES_SAMPLER`, ...).
"""

from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


class Tracing:
    """Makes spans and sends them to a collector.

    Args:
        model: The name of the model, which names the service unless OTEL_SERVICE_NAME does.
        version: The model's version.
    """

    def __init__(self, model: str, version: str) -> None:
        about = Resource.create({SERVICE_NAME: model, SERVICE_VERSION: version})
        self._provider = TracerProvider(resource=about.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        # A model that calls others finds the provider here.
        trace.set_tracer_provider(self._provider)

    def around(self, app: Any) -> Any:
        """Put an ASGI application into spans; probes and metrics have none.

        Args:
            app: The application.

        Returns:
            An application.
        """
        return OpenTelemetryMiddleware(
            app,
            excluded_urls="livez,readyz,metrics,ping,health",
            tracer_provider=self._provider,
            exclude_spans=["receive", "send"],
        )

    def interceptors(self) -> Sequence[Any]:
        """Give what puts gRPC calls into spans."""
        # Needs grpcio, which is another extra.
        from opentelemetry.instrumentation.grpc import aio_server_interceptor  # noqa: PLC0415

        return [aio_server_interceptor(self._provider)]  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

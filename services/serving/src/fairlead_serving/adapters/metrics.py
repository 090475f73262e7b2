"""Prometheus metrics of one serving process, in a registry of their own."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

_BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.2,
    0.3,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """What a serving process counts.

    Args:
        model: The name of the model.
        version: Its version, or an empty string for a folder.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, model: str, version: str) -> None:
        self._registry = CollectorRegistry()
        names = ("model", "version")
        self._durations = Histogram(
            "fairlead_serving_request_duration_seconds",
            "Time from a request's first byte to its answer, by code class.",
            (*names, "code"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._by_code = {
            code: self._durations.labels(model, version, f"{code}xx") for code in range(2, 6)
        }
        self.in_flight = Gauge(
            "fairlead_serving_requests_in_flight",
            "Requests being answered.",
            names,
            registry=self._registry,
        ).labels(model, version)
        self._rows = Counter(
            "fairlead_serving_rows_total",
            "Rows predicted on.",
            names,
            registry=self._registry,
        ).labels(model, version)
        self._calls = Histogram(
            "fairlead_serving_predict_seconds",
            "Time of one call of the model.",
            names,
            buckets=_BUCKETS,
            registry=self._registry,
        ).labels(model, version)
        self._merged = Histogram(
            "fairlead_serving_merged_requests",
            "Requests in one call of the model.",
            names,
            buckets=_SIZES,
            registry=self._registry,
        ).labels(model, version)
        self._ready = Gauge(
            "fairlead_serving_ready",
            "1 while the model is loaded, warm and not draining.",
            names,
            registry=self._registry,
        ).labels(model, version)
        Gauge(
            "fairlead_serving_model_info",
            "1; names the model and the version.",
            names,
            registry=self._registry,
        ).labels(model, version).set(1)

    def observe(self, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._by_code[status // 100].observe(seconds)

    def observe_call(self, requests: int, rows: int, seconds: float) -> None:
        """Count one call of the model."""
        self._calls.observe(seconds)
        self._merged.observe(requests)
        if rows:
            self._rows.inc(rows)

    def render(self, *, ready: bool) -> bytes:
        """Write the metrics in Prometheus' text format."""
        self._ready.set(ready)
        return generate_latest(self._registry)

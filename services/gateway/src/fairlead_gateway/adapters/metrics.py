"""Metrics in Prometheus' format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fairlead_gateway.app.apply import Report
from fairlead_gateway.domain.exposure import LogLine
from fairlead_gateway.domain.plan import plan_digest

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)


class PrometheusMeter:
    """Counts what the agent sees."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fairlead_gateway_requests_total",
            "Requests by the version that answered and the assigned arm.",
            ["model", "version", "arm", "code_class"],
            registry=self._registry,
        )
        self._durations = Histogram(
            "fairlead_gateway_request_duration_seconds",
            "Time from a request's first byte to its answer's last.",
            ["model", "version", "arm"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._retries = self._counter("retries_total", "Requests sent again.", "model", "arm")
        self._fallbacks = self._counter(
            "fallbacks_total", "Requests stable answered for another arm.", "model", "arm"
        )
        self._shipped = self._counter("exposures_shipped_total", "Exposures taken.")
        self._dropped = self._counter(
            "exposures_dropped_total", "Lines and exposures never to be taken.", "reason"
        )
        self._rejected = self._counter("config_rejected_total", "Configurations refused.")
        self._rejected_before = 0
        self._backlog = self._gauge("log_backlog_bytes", "Log not shipped yet.")
        self._applied = self._gauge(
            "applied_info", "The digest of the plan Envoy follows.", "model", "digest"
        )

    def request(self, line: LogLine) -> None:
        """Count one request to a served model."""
        model, arm = line.model or "none", line.arm or "none"
        version = line.answered_by or "none"
        self._requests.labels(model, version, arm, f"{line.status // 100}xx").inc()
        self._durations.labels(model, version, arm).observe((line.duration or 0.0) / 1000)
        self._retries.labels(model, arm).inc(line.retries)
        self._fallbacks.labels(model, arm).inc(line.is_fallback)

    def shipped(self, count: int) -> None:
        """Count exposures the experiments service has taken."""
        self._shipped.inc(count)

    def dropped(self, reason: str, count: int) -> None:
        """Count lines and exposures that will never be taken."""
        self._dropped.labels(reason).inc(count)

    def backlog(self, size: int) -> None:
        """Note how many bytes of the log are not shipped."""
        self._backlog.set(size)

    def expose(self, report: Report) -> bytes:
        """Write everything down.

        Args:
            report: Where the applier stands.
        """
        self._rejected.inc(report.rejected - self._rejected_before)
        self._rejected_before = report.rejected
        self._applied.clear()
        for model, applied in report.applied.items():
            self._applied.labels(model, plan_digest(applied.plan)).set(1)
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"fairlead_gateway_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"fairlead_gateway_{name}", text, labels, registry=self._registry)

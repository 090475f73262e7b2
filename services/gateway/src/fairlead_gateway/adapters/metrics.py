"""Metrics in Prometheus' format."""

import threading

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from fairlead_gateway.adapters.clock import SystemClock
from fairlead_gateway.app.apply import Report
from fairlead_gateway.app.ports import Clock, Snapshot
from fairlead_gateway.domain.exposure import LogLine
from fairlead_gateway.domain.plan import plan_digest
from fairlead_gateway.domain.render.clusters import needed_versions

_KEPT = (
    600.0  # Seconds the series of a version that is gone stay, for every scraper to see their end.
)
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)


# When each series began is a sixth of what a thousand models make, and nobody reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]


class PrometheusMeter:
    """Counts what the agent sees, of versions that are there.

    Args:
        clock: The time.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._gone_since: dict[tuple[str, str], float] = {}
        self._requested: dict[tuple[str, str], set[tuple[str, str]]] = {}
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
        self._overrides = self._counter(
            "overrides_total", "Requests whose arm a person chose; no exposures.", "model", "arm"
        )
        self._outside = self._counter(
            "outside_total", "Requests of units kept out of a rollout.", "model", "reason"
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
        version, code_class = line.answered_by or "none", f"{line.status // 100}xx"
        with self._lock:
            self._requested.setdefault((model, version), set()).add((arm, code_class))
        self._requests.labels(model, version, arm, code_class).inc()
        self._durations.labels(model, version, arm).observe((line.duration or 0.0) / 1000)
        self._retries.labels(model, arm).inc(line.retries)
        self._fallbacks.labels(model, arm).inc(line.is_fallback)
        if line.override and line.arm:
            self._overrides.labels(model, arm).inc()
        if line.outside and line.arm:
            self._outside.labels(model, line.outside).inc()

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
        with self._lock:  # Several may scrape at once.
            self._rejected.inc(report.rejected - self._rejected_before)
            self._rejected_before = report.rejected
            self._applied.clear()
            for model, applied in report.applied.items():
                self._applied.labels(model, plan_digest(applied.plan)).set(1)
            text = generate_latest(self._registry)
            if report.snapshot is not None and report.snapshot.complete:
                self._forget_others(report.snapshot)
        return text

    def _forget_others(self, snapshot: Snapshot) -> None:
        """Drop the series of versions that have been gone for a while.

        A model that is trained every day would else make the agent grow for as long as it runs.
        """
        needed = needed_versions(snapshot.plans.values(), snapshot.endpoints)
        needed |= {(model, "none") for model, _ in needed}
        now = self._clock.monotonic()
        for key in list(self._requested):
            if key in needed:
                self._gone_since.pop(key, None)
            elif now - self._gone_since.setdefault(key, now) > _KEPT:
                self._forget(*key)

    def _forget(self, model: str, version: str) -> None:
        del self._gone_since[model, version]
        requested = self._requested.pop((model, version))
        for arm, code_class in requested:
            self._requests.remove(model, version, arm, code_class)
        for arm in {arm for arm, _ in requested}:
            self._durations.remove(model, version, arm)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"fairlead_gateway_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"fairlead_gateway_{name}", text, labels, registry=self._registry)

"""Prometheus metrics of one serving process, in a registry of their own.

What is counted for each request is counted in plain numbers, and becomes samples when somebody
asks: a client library's locks would cost more than the rest of the way of a prediction.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

SECONDS = (
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
_NAMES = ("model", "version")


class _Counts:
    """A histogram without locks, for one thread."""

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = edges
        self._counts = [0] * (len(edges) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._edges, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        edges = [*map(floatToGoString, self._edges), "+Inf"]
        totals = accumulate(self._counts)
        family.add_metric(labels, list(zip(edges, totals, strict=True)), self._sum)


class Metrics(Collector):
    """What a serving process counts.

    Args:
        model: The name of the model.
        version: Its version, or an empty string for a folder.
        edges: The upper edges of the latency histogram in seconds, ascending.

    Attributes:
        in_flight: How many requests are being answered.
        waiting: Tells how many requests wait for the model.
        payloads: Tells how many payloads were kept, and how many dropped.
        predictions: Tells how many predictions were reported, rejected and dropped.
        ready: Whether new traffic is welcome.
        predictor: Tells what makes the predictions, once there is a model.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, model: str, version: str, edges: Sequence[float] = SECONDS) -> None:
        self.in_flight = 0
        self.waiting: Callable[[], int] = int
        self.payloads: Callable[[], Mapping[str, int]] = lambda: {"kept": 0, "dropped": 0}
        self.predictions: Callable[[], Mapping[str, int]] = lambda: dict.fromkeys(
            ("reported", "rejected", "dropped"), 0
        )
        self.ready = False
        self.predictor: Callable[[], str] = str
        self._names = (model, version)
        self._rows = 0
        self._by_code = {code: _Counts(edges) for code in range(2, 6)}
        self._predict = _Counts(SECONDS)
        self._merged = _Counts(_SIZES)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def observe(self, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._by_code[status // 100].observe(seconds)

    def observe_call(self, requests: int, rows: int, seconds: float) -> None:
        """Count one call of the model."""
        self._predict.observe(seconds)
        self._merged.observe(requests)
        self._rows += rows

    def render(self) -> bytes:
        """Write the metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Give the samples of this moment."""
        prefix = "fairlead_serving_"
        durations = HistogramMetricFamily(
            f"{prefix}request_duration_seconds",
            "Time from a request's first byte to its answer, by code class.",
            labels=(*_NAMES, "code"),
        )
        for code, counts in self._by_code.items():
            counts.add_to(durations, (*self._names, f"{code}xx"))
        yield durations
        for name, words, counts in (
            ("predict_seconds", "Time of one call of the model.", self._predict),
            ("merged_requests", "Requests in one call of the model.", self._merged),
        ):
            histogram = HistogramMetricFamily(prefix + name, words, labels=_NAMES)
            counts.add_to(histogram, self._names)
            yield histogram
        rows = CounterMetricFamily(f"{prefix}rows", "Rows predicted on.", labels=_NAMES)
        rows.add_metric(self._names, self._rows)
        yield rows
        for name, words, results in (
            ("payloads", "Sampled payloads, kept or dropped.", self.payloads()),
            ("predictions", "Reports of compared predictions.", self.predictions()),
        ):
            counter = CounterMetricFamily(prefix + name, words, labels=(*_NAMES, "result"))
            for result, count in results.items():
                counter.add_metric((*self._names, result), count)
            yield counter
        for name, words, value in (
            ("requests_in_flight", "Requests being answered.", self.in_flight),
            ("requests_waiting", "Requests that wait for the model.", self.waiting()),
            ("ready", "1 while the model is loaded, warm and not draining.", self.ready),
            ("model_info", "1; names the model and the version.", 1),
        ):
            gauge = GaugeMetricFamily(prefix + name, words, labels=_NAMES)
            gauge.add_metric(self._names, value)
            yield gauge
        if predictor := self.predictor():
            made_by = GaugeMetricFamily(
                f"{prefix}predictor",
                "1; names what makes the predictions: own, compiled or dropped.",
                labels=(*_NAMES, "predictor"),
            )
            made_by.add_metric((*self._names, predictor), 1)
            yield made_by

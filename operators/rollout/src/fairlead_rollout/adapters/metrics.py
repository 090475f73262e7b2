"""What the controller counts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.status import ConditionType, Rollout, Status
from fairlead_rollout.domain.summary import candidates_weight
from fairlead_rollout.domain.traffic import plan_digest

_WHOSE = ("namespace", "model")
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Health:
    """How the systems are that the controller needs.

    Attributes:
        gateways: Gateway replicas by whether they are `applied`, `behind` or `silent`.
    """

    leads: bool
    registry: bool
    experiments: bool
    gateways: Mapping[str, int]


class ControllerMetrics:
    """Counts passes and verdicts, and shows where every rollout is."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._statuses: dict[str, tuple[str, Status]] = {}
        self._duration = Histogram(
            "fairlead_controller_reconcile_duration_seconds",
            "Time one pass over one served model took.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._errors = Counter(
            "fairlead_controller_reconcile_errors",
            "Passes that could not be finished.",
            ["namespace", "model"],
            registry=self.registry,
        )
        self._verdicts = Counter(
            "fairlead_rollout_verdicts",
            "Rollouts that ended.",
            ["namespace", "model", "verdict"],
            registry=self.registry,
        )
        self._up = {
            name: Gauge(f"fairlead_controller_{name}", text, registry=self.registry)
            for name, text in (
                ("leader", "1 where this replica leads."),
                ("registry_up", "1 while MLflow answers."),
                ("experiments_up", "1 while the experiments service answers."),
            )
        }
        self._gateways = Gauge(
            "fairlead_controller_gateway_replicas",
            "Gateway replicas by what they route by.",
            ["state"],
            registry=self.registry,
        )
        self.registry.register(self)

    def passed(self, key: str, seconds: float, failed: bool) -> None:  # noqa: FBT001 -- the controller's words
        """Note one pass over a served model."""
        self._duration.observe(seconds)
        if failed:
            namespace, _, name = key.rpartition("/")
            self._errors.labels(namespace, name).inc()

    def saw(self, key: str, model: str, status: Status) -> None:
        """Note a served model's status; rollouts that have just ended are counted."""
        before = self._statuses.get(key)
        self._statuses[key] = (model, status)
        if before is None:
            return
        for ended in status.history:
            if not _is_in(before[1], ended):
                self._verdicts.labels(_namespace(key), model, ended.state.value).inc()

    def forget(self, key: str) -> None:
        """Note that a served model is gone."""
        self._statuses.pop(key, None)

    def wanted_digests(self) -> Mapping[str, str]:
        """Return the digest of every model's plan; of namesakes one alone is routed."""
        return {
            model: plan_digest(status.traffic)
            for model, status in list(self._statuses.values())
            if status.traffic is not None and not _is_in_conflict(status)
        }

    def expose(self, health: Health) -> bytes:
        """Return all metrics in Prometheus' text format."""
        self._up["leader"].set(health.leads)
        self._up["registry_up"].set(health.registry)
        self._up["experiments_up"].set(health.experiments)
        for state, count in health.gateways.items():
            self._gateways.labels(state).set(count)
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        """Yield what is read off the statuses; asked for by the registry."""
        info = InfoMetricFamily("fairlead_rollout", "Where the last rollout of a model is.")
        weight = GaugeMetricFamily(
            "fairlead_rollout_weight_ratio", "The share of traffic that is on trial.", labels=_WHOSE
        )
        since = GaugeMetricFamily(
            "fairlead_rollout_state_since_seconds",
            "When the last rollout came to where it is, in seconds since the epoch.",
            labels=_WHOSE,
        )
        for key, (model, status) in list(self._statuses.items()):
            whose = (_namespace(key), model)
            info.add_metric([], {**dict(zip(_WHOSE, whose, strict=True)), **_info(status)})
            weight.add_metric(whose, candidates_weight(status) / 10_000)
            if status.rollout is not None:
                since.add_metric(whose, _since(status.rollout).timestamp())
        yield from (info, weight, since)


def _is_in(status: Status, rollout: Rollout) -> bool:
    return any(entry.id == rollout.id for entry in status.history)


def _is_in_conflict(status: Status) -> bool:
    stalled = status.condition(ConditionType.STALLED)
    return stalled is not None and stalled.reason == Reason.ROUTE_CONFLICT


def _namespace(key: str) -> str:
    return key.rpartition("/")[0]


def _info(status: Status) -> dict[str, str]:
    rollout = status.rollout
    return {
        "stable": status.stable or "",
        "candidate": ", ".join(trial.candidate for trial in status.trials),
        "state": rollout.state.value if rollout else "none",
    }


def _since(rollout: Rollout) -> datetime:
    return rollout.decided_at or rollout.step_started_at or rollout.started_at

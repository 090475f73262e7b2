"""What the controller shows of its ServedModels."""

from collections import Counter
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fairlead_rollout.adapters.metrics import ControllerMetrics, Health
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.status import Condition, ConditionType, Rollout, RolloutState, Status

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HEALTH = Health(leads=True, registry=True, experiments=True, gateways={})
Series = tuple[str, frozenset[tuple[str, str]]]


def rollout(identity: str, state: RolloutState = RolloutState.RUNNING) -> Rollout:
    """Build a rollout."""
    return Rollout(id=identity, candidate="2", baseline="1", state=state, started_at=NOW, rules="x")


@pytest.fixture
def metrics() -> ControllerMetrics:
    """Return metrics that have seen a ServedModel of one name in each of two namespaces."""
    made = ControllerMetrics()
    for namespace in ("team-a", "team-b"):
        made.saw(f"{namespace}/flights", "flights", Status(stable="1", rollout=rollout("r")))
    return made


def exposed(metrics: ControllerMetrics) -> Counter[Series]:
    """Return how often each series is exposed."""
    families = text_string_to_metric_families(metrics.expose(HEALTH).decode())
    return Counter(
        (sample.name, frozenset(sample.labels.items()))
        for family in families
        for sample in family.samples
    )


def test_namesakes_of_two_namespaces_are_two_series(metrics: ControllerMetrics) -> None:
    """Prometheus drops what it is given twice, and says so at each scrape."""
    series = exposed(metrics)
    assert set(series.values()) == {1}
    namespaces = Counter(
        dict(labels)["namespace"] for name, labels in series if name.startswith("fairlead_rollout_")
    )
    assert namespaces["team-a"] == namespaces["team-b"] == 3


def test_verdicts_and_errors_name_the_namespace(metrics: ControllerMetrics) -> None:
    """Whose rollout was aborted is told, not that of a namesake."""
    ended = Status(stable="1", history=(rollout("r", RolloutState.ABORTED),))
    metrics.saw("team-b/flights", "flights", ended)
    metrics.passed("team-b/flights", 0.1, failed=True)
    labels = {"namespace": "team-b", "model": "flights"}
    value = metrics.registry.get_sample_value
    verdict = {**labels, "verdict": "aborted"}
    assert value("fairlead_rollout_verdicts_total", verdict) == 1
    assert value("fairlead_controller_reconcile_errors_total", labels) == 1


def test_rollouts_that_end_together_are_all_counted(metrics: ControllerMetrics) -> None:
    """Of several candidates one is promoted and the others end in the same pass."""
    ends = (rollout("r", RolloutState.ABORTED), rollout("s", RolloutState.PROMOTED))
    metrics.saw("team-a/flights", "flights", Status(stable="2", history=ends))
    for verdict in ("aborted", "promoted"):
        labels = {"namespace": "team-a", "model": "flights", "verdict": verdict}
        assert metrics.registry.get_sample_value("fairlead_rollout_verdicts_total", labels) == 1


@pytest.mark.parametrize("order", [("team-a", "team-b"), ("team-b", "team-a")])
def test_gateways_are_behind_the_plan_that_is_served(order: tuple[str, str]) -> None:
    """The plan of a ServedModel whose name is taken is none that a gateway follows."""
    metrics = ControllerMetrics()
    taken = Condition(
        type=ConditionType.STALLED,
        status="True",
        reason=Reason.ROUTE_CONFLICT,
        message="",
        last_transition_time=NOW,
    )
    statuses = {
        "team-a": Status(stable="1", traffic={"model": "flights", "rollout": "served"}),
        "team-b": Status(stable="1", traffic={"model": "flights"}, conditions=(taken,)),
    }
    alone = ControllerMetrics()
    alone.saw("team-a/flights", "flights", statuses["team-a"])
    for namespace in order:
        metrics.saw(f"{namespace}/flights", "flights", statuses[namespace])
    assert metrics.wanted_digests() == alone.wanted_digests()

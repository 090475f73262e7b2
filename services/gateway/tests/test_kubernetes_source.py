"""What is wanted, as the objects in a cluster say: the same against a small API server and a real one.

The real one is the kubeconfig's, asked for by FAIRLEAD_E2E=1.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_kube_api import (
    FakeCluster,
    endpoint,
    endpoint_slice,
    served_model,
)
from gateway_lab import plan, wait_for
from gateway_real_cluster import Api, ApiError, RealCluster, served_models_defined

from fairlead_gateway.adapters.kubernetes import KubernetesSource
from fairlead_gateway.app.ports import Snapshot
from fairlead_gateway.domain.endpoints import Endpoint
from fairlead_gateway.domain.plan import parse_plan

KINDS = ["fake"]
if os.environ.get("FAIRLEAD_E2E") == "1":
    KINDS.append("real")

Cluster = FakeCluster | RealCluster


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=pytest.mark.cluster) if kind == "real" else kind for kind in KINDS
    ],
)
def maker(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], Cluster]]:
    """Give what makes clusters of one kind."""
    if request.param == "fake":
        yield FakeCluster
        return
    api = Api()
    with served_models_defined(api):
        yield lambda _: RealCluster(f"gateway-{uuid.uuid4().hex[:8]}")
    api.client.close()


@pytest.fixture
def cluster(
    maker: Callable[[Path], Cluster], tmp_path: Path, monkeypatch: Any
) -> Iterator[Cluster]:
    """Give a cluster with two namespaces of the test's own."""
    made = maker(tmp_path)
    if made.kubeconfig is not None:
        monkeypatch.setenv("KUBECONFIG", made.kubeconfig)
    yield made
    made.close()


@pytest.fixture
def source(cluster: Cluster) -> Iterator[KubernetesSource]:
    """Give the source of both namespaces, once it has read them."""
    made = KubernetesSource(cluster.namespaces)
    made.start()
    wait_for(lambda: made.read().complete)
    yield made
    made.close()


def seen(source: KubernetesSource, condition: Callable[[Snapshot], Any]) -> Snapshot:
    """Wait until what is wanted meets a condition, and return it."""
    wait_for(lambda: condition(source.read()))
    return source.read()


def serve(cluster: Cluster, index: int = 0, weight: int | None = None, **metadata: Any) -> Any:
    """Make the ServedModel `iris` with a plan; return the object."""
    made = served_model(cluster.namespaces[index], "iris", **metadata)
    cluster.create(made)
    cluster.status(cluster.namespaces[index], "iris", {"traffic": plan(weight=weight)})
    return made


def is_accepted(cluster: Cluster, status: Any) -> bool:
    """Give `iris` a status; tell whether the definition's own rules let it in."""
    try:
        cluster.status(cluster.namespaces[0], "iris", status)
    except ApiError as error:
        if error.code == 422:
            return False
        raise
    return True


def test_what_was_there_before_is_complete_at_once(cluster: Cluster) -> None:
    """The first complete snapshot holds the plans and endpoints of every namespace."""
    serve(cluster)
    name = cluster.namespaces[0]
    cluster.create(endpoint_slice(name, "iris-v3-a", "3", [endpoint("10.0.0.1")]))
    source = KubernetesSource(cluster.namespaces)
    assert not source.read().complete
    source.start()
    found = seen(source, lambda now: now.complete)
    source.close()
    assert found.plans == {"iris": parse_plan(plan(weight=None))}
    ready = Endpoint(address="10.0.0.1", port=8080, ready=True)
    assert found.endpoints == {("iris", "3"): (ready,)}
    assert (found.problems, found.workload_problems) == ({}, {})


def test_nothing_new_is_the_same_object(cluster: Cluster, source: KubernetesSource) -> None:
    """While no plan and no endpoint changes, the snapshot stays the same object."""
    serve(cluster)
    found = seen(source, lambda now: now.plans)
    cluster.status(
        cluster.namespaces[0], "iris", {"traffic": plan(weight=None), "observedGeneration": 7}
    )
    other = served_model(cluster.namespaces[1], "other")
    cluster.create(other)
    cluster.status(cluster.namespaces[1], "other", {"traffic": plan("other", None)})
    after = seen(source, lambda now: "other" in now.plans)
    assert after.plans["iris"] is found.plans["iris"]
    assert source.read() is after


def test_a_new_weight_is_seen(cluster: Cluster, source: KubernetesSource) -> None:
    """A status that changes changes the plan."""
    serve(cluster)
    for weight in (100, 5000):
        cluster.status(cluster.namespaces[0], "iris", {"traffic": plan(weight=weight)})
        seen(source, lambda now, w=weight: now.plans.get("iris") == parse_plan(plan(weight=w)))


@pytest.mark.parametrize("status", [None, {}, {"traffic": plan("another", None)}])
def test_a_lost_status_keeps_the_plan(
    cluster: Cluster, source: KubernetesSource, status: Any
) -> None:
    """A plan that is lost, or cannot be the model's, is a problem; the last one stays."""
    serve(cluster)
    before = seen(source, lambda now: now.plans)
    cluster.status(cluster.namespaces[0], "iris", status)
    lost = seen(source, lambda now: now.problems)
    assert lost.plans == before.plans
    assert "status.traffic" in lost.problems["iris"]
    cluster.status(cluster.namespaces[0], "iris", {"traffic": plan(weight=100)})
    assert seen(source, lambda now: not now.problems).plans == {
        "iris": parse_plan(plan(weight=100))
    }


def test_a_plan_that_breaks_a_rule_keeps_the_last_one(
    cluster: Cluster, source: KubernetesSource
) -> None:
    """A plan that cannot be read is a problem that names the field, or never gets in."""
    serve(cluster)
    seen(source, lambda now: now.plans)
    arms = [{"arm": "stable", "version": "3", "weight": 9_000}]
    if is_accepted(cluster, {"traffic": plan(weight=None, arms=arms)}):
        assert "arms" in seen(source, lambda now: now.problems).problems["iris"]
    assert source.read().plans == {"iris": parse_plan(plan(weight=None))}


def test_a_served_model_without_a_plan_is_named(cluster: Cluster, source: KubernetesSource) -> None:
    """A model that never had a plan has none, but its endpoints are known."""
    name = cluster.namespaces[0]
    cluster.create(served_model(name, "iris"))
    cluster.create(endpoint_slice(name, "iris-v3-a", "3", [endpoint("10.0.0.1")]))
    found = seen(source, lambda now: now.endpoints and now.problems)
    assert found.plans == {}
    assert list(found.endpoints) == [("iris", "3")]


def test_a_deleted_served_model_takes_its_plan_away(
    cluster: Cluster, source: KubernetesSource
) -> None:
    """A plan stays while its ServedModel is being deleted, and goes with it."""
    made = serve(cluster, finalizers=["fairlead.dev/drain"])
    name = cluster.namespaces[0]
    cluster.create(endpoint_slice(name, "iris-v3-a", "3", [endpoint("10.0.0.1")]))
    seen(source, lambda now: now.plans and now.endpoints)
    cluster.delete(made)
    cluster.status(name, "iris", {"traffic": plan(weight=100)})
    seen(source, lambda now: now.plans == {"iris": parse_plan(plan(weight=100))})
    cluster.replace({**made, "metadata": {**made["metadata"], "finalizers": []}})
    gone = seen(source, lambda now: not now.plans)
    assert (gone.endpoints, gone.problems) == ({}, {})


def test_the_older_of_two_with_one_name_counts(cluster: Cluster, source: KubernetesSource) -> None:
    """Plan and endpoints are the older one's; the newer one's count once it is gone."""
    first, second = cluster.namespaces
    older = serve(cluster, 1)
    cluster.tick()
    serve(cluster, 0, weight=5000)
    cluster.create(endpoint_slice(first, "iris-v3-a", "3", [endpoint("10.0.0.66")]))
    cluster.create(endpoint_slice(second, "iris-v3-a", "3", [endpoint("10.0.0.1")]))
    known = served_model(first, "known")
    cluster.create(known)
    # Each namespace is followed by itself: the younger one may be read first.
    found = seen(
        source,
        lambda now: (
            "known" in now.problems
            and [one.address for one in now.endpoints.get(("iris", "3"), ())] == ["10.0.0.1"]
        ),
    )
    assert found.plans == {"iris": parse_plan(plan(weight=None))}
    cluster.delete(older)
    found = seen(source, lambda now: now.plans == {"iris": parse_plan(plan(weight=5000))})
    assert [one.address for one in found.endpoints["iris", "3"]] == ["10.0.0.66"]


def test_no_other_namespace_adds_endpoints(cluster: Cluster, source: KubernetesSource) -> None:
    """Labels of ours in another namespace bring no endpoint into a model."""
    first, second = cluster.namespaces
    serve(cluster)
    cluster.create(endpoint_slice(second, "iris-v3-b", "3", [endpoint("10.0.0.66")]))
    cluster.create(endpoint_slice(first, "iris-v3-a", "3", [endpoint("10.0.0.1")]))
    found = seen(source, lambda now: now.endpoints)
    assert [one.address for one in found.endpoints["iris", "3"]] == ["10.0.0.1"]


def test_which_endpoints_are_ready(cluster: Cluster, source: KubernetesSource) -> None:
    """Ready is what is ready and not terminating; of several slices all endpoints count."""
    serve(cluster)
    name = cluster.namespaces[0]
    some = [
        endpoint("10.0.0.1"),
        endpoint("10.0.0.2", ready=False),
        endpoint("10.0.0.3", serving=True, terminating=True),
        {"addresses": ["10.0.0.4"]},
    ]
    cluster.create(endpoint_slice(name, "iris-v3-a", "3", some))
    cluster.create(endpoint_slice(name, "iris-v3-b", "3", [endpoint("10.0.0.5")]))
    cluster.create(endpoint_slice(name, "iris-v4-a", "4", [endpoint("10.0.0.6")]))
    found = seen(source, lambda now: sum(map(len, now.endpoints.values())) == 6)
    ready = {one.address: one.ready for one in found.endpoints["iris", "3"]}
    assert ready == {
        "10.0.0.1": True,
        "10.0.0.2": False,
        "10.0.0.3": False,
        "10.0.0.4": True,
        "10.0.0.5": True,
    }


def test_an_endpoint_that_stops_being_ready(cluster: Cluster, source: KubernetesSource) -> None:
    """A change of a slice is seen; a slice that is deleted takes its endpoints away."""
    serve(cluster)
    made = endpoint_slice(cluster.namespaces[0], "iris-v3-a", "3", [endpoint("10.0.0.1")])
    cluster.create(made)
    seen(source, lambda now: now.endpoints)
    cluster.replace({**made, "endpoints": [endpoint("10.0.0.1", ready=False)]})
    seen(source, lambda now: not now.endpoints["iris", "3"][0].ready)
    cluster.delete(made)
    assert seen(source, lambda now: not now.endpoints).plans


def test_slices_of_others_are_not_read(cluster: Cluster, source: KubernetesSource) -> None:
    """A slice counts while it has our label, and only with a port named http."""
    serve(cluster)
    name = cluster.namespaces[0]
    other = endpoint_slice(name, "other", "3", [endpoint("10.0.0.66")])
    cluster.create({**other, "metadata": {**other["metadata"], "labels": {}}})
    no_port = [{"name": "grpc", "port": 9000, "protocol": "TCP"}]
    cluster.create(endpoint_slice(name, "iris-v4-a", "4", [endpoint("10.0.0.66")], ports=no_port))
    cluster.create(endpoint_slice(name, "iris-v3-a", "3", [endpoint("10.0.0.1")]))
    found = seen(source, lambda now: len(now.endpoints) == 2)
    assert found.endpoints["iris", "4"] == ()
    assert [one.address for one in found.endpoints["iris", "3"]] == ["10.0.0.1"]


def test_a_slice_that_cannot_be_read_is_named(cluster: Cluster, source: KubernetesSource) -> None:
    """A slice without a readable version is a problem until it is gone; nothing else is held up."""
    serve(cluster)
    name = cluster.namespaces[0]
    bad = endpoint_slice(name, "bad", "3x", [endpoint("10.0.0.66")])
    cluster.create(bad)
    cluster.create(endpoint_slice(name, "iris-v3-a", "3", [endpoint("10.0.0.1")]))
    found = seen(source, lambda now: now.endpoints and now.workload_problems)
    assert "fairlead.dev/version" in found.workload_problems[f"{name}/bad"]
    cluster.delete(bad)
    seen(source, lambda now: not now.workload_problems)

"""What was read last stays, and what happened meanwhile is caught up with, whatever breaks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_certificates import write_certificate
from gateway_kube_api import (
    MODELS,
    SLICES,
    FakeCluster,
    KubeApi,
    endpoint,
    endpoint_slice,
    kubeconfig,
    served_model,
)
from gateway_lab import plan, wait_for
from kubernetes.config import incluster_config

from fairlead_gateway.adapters import kubernetes
from fairlead_gateway.adapters.kubernetes import ClusterAddressError, KubernetesSource, connect
from fairlead_gateway.domain.plan import parse_plan

ONE = MODELS.format("one")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """Give a cluster that serves `iris`."""
    made = FakeCluster(tmp_path)
    monkeypatch.setenv("KUBECONFIG", made.kubeconfig or "")
    made.create(served_model("one", "iris"))
    made.status("one", "iris", {"traffic": plan(weight=None)})
    made.create(endpoint_slice("one", "iris-v3-a", "3", [endpoint("10.0.0.1")]))
    yield made
    made.close()


@pytest.fixture
def source(cluster: FakeCluster) -> Iterator[KubernetesSource]:
    """Give a source that follows it."""
    made = KubernetesSource(["one"])
    made.start()
    wait_for(lambda: made.read().complete and cluster.api.watches == 2)
    yield made
    made.close()


def follows(cluster: FakeCluster, source: KubernetesSource, weight: int) -> None:
    """Change the plan, and wait until it is seen."""
    cluster.status("one", "iris", {"traffic": plan(weight=weight)})
    wait_for(lambda: source.read().plans.get("iris") == parse_plan(plan(weight=weight)))


def test_a_watch_that_breaks_goes_on_where_it_was(
    cluster: FakeCluster, source: KubernetesSource
) -> None:
    """After a broken connection the watch resumes from the last version, without a list."""
    follows(cluster, source, 100)
    seen_last = cluster.api.get(ONE, "iris")["metadata"]["resourceVersion"]
    cluster.api.end_watches()
    follows(cluster, source, 200)
    assert cluster.api.watched(ONE)[-1] == seen_last
    assert cluster.api.lists(ONE) == 1


def test_a_bookmark_moves_the_version(cluster: FakeCluster, source: KubernetesSource) -> None:
    """Where nothing happens, a bookmark is where the next watch goes on: no 410 after a pause."""
    bookmark = cluster.api.bookmark()
    wait_for(lambda: cluster.api.bookmarks_sent == 2)
    cluster.api.compacted = bookmark
    cluster.api.end_watches()
    slices = SLICES.format("one")
    wait_for(lambda: cluster.api.watched(slices)[-1] == str(bookmark))
    wait_for(lambda: cluster.api.watches == 2)
    assert cluster.api.lists(slices) == 1
    follows(cluster, source, 100)


@pytest.mark.parametrize("in_stream", [True, False], ids=["in the stream", "at its opening"])
def test_gone(cluster: FakeCluster, source: KubernetesSource, in_stream: bool) -> None:
    """With the history gone the list is read again; what vanished meanwhile is gone."""
    cluster.create(served_model("one", "other"))
    cluster.status("one", "other", {"traffic": plan("other", None)})
    wait_for(lambda: "other" in source.read().plans)
    with cluster.api.changed:
        del cluster.api.objects[ONE]["other"]
    if in_stream:
        cluster.api.expire()
    else:
        cluster.api.compact()
        cluster.api.end_watches()
    wait_for(lambda: list(source.read().plans) == ["iris"])
    assert cluster.api.lists(ONE) == 2
    follows(cluster, source, 100)
    wait_for(lambda: not source.read().workload_problems)


def test_an_outage_keeps_what_was_read(cluster: FakeCluster, source: KubernetesSource) -> None:
    """While the API server is away plans and endpoints stay, and the trouble is named."""
    before = source.read()
    cluster.api.stop()
    wait_for(lambda: len(source.read().workload_problems) == 2)
    away = source.read()
    assert (away.plans, away.endpoints, away.complete) == (before.plans, before.endpoints, True)
    assert set(away.workload_problems) == {"ServedModels in one", "EndpointSlices in one"}
    cluster.api.start()
    follows(cluster, source, 100)
    wait_for(lambda: not source.read().workload_problems)


def test_a_server_that_comes_back_older(cluster: FakeCluster, source: KubernetesSource) -> None:
    """After an outage the list counts, even if its version is below the one seen last."""
    follows(cluster, source, 100)
    cluster.api.stop()
    wait_for(lambda: source.read().workload_problems)
    cluster.api.version = 10  # A restored backup.
    cluster.api.events.clear()
    cluster.status("one", "iris", {"traffic": plan(weight=50)})
    cluster.api.start()
    wait_for(lambda: source.read().plans["iris"] == parse_plan(plan(weight=50)))
    follows(cluster, source, 60)


def test_a_start_without_a_server_is_not_complete(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing counts before every list has been read, however long that takes."""
    cluster.api.stop()
    source = KubernetesSource(["one", "two"])
    source.start()
    wait_for(lambda: len(source.read().workload_problems) == 4)
    assert not source.read().complete
    assert source.read().plans == {}
    cluster.api.start()
    wait_for(lambda: source.read().complete)
    assert list(source.read().plans) == ["iris"]
    source.close()
    named = [record.__dict__["list"] for record in caplog.records if record.msg == "Kubernetes"]
    assert sorted(set(named)) == sorted(named), "one line for each list, not one for each attempt"


def test_each_outage_is_logged(
    cluster: FakeCluster, source: KubernetesSource, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage like the one before is said again, once it was over in between."""

    def said() -> int:
        return sum(record.msg == "Kubernetes" for record in caplog.records)

    for outage in (1, 2):
        cluster.api.refusal = (503, "not now")
        cluster.api.end_watches()
        wait_for(lambda: len(source.read().workload_problems) == 2)
        cluster.api.refusal = None
        wait_for(lambda: not source.read().workload_problems and cluster.api.watches == 2)
        assert said() == 2 * outage


def test_a_list_that_is_forbidden_is_named(cluster: FakeCluster, source: KubernetesSource) -> None:
    """What the API server says of a refusal is told."""
    cluster.api.refusal = (403, "servedmodels is forbidden")
    cluster.api.end_watches()
    name = "ServedModels in one"
    wait_for(lambda: name in source.read().workload_problems)
    assert source.read().workload_problems[name] == "403 servedmodels is forbidden"
    assert list(source.read().plans) == ["iris"]
    cluster.api.refusal = None
    follows(cluster, source, 100)


def test_a_namespace_that_is_gone_is_empty(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One deleted namespace keeps no gateway from the others; made again, it is read again."""
    monkeypatch.setattr(kubernetes, "GONE_WAIT", 0.05)
    cluster.api.gone = {"two": 404}
    source = KubernetesSource(["one", "two"])
    source.start()
    wait_for(lambda: source.read().complete)
    assert list(source.read().plans) == ["iris"]
    two = MODELS.format("two")
    wait_for(lambda: cluster.api.lists(two) >= 3)
    problem = source.read().workload_problems["ServedModels in two"]
    assert problem == "namespace two does not exist"
    said = [record.__dict__["list"] for record in caplog.records if record.msg == "Kubernetes"]
    assert sorted(said) == ["EndpointSlices in two", "ServedModels in two"]

    cluster.create(served_model("two", "late"))
    cluster.status("two", "late", {"traffic": plan("late", None)})
    cluster.api.gone = {}
    wait_for(lambda: "late" in source.read().plans)
    wait_for(lambda: not source.read().workload_problems)
    source.close()


def test_a_namespace_that_goes_takes_its_models_along(
    cluster: FakeCluster, source: KubernetesSource
) -> None:
    """What was read of a namespace is forgotten once the API server says that it is gone."""
    cluster.api.gone = {"one": 404}
    cluster.api.end_watches()
    wait_for(lambda: not source.read().plans and not source.read().endpoints)


@pytest.mark.parametrize("answer", [200, 403, 500])
def test_a_namespace_that_may_be_there_is_waited_for(cluster: FakeCluster, answer: int) -> None:
    """Only a plain no makes a namespace empty: not a refusal to tell, nor that Roles are missing."""
    cluster.api.gone = {"two": answer}
    source = KubernetesSource(["one", "two"])
    source.start()
    name = "ServedModels in two"
    wait_for(lambda: source.read().workload_problems.get(name) == "403 servedmodels is forbidden")
    wait_for(lambda: cluster.api.lists(MODELS.format("two")) >= 2)
    assert not source.read().complete
    source.close()


def test_a_long_list_comes_in_pages(cluster: FakeCluster) -> None:
    """More objects than one page holds are all read."""
    for index in range(1200):
        made = served_model("one", f"m-{index}", uid=f"u-{index}", creationTimestamp="")
        cluster.api.put(ONE, {**made, "status": {"traffic": plan(f"m-{index}", None)}})
    source = KubernetesSource(["one"])
    source.start()
    wait_for(lambda: source.read().complete)
    assert len(source.read().plans) == 1201
    assert cluster.api.lists(ONE) == 3
    source.close()


def test_a_token_that_is_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod the mounted token is read again when the old one is refused."""
    certificate, key = write_certificate(tmp_path)
    api = KubeApi(tls=(certificate, key))
    token = tmp_path / "token"
    token.write_text("first", "utf-8")
    api.token = "first"  # noqa: S105 - of this test.
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
    source = KubernetesSource(["one"])
    source.start()
    wait_for(lambda: source.read().complete and api.watches == 2)
    token.write_text("second", "utf-8")
    api.token = "second"  # noqa: S105 - of this test.
    api.end_watches()
    made: dict[str, Any] = served_model("one", "iris", uid="u", creationTimestamp="")
    api.put(ONE, {**made, "status": {"traffic": plan(weight=None)}})
    wait_for(lambda: source.read().plans and not source.read().workload_problems)
    source.close()
    api.stop()


def test_no_way_to_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address the agent does not start, and says what to do."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ClusterAddressError, match="KUBECONFIG"):
        KubernetesSource(["one"]).start()


def test_secrets_stay_out_of_messages(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused token is not repeated."""
    path = tmp_path / "with-token"
    path.write_text(json.dumps(json.loads(kubeconfig(cluster.api.port, token="hush"))), "utf-8")  # noqa: S106
    monkeypatch.setenv("KUBECONFIG", str(path))
    cluster.api.token = "other"  # noqa: S105 - of this test.
    source = KubernetesSource(["one"], connect)
    source.start()
    wait_for(lambda: len(source.read().workload_problems) == 2)
    assert set(source.read().workload_problems.values()) == {"401 Unauthorized"}
    source.close()

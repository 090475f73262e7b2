"""Versions as Deployments: what is written, and what is read off the pods."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from fairlead_rollout.adapters.k8s.cluster import KINDS, KubernetesCluster
from fairlead_rollout.adapters.k8s.store import served_model as read_served_model
from fairlead_rollout.app.ports import ServedModel
from fairlead_rollout.domain.errors import ConflictError, RefusedError, UnavailableError
from fairlead_rollout.domain.names import workload_name
from fairlead_rollout.domain.platform import ServingSettings
from fairlead_rollout.domain.snapshot import Workload
from fairlead_rollout.domain.spec import Autoscaling

Document = dict[str, Any]
Kube = Any

SETTINGS = ServingSettings(
    image="registry.invalid/fairlead/serving:test",
    image_pull_policy="IfNotPresent",
    image_pull_secrets=(),
    mlflow_url="http://mlflow.invalid:5000",
    experiments_url="http://fairlead-experiments.fairlead.svc:8080",
    credentials_secret="",
    resources={"requests": {"cpu": "1m", "memory": "1Mi"}},
    has_network_policy=True,
    ingress_from=({"podSelector": {}},),
    egress=(),
)
AUTOSCALING = Autoscaling(max_replicas=5, cpu_percent=70)
WITHOUT_AUTOSCALING = set(KINDS) - {"HorizontalPodAutoscaler"}


@pytest.fixture
def served(served_model: Document) -> ServedModel:
    """Return the ServedModel as the controller reads it; its pods are never scheduled."""
    read = read_served_model(served_model)
    assert read.spec is not None
    nowhere = {"spec": {"schedulerName": "nobody"}}
    return replace(read, spec=replace(read.spec, template=nowhere))


@pytest.fixture
def cluster(kube: Kube) -> KubernetesCluster:
    """Return the cluster under test."""
    return KubernetesCluster(kube.recorded(), SETTINGS)


def with_spec(served: ServedModel, **changes: Any) -> ServedModel:
    """Return a ServedModel with parts of its spec changed."""
    assert served.spec is not None
    return replace(served, spec=replace(served.spec, **changes))


def name_of(served: ServedModel, version: str = "1") -> str:
    """Return the name of a version's objects."""
    assert served.spec is not None
    return workload_name(served.name, served.spec.model, version)


def kinds(kube: Kube, name: str) -> set[str]:
    """Return the kinds of which a version has an object."""
    return {kind for kind in KINDS if name in kube.names(kind)}


def deployment(kube: Kube, served: ServedModel) -> Document:
    """Return the Deployment of version 1."""
    found: Document = kube.api.get("Deployment", kube.namespace, name_of(served))
    return found


def test_a_version_gets_all_its_objects_and_they_belong_to_the_served_model(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """Five kinds, one name, one owner."""
    cluster.ensure(with_spec(served, autoscaling=AUTOSCALING), "1", 2)
    assert kinds(kube, name_of(served)) == set(KINDS)
    for kind in KINDS:
        owners = kube.api.get(kind, kube.namespace, name_of(served))["metadata"]["ownerReferences"]
        assert [owner["uid"] for owner in owners] == [served.uid]


def test_what_is_as_wanted_is_not_written_again(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """A pass that finds everything in order writes nothing."""
    cluster.ensure(served, "1", 2)
    kube.writes.clear()
    cluster.workloads(served)
    cluster.ensure(served, "1", 2)
    assert kube.writes == []


def test_a_new_process_writes_nothing_over_what_is_in_order(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """What is right is told from the objects, not from memory."""
    cluster.ensure(served, "1", 2)
    again = KubernetesCluster(kube.recorded(), SETTINGS)
    kube.writes.clear()
    again.workloads(served)
    again.ensure(served, "1", 2)
    assert kube.writes == []


def test_a_changed_spec_changes_the_objects(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """The Deployment follows replicas and image."""
    cluster.ensure(served, "1", 2)
    cluster.workloads(served)
    cluster.ensure(with_spec(served, image="registry.invalid/other:1"), "1", 3)
    spec = deployment(kube, served)["spec"]
    assert spec["replicas"] == 3
    assert spec["template"]["spec"]["containers"][0]["image"] == "registry.invalid/other:1"


def test_what_a_template_no_longer_says_is_taken_away(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """A variable that the user removes leaves the pods, as it came."""
    container = {"name": "server", "env": [{"name": "EXTRA", "value": "1"}]}
    nowhere = {"schedulerName": "nobody"}
    cluster.ensure(
        with_spec(served, template={"spec": {**nowhere, "containers": [container]}}), "1", 1
    )
    assert "EXTRA" in _variables(deployment(kube, served))
    cluster.workloads(served)
    cluster.ensure(served, "1", 1)
    assert "EXTRA" not in _variables(deployment(kube, served))


def _variables(document: Document) -> set[str]:
    container = document["spec"]["template"]["spec"]["containers"][0]
    return {variable["name"] for variable in container["env"]}


def test_the_autoscalers_number_is_not_undone(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """With autoscaling a changed spec keeps the number of pods that load has called for."""
    scaled = with_spec(served, autoscaling=AUTOSCALING)
    cluster.ensure(scaled, "1", 2)
    kube.api.patch("Deployment", kube.namespace, name_of(served), {"spec": {"replicas": 4}})
    cluster.workloads(scaled)
    cluster.ensure(with_spec(scaled, image="registry.invalid/other:1"), "1", 2)
    assert deployment(kube, served)["spec"]["replicas"] == 4


class Between:
    """An API on which the autoscaler acts once, after we have looked and before we write."""

    def __init__(self, kube: Kube, name: str, replicas: int):
        self._kube = kube
        self._left = [(name, replicas)]

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._kube.api, name)

        def late(*arguments: Any, **options: Any) -> Any:
            while self._left:
                place, replicas = self._left.pop()
                change = {"spec": {"replicas": replicas}}
                self._kube.api.patch("Deployment", self._kube.namespace, place, change)
            return method(*arguments, **options)

        return method if name in {"get", "list"} else late


@pytest.mark.parametrize("fewest", [2, 3], ids=["changed", "promoted"])
def test_a_scale_up_while_we_write_is_not_undone(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel, fewest: int
) -> None:
    """Load that has called for pods keeps them: we look again instead."""
    scaled = with_spec(served, autoscaling=AUTOSCALING)
    cluster.ensure(scaled, "1", 2)
    late = KubernetesCluster(Between(kube, name_of(served), 4), SETTINGS)
    changed = with_spec(scaled, image="registry.invalid/other:1")
    for _ in range(2):
        late.workloads(changed)
        with contextlib.suppress(ConflictError):
            late.ensure(changed, "1", fewest)
    found = deployment(kube, served)
    assert found["spec"]["replicas"] == 4
    container = found["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.invalid/other:1"


def test_a_scaled_version_never_loses_a_pod_to_a_write(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """A number that nobody owns would be 1: it is handed to the autoscaler before we let it go."""
    numbers = []

    class Watching:
        """An API that notes the number of pods after each write."""

        def __getattr__(self, name: str) -> Any:
            method = getattr(kube.api, name)

            def noted(*arguments: Any, **options: Any) -> Any:
                answer = method(*arguments, **options)
                if "Deployment" in kinds(kube, name_of(served)):
                    numbers.append(deployment(kube, served)["spec"]["replicas"])
                return answer

            return method if name in {"get", "list"} else noted

    cluster.ensure(served, "1", 3)
    watching = KubernetesCluster(Watching(), SETTINGS)
    scaled = with_spec(served, autoscaling=AUTOSCALING)
    for image in ("a", "b", "c"):
        watching.workloads(scaled)
        watching.ensure(with_spec(scaled, image=f"registry.invalid/{image}:1"), "1", 3)
    assert set(numbers) == {3}


def test_a_candidate_that_is_promoted_has_its_pods_at_once(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel, until: Callable[..., None]
) -> None:
    """All traffic does not wait for the autoscaler's next look."""
    scaled = with_spec(served, autoscaling=AUTOSCALING)

    def ensured(replicas: int) -> bool:
        """Look again after a conflict, as the controller does: Kubernetes writes its status."""
        cluster.workloads(scaled)
        try:
            cluster.ensure(scaled, "1", replicas)
        except ConflictError:
            return False
        return True

    for replicas in (1, 4, 2):
        until(partial(ensured, replicas))
        assert deployment(kube, served)["spec"]["replicas"] == {1: 1, 4: 4, 2: 4}[replicas]
    fewest = kube.api.get("HorizontalPodAutoscaler", kube.namespace, name_of(served))["spec"]
    assert fewest["minReplicas"] == 2


def test_without_autoscaling_the_autoscaler_goes_and_the_number_is_the_specs(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """Autoscaling can be switched off again."""
    scaled = with_spec(served, autoscaling=AUTOSCALING)
    cluster.ensure(scaled, "1", 2)
    kube.api.patch("Deployment", kube.namespace, name_of(served), {"spec": {"replicas": 4}})
    cluster.workloads(scaled)
    cluster.ensure(served, "1", 2)
    assert kinds(kube, name_of(served)) == WITHOUT_AUTOSCALING
    assert deployment(kube, served)["spec"]["replicas"] == 2


def test_network_policies_that_are_switched_off_go(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """An installation without network policies keeps none of an earlier one."""
    cluster.ensure(served, "1", 1)
    open_ = KubernetesCluster(kube.api, replace(SETTINGS, has_network_policy=False))
    open_.workloads(served)
    open_.ensure(served, "1", 1)
    assert "NetworkPolicy" not in kinds(kube, name_of(served))


def foreign(kube: Kube, served: ServedModel, kind: str, **metadata: Any) -> Document:
    """Make an object of somebody else that has the name of version 1's."""
    namespace, name = kube.namespace, name_of(served)
    template = {
        "metadata": {"labels": {"app": "theirs"}},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "a", "image": "b"}]},
    }
    selector = {"matchLabels": {"app": "theirs"}}
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    version, spec = {
        "HorizontalPodAutoscaler": (
            "autoscaling/v2",
            {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 3},
        ),
        "PodDisruptionBudget": ("policy/v1", {"selector": selector, "maxUnavailable": 1}),
        "Service": ("v1", {"clusterIP": "None", "selector": {"app": "theirs"}}),
        "NetworkPolicy": ("networking.k8s.io/v1", {"podSelector": selector}),
        "Deployment": ("apps/v1", {"replicas": 0, "selector": selector, "template": template}),
    }[kind]
    made: Document = kube.api.create(
        {
            "apiVersion": version,
            "kind": kind,
            "metadata": {"name": name, "namespace": namespace, **metadata},
            "spec": spec,
        }
    )
    return made


def uid_of(kube: Kube, kind: str, name: str) -> str:
    """Return what tells an object from another one of its name."""
    uid: str = kube.api.get(kind, kube.namespace, name)["metadata"]["uid"]
    return uid


def test_a_persons_own_autoscaler_stays(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """`kubectl autoscale deployment` names it like the Deployment."""
    theirs = foreign(kube, served, "HorizontalPodAutoscaler")
    cluster.ensure(served, "1", 1)
    cluster.workloads(served)
    cluster.ensure(with_spec(served, image="registry.invalid/other:1"), "1", 1)
    cluster.workloads(served)
    cluster.remove(served, "1")
    assert kinds(kube, name_of(served)) == {"HorizontalPodAutoscaler"}
    name = name_of(served)
    assert uid_of(kube, "HorizontalPodAutoscaler", name) == theirs["metadata"]["uid"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_somebody_else_owns_is_not_written_over(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel, kind: str
) -> None:
    """It is named, so that a person can rename or delete it; nothing is half made."""
    theirs = foreign(kube, served, kind)
    with pytest.raises(RefusedError, match=f"{kind} {kube.namespace}/{name_of(served)} .* not"):
        cluster.ensure(with_spec(served, autoscaling=AUTOSCALING), "1", 1)
    assert kinds(kube, name_of(served)) == {kind}
    assert uid_of(kube, kind, name_of(served)) == theirs["metadata"]["uid"]
    labels = kube.api.get(kind, kube.namespace, name_of(served))["metadata"].get("labels") or {}
    assert "fairlead.dev/model" not in labels


def test_what_is_left_of_one_that_was_deleted_is_waited_for(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """Made again under its name, a ServedModel waits until Kubernetes has cleaned up."""
    cluster.ensure(served, "1", 1)
    with pytest.raises(UnavailableError, match="being deleted"):
        cluster.ensure(replace(served, uid="another"), "1", 1)
    kept = deployment(kube, served)["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in kept] == [served.uid]


def test_what_was_left_behind_without_an_owner_is_taken_over(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """`kubectl delete --cascade=orphan`, or a backup restored without owners: our labels tell."""
    labels = {"app.kubernetes.io/managed-by": "fairlead", "fairlead.dev/model": served.name}
    foreign(kube, served, "Service", labels=labels)
    cluster.ensure(served, "1", 1)
    owners = kube.api.get("Service", kube.namespace, name_of(served))["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == [served.uid]


def test_what_was_made_anew_since_it_was_looked_at_is_not_deleted(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """A person may be as fast as we are."""
    cluster.ensure(served, "1", 1)

    class Swapping:
        """An API on which somebody makes each object anew before it is deleted."""

        def __getattr__(self, name: str) -> Any:
            return getattr(kube.api, name)

        def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
            kube.api.delete(kind, namespace, name, uid)
            foreign(kube, served, kind)
            kube.api.delete(kind, namespace, name, uid)

    swapping = KubernetesCluster(Swapping(), SETTINGS)
    swapping.workloads(served)
    with pytest.raises(ConflictError):
        swapping.remove(served, "1")
    assert "PodDisruptionBudget" in kinds(kube, name_of(served))


def test_a_removed_version_leaves_nothing(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """All objects of one version go, those of the other stay."""
    cluster.ensure(served, "1", 1)
    cluster.ensure(served, "2", 1)
    cluster.workloads(served)
    cluster.remove(served, "1")
    assert kinds(kube, name_of(served)) == set()
    assert kinds(kube, name_of(served, "2")) == WITHOUT_AUTOSCALING


def test_a_removal_that_was_cut_short_is_finished(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel
) -> None:
    """A controller killed after any of the deletions leaves nothing behind for good."""
    for done in range(len(KINDS)):
        cluster.workloads(served)
        cluster.ensure(with_spec(served, autoscaling=AUTOSCALING), "1", 1)
        dying = KubernetesCluster(_Dying(kube.api, after=done), SETTINGS)
        dying.workloads(served)
        with pytest.raises(KeyboardInterrupt):
            dying.remove(served, "1")
        cluster.workloads(served)
        cluster.remove(served, "1")
        assert kinds(kube, name_of(served)) == set()


class _Dying:
    """An API whose caller is killed after some deletions."""

    def __init__(self, api: Any, after: int):
        self._api = api
        self._left = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def delete(self, *place: str) -> None:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        self._api.delete(*place)


def test_what_was_seen_of_one_model_is_not_kept_for_all_time(
    cluster: KubernetesCluster, served: ServedModel
) -> None:
    """Models come and go for months; a Deployment is needed for the pass that has read it."""
    cluster.ensure(served, "1", 1)
    cluster.workloads(served)
    assert len(cluster._seen) == 1
    namespace, _, _ = served.key.partition("/")
    cluster.workloads(replace(served, key=f"{namespace}/another"))
    assert cluster._seen == {}


def test_another_served_model_of_the_same_name_is_not_adopted(
    cluster: KubernetesCluster, served: ServedModel
) -> None:
    """What belongs to a ServedModel that is gone is on its way out."""
    cluster.ensure(served, "1", 1)
    assert cluster.workloads(replace(served, uid="another")) == ()


def test_a_deleted_served_model_takes_its_objects_along(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel, until: Callable[..., None]
) -> None:
    """The owner references are such that Kubernetes cleans up."""
    cluster.ensure(served, "1", 1)
    kube.delete("ServedModel", served.name)
    until(lambda: kinds(kube, name_of(served)) == set(), 60)


# ------------------------------------------------------------------ what is observed


@pytest.fixture
def observe(kube: Kube, cluster: KubernetesCluster, served: ServedModel) -> Callable[..., Workload]:
    """Return a function that puts pods in some state and observes the workload."""
    cluster.ensure(with_spec(served, template={"spec": {"schedulerName": "nobody"}}), "1", 0)

    def look(*statuses: Document) -> Workload:
        for number, status in enumerate(statuses):
            _put_pod(kube, served, f"pod-{number}", status)
        (workload,) = cluster.workloads(served)
        return workload

    return look


def _put_pod(kube: Kube, served: ServedModel, name: str, status: Document) -> None:
    labels = {
        "app.kubernetes.io/managed-by": "fairlead",
        "fairlead.dev/model": served.name,
        "fairlead.dev/version": "1",
    }
    kube.api.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": kube.namespace, "labels": labels},
            "spec": {
                "schedulerName": "nobody",
                "containers": [{"name": "server", "image": SETTINGS.image}],
            },
        }
    )
    kube.change("Pod", name, lambda pod: pod.update({"status": status}))


def server(**status: Any) -> Document:
    """Return a pod's status with one container, as kubelet writes it."""
    container = {
        "name": "server",
        "image": SETTINGS.image,
        "imageID": "",
        "ready": False,
        "restartCount": 0,
    }
    return {"phase": "Pending", "containerStatuses": [{**container, **status}]}


def ended(code: int, reason: str = "Error", message: str = "") -> Document:
    """Return the state of a container that has ended."""
    times = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z"}
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, **times}}


BACKING_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting"}}
READY = {
    "phase": "Running",
    "conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    ],
}
UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/2 nodes are available: 2 Insufficient memory.",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ],
}
PULL = 'Back-off pulling image "registry.invalid/fairlead/serving:test"'


@pytest.mark.parametrize(
    ("status", "code", "reason", "has_failed"),
    [
        pytest.param(
            server(state={"waiting": {"reason": "ImagePullBackOff", "message": PULL}}),
            None,
            "ImagePullBackOff: Back-off pulling image",
            False,
            id="image",
        ),
        pytest.param(
            server(state=BACKING_OFF, lastState=ended(137, "OOMKilled"), restartCount=3),
            137,
            "more memory than its limit",
            True,
            id="memory",
        ),
        pytest.param(
            server(state=BACKING_OFF, lastState=ended(3, message="xgboost is missing\nmore\n")),
            3,
            "xgboost is missing",
            True,
            id="model",
        ),
        pytest.param(
            server(state=ended(4, message="MLflow does not answer")),
            4,
            "MLflow does not answer",
            False,
            id="registry",
        ),
        pytest.param(
            server(state=BACKING_OFF, lastState=ended(1), restartCount=2),
            1,
            "ended with code 1",
            False,
            id="code",
        ),
        pytest.param(UNSCHEDULABLE, None, "no node takes it: 0/2 nodes", False, id="node"),
    ],
)
def test_why_a_version_does_not_serve_is_told_in_words(
    observe: Callable[..., Workload],
    status: Document,
    code: int | None,
    reason: str,
    has_failed: bool,
) -> None:
    """What kubelet and the scheduler write becomes one sentence, and says whether to wait."""
    workload = observe(status)
    assert workload.failure is not None
    assert workload.failure.exit_code == code
    assert reason in workload.failure.reason
    assert "\n" not in workload.failure.reason
    assert workload.has_failed is has_failed


def test_a_pod_that_kubelet_has_not_seen_yet_is_no_failure(
    observe: Callable[..., Workload],
) -> None:
    """A pod begins without any container status."""
    workload = observe({"phase": "Pending"})
    assert (workload.ready, workload.failure) == (0, None)


def test_one_ready_pod_is_enough_to_forget_failures(observe: Callable[..., Workload]) -> None:
    """A version that serves has not failed, whatever its other pods do."""
    workload = observe(server(state=BACKING_OFF, lastState=ended(3)), READY)
    assert (workload.ready, workload.failure, workload.has_failed) == (1, None, False)


def test_a_full_quota_is_told(
    kube: Kube, cluster: KubernetesCluster, served: ServedModel, until: Callable[..., None]
) -> None:
    """Where pods cannot even be made, the Deployment knows why."""
    if kube.is_real:
        _allow_no_pods(kube)
    cluster.ensure(served, "1", 1)
    if not kube.is_real:
        kube.change("Deployment", name_of(served), lambda d: d.update(status=NO_PODS))
    until(lambda: cluster.workloads(served)[0].failure is not None)
    (workload,) = cluster.workloads(served)
    assert workload.failure is not None
    assert workload.failure.exit_code is None
    assert workload.failure.reason.startswith("its pods cannot be made: pods ")
    assert "exceeded quota: none" in workload.failure.reason


def _allow_no_pods(kube: Kube) -> None:
    from kubernetes import client  # noqa: PLC0415 -- slow to import, and needed here only

    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    connection = kube.api._client
    client.CoreV1Api(connection).create_namespaced_resource_quota(kube.namespace, quota)


NO_PODS = {
    "conditions": [
        {
            "type": "ReplicaFailure",
            "status": "True",
            "reason": "FailedCreate",
            "message": 'pods "x" is forbidden: exceeded quota: none, requested: pods=1',
        }
    ]
}

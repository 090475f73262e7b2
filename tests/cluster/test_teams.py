"""A second team with an installation of its own: neither sees nor disturbs the first."""

import json
from collections.abc import Callable, Iterator

import pytest
from fairlead_e2e import pods
from fairlead_e2e.helm import install, uninstall
from fairlead_e2e.kube import KINDS
from fairlead_e2e.platform import Platform, remove_namespaces, remove_served_models
from fairlead_e2e.served import Served, unique
from fairlead_e2e.settings import Settings

Serve = Callable[..., Served]
# What every namespace has of its own, and what is about what is gone.
ALWAYS = {"ServiceAccount/default", "ConfigMap/kube-root-ca.crt"}
NOT_OURS = {"Namespace", "Node", "CustomResourceDefinition", "Event"}


@pytest.fixture(scope="module")
def second(installed: tuple[Platform, object], settings: Settings) -> Iterator[Platform]:
    """A second installation of everything, with one namespace for models."""
    first = installed[0]
    name = f"{settings.prefix}-b"
    second = Platform(
        kube=first.kube, settings=settings, name=name, teams=(f"{name}-models",), has_crd=False
    )
    second.make_namespaces()
    second.install()
    second.start_toolbox()
    yield second
    if not settings.keep:
        second.remove()


@pytest.fixture
def theirs(second: Platform, team: str) -> Served:
    """A served model of the second team."""
    del team
    second.await_whole()
    return Served(platform=second, namespace=second.teams[0], name="", model=unique("Theirs"))


def _inside(platform: Platform, name: str, account: str) -> None:
    """Start a pod in a platform's namespace that has one of its service accounts."""
    kube, namespace = platform.kube, platform.name
    pods.put_scripts(kube, namespace)
    pod = pods.build_pod(
        name=name,
        namespace=namespace,
        image=platform.serving_image,
        command=pods.SLEEP,
        spec={"serviceAccountName": account, "automountServiceAccountToken": True},
    )
    pods.start_pod(kube, pod)


def test_second_team_by_rights(serve: Serve, second: Platform) -> None:
    """The second team's accounts can do nothing in the first one's namespaces: tried in a pod."""
    served = serve(versions=1)
    first, model = served.platform, f"servedmodels/{served.name}"
    api, core = "/apis/fairlead.dev/v1alpha1/namespaces", "/api/v1/namespaces"
    forbidden = [
        f"GET {api}/{served.namespace}/servedmodels",
        f"PATCH {api}/{served.namespace}/{model}",
        f"PATCH {api}/{served.namespace}/{model}/status",
        f"GET {core}/{served.namespace}/pods",
        f"GET {core}/{served.namespace}/secrets",
        f"GET {core}/{first.name}/secrets/fairlead-mlflow",
        f"GET {core}/{first.mlflow_namespace}/secrets/mlflow-admin",
        f"GET /apis/apps/v1/namespaces/{served.namespace}/deployments",
        f"GET /apis/coordination.k8s.io/v1/namespaces/{first.name}/leases/fairlead-controller",
        "GET /apis/fairlead.dev/v1alpha1/servedmodels",
        "GET /api/v1/secrets",
    ]
    allowed = f"GET {api}/{second.teams[0]}/servedmodels"
    for account in ("fairlead-controller", "fairlead-gateway"):
        name = f"as-{account}"
        _inside(second, name, account)
        script = ("python", "/scripts/kube_api.py", allowed, *forbidden)
        own, *others = json.loads(second.kube.run(second.name, name, script))
        pods.remove_pod(second.kube, second.name, name)
        assert own == 200
        assert others == [403] * len(forbidden)


def test_second_team_by_network(serve: Serve, second: Platform) -> None:
    """No pod of the second team can connect to the first one's: tried in a pod, both ways."""
    served = serve(versions=1)
    first = served.platform
    model = served.ready_pods("1")[0]["status"]["podIP"]
    gateway = first.ready_pods({"app.kubernetes.io/component": "gateway"})[0]["status"]["podIP"]
    closed = [
        f"fairlead-gateway.{first.name}.svc:80",
        f"{gateway}:8081",
        f"fairlead-experiments.{first.name}.svc:8080",
        f"fairlead-postgresql.{first.name}.svc:5432",
        f"mlflow.{first.mlflow_namespace}.svc:5000",
        f"mlflow-postgresql.{first.mlflow_namespace}.svc:5432",
        f"mlflow-s3.{first.mlflow_namespace}.svc:7070",
        f"{model}:8080",
    ]
    theirs = [
        f"mlflow.{second.mlflow_namespace}.svc:5000",
        f"fairlead-experiments.{second.name}.svc:8080",
        f"fairlead-gateway.{second.name}.svc:80",
    ]
    seen = _reach(second, [*theirs, *closed])
    assert {target for target, is_open in seen.items() if is_open} == set(theirs)
    back = _reach(first, theirs)
    assert not any(back.values()), back


def _reach(platform: Platform, targets: list[str]) -> dict[str, bool]:
    script = ("python", "/scripts/reach.py", *targets)
    seen: dict[str, bool] = json.loads(platform.kube.run(platform.tools, "toolbox", script))
    return seen


def test_second_team_rolls_out(serve: Serve, theirs: Served) -> None:
    """Both teams have a model of one name: a rollout of the second team's changes nothing here."""
    served = serve(versions=1)
    theirs.name = served.name
    for number in (101, 102):
        theirs.register(number)
    theirs.promote("1")
    theirs.apply()
    with served.load() as load:
        theirs.await_serving("1")
        with theirs.load(pod="load-theirs") as other:
            theirs.promote("2")
            theirs.await_serving("2")
            other.await_sent(60)
    theirs.remove()
    served.assert_unnoticed(load.report)
    theirs.assert_unnoticed(other.report)
    assert load.report.values("1") == {1.0}
    assert other.report.values("2") == {102.0}
    assert served.condition("Stalled") is None


def test_nothing_is_left(platform: Platform, second: Platform) -> None:
    """After three `helm uninstall`s there is nothing but what the charts say they keep."""
    # Given a model with a rollout behind it
    team = second.teams[0]
    second.await_whole()
    served = Served(platform=second, namespace=team, name="last", model=unique("Last"))
    served.promote(served.register(1))
    install(served.name, "model", team, {"model": served.model})
    served.await_serving("1")
    # When all three releases are uninstalled
    uninstall(served.name, team)
    remove_served_models(second.kube, team)
    uninstall("fairlead", second.name)
    uninstall("mlflow", second.mlflow_namespace)
    # Then what the how-to names is left, and nothing else
    left = {ns: _objects(second, ns) for ns in (team, second.name, second.mlflow_namespace)}
    names = ("admin", "controller", "gc", "reader", "training", "server", "s3", "postgresql")
    assert left == {
        team: set(),
        second.name: {
            "Lease/fairlead-controller",
            "Secret/fairlead-postgresql",
            "PersistentVolumeClaim/data-fairlead-postgresql-0",
        },
        second.mlflow_namespace: {
            *(f"Secret/mlflow-{name}" for name in names),
            "PersistentVolumeClaim/data-mlflow-postgresql-0",
            "PersistentVolumeClaim/data-mlflow-s3-0",
        },
    }
    cluster_wide = [
        document["metadata"]["name"]
        for kind in ("ClusterRole", "ClusterRoleBinding")
        for document in second.kube.find(kind)
        if second.name in json.dumps(document["metadata"])
    ]
    assert cluster_wide == []
    remove_namespaces(second.kube, second.namespaces)
    # ... and the first team never noticed
    platform.await_whole(10)


def _objects(platform: Platform, namespace: str) -> set[str]:
    """Return all objects in a namespace, but what every namespace has and what the tests made."""
    kinds = [kind for kind in KINDS if kind not in NOT_OURS and "Cluster" not in kind]
    found: set[str] = set()
    for kind in kinds:
        for document in platform.kube.find(kind, namespace):
            if "deletionTimestamp" not in document["metadata"]:
                found.add(f"{kind}/{document['metadata']['name']}")
    return {name for name in found if name not in ALWAYS and name != "ConfigMap/e2e-scripts"}

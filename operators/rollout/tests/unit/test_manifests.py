"""The Kubernetes objects of one version, as documents."""

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_rollout.adapters.home import Home
from fairlead_rollout.adapters.schema import read_spec
from fairlead_rollout.adapters.stack import Addresses, serving
from fairlead_rollout.domain.errors import InvalidSpecError
from fairlead_rollout.domain.manifests import (
    DIGEST,
    DRAIN_SECONDS,
    Owner,
    build_manifests,
    merge,
    threads,
)
from fairlead_rollout.domain.platform import ServingSettings
from fairlead_rollout.domain.spec import Autoscaling, ServedModelSpec

Document = dict[str, Any]

KUBERNETES = "1.34"
OWNER = Owner(namespace="ml", name="flight-delay", uid="0c0ffee0-0000-4000-8000-000000000000")
SETTINGS = ServingSettings(
    image="fairlead/serving:0.1.0-sklearn",
    image_pull_policy="IfNotPresent",
    image_pull_secrets=("registry",),
    mlflow_url="http://mlflow.mlflow.svc:5000",
    experiments_url="http://fairlead-experiments.fairlead.svc:8080",
    credentials_secret="fairlead-mlflow",  # noqa: S106 -- a Secret's name
    resources={"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
    has_network_policy=True,
    ingress_from=({"namespaceSelector": {}, "podSelector": {}},),
    egress=({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 5000}]},),
)
TEMPLATE = {
    "metadata": {"labels": {"team": "delay"}, "annotations": {"sidecar/inject": "false"}},
    "spec": {
        "nodeSelector": {"pool": "models"},
        "tolerations": [
            {"key": "models", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "models", "operator": "Exists", "effect": "NoExecute"},
        ],
        "priorityClassName": "models",
        "serviceAccountName": "models",
        "volumes": [{"name": "data", "configMap": {"name": "data"}}],
        "containers": [
            {
                "name": "server",
                "env": [{"name": "OMP_NUM_THREADS", "value": "2"}],
                "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
            }
        ],
    },
}


@pytest.fixture(scope="module")
def spec(build_manifest: Callable[..., Document]) -> ServedModelSpec:
    """Return a spec as the API server would complete it."""
    return read_spec(build_manifest())


def objects(
    spec: ServedModelSpec, version: str = "4", settings: ServingSettings = SETTINGS
) -> dict[str, Document]:
    """Return the objects of a version by kind."""
    made = build_manifests(OWNER, spec, version, 2, settings)
    return {document["kind"]: document for document in made}


def pod(spec: ServedModelSpec) -> Document:
    """Return the pod template."""
    template: Document = objects(spec)["Deployment"]["spec"]["template"]
    return template


def server(spec: ServedModelSpec) -> Document:
    """Return the server's container."""
    containers: list[Document] = pod(spec)["spec"]["containers"]
    return next(c for c in containers if c["name"] == "server")


def selectors(made: Mapping[str, Document]) -> dict[str, Document]:
    """Return what each object selects pods by."""
    return {
        "Deployment": made["Deployment"]["spec"]["selector"]["matchLabels"],
        "Service": made["Service"]["spec"]["selector"],
        "PodDisruptionBudget": made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": made["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    }


CHANGES: dict[str, dict[str, Any]] = {
    "image": {"image": "registry.example.com/serving:2"},
    "resources": {"resources": {"limits": {"cpu": "4", "memory": "2Gi"}}},
    "environment": {"environment": "ignore"},
    "largest body": {"max_body_bytes": 2048},
    "autoscaling": {"autoscaling": Autoscaling(max_replicas=5, cpu_percent=60)},
    "template": {"template": TEMPLATE},
}
SETTINGS_CHANGES: dict[str, dict[str, Any]] = {
    "image": {"image": "fairlead/serving:0.2.0"},
    "pull secrets": {"image_pull_secrets": ()},
    "account": {"credentials_secret": ""},
    "MLflow": {"mlflow_url": "http://elsewhere:5000"},
    "resources": {"resources": {}},
    "network policy": {"has_network_policy": False},
    "who may call": {"ingress_from": ()},
    "whom it may call": {"egress": ()},
}


@pytest.mark.parametrize("change", [{}, *CHANGES.values()], ids=["nothing", *CHANGES])
def test_every_object_is_one_that_kubernetes_knows(
    spec: ServedModelSpec, change: dict[str, Any]
) -> None:
    """No field is misspelt, none of the wrong kind."""
    for document in objects(replace(spec, **change)).values():
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("change", SETTINGS_CHANGES.values(), ids=list(SETTINGS_CHANGES))
def test_every_installation_makes_objects_that_kubernetes_knows(
    spec: ServedModelSpec, change: dict[str, Any]
) -> None:
    """Settings that are empty leave no empty field that is refused."""
    for document in objects(spec, settings=replace(SETTINGS, **change)).values():
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_every_object_carries_the_labels_it_is_found_by(spec: ServedModelSpec) -> None:
    """The gateway, the operator and people look for these."""
    for document in objects(spec).values():
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "fairlead-serving"
        assert labels["app.kubernetes.io/instance"] == "flight-delay"
        assert labels["app.kubernetes.io/component"] == "server"
        assert labels["app.kubernetes.io/part-of"] == "fairlead"
        assert labels["app.kubernetes.io/managed-by"] == "fairlead"
        assert labels["fairlead.dev/model"] == "flight-delay"
        assert labels["fairlead.dev/version"] == labels["app.kubernetes.io/version"] == "4"
        assert document["metadata"]["annotations"]["fairlead.dev/registered-model"] == spec.model
        (owner,) = document["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (OWNER.uid, True)


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_selectors_never_change(spec: ServedModelSpec, change: dict[str, Any]) -> None:
    """Kubernetes refuses a Deployment whose selector is another one than before."""
    before = selectors(objects(spec))
    after = selectors(objects(replace(spec, **change)))
    assert after == before
    assert len({str(sorted(s.items())) for s in after.values()}) == 1


def test_pods_are_selected_whatever_a_template_says(spec: ServedModelSpec) -> None:
    """A user's label does not take the pods out of their Service."""
    theirs = {"fairlead.dev/version": "9", "app.kubernetes.io/name": "mine", "team": "a"}
    made = objects(replace(spec, template={"metadata": {"labels": theirs}}))
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in selectors(made).values():
        assert selector.items() <= labels.items()
    assert labels["team"] == "a"


def test_selectors_tell_versions_apart(spec: ServedModelSpec) -> None:
    """Two versions side by side have no pod in common."""
    assert selectors(objects(spec, "4")) != selectors(objects(spec, "5"))


@given(
    name=st.from_regex(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True),
    model=st.text(min_size=1, max_size=256),
    version=st.integers(min_value=1, max_value=10**9),
)
def test_names_are_labels_of_at_most_63_characters(
    spec: ServedModelSpec, name: str, model: str, version: int
) -> None:
    """Any name, registered model and version make objects that Kubernetes takes."""
    owner = replace(OWNER, name=name)
    for document in build_manifests(owner, replace(spec, model=model), str(version), 1, SETTINGS):
        assert len(document["metadata"]["name"]) <= 63
        assert all(len(value) <= 63 for value in document["metadata"]["labels"].values())


# ------------------------------------------------------------------ digest


def digest(spec: ServedModelSpec, settings: ServingSettings = SETTINGS, replicas: int = 2) -> str:
    """Return the digest of a version's objects."""
    *others, deployment = build_manifests(OWNER, spec, "4", replicas, settings)
    assert all(DIGEST not in document["metadata"]["annotations"] for document in others)
    found: str = deployment["metadata"]["annotations"][DIGEST]
    return found


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_the_digest_changes_with_what_is_wanted(
    spec: ServedModelSpec, change: dict[str, Any]
) -> None:
    """Otherwise the change would never be written."""
    assert digest(replace(spec, **change)) != digest(spec)


@pytest.mark.parametrize("change", SETTINGS_CHANGES.values(), ids=list(SETTINGS_CHANGES))
def test_the_digest_changes_with_the_installation(
    spec: ServedModelSpec, change: dict[str, Any]
) -> None:
    """An upgrade reaches the versions that run."""
    assert digest(spec, replace(SETTINGS, **change)) != digest(spec)


def test_the_digest_changes_with_the_number_of_pods(spec: ServedModelSpec) -> None:
    """A promotion scales."""
    assert digest(spec, replicas=2) != digest(spec, replicas=3)


def test_the_digest_stays_when_nothing_of_the_pods_changes(
    spec: ServedModelSpec, build_manifest: Callable[..., Document]
) -> None:
    """Rules of a rollout, and the order of a template's keys, restart no pod."""
    document = build_manifest()
    document["spec"]["rollout"]["maxDuration"] = "2h"
    document["spec"]["registry"] = {"onAbort": "revert"}
    document["spec"]["traffic"] = {"unit": {"cookie": "visitor"}}
    assert digest(read_spec(document)) == digest(spec)
    backwards = dict(reversed(TEMPLATE.items()))
    assert digest(replace(spec, template=TEMPLATE)) == digest(replace(spec, template=backwards))


def test_building_twice_is_building_once(spec: ServedModelSpec) -> None:
    """Nothing of the time, of chance, or of an earlier call is in the objects."""
    kept = copy.deepcopy(TEMPLATE)
    with_template = replace(spec, template=TEMPLATE)
    assert objects(with_template) == objects(with_template)
    assert kept == TEMPLATE


# ------------------------------------------------------------------ pods


def violations(template: Document) -> list[str]:
    """Return what the restricted Pod Security Standard refuses in a pod."""
    spec = template["spec"]
    outer = spec.get("securityContext", {})
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    allowed = {
        *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
        *("persistentVolumeClaim", "projected", "secret"),
    }
    found += [v["name"] for v in spec.get("volumes", ()) if not v.keys() & allowed]
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        inner = {**outer, **container.get("securityContext", {})}
        checks = {
            "runAsNonRoot": inner.get("runAsNonRoot") is True,
            "runAsUser": inner.get("runAsUser") != 0,
            "privileged": not inner.get("privileged"),
            "allowPrivilegeEscalation": inner.get("allowPrivilegeEscalation") is False,
            "capabilities": inner.get("capabilities") == {"drop": ["ALL"]},
            "seccompProfile": inner.get("seccompProfile") == {"type": "RuntimeDefault"},
            "hostPort": not any("hostPort" in port for port in container.get("ports", ())),
        }
        found += [f"{container['name']}: {name}" for name, holds in checks.items() if not holds]
    return found


@pytest.mark.parametrize("template", [{}, TEMPLATE], ids=["ours", "merged"])
def test_pods_fit_a_restricted_namespace(spec: ServedModelSpec, template: Document) -> None:
    """Also with what a user usually adds to them."""
    made = replace(spec, template=template)
    assert violations(pod(made)) == []
    assert server(made)["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod(made)["spec"]["automountServiceAccountToken"] is False


def test_a_templates_security_context_is_added_to_ours(spec: ServedModelSpec) -> None:
    """A user id of one's own does not switch the rest off."""
    theirs = {"spec": {"securityContext": {"runAsUser": 1000}}}
    made = pod(replace(spec, template=theirs))
    assert violations(made) == []
    assert made["spec"]["securityContext"]["runAsUser"] == 1000


def test_a_template_reaches_the_pods(spec: ServedModelSpec) -> None:
    """Everything a user adds is there, and everything of ours still is."""
    made = replace(spec, template=TEMPLATE)
    pod_spec = pod(made)["spec"]
    for key in ("nodeSelector", "tolerations", "priorityClassName", "serviceAccountName"):
        assert pod_spec[key] == TEMPLATE["spec"][key]
    assert {v["name"] for v in pod_spec["volumes"]} == {"models", "tmp", "data"}
    assert {m["mountPath"] for m in server(made)["volumeMounts"]} == {"/models", "/tmp", "/data"}  # noqa: S108 -- the pod's own
    assert {"OMP_NUM_THREADS", "MLFLOW_TRACKING_URI"} <= {e["name"] for e in server(made)["env"]}
    assert pod(made)["metadata"]["annotations"] == {"sidecar/inject": "false"}


def test_one_volume_can_be_mounted_at_two_places(spec: ServedModelSpec) -> None:
    """A mount is told apart by its path: another one of our volume does not move ours."""
    mounts = [{"name": "tmp", "mountPath": "/var/cache"}, {"name": "big", "mountPath": "/models"}]
    theirs = {"spec": {"containers": [{"name": "server", "volumeMounts": mounts}]}}
    made = {
        m["mountPath"]: m["name"] for m in server(replace(spec, template=theirs))["volumeMounts"]
    }
    assert made == {"/models": "big", "/tmp": "tmp", "/var/cache": "tmp"}  # noqa: S108 -- the pod's own


def test_a_models_name_is_no_variable(spec: ServedModelSpec) -> None:
    """Kubernetes puts variables into arguments: `$(NAME)` by its value, `$$` as one `$`."""
    model = "cost$$ in $(MLFLOW_TRACKING_PASSWORD)"
    arguments = server(replace(spec, model=model))["args"]
    assert "models:/cost$$$$ in $$(MLFLOW_TRACKING_PASSWORD)/4" in arguments


words = st.none() | st.booleans() | st.integers() | st.sampled_from(["server", "models", ""])
anything = st.recursive(
    words,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "labels", "env", "key"]), inner, max_size=2)
    ),
    max_leaves=5,
)
containers = st.fixed_dictionaries(
    {}, optional={"name": anything, "env": anything, "ports": anything}
)
templates = st.fixed_dictionaries(
    {},
    optional={
        "metadata": anything
        | st.fixed_dictionaries({}, optional={"labels": anything, "annotations": anything}),
        "spec": anything
        | st.fixed_dictionaries(
            {}, optional={"containers": anything | st.lists(containers), "volumes": anything}
        ),
    },
)


@given(template=templates)
def test_any_template_is_built_or_refused(
    build_manifest: Callable[..., Document], template: Document
) -> None:
    """The CRD keeps anything there: what is odd must not stop the pass that could abort a rollout."""
    document = build_manifest(server={"template": template})
    with contextlib.suppress(InvalidSpecError):
        made = objects(read_spec(document))
        labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert selectors(made)["Service"].items() <= labels.items()


def test_what_a_template_leaves_empty_is_not_said(
    spec: ServedModelSpec, build_manifest: Callable[..., Document]
) -> None:
    """`labels:` without a value is what a chart writes for an empty map."""
    empty = {"metadata": {"labels": None, "annotations": None}, "spec": None}
    assert objects(read_spec(build_manifest(server={"template": empty}))) == objects(
        read_spec(build_manifest(server={}))
    )


def test_a_second_container_stands_beside_the_server(spec: ServedModelSpec) -> None:
    """A sidecar is added, not merged into ours."""
    sidecar = {"name": "metrics", "image": "exporter:1"}
    made = replace(spec, template={"spec": {"containers": [sidecar]}})
    assert [c["name"] for c in pod(made)["spec"]["containers"]] == ["server", "metrics"]


def test_the_account_comes_from_a_secret_and_is_in_no_document(spec: ServedModelSpec) -> None:
    """A Secret that is not there is no obstacle: MLflow may ask for none."""
    variables = {v["name"]: v for v in server(spec)["env"]}
    for key in ("username", "password"):
        source = variables[f"MLFLOW_TRACKING_{key.upper()}"]["valueFrom"]["secretKeyRef"]
        assert source == {"name": "fairlead-mlflow", "key": key, "optional": True}
    without = objects(spec, settings=replace(SETTINGS, credentials_secret=""))
    container = without["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert not any("PASSWORD" in variable["name"] for variable in container["env"])


def test_a_pod_may_finish_its_requests(spec: ServedModelSpec) -> None:
    """The longest request, begun in the last moment, ends before the pod is killed."""
    grace = pod(spec)["spec"]["terminationGracePeriodSeconds"]
    assert grace >= spec.timeout.total_seconds() + DRAIN_SECONDS


def test_no_rolling_update_takes_a_pod_away_before_another_is_ready(
    spec: ServedModelSpec,
) -> None:
    """A changed template costs no capacity; a drain takes one pod at a time."""
    made = objects(spec)
    strategy = made["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert (strategy["maxUnavailable"], strategy["maxSurge"]) == (0, 1)
    assert made["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_without_sources_nobody_may_call(spec: ServedModelSpec) -> None:
    """An empty list means nobody: a rule without `from` would mean everybody."""
    made = objects(spec, settings=replace(SETTINGS, ingress_from=()))
    assert made["NetworkPolicy"]["spec"]["ingress"] == []
    assert "Ingress" in made["NetworkPolicy"]["spec"]["policyTypes"]


def test_without_network_policies_there_is_none(spec: ServedModelSpec) -> None:
    """Where another tool makes them we do not."""
    assert "NetworkPolicy" not in objects(
        spec, settings=replace(SETTINGS, has_network_policy=False)
    )


def test_the_autoscaler_keeps_between_the_fewest_and_the_most(spec: ServedModelSpec) -> None:
    """A candidate that needs more pods than the most gets the most."""
    scaled = replace(spec, autoscaling=Autoscaling(max_replicas=3, cpu_percent=60))
    for fewest in (1, 3, 9):
        *_, autoscaler, _ = build_manifests(OWNER, scaled, "4", fewest, SETTINGS)
        assert autoscaler["kind"] == "HorizontalPodAutoscaler"
        limits = autoscaler["spec"]["minReplicas"], autoscaler["spec"]["maxReplicas"]
        assert limits == (min(fewest, 3), 3)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, 1),
        ({"requests": {"cpu": "100m"}}, 1),
        ({"requests": {"cpu": "2"}}, 2),
        ({"requests": {"cpu": "100m"}, "limits": {"cpu": "1500m"}}, 2),
        ({"limits": {"cpu": 4}}, 4),
        ({"limits": {"cpu": 0.5}}, 1),
        ({"limits": {"memory": "1Gi"}, "requests": {"cpu": "3"}}, 3),
        ({"limits": None, "requests": {"cpu": "3"}}, 3),
        ({"limits": {"cpu": "2k"}}, 1),
        ({"limits": {"cpu": "1.2.3"}}, 1),
        ({"limits": {"cpu": "."}}, 1),
        ({"limits": {"cpu": "2."}}, 2),
        ({"limits": {"cpu": ".5"}}, 1),
    ],
)
def test_a_server_computes_with_the_processors_it_may_use(
    resources: Document, expected: int
) -> None:
    """More threads than processors make each prediction slower."""
    assert threads(resources) == expected


@pytest.mark.parametrize(
    ("environment", "option"),
    [
        ("image", []),
        ("resolve", ["--environment", "resolve"]),
        ("ignore", ["--environment", "ignore"]),
    ],
)
def test_a_server_is_told_what_to_do_about_unmet_requirements(
    spec: ServedModelSpec, environment: str, option: list[str], tmp_path: Path
) -> None:
    """In a cluster and on one machine alike; its default is ours."""
    home = Home(root=tmp_path)
    wanted = {
        "workload": "w",
        "model": "m",
        "registeredModel": "m",
        "version": "4",
        "replicas": 1,
        "environment": environment,
        "timeout": 5.0,
        "maxBodyBytes": 1024,
    }
    (local,) = serving(home, Addresses(ports={"mlflow": 5000, "experiments": 5001}), wanted)
    for command in (server(replace(spec, environment=environment))["args"], list(local.command)):
        start = command.index("--environment") if "--environment" in command else len(command)
        assert command[start : start + 2] == option


# ------------------------------------------------------------------ merge

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
documents: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)
    ),
    max_leaves=8,
)
named = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from("wxyz")}, optional={"v": scalars}),
    max_size=4,
    unique_by=lambda item: item["name"],
)


@given(documents)
def test_merging_nothing_changes_nothing(base: Any) -> None:
    """An empty template is no template."""
    assert merge({"a": base}, {}) == {"a": base}


@given(documents, documents)
def test_merging_twice_is_merging_once(base: Any, over: Any) -> None:
    """What has been laid over already is not added again."""
    once = merge(base, over)
    assert merge(once, over) == once


@given(documents, documents)
def test_merging_leaves_its_parts_alone(base: Any, over: Any) -> None:
    """The ServedModel that was read is not changed by a pass."""
    kept = copy.deepcopy((base, over))
    merge(base, over)
    assert (base, over) == kept


@given(named, named)
def test_named_items_are_merged_by_name(base: list[Document], over: list[Document]) -> None:
    """Each name is there once; the user's value wins, and ours fills in."""
    merged = merge(base, over)
    names = [item["name"] for item in merged]
    assert sorted(names) == sorted({item["name"] for item in (*base, *over)})
    ours = {item["name"]: item for item in base}
    theirs = {item["name"]: item for item in over}
    for item in merged:
        name = item["name"]
        assert item == {**ours.get(name, {}), **theirs.get(name, {})}

"""The chart fairlead: what its objects promise to the processes, and to whom it opens a way."""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry

from fairlead_experiments.entrypoints import cli as experiments_cli
from fairlead_experiments.entrypoints.http import Metrics as ExperimentsMetrics
from fairlead_gateway.adapters import envoy
from fairlead_gateway.adapters.files import Home
from fairlead_gateway.adapters.metrics import PrometheusMeter
from fairlead_gateway.entrypoints import cli as gateway_cli
from fairlead_gateway.entrypoints.http import DRAIN_HEADER
from fairlead_rollout.adapters.metrics import ControllerMetrics
from fairlead_rollout.adapters.schema import read_spec
from fairlead_rollout.domain.manifests import Owner, build_manifests
from fairlead_rollout.domain.platform import PlatformSettings, parse_settings
from fairlead_rollout.domain.status import Rollout, RolloutState, Status
from fairlead_rollout.entrypoints import cli as rollout_cli
from fairlead_serving.adapters.metrics import Metrics as ServingMetrics

CHART = Path(__file__).parents[2] / "charts" / "fairlead"
OWNS = ("get", "create", "patch", "delete")
NOW = datetime(2026, 1, 1, tzinfo=UTC)

Object = dict[str, Any]
Render = Callable[..., list[Object]]


def scenario(name: str) -> Object:
    """The values of a ci scenario."""
    values: Object = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text())
    return values


def one(documents: list[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    found = [
        document
        for document in documents
        if document["kind"] == kind and document["metadata"]["name"] == name
    ]
    assert len(found) == 1, (kind, name)
    return found[0]


def settings_text(documents: list[Object]) -> str:
    """The controller's settings as the chart writes them."""
    data = one(documents, "ConfigMap", "demo-fairlead-controller")["data"]
    text: str = data["controller.json"]
    return text


def settings_of(documents: list[Object]) -> PlatformSettings:
    """The controller's settings as the controller reads them."""
    return parse_settings(json.loads(settings_text(documents)))


def pod_of(documents: list[Object], component: str) -> Object:
    """A component's pod template."""
    deployment = one(documents, "Deployment", f"demo-fairlead-{component}")
    template: Object = deployment["spec"]["template"]
    return template


def container_of(documents: list[Object], component: str, name: str) -> Object:
    """A component's container, or init container."""
    spec = pod_of(documents, component)["spec"]
    both = [*spec.get("initContainers", []), *spec["containers"]]
    return next(container for container in both if container["name"] == name)


# --- the controller ---------------------------------------------------------------------------------


def test_the_controller_reads_the_settings(render: Render) -> None:
    """The controller's own reader takes the settings, and finds the chart's own names in them."""
    settings = settings_of(render("fairlead"))

    assert settings.namespaces == ("ml",)
    assert (settings.lease_namespace, settings.lease) == ("ml", "demo-fairlead-controller")
    assert settings.experiments_url == "http://demo-fairlead-experiments.ml.svc:8080"
    assert settings.gateway_service == "demo-fairlead-gateway-agents"
    assert settings.serving.image == "docker.io/fairlead/serving:0.1.0-sklearn"


def test_the_controller_starts_with_its_settings(render: Render) -> None:
    """The command line is one that the command takes, and names the file that is mounted."""
    container = container_of(render("fairlead"), "controller", "controller")
    options = rollout_cli._parser().parse_args(container["args"])

    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(options.settings) == "/etc/fairlead/controller.json"
    assert "/etc/fairlead" in mounts


def test_the_watched_namespaces_reach_every_process(render: Render) -> None:
    """Controller, gateway and models' pods are told the same namespaces."""
    documents = render("fairlead", scenario("teams"))
    args = container_of(documents, "gateway", "agent")["args"]

    assert settings_of(documents).namespaces == ("team-a", "team-b")
    assert gateway_cli._parser().parse_args(args).namespace == ["team-a", "team-b"]


def test_new_settings_restart_the_controller(render: Render) -> None:
    """The pod carries the settings' digest, and only a change of settings changes it."""

    def digest(values: Object) -> str:
        text: str = pod_of(render("fairlead", values), "controller")["metadata"]["annotations"][
            "checksum/settings"
        ]
        return text

    assert digest({}) == digest({"gateway": {"replicas": 5}})
    assert digest({}) != digest({"serving": {"credentialsSecret": "other"}})


def test_the_account_comes_from_a_secret(render: Render) -> None:
    """The controller's account at MLflow is in its environment by reference, and only if named."""
    env = container_of(render("fairlead", scenario("teams")), "controller", "controller")["env"]
    found = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in env}

    assert found == {
        "MLFLOW_TRACKING_USERNAME": {"name": "fairlead-mlflow", "key": "username"},
        "MLFLOW_TRACKING_PASSWORD": {"name": "fairlead-mlflow", "key": "password"},
    }
    assert not container_of(render("fairlead"), "controller", "controller").get("env")


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://mlflow.mlflow.svc:5000", 5000),
        ("http://mlflow.example.com", 80),
        ("https://mlflow.example.com/base", 443),
        ("https://mlflow.example.com:8443/base", 8443),
    ],
)
def test_the_way_to_mlflow_has_the_urls_port(render: Render, url: str, port: int) -> None:
    """Both the controller and the models' pods may reach the port that the URL says."""
    documents = render("fairlead", {"mlflow": {"url": url}})
    policy = one(documents, "NetworkPolicy", "demo-fairlead-controller")["spec"]
    rules = [*policy["egress"], *settings_of(documents).serving.egress]

    mlflow = [rule for rule in rules if "mlflow" in json.dumps(rule.get("to", []))]
    assert [rule["ports"] for rule in mlflow] == [[{"protocol": "TCP", "port": port}]] * 2


def rules_of(documents: list[Object], name: str, namespace: str) -> set[tuple[str, ...]]:
    """What a Role allows, as (API group, resource, resource name, verbs...)."""
    roles = [
        document
        for document in documents
        if document["kind"] == "Role"
        and document["metadata"]["name"] == name
        and document["metadata"]["namespace"] == namespace
    ]
    return {
        (group, resource, ",".join(rule.get("resourceNames", [])), *rule["verbs"])
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_the_controller_may_do_what_it_does(render: Render) -> None:
    """The Roles hold exactly the verbs the controller uses; a new one is a decision, not a slip."""
    documents = render("fairlead", scenario("teams"))
    name = "demo-fairlead-controller"
    expected = {
        ("fairlead.dev", "servedmodels", "", "get", "list", "watch", "patch"),
        ("fairlead.dev", "servedmodels/status", "", "update"),
        ("fairlead.dev", "servedmodels/finalizers", "", "update"),
        ("apps", "deployments", "", "get", "list", "create", "patch", "delete"),
        ("", "services", "", *OWNS),
        ("autoscaling", "horizontalpodautoscalers", "", *OWNS),
        ("policy", "poddisruptionbudgets", "", *OWNS),
        ("networking.k8s.io", "networkpolicies", "", *OWNS),
        ("", "pods", "", "list", "watch"),
        ("events.k8s.io", "events", "", "create"),
    }

    for namespace in ("team-a", "team-b"):
        assert rules_of(documents, name, namespace) == expected
    assert rules_of(documents, name, "ml") == set()
    assert rules_of(documents, f"{name}-identity", "ml") == {
        ("coordination.k8s.io", "leases", "", "create"),
        ("coordination.k8s.io", "leases", name, "get", "update"),
        ("discovery.k8s.io", "endpointslices", "", "list"),
    }


def test_the_gateway_only_looks(render: Render) -> None:
    """The gateway reads ServedModels and EndpointSlices of the watched namespaces, nothing else."""
    documents = render("fairlead", scenario("teams"))

    for namespace in ("team-a", "team-b"):
        assert rules_of(documents, "demo-fairlead-gateway", namespace) == {
            ("fairlead.dev", "servedmodels", "", "list", "watch"),
            ("discovery.k8s.io", "endpointslices", "", "list", "watch"),
        }


def test_the_namespaces_may_be_asked_for(render: Render) -> None:
    """Beside its Roles a release may look whether the namespaces it watches exist, and no more."""
    documents = render("fairlead", scenario("teams"))
    name = "ml:demo-fairlead"
    binding = one(documents, "ClusterRoleBinding", name)

    assert one(documents, "ClusterRole", name)["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["namespaces"],
            "resourceNames": ["team-a", "team-b"],
            "verbs": ["get"],
        }
    ]
    assert binding["roleRef"]["name"] == name
    assert [(each["namespace"], each["name"]) for each in binding["subjects"]] == [
        ("ml", "demo-fairlead-controller"),
        ("ml", "demo-fairlead-gateway"),
    ]
    assert len([d for d in documents if d["kind"].startswith("Cluster")]) == 2


# --- the gateway ------------------------------------------------------------------------------------


def bootstrap_options(documents: list[Object]) -> argparse.Namespace:
    """What the init container is started with, its variable replaced as kubelet does it."""
    container = container_of(documents, "gateway", "bootstrap")
    ((name, value),) = ((each["name"], each["valueFrom"]) for each in container["env"])
    assert value == {"resourceFieldRef": {"containerName": "envoy", "resource": "limits.memory"}}
    args = [arg.replace(f"$({name})", "536870912") for arg in container["args"]]
    return gateway_cli._parser().parse_args(args)


def test_envoy_knows_what_memory_it_may_use(render: Render) -> None:
    """The first file is written for the limit of the container envoy, in bytes."""
    assert bootstrap_options(render("fairlead")).memory_limit == 512 << 20


def test_the_agents_start_with_their_arguments(render: Render) -> None:
    """Both of the agent's command lines are ones that the command takes, of one home and port."""
    documents = render("fairlead")
    bootstrap = bootstrap_options(documents)
    agent = gateway_cli._parser().parse_args(container_of(documents, "gateway", "agent")["args"])

    assert (agent.source, agent.namespace, agent.port) == ("kubernetes", ["ml"], 8081)
    assert agent.experiments_url == "http://demo-fairlead-experiments.ml.svc:8080"
    assert agent.home == bootstrap.home
    assert agent.listen_port == bootstrap.listen_port == 8080
    assert agent.envoy_admin_port == bootstrap.admin_port


def test_envoy_starts_as_it_does_on_one_machine(
    render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Envoy gets exactly the arguments that the gateway's own command gives it."""
    taken: list[list[str]] = []
    monkeypatch.setattr(envoy, "find_envoy", lambda: "envoy")
    monkeypatch.setattr(os, "execv", lambda _path, command: taken.append(command))
    envoy.become_envoy(Home(Path("/run/fairlead")).bootstrap, concurrency=2, log_level="warning")

    container = container_of(render("fairlead"), "gateway", "envoy")
    assert [[*container["command"], *container["args"]]] == taken


def test_the_agent_outlives_envoy(render: Render) -> None:
    """The agent is a sidecar: it starts before Envoy and ships what Envoy wrote last."""
    spec = pod_of(render("fairlead"), "gateway")["spec"]
    bootstrap, agent = spec["initContainers"]
    (main,) = spec["containers"]

    assert (bootstrap["name"], agent["name"], main["name"]) == ("bootstrap", "agent", "envoy")
    assert agent["restartPolicy"] == "Always"
    assert "restartPolicy" not in bootstrap
    assert "readinessProbe" not in agent


def test_the_gateway_drains_before_it_ends(render: Render) -> None:
    """Before Envoy is ended the agent drains it: asked by number of port, with the agent's header."""
    documents = render("fairlead")
    spec = pod_of(documents, "gateway")["spec"]
    hook = container_of(documents, "gateway", "envoy")["lifecycle"]["preStop"]
    strategy = one(documents, "Deployment", "demo-fairlead-gateway")["spec"]["strategy"]

    headers = [{"name": DRAIN_HEADER, "value": "yes"}]
    assert hook == {"httpGet": {"path": "/v1/drain", "port": 8081, "httpHeaders": headers}}
    assert spec["terminationGracePeriodSeconds"] >= 25 + 15
    assert strategy["rollingUpdate"]["maxUnavailable"] == 0


def test_the_gateway_is_ready_by_envoy_alone(render: Render) -> None:
    """Ready is what Envoy's listener says; nothing restarts Envoy for want of a configuration."""
    container = container_of(render("fairlead"), "gateway", "envoy")

    assert container["readinessProbe"]["httpGet"] == {
        "path": "/-/ready",
        "port": "http",
        "scheme": "HTTP",
    }
    assert "livenessProbe" not in container


def test_only_the_agent_holds_a_token(render: Render) -> None:
    """Envoy faces the clients, so it has no account of the cluster."""
    documents = render("fairlead")
    account = "/var/run/secrets/kubernetes.io/serviceaccount"

    def holders() -> Iterator[str]:
        for name in ("bootstrap", "agent", "envoy"):
            container = container_of(documents, "gateway", name)
            if account in [mount["mountPath"] for mount in container["volumeMounts"]]:
                yield name

    assert pod_of(documents, "gateway")["spec"]["automountServiceAccountToken"] is False
    assert list(holders()) == ["agent"]


def ports_of(documents: list[Object], name: str) -> dict[str, int]:
    """A Service's ports by name."""
    service = one(documents, "Service", name)
    return {port["name"]: port["port"] for port in service["spec"]["ports"]}


def test_the_services_have_their_ports(render: Render) -> None:
    """The names and ports of the reference page; the agents' Service has no address of its own."""
    documents = render("fairlead")

    assert ports_of(documents, "demo-fairlead-gateway") == {"http": 80}
    assert ports_of(documents, "demo-fairlead-gateway-agents") == {"agent": 8081}
    assert ports_of(documents, "demo-fairlead-experiments") == {"http": 8080}
    agents = one(documents, "Service", "demo-fairlead-gateway-agents")
    assert agents["spec"]["clusterIP"] == "None"


def test_tls_comes_from_a_secret(render: Render) -> None:
    """With a certificate all that was HTTP is HTTPS, and Envoy alone has the folder."""
    documents = render("fairlead", {"gateway": {"tls": {"secretName": "certificate"}}})
    volumes = pod_of(documents, "gateway")["spec"]["volumes"]

    envoy = container_of(documents, "gateway", "envoy")
    bootstrap = bootstrap_options(documents)
    agent = gateway_cli._parser().parse_args(container_of(documents, "gateway", "agent")["args"])

    assert ports_of(documents, "demo-fairlead-gateway") == {"https": 443}
    assert envoy["ports"] == [{"name": "https", "containerPort": 8443}]
    assert envoy["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert agent.listen_port == bootstrap.listen_port == 8443
    assert str(agent.tls_folder) == "/etc/fairlead/tls"
    ready = one(documents, "Pod", "demo-fairlead-test")["spec"]["containers"][0]["args"][2]
    assert ready == "https://demo-fairlead-gateway.ml.svc:443"
    assert [v["secret"]["secretName"] for v in volumes if v["name"] == "tls"] == ["certificate"]
    mount = {"name": "tls", "mountPath": "/etc/fairlead/tls", "readOnly": True}
    holders = [
        name
        for name in ("bootstrap", "agent", "envoy")
        if mount in container_of(documents, "gateway", name)["volumeMounts"]
    ]
    assert holders == ["envoy"]
    plain = render("fairlead")
    assert "--tls-folder" not in json.dumps(container_of(plain, "gateway", "agent"))


def test_the_edge_has_one_backend(render: Render) -> None:
    """Ingress and HTTPRoute send everything to the gateway: the splitting is its own."""
    values = {**scenario("production"), "fullnameOverride": "demo-fairlead"}
    documents = render("fairlead", values)
    route = one(documents, "HTTPRoute", "demo-fairlead-gateway")["spec"]
    ingress = one(documents, "Ingress", "demo-fairlead-gateway")["spec"]

    assert [rule["backendRefs"] for rule in route["rules"]] == [
        [{"name": "demo-fairlead-gateway", "port": 443}]
    ]
    backends = [
        path["backend"]["service"] for rule in ingress["rules"] for path in rule["http"]["paths"]
    ]
    assert backends == [{"name": "demo-fairlead-gateway", "port": {"name": "https"}}]


def test_only_outcomes_are_opened_to_the_outside(render: Render) -> None:
    """The experiments' Ingress lets clients post outcomes and nothing else."""
    documents = render("fairlead", {"experiments": {"ingress": {"enabled": True}}})
    ingress = one(documents, "Ingress", "demo-fairlead-experiments")["spec"]
    paths = [path for rule in ingress["rules"] for path in rule["http"]["paths"]]

    assert [(path["path"], path["pathType"]) for path in paths] == [("/v1/outcomes", "Exact")]


def test_the_autoscaler_owns_the_replicas(render: Render) -> None:
    """With autoscaling the Deployment names no number: an upgrade must not scale down under load."""
    documents = render("fairlead", {"gateway": {"autoscaling": {"enabled": True}}})

    assert "replicas" not in one(documents, "Deployment", "demo-fairlead-gateway")["spec"]
    target = one(documents, "HorizontalPodAutoscaler", "demo-fairlead-gateway")["spec"]
    assert target["scaleTargetRef"]["name"] == "demo-fairlead-gateway"
    assert one(render("fairlead"), "Deployment", "demo-fairlead-gateway")["spec"]["replicas"] == 2


@pytest.mark.parametrize("component", ["controller", "gateway", "experiments"])
def test_replicas_spread_over_nodes(render: Render, component: str) -> None:
    """By node alone: one more key that nodes lack would switch the spreading off."""
    constraints = pod_of(render("fairlead"), component)["spec"]["topologySpreadConstraints"]

    assert [constraint["topologyKey"] for constraint in constraints] == ["kubernetes.io/hostname"]


# --- experiments ------------------------------------------------------------------------------------


def environment_of(documents: list[Object]) -> Object:
    """The experiments service's environment."""
    env = container_of(documents, "experiments", "experiments")["env"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in env}


def test_experiments_starts_with_its_arguments(render: Render) -> None:
    """The command line is one that the command takes, and holds no database."""
    args = container_of(render("fairlead"), "experiments", "experiments")["args"]
    options = experiments_cli._parser().parse_args(args)

    assert (options.command, options.host, options.port) == ("serve", "0.0.0.0", 8080)  # noqa: S104
    assert options.database_url is None
    assert options.keep == timedelta(days=90)


@pytest.mark.parametrize(("keep", "read"), [(30, timedelta(days=30)), ("forever", None)])
def test_old_rows_go_when_the_values_say(render: Render, keep: object, read: object) -> None:
    """Days, or never: the command takes what the values are."""
    documents = render("fairlead", {"experiments": {"keepDays": keep}})
    args = container_of(documents, "experiments", "experiments")["args"]

    assert experiments_cli._parser().parse_args(args).keep == read


def test_the_bundled_database_is_reached_without_a_password_in_its_url(render: Render) -> None:
    """The password comes by itself, from the Secret that the database was made with."""
    documents = render("fairlead")
    env = environment_of(documents)

    expected = "postgresql+psycopg://experiments@demo-fairlead-postgresql:5432/experiments"
    assert env["FAIRLEAD_DATABASE_URL"] == expected
    assert env["PGPASSWORD"] == {
        "secretKeyRef": {"name": "demo-fairlead-postgresql", "key": "password"}
    }
    one(documents, "Service", "demo-fairlead-postgresql")


def test_an_external_database_comes_from_a_secret(render: Render) -> None:
    """With a database of its own nothing of PostgreSQL is installed."""
    values = {
        "postgresql": {"enabled": False},
        "experiments": {"database": {"existingSecret": "db", "key": "uri"}},
    }
    documents = render("fairlead", values)

    secret = {"secretKeyRef": {"name": "db", "key": "uri"}}
    assert environment_of(documents) == {"FAIRLEAD_DATABASE_URL": secret}
    assert not [d for d in documents if d["metadata"]["name"] == "demo-fairlead-postgresql"]


# --- the CRD ----------------------------------------------------------------------------------------


def crd_of(documents: list[Object]) -> Object | None:
    """The CRD, if the chart makes it."""
    found = [d for d in documents if d["kind"] == "CustomResourceDefinition"]
    return found[0] if found else None


def test_the_crd_is_the_generated_one(render: Render) -> None:
    """The CRD's spec is the generated file's, word for word; it stays when the release goes."""
    crd = crd_of(render("fairlead"))
    generated = yaml.safe_load((CHART / "files" / "crd.yaml").read_text())

    assert crd is not None
    assert crd["spec"] == generated["spec"]
    assert crd["metadata"]["name"] == generated["metadata"]["name"]
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_the_crd_can_be_left_out_or_let_go(render: Render) -> None:
    """A second release in the cluster brings none; who wants it gone with the release says so."""
    released = crd_of(render("fairlead", {"crds": {"keep": False}}))

    assert crd_of(render("fairlead", {"crds": {"enabled": False}})) is None
    assert released is not None
    assert "annotations" not in released["metadata"]


# --- edges ------------------------------------------------------------------------------------------

PORTS = (8080, 8081, 5432, 5000, 9901)
OUTSIDE = {"mlflow", "monitoring", "client", "stranger"}
"""Pods that are not the platform's: a client is one of the watched namespace, a stranger another team's."""

EDGES = {
    ("controller", "mlflow", 5000),
    ("controller", "gateway", 8081),
    ("controller", "experiments", 8080),
    ("gateway", "experiments", 8080),
    ("gateway", "model", 8080),
    ("experiments", "postgresql", 5432),
    ("model", "mlflow", 5000),
    ("model", "experiments", 8080),
    ("test", "gateway", 8080),
    ("test", "experiments", 8080),
    ("client", "experiments", 8080),
    ("monitoring", "controller", 8080),
    ("monitoring", "gateway", 8081),
    ("monitoring", "experiments", 8080),
    ("monitoring", "model", 8080),
    *((anybody, "gateway", 8080) for anybody in OUTSIDE),
}
"""Who may open a connection to whom; whatever is not here is refused."""


@dataclasses.dataclass(frozen=True)
class Side:
    """A pod, as policies see it."""

    namespace: str
    labels: Object
    policies: Sequence[Object] = ()
    ports: Object = dataclasses.field(default_factory=dict)


def matches(selector: Object, labels: Object) -> bool:
    """Whether a label selector of plain labels selects the labels."""
    assert set(selector) <= {"matchLabels"}
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def is_peer(peer: Object, other: Side, home: str) -> bool:
    """Whether a NetworkPolicyPeer means the pod; addresses mean no pod here."""
    if "ipBlock" in peer:
        return False
    namespace = peer.get("namespaceSelector")
    names = {"kubernetes.io/metadata.name": other.namespace}
    is_near = other.namespace == home if namespace is None else matches(namespace, names)
    return is_near and matches(peer.get("podSelector", {}), other.labels)


def lets(side: Side, direction: str, other: Side, port: int, ports: Object) -> bool:
    """Whether a pod's policies let it connect to, or be reached by, another; without any they do."""
    key = {"egress": "to", "ingress": "from"}[direction]
    for rule in (rule for policy in side.policies for rule in policy[direction]):
        peers = rule.get(key)
        named = [ports.get(entry["port"], entry["port"]) for entry in rule["ports"]]
        if port in named and (
            not peers or any(is_peer(peer, other, side.namespace) for peer in peers)
        ):
            return True
    return not side.policies


def open_edges(sides: dict[str, Side]) -> set[tuple[str, str, int]]:
    """Every connection that both ends let through and one of them could refuse."""
    return {
        (one, other, port)
        for one, source in sides.items()
        for other, target in sides.items()
        for port in PORTS
        if one != other
        and (source.policies or target.policies)
        and lets(source, "egress", target, port, target.ports)
        and lets(target, "ingress", source, port, target.ports)
    }


def component_sides(
    documents: list[Object], pods: Callable[..., Any], containers: Callable[..., Any]
) -> dict[str, Side]:
    """Every component of the chart, with the policies that select its pods."""
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    found = {}
    for _, pod in pods(documents):
        labels = pod["metadata"]["labels"]
        mine = [policy for policy in policies if matches(policy["podSelector"], labels)]
        ports = {
            port["name"]: port["containerPort"]
            for container in containers(pod)
            for port in container.get("ports", [])
        }
        found[labels["app.kubernetes.io/component"]] = Side("ml", labels, mine, ports)
    return found


def model_side(documents: list[Object]) -> Side:
    """A model's pod, with the policy that the controller makes of its settings."""
    serving = settings_of(documents).serving
    settings = dataclasses.replace(serving, has_network_policy=True)
    owner = Owner(namespace="team-a", name="flights", uid="1")
    spec = read_spec(
        {
            "apiVersion": "fairlead.dev/v1alpha1",
            "kind": "ServedModel",
            "metadata": {"name": "flights"},
            "spec": {"model": "flights"},
        }
    )
    made = {
        document["kind"]: document for document in build_manifests(owner, spec, "3", 1, settings)
    }
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    return Side("team-a", labels, [made["NetworkPolicy"]["spec"]])


@pytest.fixture(scope="session")
def sides_of(
    render: Render, pods: Callable[..., Any], containers: Callable[..., Any]
) -> Callable[[Object], dict[str, Side]]:
    """Returns every pod that takes part, by its role, for some values of `networkPolicy`."""
    prometheus = {"app.kubernetes.io/name": "prometheus"}
    mlflow = {"app.kubernetes.io/name": "mlflow", "app.kubernetes.io/component": "server"}

    def make(policy: Object) -> dict[str, Side]:
        documents = render("fairlead", {"watchNamespaces": ["team-a"], "networkPolicy": policy})
        return {
            **component_sides(documents, pods, containers),
            "model": model_side(documents),
            "mlflow": Side("mlflow", mlflow),
            "monitoring": Side("monitoring", prometheus),
            "client": Side("team-a", {}),
            "stranger": Side("team-c", {}),
        }

    return make


def test_only_the_named_edges_are_open(sides_of: Callable[[Object], dict[str, Side]]) -> None:
    """Between any two pods exactly the ports are open that the table names, seen from both ends."""
    prometheus = {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}
    sides = sides_of({"monitoring": [{"namespaceSelector": {}, "podSelector": prometheus}]})

    assert {"controller", "gateway", "experiments", "postgresql", "test"} < set(sides)
    assert open_edges(sides) == EDGES


def test_nobody_reads_metrics_unasked(sides_of: Callable[[Object], dict[str, Side]]) -> None:
    """Without a value that says who monitors, a pod that calls itself Prometheus gets nothing."""
    edges = open_edges(sides_of({}))

    assert edges == {
        edge for edge in EDGES if edge[0] != "monitoring" or edge == ("monitoring", "gateway", 8080)
    }


def test_the_gateway_can_be_closed(sides_of: Callable[[Object], dict[str, Side]]) -> None:
    """With `clients` only they reach the gateway, and the release's own test."""
    team = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team-a"}}}
    edges = open_edges(sides_of({"clients": [team]}))

    assert {source for source, target, port in edges if (target, port) == ("gateway", 8080)} == {
        "client",
        "test",
    }


@pytest.mark.parametrize("component", ["controller", "gateway", "test"])
def test_the_api_server_is_named_by_address(render: Render, component: str) -> None:
    """Those who talk to the API server may reach the addresses that the values name, and no more."""
    policy = one(
        render("fairlead", scenario("teams")), "NetworkPolicy", f"demo-fairlead-{component}"
    )
    blocks = [rule for rule in policy["spec"]["egress"] if "ipBlock" in json.dumps(rule)]

    assert blocks == [
        {
            "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
            "ports": [{"protocol": "TCP", "port": 6443}],
        }
    ]


@pytest.mark.parametrize("component", ["experiments", "postgresql"])
def test_the_others_reach_no_address(render: Render, component: str) -> None:
    """Who does not talk to the API server has no way to any address outside the cluster."""
    policy = one(render("fairlead"), "NetworkPolicy", f"demo-fairlead-{component}")

    assert "ipBlock" not in json.dumps(policy["spec"]["egress"])
    assert all(rule.get("to") for rule in policy["spec"]["egress"])


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"gateway": {"httpRoute": {"enabled": True}}}, "gateway.httpRoute.parentRefs"),
        (
            {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 9}}},
            "gateway.autoscaling.minReplicas",
        ),
        ({"postgresql": {"enabled": False}}, "experiments.database.existingSecret"),
        (
            {"experiments": {"database": {"existingSecret": "db"}}},
            "experiments.database.existingSecret",
        ),
        ({"metrics": {"serviceMonitor": {"enabled": True}}}, "networkPolicy.monitoring"),
        ({"mlflow": {"url": "mlflow:5000"}}, "/mlflow/url"),
        ({"watchNamespaces": ["Team_A"]}, "/watchNamespaces/0"),
        ({"networkPolicy": {"apiServer": {"cidrs": []}}}, "/networkPolicy/apiServer/cidrs"),
        ({"fullnameOverride": "x" * 41}, "/fullnameOverride"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(helm: Any, values: Object, key: str) -> None:
    """Rendering stops, and the message names the key."""
    assert key in helm.refusal("fairlead", values)


def test_an_account_in_a_url_is_refused_and_not_repeated(helm: Any) -> None:
    """The message says where the account belongs, and does not print it."""
    complaint = helm.refusal("fairlead", {"mlflow": {"url": "http://me:hunter2@mlflow:5000"}})

    assert "mlflow.credentials.existingSecret" in complaint
    assert "hunter2" not in complaint


# --- what `helm test` asks --------------------------------------------------------------------------


class Answers(BaseHTTPRequestHandler):
    """Answers each path with a code."""

    codes: ClassVar[dict[str, int]] = {}

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(self.codes.get(self.path, 404))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def answers() -> Iterator[tuple[str, dict[str, int]]]:
    """A server's URL, and the codes it answers by path."""
    handler = type("Handler", (Answers,), {"codes": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.codes
        server.shutdown()
        thread.join()


def ask(*arguments: str) -> tuple[int, str]:
    """Run what the test's pod runs; return its exit code and what it prints."""
    command = [sys.executable, str(CHART / "files" / "check.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert not done.stderr
    return done.returncode, done.stdout


def test_the_test_passes_when_all_answer(answers: tuple[str, dict[str, int]]) -> None:
    """Gateway and experiments are asked for their readiness."""
    url, codes = answers
    codes |= {"/-/ready": 200, "/readyz": 200}

    assert ask("0", url, url) == (0, "gateway: ready\nexperiments: ready\n")


def test_the_test_names_all_that_is_wrong(answers: tuple[str, dict[str, int]]) -> None:
    """One run tells everything: the URL and what it answered."""
    url, codes = answers
    codes |= {"/-/ready": 503}
    code, text = ask("0", url, url)

    assert code == 1
    assert f"gateway: {url}/-/ready answered 503" in text
    assert f"experiments: {url}/readyz answered 404" in text


def test_the_tests_pod_asks_this_release(render: Render) -> None:
    """The pod runs that script with the Services and the watched namespaces of the release."""
    pod = one(render("fairlead", scenario("teams")), "Pod", "demo-fairlead-test")
    (container,) = pod["spec"]["containers"]
    script, _patience, gateway, experiments, *namespaces = container["args"]

    assert script.strip() == (CHART / "files" / "check.py").read_text().strip()
    assert gateway == "http://demo-fairlead-gateway.ml.svc:80"
    assert experiments == "http://demo-fairlead-experiments.ml.svc:8080"
    assert namespaces == ["team-a", "team-b"]


# --- monitoring -------------------------------------------------------------------------------------

_OWN = frozenset({"namespace", "pod", "job", "instance", "le"})
"""Labels that Prometheus adds, and a histogram's."""
_SUFFIXES = {
    "counter": ["_total"],
    "gauge": [""],
    "info": ["_info"],
    "histogram": ["_bucket", "_sum", "_count"],
}


def described(registry: CollectorRegistry) -> dict[str, set[str]]:
    """The samples a registry exposes, and the labels of each."""
    found: dict[str, set[str]] = {}
    for collector in registry._collector_to_names:
        names = set(getattr(collector, "_labelnames", ()))
        for family in getattr(collector, "describe", collector.collect)():
            labels = names | {key for sample in family.samples for key in sample.labels}
            found |= {family.name + suffix: labels for suffix in _SUFFIXES[family.type]}
    return found


def rollout_labels() -> dict[str, set[str]]:
    """The controller's metrics that are read off a status, with a status to read."""
    metrics = ControllerMetrics()
    rollout = Rollout(
        id="1", candidate="4", baseline="3", state=RolloutState.RUNNING, started_at=NOW, rules=""
    )
    metrics.saw("ml/flights", "flights", Status(stable="3", rollout=rollout))
    return described(metrics.registry)


def exposed_metrics() -> dict[str, set[str]]:
    """Every metric that our processes expose, and its labels."""
    return {
        **described(PrometheusMeter()._registry),
        **described(ServingMetrics("m", "1")._registry),
        **described(ExperimentsMetrics().registry),
        **rollout_labels(),
    }


def rules() -> list[Object]:
    """The alerts."""
    groups = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboards() -> dict[str, Object]:
    """The dashboards by file."""
    found = {path.name: json.loads(path.read_text()) for path in (CHART / "files").rglob("*.json")}
    assert found
    return found


def queries() -> list[tuple[str, str]]:
    """Every PromQL expression of the chart, with where it stands."""
    alerts = [(rule["alert"], rule["expr"]) for rule in rules()]
    panels = [
        (f"{name}: {panel['title']}", target["expr"])
        for name, dashboard in dashboards().items()
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]
    variables = [
        (f"{name}: ${variable['name']}", variable["query"]["query"])
        for name, dashboard in dashboards().items()
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    ]
    return [*alerts, *panels, *((where, _unwrapped(query)) for where, query in variables)]


def _unwrapped(query: str) -> str:
    """A Grafana variable's query as the metric and the label it asks for."""
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
    assert found, query
    return f"count by ({found[2]}) ({found[1]})"


def selectors(query: str) -> Iterator[tuple[str, set[str]]]:
    """Every metric an expression reads, and the labels it is filtered by."""
    plain = re.sub(r"\$__(rate_interval|range)", "5m", query)
    found: list[tuple[str, set[str]]] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {matcher.name for matcher in node.matchers.matchers}))
        return True

    promql_parser.walk(promql_parser.parse(plain), visit)
    yield from found


def groupings(query: str) -> set[str]:
    """The labels an expression groups or joins by."""
    lists = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", query)
    return {label.strip() for labels in lists for label in labels.split(",")}


@pytest.mark.parametrize(("where", "query"), [pytest.param(*q, id=q[0]) for q in queries()])
def test_queries_ask_for_what_there_is(where: str, query: str) -> None:
    """Each expression is PromQL, and each metric and label in it is one that our code exposes."""
    metrics = exposed_metrics()
    read = list(selectors(query))

    assert read, where
    for name, labels in read:
        assert name in metrics, where
        assert labels <= metrics[name] | _OWN, (where, name)
    known = set().union(*(metrics[name] for name, _ in read)) | _OWN
    assert groupings(query) <= known, where


def test_alerts_say_what_they_mean() -> None:
    """Each alert has a name of its own, a severity, a summary and a description."""
    names = [rule["alert"] for rule in rules()]

    assert len(names) == len(set(names))
    for rule in rules():
        assert rule["alert"].startswith("Fairlead")
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")


def test_alerts_name_labels_they_have() -> None:
    """A summary's labels survive the expression: Prometheus would print nothing in their place."""
    for rule in rules():
        wanted = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        kept = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
        if kept and wanted:
            assert wanted <= {label.strip() for label in kept[0].split(",")}, rule["alert"]


def test_dashboards_are_whole() -> None:
    """Each panel has an id of its own, a description, a unit and a place; nothing overlaps."""
    for name, dashboard in dashboards().items():
        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels), name
        places: set[tuple[int, int]] = set()
        for panel in panels:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert at["x"] + at["w"] <= 24
            assert not places & cells, (name, panel["title"])
            places |= cells
            if panel["type"] != "row":
                assert panel["description"].endswith("."), (name, panel["title"])
                assert panel["fieldConfig"]["defaults"]["unit"], (name, panel["title"])


def test_monitoring_is_off_unless_asked(render: Render) -> None:
    """By default nothing needs the Prometheus operator's kinds; asked for, all of it is there."""
    values = {**scenario("production"), "fullnameOverride": "demo-fairlead"}
    kinds = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    documents = render("fairlead", values)
    data = one(documents, "ConfigMap", "demo-fairlead-dashboards")["data"]

    assert not kinds & {document["kind"] for document in render("fairlead")}
    assert kinds <= {document["kind"] for document in documents}
    assert one(documents, "PrometheusRule", "demo-fairlead")["spec"]["groups"]
    assert {name: json.loads(text) for name, text in data.items()} == {
        f"fairlead-{name}": dashboard for name, dashboard in dashboards().items()
    }


def test_a_rollouts_namespace_is_the_served_models(render: Render) -> None:
    """Alerts and dashboards tell namesakes apart by it; the others' is that of their pod."""
    values = {**scenario("production"), "fullnameOverride": "demo-fairlead"}
    honoured = {
        document["metadata"]["name"]
        for document in render("fairlead", values)
        if document["kind"] in {"ServiceMonitor", "PodMonitor"}
        for endpoint in document["spec"].get(
            "endpoints", document["spec"].get("podMetricsEndpoints")
        )
        if endpoint.get("honorLabels")
    }

    assert honoured == {"demo-fairlead-controller"}


def test_every_metric_is_read_by_a_monitor(
    render: Render, pods: Callable[..., Any], containers: Callable[..., Any]
) -> None:
    """Each monitor's port is one that the pods it selects have, the models' pods included."""
    values = {**scenario("production"), "fullnameOverride": "demo-fairlead"}
    documents = render("fairlead", values)
    sides = {**component_sides(documents, pods, containers), "model": model_side(documents)}
    named = {
        name: {*side.ports, *(["http"] if name == "model" else [])} for name, side in sides.items()
    }
    read = {
        name
        for document in documents
        if document["kind"] in {"ServiceMonitor", "PodMonitor"}
        for endpoint in document["spec"].get(
            "endpoints", document["spec"].get("podMetricsEndpoints")
        )
        for name, side in sides.items()
        if matches(document["spec"]["selector"], side.labels) and endpoint["port"] in named[name]
    }

    assert read == {"controller", "gateway", "experiments", "model"}

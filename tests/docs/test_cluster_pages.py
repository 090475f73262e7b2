"""The pages about a cluster say what the charts render and what the code exposes."""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from fairlead_experiments.entrypoints.http import Metrics as ExperimentsMetrics
from fairlead_gateway.adapters.metrics import PrometheusMeter
from fairlead_rollout.adapters.metrics import ControllerMetrics
from fairlead_serving.adapters.metrics import Metrics as ServingMetrics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RUNBOOK = DOCS / "how-to/operate-in-a-cluster.md"
SECURITY = DOCS / "explanation/security.md"
GITOPS = DOCS / "how-to/use-gitops.md"
TUTORIAL = DOCS / "tutorials/kind.md"
KUBERNETES = "1.34"
FENCED_YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMESPACES = {"fairlead": "platform", "ml": "models", "mlflow": "MLflow"}

Object = dict[str, Any]
Release = Callable[..., Sequence[Object]]

EVERYTHING = (
    *("--set-json", 'networkPolicy.monitoring=[{"podSelector":{"matchLabels":{"who":"monitoring"}}}]'),
)  # fmt: skip
"""Options that open what is closed by default, so that the page can name it."""


def section(page: Path, title: str) -> str:
    """Return a section of a page, its subsections included."""
    text = page.read_text("utf-8")
    found = re.search(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL
    )
    assert found, title
    return found[2]


def table(page: Path, title: str) -> list[list[str]]:
    """Return the rows of the first table of a section, without backquotes."""
    lines = [line for line in section(page, title).splitlines() if line.startswith("|")]
    assert len(lines) > 2, title
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines[2:]]  # fmt: skip


def yaml_blocks(page: Path) -> list[str]:
    """Return a page's YAML blocks."""
    return FENCED_YAML.findall(page.read_text("utf-8"))


@pytest.fixture(scope="module")
def releases(release: Release) -> Mapping[str, Sequence[Object]]:
    """The three releases of `make kind-up`, with monitoring let in."""
    return {
        "mlflow": release("mlflow", *EVERYTHING),
        "fairlead": release("fairlead", *EVERYTHING),
        "flight-delay": release("flight-delay"),
    }


# --- the runbook --------------------------------------------------------------------------------------


def alerts() -> dict[str, str]:
    """The chart's alerts, with their severity."""
    rules = yaml.safe_load((ROOT / "charts/fairlead/files/alerts.yaml").read_text("utf-8"))
    return {rule["alert"]: rule["labels"]["severity"] for g in rules["groups"] for rule in g["rules"]}  # fmt: skip


def test_every_alert_has_its_entry() -> None:
    """The runbook has an entry for each alert of the chart, in its order, and for no other."""
    assert re.findall(r"^### (\w+)$", section(RUNBOOK, "Alerts"), re.MULTILINE) == list(alerts())


@pytest.mark.parametrize("alert", alerts())
def test_every_alert_says_what_to_look_at_and_do(alert: str) -> None:
    """An entry begins with the alert's severity, and has what to look at and what to do."""
    text = section(RUNBOOK, "Alerts").partition(f"### {alert}\n")[2].partition("\n### ")[0]
    words = {"info": "Information", "warning": "Warning", "critical": "Critical"}

    assert text.strip().startswith(f"{words[alerts()[alert]]}.\n")
    assert "- **Look at**: " in text
    assert "- **Do**: " in text


def metrics() -> dict[str, set[str]]:
    """Every metric that the code exposes, with its labels."""
    gateway, rollout = PrometheusMeter(), ControllerMetrics()
    serving = ServingMetrics("m", "1")
    serving.predictor = lambda: "own"  # As soon as a model is loaded.
    return {
        **described(gateway._registry),
        **described(serving._registry),
        **described(ExperimentsMetrics().registry),
        **described(rollout.registry),
        **{metric.name: set() for metric in rollout.collect()},
    }


def described(registry: CollectorRegistry) -> dict[str, set[str]]:
    """The metrics of a registry, with their labels; one may have no samples yet."""
    return {
        metric.name: {
            *getattr(collector, "_labelnames", ()),
            *(label for sample in metric.samples for label in sample.labels if label != "le"),
        }
        for collector in registry._collector_to_names
        for metric in collector.collect()
    }


def test_the_metrics_are_those_of_the_code() -> None:
    """The table of metrics names each metric that the code exposes, and no other."""
    named = [row[0] for row in table(RUNBOOK, "Metrics")]

    assert sorted(named) == sorted(metrics())


def test_the_metrics_have_the_labels_of_the_code() -> None:
    """A metric's row names its labels."""
    exposed = metrics()
    rows = {row[0]: set(filter(None, row[1].split(", "))) for row in table(RUNBOOK, "Metrics")}
    read_off = {metric.name for metric in ControllerMetrics().collect()}

    assert {name: labels for name, labels in rows.items() if name not in read_off} == {
        name: labels for name, labels in exposed.items() if name not in read_off
    }


# --- the security page --------------------------------------------------------------------------------


def rights(documents: Sequence[Object]) -> Iterator[tuple[str, ...]]:
    """What each Role allows, in the words of the page."""
    for document in documents:
        if document["kind"] in {"Role", "ClusterRole"}:
            namespace = document["metadata"].get("namespace")
            where = NAMESPACES[namespace] if namespace else "cluster"
            for who in holders(document, documents):
                for rule in document["rules"]:
                    named = "".join(f" {name}" for name in rule.get("resourceNames", []))
                    for group in rule["apiGroups"]:
                        for resource in rule["resources"]:
                            verbs = ", ".join(rule["verbs"])
                            yield who, where, group or "core", resource + named, verbs


def holders(role: Object, documents: Sequence[Object]) -> Iterator[str]:
    """Who holds a role: the components of the accounts that it is bound to."""
    components = {
        document["metadata"]["name"]: document["metadata"]["labels"]["app.kubernetes.io/component"]
        for document in documents
        if document["kind"] == "ServiceAccount"
    }
    for document in documents:
        metadata, bound = document["metadata"], document.get("roleRef", {})
        if (
            document["kind"] == f"{role['kind']}Binding"
            and bound["name"] == role["metadata"]["name"]
            and metadata.get("namespace") == role["metadata"].get("namespace")
        ):
            yield from (components[subject["name"]] for subject in document["subjects"])


def test_the_rights_are_those_of_the_charts(releases: Mapping[str, Sequence[Object]]) -> None:
    """The table has each rule of each rendered role, and the whole cluster's only lets look."""
    documents = list(chain.from_iterable(releases.values()))
    expected = sorted(set(rights(documents)))

    assert [d["rules"] for d in documents if d["kind"] == "ClusterRole"] == [
        [
            {
                "apiGroups": [""],
                "resources": ["namespaces"],
                "resourceNames": ["ml"],
                "verbs": ["get"],
            }
        ]
    ]
    assert sorted(tuple(row[:5]) for row in table(SECURITY, "What each component may do")) == expected  # fmt: skip


PEERS = {
    ("fairlead", "controller"): "controller",
    ("fairlead", "gateway"): "gateway",
    ("fairlead", "experiments"): "experiments",
    ("fairlead", "postgresql"): "experiments' PostgreSQL",
    ("fairlead", "test"): "platform's test",
    ("fairlead-serving", "server"): "models' pods",
    ("mlflow", "server"): "MLflow",
    ("mlflow", "postgresql"): "MLflow's PostgreSQL",
    ("mlflow", "s3"): "S3",
    ("mlflow", "setup"): "MLflow's setup",
    ("mlflow", "gc"): "MLflow's gc",
    ("mlflow", "test"): "MLflow's test",
    ("model", "test"): "model's test",
    ("model", "training"): "training",
}
PORTS = {"http": {"MLflow": 5000}, "metrics": {"MLflow": 9090}}
NAMED = {
    "http": 8080,
    "https": 8443,
    "agent": 8081,
    "metrics": 8080,
    "postgresql": 5432,
    "s3": 7070,
}


def pod_name(labels: Mapping[str, str]) -> str:
    """Name the pods that labels select, in the page's words."""
    return PEERS[labels["app.kubernetes.io/name"], labels["app.kubernetes.io/component"]]


def peer_name(peer: Object, home: str) -> str:
    """Name a peer of a NetworkPolicy, in the page's words."""
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    space = peer.get("namespaceSelector", {}).get("matchLabels", {})
    if "ipBlock" in peer:
        return "API server" if peer["ipBlock"]["cidr"] == "0.0.0.0/0" else peer["ipBlock"]["cidr"]
    if labels.get("k8s-app") == "kube-dns":
        return "DNS"
    if "who" in labels:
        return labels["who"]
    if labels:
        return pod_name(labels)
    namespace = NAMESPACES[space.get("kubernetes.io/metadata.name", home)]
    return f"any pod of {namespace}"


def edges(rules: Sequence[Object], side: str, pod: str, home: str) -> set[tuple[str, int]]:
    """The (peer, port) pairs of a policy's rules."""
    found = set()
    for rule in rules:
        names = [peer_name(peer, home) for peer in rule.get(side, [])] or ["anybody"]
        for name in names:
            for port in rule["ports"]:
                number = port["port"]
                target = pod if side == "from" else name
                found.add((name, PORTS.get(number, {}).get(target) or NAMED.get(number, number)))
    return found


def policies(documents: Sequence[Object]) -> Iterator[tuple[str, Object, str]]:
    """Each policy's pods, rules and namespace; that of the models' pods from the settings."""
    for document in documents:
        if document["kind"] == "NetworkPolicy":
            labels = document["spec"]["podSelector"]["matchLabels"]
            yield pod_name(labels), document["spec"], document["metadata"]["namespace"]
        if document["kind"] == "ConfigMap" and "controller.json" in document.get("data", {}):
            settings = json.loads(document["data"]["controller.json"])["serving"]["networkPolicy"]
            port = {"port": 8080}
            ingress = [{"from": settings["ingressFrom"], "ports": [port]}]
            yield "models' pods", {"ingress": ingress, "egress": settings["egress"]}, "ml"


def written(cell: str) -> set[tuple[str, int]]:
    """Read a cell such as `controller, monitoring: 8081; DNS: 53`."""
    found = set()
    for part in filter(None, cell.split("; ")):
        names, _, ports = part.rpartition(": ")
        found |= {(name.strip(), int(port)) for name in names.split(", ") for port in ports.split(", ")}  # fmt: skip
    return found


def test_the_network_is_that_of_the_charts(releases: Mapping[str, Sequence[Object]]) -> None:
    """The table of the network has each edge of each rendered NetworkPolicy, both directions."""
    documents = list(chain.from_iterable(releases.values()))
    rendered = {
        pod: (
            edges(spec.get("ingress", []), "from", pod, home),
            edges(spec.get("egress", []), "to", pod, home),
        )
        for pod, spec, home in policies(documents)
    }
    rows = {row[0]: (written(row[1]), written(row[2])) for row in table(SECURITY, "Network")}

    assert rows == rendered


def secrets_of(pod: Object) -> Iterator[str]:
    """Name the Secrets that a pod reads."""
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        for entry in container.get("env", []):
            if "secretKeyRef" in entry.get("valueFrom", {}):
                yield entry["valueFrom"]["secretKeyRef"]["name"]
    for volume in pod.get("volumes", []):
        sources = [volume, *volume.get("projected", {}).get("sources", [])]
        for source in sources:
            if "secret" in source:
                yield source["secret"].get("secretName") or source["secret"]["name"]


def pods_of(documents: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Each pod of the releases, in the page's words."""
    for document in documents:
        spec = document.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        template = document if document["kind"] == "Pod" else template
        if template and "containers" in template.get("spec", {}):
            yield pod_name(template["metadata"]["labels"]), template["spec"]


def test_the_secrets_are_those_of_the_charts(releases: Mapping[str, Sequence[Object]]) -> None:
    """The table of Secrets names who reads each, and each that a pod reads is in it."""
    documents = list(chain.from_iterable(releases.values()))
    readers: dict[str, set[str]] = {}
    for name, pod in pods_of(documents):
        for secret in secrets_of(pod):
            readers.setdefault(secret, set()).add(name)
    readers["fairlead-mlflow"].add("models' pods")  # The controller makes them.

    assert {row[0]: set(filter(None, row[2].split(", "))) for row in table(SECURITY, "Secrets")} == readers  # fmt: skip


def test_few_hold_a_token(releases: Mapping[str, Sequence[Object]]) -> None:
    """As the page says, controller, gateway and the platform's test alone hold a token."""
    documents = list(chain.from_iterable(releases.values()))
    with_token = {
        name
        for name, pod in pods_of(documents)
        if pod.get("automountServiceAccountToken", True) or "serviceAccountToken" in str(pod)
    }

    assert with_token == {"controller", "gateway", "platform's test"}


# --- GitOps -------------------------------------------------------------------------------------------


def test_the_gitops_values_make_no_secret(helm: Any, tmp_path: Path) -> None:
    """With the page's values for Argo CD two renderings are equal, and hold no Secret."""
    for chart in ("mlflow", "fairlead"):
        title = f"# {chart}-argo-values.yaml\n"
        (values,) = [text for text in yaml_blocks(GITOPS) if text.startswith(title)]
        (tmp_path / "values.yaml").write_text(values)
        arguments = ("template", chart, str(ROOT / "charts" / chart), "--namespace", chart)
        texts = [
            helm.run(*arguments, "--values", f"{tmp_path}/{up}values.yaml")[1] for up in ("", "./")
        ]

        assert texts[0] == texts[1]
        assert "kind: Deployment" in texts[0]
        assert "kind: Secret" not in texts[0]


def embedded_values() -> Iterator[tuple[str, Object]]:
    """The values that the page's objects for Argo CD and Flux hold, with their charts."""
    for text in yaml_blocks(GITOPS):
        for document in yaml.safe_load_all(text):
            if document.get("kind") == "Application":
                source = document["spec"]["source"]
                yield source["path"], source["helm"]["valuesObject"]
            if document.get("kind") == "HelmRelease":
                spec = document["spec"]
                yield spec["chart"]["spec"]["chart"], spec["values"]


def test_the_embedded_values_render(helm: Any, tmp_path: Path) -> None:
    """The values inside an Application or a HelmRelease are the chart's."""
    found = list(embedded_values())
    assert len(found) == 2
    for chart, values in found:
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
        code, text = helm.run("template", "x", str(ROOT / chart), "--values", str(tmp_path / "values.yaml"))  # fmt: skip

        assert code == 0, text


def test_the_installation_names_the_charts_kubernetes() -> None:
    """The page says the oldest Kubernetes that the charts take."""
    page = (DOCS / "how-to/install-on-a-cluster.md").read_text("utf-8")
    charts = [yaml.safe_load(file.read_text("utf-8")) for file in ROOT.glob("charts/*/Chart.yaml")]
    (oldest,) = {re.findall(r"\d+\.\d+", chart["kubeVersion"])[0] for chart in charts}

    assert f"Kubernetes {oldest} or newer" in page


# --- objects on the pages -----------------------------------------------------------------------------

FOREIGN = {"ServedModel", "Application", "GitRepository", "HelmRelease"}


def objects() -> list[tuple[str, Object]]:
    """Every Kubernetes object on a page or beside it, with where it stands."""
    pages = [(page.name, text) for page in sorted(DOCS.rglob("*.md")) for text in yaml_blocks(page)]
    files = [(file.name, file.read_text("utf-8")) for file in sorted(DOCS.rglob("*.yaml"))]
    return [
        (f"{name}: {document['kind']}", document)
        for name, text in [*pages, *files]
        for document in yaml.safe_load_all(text)
        if isinstance(document, dict) and "apiVersion" in document and "kind" in document
    ]


@pytest.mark.parametrize("document", [pytest.param(d, id=i) for i, d in objects()])
def test_every_object_on_a_page_is_valid(document: Object) -> None:
    """A Kubernetes object on a page passes Kubernetes' own schema; others' kinds are named here."""
    if document["kind"] in FOREIGN:
        assert "." in document["apiVersion"]
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_tutorials_client_is_python() -> None:
    """The client in the tutorial's ConfigMap is Python."""
    file = DOCS / "tutorials/flights-client.yaml"
    config, _ = yaml.safe_load_all(file.read_text("utf-8"))

    assert ast.parse(config["data"]["client.py"])

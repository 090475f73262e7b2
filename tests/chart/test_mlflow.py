"""What the chart mlflow promises beyond what holds for every chart."""

import ast
import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "mlflow"
Render = Callable[..., list[dict[str, Any]]]
OWN_DATABASE = {
    "postgresql": {"enabled": False},
    "database": {"url": "postgresql+psycopg2://mlflow@db.example.com/mlflow"},
}
OWN_BUCKET = {"s3": {"enabled": False}, "artifacts": {"destination": "s3://bucket/folder"}}
ACCOUNTS = ("admin", "controller", "gc", "reader", "training")


def one(documents: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The one object of a kind, or the one whose name ends so."""
    found = [
        document
        for document in documents
        if document["kind"] == kind and document["metadata"]["name"].endswith(name)
    ]
    assert len(found) == 1, [document["metadata"]["name"] for document in found]
    return found[0]


def server(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The server's container."""
    containers: list[dict[str, Any]] = one(documents, "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    return next(container for container in containers if container["name"] == "server")


def environment(container: dict[str, Any]) -> dict[str, str]:
    """A container's variables that are written out."""
    return {item["name"]: item["value"] for item in container["env"] if "value" in item}


def setup(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The setup Job."""
    return one(documents, "Job")


def ports(policy: dict[str, Any]) -> set[Any]:
    """The ports that a policy lets out."""
    return {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}


def test_the_server_runs_lean(render: Render) -> None:
    """One worker, no job runner, no telemetry, accounts on."""
    container = server(render("mlflow"))

    assert {"--workers=1", "--app-name=basic-auth"} <= set(container["args"])
    variables = environment(container)
    assert variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert variables["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_no_password_is_written_out(render: Render) -> None:
    """Passwords stand in Secrets alone: in no URL, argument, ConfigMap or probe."""
    documents = render("mlflow")
    secrets = [document for document in documents if document["kind"] == "Secret"]
    rest = json.dumps([document for document in documents if document["kind"] != "Secret"])

    public = {"admin", "fairlead", "fairlead-reader", "fairlead-training", "mlflow-gc"}
    values = {base64.b64decode(v).decode() for s in secrets for v in s["data"].values()} - public
    assert len(values) == 10  # Five accounts, two keys, S3's pair, PostgreSQL.
    assert not [value for value in values if value in rest]
    assert "Authorization" not in rest


def test_the_webhook_key_is_a_fernet_key(render: Render) -> None:
    """32 bytes in URL-safe base64, or MLflow would not start."""
    data = one(render("mlflow"), "Secret", "mlflow-server")["data"]

    key = base64.b64decode(data["webhookEncryptionKey"])
    assert len(base64.urlsafe_b64decode(key)) == 32
    assert not set(key) & set(b"+/")


def test_secrets_outlive_the_release(render: Render) -> None:
    """The volumes do as well, and are of no use without them."""
    for document in render("mlflow"):
        if document["kind"] == "Secret":
            assert document["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_existing_secrets_take_the_place_of_all(render: Render) -> None:
    """For GitOps: no Secret is made, and every reference names the existing one."""
    values = {
        "server": {"existingSecret": "mine-keys"},
        "postgresql": {"existingSecret": "mine-postgresql"},
        "s3": {"existingSecret": "mine-s3"},
        "auth": {"accounts": {name: {"existingSecret": f"mine-{name}"} for name in ACCOUNTS}},
    }
    documents = render("mlflow", values)

    assert not [document for document in documents if document["kind"] == "Secret"]
    text = json.dumps(documents)
    names = set(re.findall(r'"secretKeyRef": {[^}]*"name": "([^"]+)"', text))
    names |= set(re.findall(r'"secret": {[^}]*?"name": "([^"]+)"', text))
    wanted = ("keys", "postgresql", "s3", *ACCOUNTS)
    assert {name for name in names if name.startswith("mine-")} == {f"mine-{n}" for n in wanted}
    assert all(name.startswith("mine-") for name in names), names


def test_copies_hold_the_same_password(render: Render) -> None:
    """An account's copies in other namespaces open the same door."""
    copies = [{"namespace": "team-a", "name": "fairlead-mlflow"}]
    documents = render("mlflow", {"auth": {"accounts": {"reader": {"copies": copies}}}})

    original = one(documents, "Secret", "-reader")
    copy = one(documents, "Secret", "fairlead-mlflow")
    assert copy["data"] == original["data"]
    assert copy["metadata"]["namespace"] == "team-a"
    assert "helm.sh/resource-policy" not in copy["metadata"].get("annotations", {})


def test_the_setup_job_is_a_new_one_where_it_does_something_else(render: Render) -> None:
    """A Job cannot be changed: its name follows what it does, and nothing else."""
    same = {setup(render("mlflow", values))["metadata"]["name"] for values in ({}, {"gc": {}})}
    other = setup(render("mlflow", {"image": {"tag": "9.9.9"}}))["metadata"]["name"]

    assert len(same) == 1
    assert other not in same
    assert "helm.sh/hook" not in setup(render("mlflow"))["metadata"].get("annotations", {})


def test_only_the_setup_job_migrates(
    render: Render, pods: Callable[..., Any], containers: Callable[..., Any]
) -> None:
    """Of several that migrate at once all but one would fail."""
    migrating = {
        name
        for name, pod in pods(render("mlflow"))
        for container in containers(pod)
        if "upgrade" in container.get("command", [])
    }

    assert {name.split("-setup-")[0] for name in migrating} == {"Job/demo-mlflow"}


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({}, ["bucket", "schema", "accounts"]),
        (OWN_BUCKET, ["schema", "accounts"]),
        ({"auth": {"enabled": False}}, ["bucket", "schema"]),
        ({**OWN_BUCKET, "auth": {"enabled": False}}, ["schema"]),
    ],
)
def test_the_setup_job_does_what_is_asked(
    render: Render, values: dict[str, Any], steps: list[str]
) -> None:
    """Its steps follow one another, without those that are not needed."""
    spec = setup(render("mlflow", values))["spec"]["template"]["spec"]

    names = [step["name"] for step in [*spec.get("initContainers", []), *spec["containers"]]]
    assert names == steps


def test_a_rolling_update_leaves_every_pod_until_a_new_one_is_ready(render: Render) -> None:
    """No pod goes before another has come, and a going pod still answers for a while."""
    spec = one(render("mlflow"), "Deployment")["spec"]

    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    container = spec["template"]["spec"]["containers"][0]
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] >= 5


def test_autoscaling_owns_the_replicas(render: Render) -> None:
    """An upgrade must not set back what the autoscaler has set."""
    values = {"server": {"replicas": 7, "autoscaling": {"enabled": True}}}
    documents = render("mlflow", values)

    assert "replicas" not in one(documents, "Deployment")["spec"]
    assert one(documents, "HorizontalPodAutoscaler")["spec"]["minReplicas"] == 2


def test_the_server_answers_to_all_its_names(render: Render) -> None:
    """Every name of the Service, with and without a port, the Ingress's host and those by value."""
    values = {
        "ingress": {"enabled": True, "host": "mlflow.example.com"},
        "server": {"allowedHosts": ["other.example.com"]},
        "clusterDomain": "corp.local",
    }
    variables = environment(server(render("mlflow", values)))

    hosts = set(variables["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","))
    names = ["demo-mlflow" + end for end in ("", ".ml", ".ml.svc", ".ml.svc.corp.local")]
    names += ["localhost", "127.0.0.1", "mlflow.example.com"]
    assert {f"{name}{port}" for name in names for port in ("", ":*")} <= hosts
    assert {"10.*", "172.31.*", "192.168.*", "other.example.com"} <= hosts
    origins = variables["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert "https://mlflow.example.com" in origins


@pytest.mark.parametrize(
    ("values", "open_ports"),
    [
        ({}, {53, 5432, 7070}),
        ({**OWN_DATABASE, **OWN_BUCKET}, {53, 5432, 443}),
        (
            {
                "postgresql": {"enabled": False},
                "database": {"url": "postgresql+psycopg2://a@db:6432/x?sslmode=require"},
                "s3": {"enabled": False},
                "artifacts": {"destination": "s3://bucket", "endpoint": "http://minio:9000"},
            },
            {53, 6432, 9000},
        ),
        (
            {
                "s3": {"enabled": False},
                "artifacts": {"destination": "s3://bucket", "endpoint": "http://minio"},
            },
            {53, 5432, 80},
        ),
    ],
)
def test_the_server_reaches_its_stores_alone(
    render: Render, values: dict[str, Any], open_ports: set[int]
) -> None:
    """The ports out follow the URLs."""
    assert ports(one(render("mlflow", values), "NetworkPolicy", "demo-mlflow")) == open_ports


def test_own_stores_can_be_named_by_address(render: Render) -> None:
    """Where the addresses are known, the ports are open to them alone."""
    peer = [{"ipBlock": {"cidr": "192.0.2.10/32"}}]
    policy = {"networkPolicy": {"database": peer, "artifacts": peer}}
    documents = render("mlflow", {**OWN_DATABASE, **OWN_BUCKET, **policy})

    rules = one(documents, "NetworkPolicy", "demo-mlflow")["spec"]["egress"]
    assert [rule["to"] for rule in rules[1:]] == [peer, peer]


def test_namespaces_may_reach_the_server_by_name(render: Render) -> None:
    """The release's own namespace, those named, and whoever else is named."""
    other = [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
    values = {"networkPolicy": {"namespaces": ["fairlead"], "from": other}}
    policy = one(render("mlflow", values), "NetworkPolicy", "demo-mlflow")

    (rule,) = policy["spec"]["ingress"]
    fairlead = {"matchLabels": {"kubernetes.io/metadata.name": "fairlead"}}
    assert rule["from"] == [{"podSelector": {}}, {"namespaceSelector": fairlead}, *other]
    assert rule["ports"] == [{"port": "http"}]


def test_stores_let_nobody_in_but_who_needs_them(render: Render) -> None:
    """PostgreSQL and S3 name their callers, and call nobody."""
    documents = render("mlflow")

    for name, callers in (("postgresql", {"server", "setup", "gc"}), ("s3", {"server", "setup"})):
        spec = one(documents, "NetworkPolicy", name)["spec"]
        peers = spec["ingress"][0]["from"]
        component = "app.kubernetes.io/component"
        assert {peer["podSelector"]["matchLabels"][component] for peer in peers} == callers
        assert spec["egress"] == []


def test_files_go_through_the_server(render: Render) -> None:
    """MLflow's presigned URLs are off, by a plugin that it finds as an installed package."""
    spec = one(render("mlflow"), "Deployment")["spec"]["template"]["spec"]
    files = next(volume for volume in spec["volumes"] if volume["name"] == "files")
    paths = {item["path"] for item in files["configMap"]["items"]}

    assert environment(server(render("mlflow")))["PYTHONPATH"] == "/etc/mlflow/plugins"
    assert {
        "plugins/proxied_s3.py",
        "plugins/proxied_s3-1.dist-info/entry_points.txt",
    } <= paths
    direct = render(
        "mlflow", {**OWN_BUCKET, "artifacts": {**OWN_BUCKET["artifacts"], "presignedUrls": True}}
    )  # type: ignore[dict-item]
    assert "PYTHONPATH" not in environment(server(direct))


def test_metrics_ask_for_no_account(render: Render) -> None:
    """A container of its own shows them, on a port that only monitoring may reach."""
    peer = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    values = {"metrics": {"enabled": True}, "networkPolicy": {"monitoring": peer}}
    documents = render("mlflow", values)

    assert "--expose-prometheus=/run/metrics" in server(documents)["args"]
    ingress = one(documents, "NetworkPolicy", "demo-mlflow")["spec"]["ingress"]
    assert ingress[1] == {"from": peer, "ports": [{"port": "metrics"}]}


def test_without_accounts_nothing_of_them_is_left(render: Render) -> None:
    """`auth.enabled=false` makes no account, no Secret for one, and asks for none."""
    documents = render("mlflow", {"auth": {"enabled": False}})

    names = {document["metadata"]["name"] for document in documents if document["kind"] == "Secret"}
    assert names == {"demo-mlflow-server", "demo-mlflow-s3", "demo-mlflow-postgresql"}
    assert "--app-name=basic-auth" not in server(documents)["args"]
    assert '"name": "MLFLOW_TRACKING_USERNAME"' not in json.dumps(documents)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"postgresql": {"enabled": False}}, "database.url"),
        ({"database": OWN_DATABASE["database"]}, "database.url"),
        ({"s3": {"enabled": False}}, "artifacts.destination"),
        ({"artifacts": OWN_BUCKET["artifacts"]}, "artifacts.destination"),
        ({"ingress": {"enabled": True}}, "ingress.host"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
        ({"metrics": {"serviceMonitor": {"enabled": True}}}, "metrics.serviceMonitor.enabled"),
        ({"server": {"autoscaling": {"minReplicas": 9}}}, "server.autoscaling.minReplicas"),
        ({"fullnameOverride": "x" * 41}, "fullnameOverride"),
        ({"fullnameOverride": "Upper"}, "/fullnameOverride"),
        ({"gc": {"olderThan": "a month"}}, "/gc/olderThan"),
        ({"database": {"url": "postgresql://u@db/x"}}, "/database/url"),
        ({"database": {"url": "postgresql+psycopg2://u:secret@db/x"}}, "/database/url"),
        ({"artifacts": {"endpoint": "http://key:secret@s3"}}, "/artifacts/endpoint"),
        ({"auth": {"defaultPermission": "OWNER"}}, "/auth/defaultPermission"),
        ({"image": {"digest": "sha256:short"}}, "/image/digest"),
        (
            {
                "auth": {
                    "accounts": {
                        "reader": {
                            "existingSecret": "mine",
                            "copies": [{"namespace": "a", "name": "b"}],
                        }
                    }
                }
            },
            "auth.accounts.reader.copies",
        ),
    ],
)
def test_bad_values_are_refused_by_name(helm: Any, values: dict[str, Any], key: str) -> None:
    """What cannot work is refused before anything is installed, and the key is named."""
    assert key in helm.refusal("mlflow", values)


def test_scripts_arrive_as_they_are(render: Render) -> None:
    """The ConfigMaps hold the files whole, and each is Python."""
    documents = render("mlflow")
    mounted: dict[str, str] = {}
    for document in documents:
        if document["kind"] == "ConfigMap":
            mounted |= document["data"]

    files = {path.name: path.read_text().strip() for path in (CHART / "files").glob("*.py")}
    assert files
    for name, text in files.items():
        assert mounted[name].strip() == text
        ast.parse(text)


def test_no_account_may_more_than_the_reference_says(render: Render) -> None:
    """The rights in the reference's table are those that the setup Job gives."""
    data = one(render("mlflow"), "ConfigMap", "-setup")["data"]
    grants = {item["name"]: item["grants"] for item in yaml.safe_load(data["accounts.json"])}

    page = (CHART.parents[1] / "docs/reference/mlflow-chart.md").read_text()
    words = {"registered_model": "registered models", "experiment": "experiments", "run": "runs"}
    assert set(grants) == set(ACCOUNTS)
    for name, rights in grants.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        said = ", ".join(f"{words[kind]} `{right}`" for kind, right in rights.items())
        assert (said or "administrator") in row

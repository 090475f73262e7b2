"""The chart mlflow on a real cluster: install, accounts, upgrade, outage, network edges, backup.

A release of its own, beside the one that the other tests share.
"""

import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "mlflow"
TAG = os.environ.get("FAIRLEAD_E2E_TAG", "dev")
READY_WITHIN = 300
SECRETS = ("admin", "controller", "gc", "reader", "training", "server", "s3", "postgresql")


class Cluster:
    """kubectl and helm in one namespace, by a kubeconfig of its own."""

    def __init__(self, namespace: str, kubeconfig: Path):
        self.namespace = namespace
        self.environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}

    def run(self, *command: str, stdin: str = "", timeout: float = 400) -> str:
        """Return what a command prints; fail with what it complains of."""
        done = subprocess.run(
            command,
            input=stdin,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl."""
        return self.run("kubectl", *arguments, stdin=stdin)

    def helm(self, verb: str, *arguments: str) -> str:
        """Run helm on the release."""
        return self.run("helm", verb, "mlflow", *arguments)

    def upgrade(self, *settings: str) -> None:
        """Upgrade the release and wait until it is ready."""
        values = [part for setting in settings for part in ("--set", setting)]
        self.helm("upgrade", str(CHART), "--reuse-values", *values, "--wait", "--timeout", "5m")

    def get(self, *arguments: str) -> Any:
        """Return objects as kubectl gets them."""
        return json.loads(self.kubectl("get", *arguments, "--output", "json"))

    def secrets(self) -> dict[str, dict[str, str]]:
        """Return the release's Secrets, by name."""
        found = self.get("secrets", "--selector", "app.kubernetes.io/instance=mlflow")
        return {item["metadata"]["name"]: item["data"] for item in found["items"]}

    def python(self, script: str, *arguments: str, pod: str = "client") -> str:
        """Run a script in a pod."""
        return self.kubectl("exec", "--stdin", pod, "--", "python", "-", *arguments, stdin=script)


def client(namespace: str, name: str = "client") -> str:
    """A pod that waits for scripts; of no release, so that no policy of the chart selects it."""
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "client",
                    "image": f"fairlead/mlflow:{TAG}",
                    "command": ["python", "-c", "import signal; signal.pause()"],
                    "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 - the pod's own.
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }
    return yaml.safe_dump(document)


@contextmanager
def namespaces(cluster: Cluster, *names: str) -> Iterator[None]:
    """Namespaces at the restricted Pod Security level, gone afterwards."""
    try:
        for name in names:
            cluster.kubectl("create", "namespace", name)
            level = "pod-security.kubernetes.io/enforce=restricted"
            cluster.kubectl("label", "namespace", name, level)
        yield
    finally:
        cluster.kubectl("delete", "namespace", "--ignore-not-found", *names)


def start_client(cluster: Cluster, namespace: str) -> None:
    """Start the client pod and wait for it."""
    cluster.kubectl("apply", "--filename", "-", stdin=client(namespace))
    ready = ("wait", "--for=condition=Ready", "--timeout=2m", "pod/client")
    cluster.kubectl(*ready, "--namespace", namespace)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A release of the chart as it comes, in a namespace at the restricted level."""
    name = f"mlflow-{uuid.uuid4().hex[:6]}"
    kubeconfig = tmp_path_factory.mktemp("kube") / "config"
    view = ["kubectl", "config", "view", "--raw", "--flatten"]
    kubeconfig.write_text(subprocess.run(view, check=True, capture_output=True, text=True).stdout)
    found = Cluster(name, kubeconfig)
    with namespaces(found, name, f"{name}-other"):
        found.kubectl("config", "set-context", "--current", "--namespace", name)
        began = time.monotonic()
        tag = ("--set", f"image.tag={TAG}")
        found.helm("install", str(CHART), *tag, "--wait", "--timeout", f"{READY_WITHIN}s")
        print(f"ready after {time.monotonic() - began:.0f} s")  # noqa: T201 - shown by pytest -s.
        start_client(found, name)
        start_client(found, f"{name}-other")
        yield found


AS_ACCOUNT = """
import base64, json, sys
import requests

task = json.loads({task!r})
session = requests.Session()
session.auth = tuple(base64.b64decode(task["account"][k]).decode() for k in ("username", "password"))
answers = []
for method, path, body in task["calls"]:
    content = {{"data": body.encode()}} if isinstance(body, str) else {{"json": body}}
    try:
        answer = session.request(method, "http://mlflow:5000/api/2.0" + path, timeout=60, **content)
        answers.append([answer.status_code, answer.text])
    except (requests.ConnectionError, requests.Timeout) as error:
        answers.append([0, str(error)])
print(json.dumps(answers))
"""
Call = tuple[str, str, Any]


def ask(cluster: Cluster, account: str, *calls: Call) -> list[tuple[int, Any]]:
    """Call the API as an account; return each answer's code (0 for none) and document."""
    secret = cluster.secrets()[f"mlflow-{account}"]
    task = json.dumps({"account": secret, "calls": calls})
    answers = json.loads(cluster.python(AS_ACCOUNT.format(task=task)))
    return [(code, json.loads(text) if text.startswith("{") else text) for code, text in answers]


def register(cluster: Cluster, name: str) -> dict[str, str]:
    """Log a run with a file and register it as a model's version 1, as the training account."""
    ((_, experiment),) = ask(
        cluster, "training", ("POST", "/mlflow/experiments/create", {"name": name})
    )
    run_of = {"experiment_id": experiment["experiment_id"]}
    ((_, run),) = ask(cluster, "training", ("POST", "/mlflow/runs/create", run_of))
    info = run["run"]["info"]
    folder = info["artifact_uri"].removeprefix("mlflow-artifacts:").lstrip("/")
    file = f"/mlflow-artifacts/artifacts/{folder}/model/MLmodel"
    version = {"name": name, "source": info["artifact_uri"] + "/model", "run_id": info["run_id"]}
    answers = ask(
        cluster,
        "training",
        ("PUT", file, f"the model {name}"),
        ("POST", "/mlflow/registered-models/create", {"name": name}),
        ("POST", "/mlflow/model-versions/create", version),
    )
    assert [code for code, _ in answers] == [200, 200, 200], answers
    return {"name": name, "run": info["run_id"], "file": file, "folder": folder}


def codes(cluster: Cluster, account: str, *calls: Call) -> list[int]:
    """Call the API as an account; return the codes."""
    return [code for code, _ in ask(cluster, account, *calls)]


def await_answer(cluster: Cluster, account: str, call: Call) -> None:
    """Ask until it is answered with 200.

    A connection to a Service that was just made may be refused or go nowhere; MLflow's S3 client
    waits a minute for such a one.
    """
    until = time.monotonic() + READY_WITHIN
    while (found := ask(cluster, account, call))[0][0] != 200:
        assert time.monotonic() < until, found


def test_a_run_an_artifact_and_a_version_go_round(cluster: Cluster) -> None:
    """Given a fresh install, `helm test` logs them as one account and reads them as another."""
    assert "Succeeded" in cluster.helm("test")


def test_the_controller_may_decide_rollouts_and_delete_nothing(cluster: Cluster) -> None:
    """The controller's account reads, tags, promotes and reports; it cannot delete or touch models' files."""
    model = register(cluster, "controlled")
    name, version = {"name": model["name"]}, {"name": model["name"], "version": "1"}
    tag = {"key": "rollout.status", "value": "running"}
    stage = {"stage": "Production", "archive_existing_versions": True}
    report = f"/mlflow-artifacts/artifacts/{model['folder']}/rollout.json"

    allowed = codes(
        cluster,
        "controller",
        ("GET", "/mlflow/registered-models/search?max_results=1000", None),
        ("POST", "/mlflow/registered-models/set-tag", {**name, **tag}),
        ("POST", "/mlflow/model-versions/set-tag", {**version, **tag}),
        ("PATCH", "/mlflow/model-versions/update", {**version, "description": "promoted"}),
        ("POST", "/mlflow/model-versions/transition-stage", {**version, **stage}),
        ("POST", "/mlflow/registered-models/alias", {**version, "alias": "champion"}),
        ("GET", f"/mlflow/runs/get?run_id={model['run']}", None),
        ("PUT", report, "{}"),
    )
    refused = codes(
        cluster,
        "controller",
        ("DELETE", "/mlflow/model-versions/delete", version),
        ("DELETE", "/mlflow/registered-models/delete", name),
        ("POST", "/mlflow/runs/delete", {"run_id": model["run"]}),
        ("DELETE", model["file"], None),
        ("POST", "/mlflow/users/create", {"username": "x", "password": "x" * 12}),
        ("GET", "/mlflow/webhooks", None),
    )

    assert (set(allowed), set(refused)) == ({200}, {403})


def test_the_reader_may_read(cluster: Cluster) -> None:
    """The serving pods' account finds and fetches a version, and changes nothing."""
    model = register(cluster, "readable")
    version = {"name": model["name"], "version": "1"}
    query = f"?name={model['name']}&version=1"
    tag = {"key": "k", "value": "v"}

    answers = ask(
        cluster,
        "reader",
        ("GET", f"/mlflow/model-versions/get{query}", None),
        ("GET", f"/mlflow/model-versions/get-download-uri{query}", None),
        ("GET", f"/mlflow-artifacts/artifacts?path={model['folder']}/model", None),
        ("GET", model["file"], None),
    )
    refused = codes(
        cluster,
        "reader",
        ("POST", "/mlflow/model-versions/set-tag", {**version, **tag}),
        ("POST", "/mlflow/model-versions/transition-stage", {**version, "stage": "Staging"}),
        ("POST", "/mlflow/registered-models/alias", {**version, "alias": "a"}),
        ("PUT", model["file"], "other"),
        ("DELETE", "/mlflow/registered-models/delete", {"name": model["name"]}),
    )

    assert [code for code, _ in answers] == [200] * 4
    assert answers[-1][1] == "the model readable"
    assert set(refused) == {403}


def test_no_password_no_entry(cluster: Cluster) -> None:
    """Without an account nothing but the health check answers."""
    script = """
import requests
print([requests.get("http://mlflow:5000" + path, timeout=30).status_code
       for path in ("/health", "/api/2.0/mlflow/registered-models/search", "/")])
"""
    assert cluster.python(script).strip() == "[200, 401, 401]"


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("mlflow:5000", 200),
        ("mlflow.NAMESPACE:5000", 200),
        ("mlflow.NAMESPACE.svc:5000", 200),
        ("mlflow.NAMESPACE.svc.cluster.local", 200),
        ("localhost:12345", 200),
        ("evil.example.com", 403),
    ],
)
def test_the_server_knows_its_names(cluster: Cluster, host: str, code: int) -> None:
    """Every name of its Service is allowed, with any port; another's name is refused."""
    host = host.replace("NAMESPACE", cluster.namespace)
    secret = cluster.secrets()["mlflow-reader"]
    script = f"""
import base64, requests
account = tuple(base64.b64decode(part).decode() for part in ({secret["username"]!r}, {secret["password"]!r}))
print(requests.get("http://mlflow:5000/api/2.0/mlflow/registered-models/search", auth=account,
                   headers={{"Host": {host!r}}}, timeout=30).status_code)
"""
    assert int(cluster.python(script)) == code


POLL = """
import base64, json, os, sys, time
import requests

account = tuple(base64.b64decode(part).decode() for part in json.loads({account!r}))
failures, count, slowest = [], 0, 0.0
session = requests.Session()
session.auth = account
print("started", flush=True)
while not os.path.exists("/tmp/stop"):
    for get in (session.get, lambda url, timeout: requests.get(url, timeout=timeout, auth=account)):
        count += 1
        began = time.time()
        try:
            answer = get("http://mlflow:5000/api/2.0/mlflow/registered-models/search?max_results=10", timeout=60)
            if answer.status_code != 200:
                failures.append(answer.status_code)
        except requests.RequestException as error:
            failures.append(type(error).__name__ + str(error)[-120:])
        slowest = max(slowest, time.time() - began)
    time.sleep(0.02)
os.remove("/tmp/stop")
print(json.dumps({{"count": count, "failures": failures, "slowest": slowest}}))
"""


@contextmanager
def polled(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Ask the server all the time, by one connection and by new ones; the result is there at the end."""
    secret = cluster.secrets()["mlflow-reader"]
    script = POLL.format(account=json.dumps([secret["username"], secret["password"]]))
    command = ["kubectl", "exec", "--stdin", "client", "--", "python", "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    result: dict[str, Any] = {}
    with subprocess.Popen(command, env=cluster.environment, **pipes) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(script)
        process.stdin.close()
        assert process.stdout.readline() == "started\n"
        try:
            yield result
        finally:
            cluster.kubectl("exec", "client", "--", "python", "-c", "open('/tmp/stop', 'w')")
            result.update(json.loads(process.stdout.read()))


def test_upgrades_lose_no_request_and_no_secret(cluster: Cluster) -> None:
    """Given two replicas, two upgrades that roll every pod: no request fails, no Secret changes."""
    cluster.upgrade("server.replicas=2")
    before = cluster.secrets()

    with polled(cluster) as result:
        cluster.upgrade("server.podAnnotations.turn=one")
        cluster.upgrade("server.podAnnotations.turn=two")

    print(result)  # noqa: T201 - shown by pytest -s.
    assert result["failures"] == []
    assert result["count"] > 200
    assert cluster.secrets() == before
    assert set(before) == {f"mlflow-{name}" for name in SECRETS}


def test_a_restart_of_postgresql_is_survived(cluster: Cluster) -> None:
    """PostgreSQL's pod is deleted: the server answers again by itself, and was never restarted."""
    before = server_pods(cluster)

    cluster.kubectl("delete", "pod", "mlflow-postgresql-0")
    cluster.kubectl("rollout", "status", "statefulset/mlflow-postgresql", "--timeout=3m")
    search = ("GET", "/mlflow/registered-models/search", None)
    answer_within(60, lambda: codes(cluster, "reader", search) == [200])

    assert server_pods(cluster) == before == dict.fromkeys(before, 0)


def server_pods(cluster: Cluster) -> dict[str, int]:
    """How often the server's container was restarted, by pod; without pods that are going."""
    found = cluster.get("pods", "--selector", "app.kubernetes.io/component=server")
    return {
        pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"]
        for pod in found["items"]
        if "deletionTimestamp" not in pod["metadata"]
    }


def answer_within(seconds: float, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(1)


CONNECT = """
import socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=4).close()
        print("open")
    except OSError:
        print("closed")
"""


def reach(cluster: Cluster, pod: str, *targets: str, namespace: str = "") -> list[str]:
    """Say which of the targets a pod can connect to."""
    where = ("--namespace", namespace or cluster.namespace)
    command = ("exec", "--stdin", *where, pod, "--", "python", "-", *targets)
    return cluster.kubectl(*command, stdin=CONNECT).split()


def test_only_named_edges_are_open(cluster: Cluster) -> None:
    """Pods reach the server alone, from the release's namespace alone; the server reaches its stores alone."""
    there = f"mlflow.{cluster.namespace}.svc:5000"
    stores = ("mlflow-postgresql:5432", "mlflow-s3:7070")
    outside = ("kubernetes.default.svc:443", "client-of-nobody:80")

    assert reach(cluster, "client", there, *stores) == ["open", "closed", "closed"]
    assert reach(cluster, "client", there, namespace=f"{cluster.namespace}-other") == ["closed"]
    assert (
        reach(cluster, "deployment/mlflow", *stores, *outside) == ["open", "open"] + ["closed"] * 2
    )

    cluster.upgrade(f"networkPolicy.namespaces={{{cluster.namespace}-other}}")
    other = f"{cluster.namespace}-other"
    answer_within(20, lambda: reach(cluster, "client", there, namespace=other) == ["open"])


def test_the_garbage_collection_removes_files(cluster: Cluster) -> None:
    """A run that was deleted in MLflow is gone after the CronJob, with its files; a model's files stay."""
    kept = register(cluster, "kept")
    gone = register(cluster, "gone")
    owner = ("POST", "/mlflow/runs/delete", {"run_id": gone["run"]})
    assert codes(cluster, "training", owner) == [200]

    cluster.upgrade("gc.olderThan=0s")
    cluster.kubectl("create", "job", "gc-now", "--from=cronjob/mlflow-gc")
    cluster.kubectl("wait", "--for=condition=complete", "--timeout=2m", "job/gc-now")

    run = ("GET", f"/mlflow/runs/get?run_id={gone['run']}", None)
    calls = (run, ("GET", gone["file"], None), ("GET", kept["file"], None))
    missing, no_file, file = codes(cluster, "reader", *calls)
    assert missing in {403, 404}
    assert no_file >= 400
    assert file == 200


def test_a_release_comes_back_after_uninstall(cluster: Cluster) -> None:
    """`helm uninstall` leaves volumes and Secrets; the next install has the models and the passwords."""
    model = register(cluster, "lasting")
    before = cluster.secrets()

    cluster.helm("uninstall", "--wait")
    cluster.helm("install", str(CHART), "--set", f"image.tag={TAG}", "--wait", "--timeout", "5m")

    assert cluster.secrets() == before
    await_answer(cluster, "admin", ("GET", "/mlflow/users/list", None))
    await_answer(cluster, "reader", ("GET", model["file"], None))


@contextmanager
def release(cluster: Cluster, *arguments: str) -> Iterator[str]:
    """Another release, in the other namespace; gone afterwards with its volumes and Secrets."""
    there = ("--namespace", f"{cluster.namespace}-other")
    try:
        tag = ("--set", f"image.tag={TAG}", "--wait", "--timeout", "5m")
        cluster.run("helm", "install", "second", str(CHART), *there, *tag, *arguments)
        yield cluster.run("helm", "test", "second", *there)
    finally:
        cluster.run("helm", "uninstall", "second", *there, "--ignore-not-found", "--wait")
        left = "app.kubernetes.io/instance=second"
        kinds = "persistentvolumeclaims,secrets"
        cluster.kubectl("delete", kinds, *there, "--selector", left)


def test_it_runs_without_accounts(cluster: Cluster) -> None:
    """The scenario for a laptop: no accounts, no policies."""
    with release(cluster, "--values", str(CHART / "ci" / "open-values.yaml")) as tested:
        assert "Succeeded" in tested


def test_it_runs_on_stores_of_ones_own(cluster: Cluster) -> None:
    """A PostgreSQL and a bucket elsewhere, by URL and Secret, with the policies on."""
    cluster.upgrade("networkPolicy.enabled=false")
    owner = "CREATE DATABASE own OWNER mlflow"
    psql = ("psql", "--username", "mlflow", "--command", owner)
    cluster.kubectl("exec", "statefulset/mlflow-postgresql", "--", *psql)
    stores = ("mlflow-postgresql", "mlflow-s3")
    for name in stores:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
        text = json.dumps({**secret, "data": cluster.secrets()[name]})
        where = ("--namespace", f"{cluster.namespace}-other")
        cluster.kubectl("create", *where, "--filename", "-", stdin=text)

    host = f"{cluster.namespace}.svc"
    values = {
        "postgresql.enabled": "false",
        "database.url": f"postgresql+psycopg2://mlflow@mlflow-postgresql.{host}:5432/own",
        "database.existingSecret": "mlflow-postgresql",
        "s3.enabled": "false",
        "artifacts.destination": "s3://mlflow/own/folder",
        "artifacts.endpoint": f"http://mlflow-s3.{host}:7070",
        "artifacts.existingSecret": "mlflow-s3",
    }
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    with release(cluster, *settings) as tested:
        assert "Succeeded" in tested
    cluster.upgrade("networkPolicy.enabled=true")


def blocks_of(page: Path) -> str:
    """Return the commands of a page, as one script."""
    found = re.findall(r"^( *)```sh\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(text for _, text in found)


def test_the_backup_page_restores(cluster: Cluster, tmp_path: Path) -> None:
    """Given a backup by the page's commands and an empty namespace, its restore brings a model back."""
    model = register(cluster, "precious")
    script = blocks_of(ROOT / "docs/how-to/back-up-mlflow.md")
    switch, _, script = script.partition("\n")
    assert switch == "kubectl config set-context --current --namespace mlflow"
    backup, middle, restore = script.partition("   kubectl apply")
    (tmp_path / "charts").symlink_to(ROOT / "charts")

    shell(cluster, backup, tmp_path)
    passwords = cluster.secrets()
    cluster.helm("uninstall", "--wait")
    cluster.kubectl("delete", "persistentvolumeclaims", "--all")
    chart = "app.kubernetes.io/instance=mlflow"
    cluster.kubectl("delete", "secrets", "--selector", chart)
    assert cluster.secrets() == {}
    shell(cluster, middle + restore, tmp_path)

    assert cluster.secrets() == passwords
    version = ("GET", f"/mlflow/model-versions/get?name={model['name']}&version=1", None)
    (code, _), (_, text) = ask(cluster, "reader", version, ("GET", model["file"], None))
    assert (code, text) == (200, "the model precious")
    assert codes(cluster, "admin", ("GET", "/mlflow/users/list", None)) == [200]


def shell(cluster: Cluster, script: str, folder: Path) -> None:
    """Run a page's commands in a folder; the first that fails ends it."""
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        command,
        cwd=folder,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"

"""skaffold.yaml and the kind cluster, read by the real Skaffold and kind; nothing is started.

Without a command on PATH its tests are skipped, and the reason is printed; where CI is set they fail.
"""

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "0123456789abcdef" * 4
MODULES = ("app", "load")
OURS = ("controller", "gateway", "experiments", "serving", "training", "mlflow", "load")

# Skaffold 2.16 speaks to Helm 3: it asks `helm version --client` and names a post-renderer by its path.
# This lets it work with a Helm 4 too; charts are rendered by the real one.
HELM_3 = """#!/bin/bash
set -o pipefail
[[ $1 == version ]] && { echo v3.19.0; exit; }
arguments=() renderer=cat
while (($#)); do
  if [[ $1 == --post-renderer ]]; then renderer=$2; shift; else arguments+=("$1"); fi
  shift
done
HELM "${arguments[@]}" | "$renderer"
"""

Document = dict[str, Any]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Render = Callable[..., list[Document]]


def command(name: str) -> str:
    """The path of a command; without it the test is skipped, or fails in CI."""
    path = shutil.which(name)
    if not path:
        reason = f"this test needs the command {name!r} on PATH"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return path


@pytest.fixture(scope="module")
def skaffold(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs Skaffold in the repository, with a home of its own and no cluster."""
    tmp_path = tmp_path_factory.mktemp("home")
    path = command("skaffold")
    helm = tmp_path / "bin" / "helm"
    helm.parent.mkdir()
    helm.write_text(HELM_3.replace("HELM ", command("helm") + " "))
    helm.chmod(0o755)
    command("kubectl")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "{apiVersion: v1, kind: Config, current-context: production, contexts: [{name: production, "
        "context: {cluster: none}}], clusters: [{name: none, cluster: {server: 'https://127.0.0.1:9'}}]}"
    )
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "KUBECONFIG": str(kubeconfig),
        "PATH": f"{helm.parent}:{os.environ['PATH']}",
        "SKAFFOLD_UPDATE_CHECK": "false",
        "SKAFFOLD_INTERACTIVE": "false",
    }

    def run(*arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [path, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def render(skaffold: Run, tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Renders the module `load`, and with it all others, from images built as `repository:tag`."""

    @functools.cache
    def rendered(template: str = "fairlead/{}:t4711", *options: str) -> list[Document]:
        file, output = (tmp_path_factory.mktemp("render") / n for n in ("builds.json", "out.yaml"))
        builds = [{"imageName": f"fairlead/{n}", "tag": template.format(n)} for n in OURS]
        file.write_text(json.dumps({"builds": builds}))
        built = ("--build-artifacts", str(file), "--digest-source", "none", "--output", str(output))
        skaffold("render", "--offline=true", "--module", "load", *built, *options)
        return [document for document in yaml.safe_load_all(output.read_text()) if document]

    return rendered


def images(documents: list[Document]) -> set[str]:
    """Every image that some object names, in a pod or in the controller's settings."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("image"), str):
                found.add(value["image"])
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)
        elif isinstance(value, str) and '"image"' in value:
            walk(json.loads(value))

    walk(documents)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_skaffold_reads_every_module(skaffold: Run, module: str) -> None:
    """Skaffold takes each module as it is, without a change to a newer version."""
    written = {
        d["metadata"]["name"]: d for d in yaml.safe_load_all((ROOT / "skaffold.yaml").read_text())
    }
    read = {
        d["metadata"]["name"]: d
        for d in yaml.safe_load_all(skaffold("diagnose", "--yaml-only", "--module", module).stdout)
    }
    assert read[module]["apiVersion"] == written[module]["apiVersion"]
    assert {"namespaces", "app", module} == set(read)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("lean", "k8s/values/lean.yaml"),
        ("xgboost", "FLAVOR: xgboost"),
        ("full", "FLAVOR: full"),
        ("registry", "push: true"),
    ],
)
def test_a_profile_changes_what_it_says(skaffold: Run, profile: str, expected: str) -> None:
    """Each profile's patch hits its place; without the profile it is not there."""
    plain = ("diagnose", "--yaml-only", "--module", "app")
    assert expected in skaffold(*plain, "--profile", profile).stdout
    assert expected not in skaffold(*plain).stdout


def test_what_is_built_is_what_runs(render: Render) -> None:
    """Each image that Skaffold builds is used by its tag; the charts' own tags are used by none."""
    found = {image for image in images(render()) if "fairlead" in image}
    assert found == {f"fairlead/{name}:t4711" for name in OURS}


def test_a_registry_is_used_by_digest(render: Render) -> None:
    """What was pushed is named by registry and digest, which nobody can move."""
    found = images(render(f"registry.example.com:5000/team/fairlead_{{}}:t4711@{DIGEST}"))
    ours = {image for image in found if "fairlead" in image}
    assert ours == {f"registry.example.com:5000/team/fairlead_{name}@{DIGEST}" for name in OURS}


def test_the_charts_land_in_their_namespaces(render: Render) -> None:
    """MLflow, the platform and the model go where they look for each other."""
    documents = render()
    deployments = {
        (d["metadata"]["namespace"], d["metadata"]["name"])
        for d in documents
        if d["kind"] == "Deployment"
    }
    assert {
        ("mlflow", "mlflow"),
        ("fairlead", "fairlead-controller"),
        ("fairlead", "fairlead-gateway"),
    } <= deployments
    assert [d["metadata"]["namespace"] for d in documents if d["kind"] == "ServedModel"] == ["ml"]
    made = {d["metadata"]["name"] for d in documents if d["kind"] == "Namespace"}
    assert {"mlflow", "fairlead", "ml"} == made
    assert {d["metadata"].get("namespace") for d in documents} - {None} == made


def test_the_lean_profile_runs_one_pod_each(render: Render) -> None:
    """With `lean` the platform's three services have one replica."""
    documents = render("fairlead/{}:t4711", "--profile", "lean")
    replicas = {
        d["metadata"]["name"]: d["spec"]["replicas"]
        for d in documents
        if d["kind"] == "Deployment" and d["metadata"]["namespace"] == "fairlead"
    }
    assert set(replicas.values()) == {1}
    assert len(replicas) >= 3


def test_skaffold_stays_out_of_the_current_cluster(skaffold: Run, tmp_path: Path) -> None:
    """`skaffold run` refuses a context that is not the kind cluster's, even if it is the current one."""
    builds = tmp_path / "builds.json"
    builds.write_text(
        json.dumps(
            {"builds": [{"imageName": f"fairlead/{n}", "tag": f"fairlead/{n}:1"} for n in OURS]}
        )
    )
    done = skaffold("deploy", "--module", "app", "--build-artifacts", str(builds), check=False)
    assert done.returncode != 0
    assert 'context "kind-fairlead" does not exist' in done.stderr


def test_an_interrupt_leaves_the_releases() -> None:
    """Skaffold takes releases away in the order it installs them, the controller before the ServedModels it holds."""
    assert "SKAFFOLD_CLEANUP=false" in (ROOT / "skaffold.env").read_text().splitlines()
    app = next(
        d
        for d in yaml.safe_load_all((ROOT / "skaffold.yaml").read_text())
        if d["metadata"]["name"] == "app"
    )
    releases = [release["name"] for release in app["deploy"]["helm"]["releases"]]
    assert releases.index("fairlead") < releases.index("flight-delay")


def test_the_example_is_trained_by_a_job_that_exists(
    render: Render,
) -> None:
    """The hook after the charts makes its Job from a CronJob of the model's chart."""
    app = next(
        d
        for d in yaml.safe_load_all((ROOT / "skaffold.yaml").read_text())
        if d["metadata"]["name"] == "app"
    )
    script = app["deploy"]["helm"]["hooks"]["after"][0]["host"]["command"][-1]
    cron_jobs = {
        d["metadata"]["name"]
        for d in render()
        if d["kind"] == "CronJob" and d["metadata"]["namespace"] == "ml"
    }
    assert script.split("--from cronjob/")[1].split()[0] in cron_jobs


def create_cluster(config: Path) -> str:
    """What kind says to a configuration where there is no Docker to make a cluster with."""
    environment = {
        **os.environ,
        "DOCKER_HOST": "unix:///nonexistent/docker.sock",
        "KIND_EXPERIMENTAL_PROVIDER": "docker",
    }
    done = subprocess.run(
        [command("kind"), "create", "cluster", "--config", str(config)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    return done.stderr


def test_kind_reads_its_configuration(tmp_path: Path) -> None:
    """The configuration gets as far as Docker; one wrong field and it does not."""
    good = ROOT / "k8s/kind.yaml"
    wrong = tmp_path / "kind.yaml"
    wrong.write_text(good.read_text().replace("hostPort:", "hostPrt:"))
    assert "unable to decode config" in create_cluster(wrong)
    said = create_cluster(good)
    assert "unable to decode config" not in said
    assert "docker" in said


def test_the_port_of_your_machine_reaches_the_gateway(
    render: Render,
) -> None:
    """A port of this machine leads to the one that the gateway's Service has on every node."""
    cluster = yaml.safe_load((ROOT / "k8s/kind.yaml").read_text())
    mapped = {
        m["containerPort"] for node in cluster["nodes"] for m in node.get("extraPortMappings", [])
    }
    service = next(
        d
        for d in render()
        if d["kind"] == "Service" and d["metadata"]["name"] == "fairlead-gateway"
    )
    assert service["spec"]["type"] == "NodePort"
    assert mapped == {
        port["nodePort"] for port in service["spec"]["ports"] if port["name"] == "http"
    }

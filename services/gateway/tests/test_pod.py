"""The gateway's pod: bootstrap, Envoy and the agent, each started as the chart starts it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_client import ask_all
from gateway_experiments import FakeExperiments
from gateway_kube_api import FakeCluster, endpoint, endpoint_slice, served_model
from gateway_lab import Gateway, plan, wait_for

from fairlead_gateway.adapters.envoy import envoy_arguments, find_envoy
from fairlead_gateway.domain.plan import parse_plan, plan_digest
from fairlead_gateway.entrypoints.cli import _parser, main

README = Path(__file__).parents[1] / "README.md"
COMMAND = ("-c", "from fairlead_gateway.entrypoints.cli import main; main()")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """Give a cluster, which the agent finds by its kubeconfig."""
    made = FakeCluster(tmp_path)
    monkeypatch.setenv("KUBECONFIG", made.kubeconfig or "")
    yield made
    made.close()


@pytest.fixture
def pod(cluster: FakeCluster, tmp_path: Path) -> Iterator[Gateway]:
    """Give a pod whose Envoy runs, and whose agent is yet to be started."""
    options = ["--source", "kubernetes", "--namespace", "one", "--namespace", "two"]
    made = Gateway(tmp_path, options)
    options += ["--listen-port", str(made.port)]
    try:
        bootstrap(made)
        start_envoy(made)
        yield made
    finally:
        made.stop()


def bootstrap(gateway: Gateway) -> None:
    """Run the command of the init container."""
    ports = ("--listen-port", str(gateway.port), "--admin-port", str(gateway.admin))
    subprocess.run(
        [sys.executable, *COMMAND, "bootstrap", "--home", str(gateway.home), *ports], check=True
    )


def start_envoy(gateway: Gateway) -> None:
    """Start the binary with the arguments the chart gives it."""
    first = gateway.home / "gateway" / "bootstrap.json"
    arguments = envoy_arguments(first, concurrency=1, log_level="warning")
    with (gateway.home / "envoy.out").open("ab") as out:
        gateway.processes["envoy"] = subprocess.Popen(
            [find_envoy() or "envoy", *arguments], stdout=out, stderr=out
        )


def serve(gateway: Gateway, cluster: FakeCluster) -> None:
    """Start a replica of each version, and make the objects that tell of it."""
    for version in ("3", "4"):
        gateway.upstream(version)
        port = gateway.workloads[f"iris-v{version}"][0]["port"]
        ports = [{"name": "http", "port": port, "protocol": "TCP"}]
        some = [endpoint("127.0.0.1")]
        name = f"iris-v{version}-a"
        cluster.create(endpoint_slice("one", name, version, some, ports=ports))
    cluster.create(served_model("one", "iris"))
    cluster.status("one", "iris", {"traffic": plan(weight=5000)})


def test_a_pod_serves_once_it_has_read_everything(pod: Gateway, cluster: FakeCluster) -> None:
    """With the API server away the gateway is not ready, and says why; then it serves."""
    serve(pod, cluster)
    cluster.api.stop()
    pod.start_agent()
    troubled = lambda: len(pod.agent("/readyz").json()["problems"]) == 4  # type: ignore[union-attr]  # noqa: E731
    wait_for(lambda: pod.agent("/livez"))
    wait_for(troubled)
    assert pod.ready() == 0
    assert "iris" not in (pod.home / "gateway" / "xds" / "clusters.json").read_text()
    cluster.api.start()
    wait_for(lambda: pod.ready() == 200)
    assert pod.post().status_code == 200
    digest = plan_digest(parse_plan(plan(weight=5000)))
    wait_for(lambda: pod.applied().get("iris", {}).get("digest") == digest)
    cluster.status("one", "iris", {"traffic": plan(weight=None)})
    digest = plan_digest(parse_plan(plan(weight=None)))
    wait_for(lambda: pod.applied().get("iris", {}).get("digest") == digest)


def test_a_restarted_agent_changes_nothing_while_the_server_is_away(
    pod: Gateway, cluster: FakeCluster
) -> None:
    """An agent that cannot read the cluster leaves a serving Envoy alone."""
    serve(pod, cluster)
    pod.start_agent()
    wait_for(lambda: pod.ready() == 200)
    wait_for(lambda: pod.applied().get("iris", {}).get("digest"))
    cluster.api.stop()
    pod.kill("agent")
    pod.start_agent()
    wait_for(lambda: pod.agent("/livez"))
    wait_for(lambda: pod.agent("/readyz").json()["problems"])  # type: ignore[union-attr]
    assert pod.post().status_code == 200
    cluster.api.start()
    wait_for(lambda: pod.applied().get("iris", {}).get("digest"))


def test_the_last_exposures_are_shipped(pod: Gateway, cluster: FakeCluster) -> None:
    """An agent that is told to stop first ships what Envoy logged to its end."""
    experiments = FakeExperiments()
    serve(pod, cluster)
    pod.start_agent("--experiments-url", experiments.url)
    wait_for(lambda: pod.ready() == 200)
    ids = [f"i-{number}" for number in range(2000)]
    work = [("/models/iris/invocations", {"x-inference-id": i, "x-unit-id": i}) for i in ids]
    assert {answer.code for answer in ask_all(pod.port, work)} == {200}
    experiments.mode = "fail"
    calls = experiments.calls
    assert pod.end("envoy") == 0
    wait_for(lambda: experiments.calls > calls)
    agent = pod.processes.pop("agent")
    agent.terminate()
    calls = experiments.calls
    wait_for(lambda: experiments.calls > calls)
    experiments.mode = "ok"
    assert agent.wait(timeout=60) == 0
    experiments.stop()
    assert set(experiments.seen) == set(ids)


def test_namespaces_and_source_belong_together(tmp_path: Path) -> None:
    """A namespace without the cluster, or the cluster without one, is a wrong use."""
    for wrong in (["--source", "kubernetes"], ["--namespace", "one"]):
        ports = ("--port", "1", "--envoy-admin-port", "1")
        command = [sys.executable, *COMMAND, "agent", "--home", str(tmp_path), *ports, *wrong]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "--namespace" in done.stderr


def test_local_mode_needs_no_kubernetes_client(tmp_path: Path) -> None:
    """The agent's modules load without the library; asked for the cluster, it names the extra."""
    hidden = tmp_path / "kubernetes"
    hidden.mkdir()
    (hidden / "__init__.py").write_text("raise ModuleNotFoundError('no kubernetes here')")
    ports = ("--port", "1", "--envoy-admin-port", "1")
    wanted = ("--source", "kubernetes", "--namespace", "one", "--home", str(tmp_path))
    command = [sys.executable, *COMMAND, "agent", *wanted, *ports]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "fairlead-gateway[kubernetes]" in done.stderr


def test_the_readme_lists_envoys_arguments() -> None:
    """What the README tells the chart is what our own command gives Envoy."""
    block = re.search(r"```\nenvoy (--config-path.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert block is not None
    first = Path("/run/fairlead/gateway/bootstrap.json")
    arguments = envoy_arguments(first, concurrency=2, log_level="warning")
    assert block[1].replace("\\\n", " ").split() == arguments


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("1Gi", 1 << 30), ("1.5k", 1500), ("1.073741824e+09", 1 << 30), ("64Ki", 1 << 16)],
)
def test_a_size_is_read_as_kubernetes_writes_it(text: str, bytes_: int) -> None:
    """What the chart says of the volume's size is understood, in each spelling."""
    ports = ["--port", "1", "--envoy-admin-port", "1"]
    options = _parser().parse_args(["agent", "--home", "x", *ports, "--log-volume", text])
    assert options.log_volume == bytes_


def test_envoy_is_told_the_memory_it_may_use(tmp_path: Path) -> None:
    """The file Envoy starts with keeps its heap below the limit, and says nothing without one."""
    command = ["bootstrap", "--home", str(tmp_path), "--listen-port", "1", "--admin-port", "2"]
    written = tmp_path / "gateway" / "bootstrap.json"
    main([*command, "--memory-limit", "536870912"])
    (monitor,) = json.loads(written.read_bytes())["overload_manager"]["resource_monitors"]
    assert monitor["typed_config"]["max_heap_size_bytes"] == 483183820
    main(command)
    assert "overload_manager" not in json.loads(written.read_bytes())


@pytest.mark.parametrize("text", ["", "0", "1gi", "Gi", "1..Gi", "1e999", "-1Gi"])
def test_a_size_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A size nobody can read ends the command, with the option and the remedy."""
    ports = ["--port", "1", "--envoy-admin-port", "1"]
    with pytest.raises(SystemExit):
        _parser().parse_args(["agent", "--home", "x", *ports, f"--log-volume={text}"])
    assert "--log-volume" in (said := capsys.readouterr().err)
    assert "500Mi" in said

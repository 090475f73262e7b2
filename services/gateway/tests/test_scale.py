"""A thousand models cost little: nothing while nothing changes, and a change costs its own part."""

import errno
import json
import re
from pathlib import Path
from unittest import mock

import pytest
from gateway_kube_api import MODELS, SLICES, FakeCluster, endpoint, endpoint_slice, served_model
from gateway_lab import Gateway, Served, answered, plan, running, wait_for

from fairlead_gateway.adapters.clock import SystemClock
from fairlead_gateway.adapters.files import Home, PlanMemory, XdsFiles
from fairlead_gateway.adapters.metrics import PrometheusMeter
from fairlead_gateway.app.apply import Applier, ApplierPorts, ApplierSettings, Report
from fairlead_gateway.app.ports import EnvoyStatus, Part
from fairlead_gateway.app.view import ClusterView
from fairlead_gateway.domain.exposure import LogLine
from fairlead_gateway.domain.objects import parse_served_model, parse_slice
from fairlead_gateway.domain.render.listener import ListenerSettings
from fairlead_gateway.domain.render.shared import JSON

INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")


def test_more_versions_than_files_can_be_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Envoy serves more versions than it could watch files for: it aborts if it has to."""
    cluster = FakeCluster(tmp_path)
    monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig or "")
    count = min(int(INOTIFY_INSTANCES.read_text()), 1024) // 2 + 10
    for index in range(count):
        fill(cluster, f"model-{index}")
    home = tmp_path / "home"
    home.mkdir()
    with running(home, "--source", "kubernetes", "--namespace", "one") as made:
        wait_for(lambda: made.ready() == 200, 60)
        wait_for(lambda: len(made.applied()) == count)
        assert made.processes["envoy"].poll() is None
    cluster.close()


def fill(cluster: FakeCluster, name: str) -> None:
    """Make a model with two versions, at addresses where nobody answers."""
    made = served_model("one", name, uid=name, creationTimestamp="2026-01-01T00:00:00Z")
    cluster.api.put(MODELS.format("one"), {**made, "status": {"traffic": plan(name)}})
    for version in ("3", "4"):
        some = endpoint_slice("one", f"{name}-v{version}", version, [endpoint("127.0.0.9")])
        some["metadata"]["labels"]["fairlead.dev/model"] = name
        cluster.api.put(SLICES.format("one"), some)


def test_endpoints_come_and_go_under_load(mortal: Served) -> None:
    """A hundred changes of a busy version's endpoints cost no request."""
    mortal.upstream("3")
    mortal.apply(1000)
    endpoints = mortal.gateway.workloads[f"{mortal.model}-v3"]
    load = mortal.load()

    def healthy() -> int:
        versions = mortal.gateway.applied()[mortal.model]["versions"]
        return int(versions["3"]["healthy"])

    def happening() -> None:
        for index in range(100):
            endpoints[0]["ready"], endpoints[1]["ready"] = index % 3 != 0, index % 3 != 1
            mortal.gateway.publish("3", mortal.model)
            count = 2 if index % 3 == 2 else 1
            wait_for(lambda now=count: healthy() == now)
        answered(load)

    load.during(happening)
    assert load.failures == []


class Follower:
    """An Envoy that follows every file at once but one, and counts how often it is asked."""

    def __init__(self, home: Home) -> None:
        """Remember where the files are."""
        self.home = home
        self.asked = 0
        self.late = ""

    def status(self) -> EnvoyStatus:
        """Return the versions in the files."""
        self.asked += 1
        files = {
            "listeners": self.home.listeners,
            "clusters": self.home.clusters,
            "rollouts": self.home.rollouts,
            "scopes": self.home.scopes,
        }
        versions = {kind: version_in(path) for kind, path in files.items()}
        return EnvoyStatus(versions=versions | ({self.late: "before"} if self.late else {}))

    def rejections(self) -> dict[str, int]:
        """Return none."""
        return {}

    def healthy(self) -> dict[str, int]:
        """Return nothing."""
        return {}

    def reopen_logs(self) -> bool:
        """Do nothing."""
        return True


def version_in(path: Path) -> str:
    """Return a file's version, at its end."""
    return path.read_bytes().rpartition(b'"version_info":"')[2][:16].decode()


class Checks:
    """A validator that remembers which clusters it was asked about."""

    def __init__(self) -> None:
        """Start with none."""
        self.clusters: list[list[str]] = []

    def check(self, static: JSON) -> str | None:
        """Approve."""
        clusters = static["static_resources"]["clusters"]
        self.clusters.append([cluster["name"] for cluster in clusters])
        return None


def model(index: int, weight: int | None = 1000) -> JSON:
    """Make a ServedModel with a plan."""
    made = served_model("one", f"model-{index}", uid=f"u{index}", creationTimestamp="")
    return {**made, "status": {"traffic": plan(f"model-{index}", weight)}}


def applier_of(
    view: ClusterView, home: Home, envoy: Follower, checks: Checks, port: int
) -> Applier:
    """Make an applier that writes what is seen."""
    listener = ListenerSettings(host="127.0.0.1", port=port, access_log="/dev/null")
    ports = ApplierPorts(
        source=view,
        files=XdsFiles(home),
        envoy=envoy,
        validator=checks,
        memory=PlanMemory(home.memory),
        clock=SystemClock(),
    )
    settings = ApplierSettings(
        listener=listener, scopes=str(home.scopes), rollouts=str(home.rollouts)
    )
    return Applier(settings, ports)


def settle(applier: Applier) -> None:
    """Let it do all that is due."""
    while applier.step() < 0.01:
        pass


def test_a_look_at_nothing_new_asks_nobody(tmp_path: Path) -> None:
    """Between changes a look touches neither Envoy nor a file; a change validates its model only."""
    home = Home(tmp_path)
    view = ClusterView(["all"])
    view.replace_models("one", [parse_served_model(model(index)) for index in range(50)])
    view.put_slice(parse_slice(endpoint_slice("one", "a", "3", [endpoint("10.0.0.1")])))
    view.listed("all")
    envoy, checks = Follower(home), Checks()
    applier = applier_of(view, home, envoy, checks, port=1)
    settle(applier)
    asked = envoy.asked
    for _ in range(20):
        applier.step()
    assert envoy.asked == asked
    view.put_model(parse_served_model(model(7, 2000)))
    settle(applier)
    assert len(checks.clusters) == 1, "a new weight is no new structure"
    view.put_model(parse_served_model(model(7, None)))
    settle(applier)
    assert checks.clusters[1:] == [["model-7-v3"]]


def test_a_weight_touches_the_routes_of_rollouts_alone(tmp_path: Path) -> None:
    """Steps and the end of a rollout are read from a small file; then its routes move back."""
    home = Home(tmp_path)
    view = ClusterView(["all"])
    for index in range(50):
        view.put_model(parse_served_model(model(index, 1000 if index == 7 else None)))
    view.listed("all")
    envoy = Follower(home)
    applier = applier_of(view, home, envoy, Checks(), port=1)
    settle(applier)
    listener = home.listeners.read_bytes()
    scopes = home.scopes.read_bytes()
    assert b"model-7" in home.rollouts.read_bytes()
    assert b"model-8" not in home.rollouts.read_bytes()

    view.put_model(parse_served_model(model(7, 2000)))
    settle(applier)
    assert b'"weight":2000' in home.rollouts.read_bytes()
    assert home.scopes.read_bytes() == scopes

    envoy.late = "scopes"
    view.put_model(parse_served_model(model(7, None)))
    for _ in range(10):
        applier.step()
    assert home.scopes.read_bytes() != scopes
    assert b"model-7" in home.rollouts.read_bytes(), "Envoy still looks here"
    assert b"weight" not in home.rollouts.read_bytes(), "and finds stable alone"
    envoy.late = ""
    wait_for(lambda: applier.step() and b"model-7" not in home.rollouts.read_bytes())
    assert home.listeners.read_bytes() == listener


def test_a_restarted_agent_knows_which_scopes_are_shared(tmp_path: Path) -> None:
    """A rollout that ended while no agent ran keeps its routes until its scope has its own."""
    home = Home(tmp_path)
    view = ClusterView(["all"])
    view.put_model(parse_served_model(model(7, 1000)))
    view.listed("all")
    settle(applier_of(view, home, Follower(home), Checks(), port=1))
    view.put_model(parse_served_model(model(7, None)))
    envoy = Follower(home)
    envoy.late = "scopes"
    applier = applier_of(view, home, envoy, Checks(), port=1)
    for _ in range(10):
        applier.step()
    assert b"model-7" in home.rollouts.read_bytes()
    envoy.late = ""
    wait_for(lambda: applier.step() and b"model-7" not in home.rollouts.read_bytes())


def test_a_restarted_agent_keeps_units_that_routes_ask_for(tmp_path: Path) -> None:
    """A unit that changed while no agent ran is found until the routes ask for the new one."""
    home = Home(tmp_path)
    view = ClusterView(["all"])

    def put(unit: str) -> None:
        changed = served_model("one", "model-7", uid="u7", creationTimestamp="")
        traffic = plan("model-7", unit={"header": unit})
        view.put_model(parse_served_model({**changed, "status": {"traffic": traffic}}))

    put("x-old")
    view.listed("all")
    settle(applier_of(view, home, Follower(home), Checks(), port=1))
    put("x-new")
    envoy = Follower(home)
    envoy.late = "listeners"
    applier = applier_of(view, home, envoy, Checks(), port=1)
    for _ in range(10):
        applier.step()
    listener = home.listeners.read_bytes()
    assert b"x-fairlead-from-header-x-new" in listener
    assert b"x-fairlead-from-header-x-old" in listener
    assert b"x-fairlead-from-header-x-new" not in home.rollouts.read_bytes()


def test_plans_that_found_no_room_are_saved_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Envoy follows is told at once, and remembered as soon as the volume has room again."""
    home = Home(tmp_path)
    view = ClusterView(["all"])
    view.put_model(parse_served_model(model(7)))
    view.listed("all")
    applier = applier_of(view, home, Follower(home), Checks(), port=1)
    with monkeypatch.context() as patched:
        patched.setattr(PlanMemory, "save", mock.Mock(side_effect=OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            settle(applier)
    assert "model-7" in applier.report.applied
    wait_for(lambda: applier.step() and "model-7" in PlanMemory(home.memory).load())


def test_a_refusal_goes_with_its_model(tmp_path: Path) -> None:
    """A model that was removed, and its plan refused before, is no problem any more."""
    home = Home(tmp_path)
    view = ClusterView(["all"])
    view.put_model(parse_served_model(model(7)))
    view.listed("all")
    checks = mock.Mock(check=lambda _: "no")
    applier = applier_of(view, home, Follower(home), checks, port=1)
    settle(applier)
    assert applier.report.problems == {"model-7": "no"}
    view.remove_model(("one", "model-7"))
    settle(applier)
    assert applier.report.problems == {}


def test_a_thousand_models_fit(tmp_path: Path) -> None:
    """Envoy takes 1,000 models, 50 of them in a rollout, in 250 MB, and tells of them in 3 MB."""
    home = Home(tmp_path)
    view = ClusterView(["all"])
    for index in range(1000):
        rolling = index % 20 == 0
        view.put_model(parse_served_model(model(index, 1000 if rolling else None)))
        for version in ("3", "4") if rolling else ("3",):
            found = endpoint_slice("one", f"{index}-{version}", version, [endpoint("10.0.0.1")])
            found["metadata"]["labels"]["fairlead.dev/model"] = f"model-{index}"
            view.put_slice(parse_slice(found))
    view.listed("all")
    gateway = Gateway(tmp_path)
    try:
        settle(applier_of(view, home, Follower(home), Checks(), gateway.port))
        gateway.start_envoy()
        wait_for(lambda: gateway.ready() == 200)
        scrape = gateway.client.get(f"http://127.0.0.1:{gateway.admin}/stats/prometheus").text
        assert scrape.count("envoy_cluster_membership_healthy{") == 1050
        assert len(scrape) < 3e6
        assert resident(gateway) < 250e6
    finally:
        gateway.stop()


def resident(gateway: Gateway) -> int:
    """Return the bytes Envoy has in memory."""
    status = Path(f"/proc/{gateway.processes['envoy'].pid}/status").read_text("ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


def test_the_agents_scrape_of_a_thousand_models_is_small() -> None:
    """With 1,000 models, 50 of them in a rollout and all of them failing too, it is below 3 MB."""
    meter = PrometheusMeter()
    for index in range(1000):
        name = f"model-{index}"
        for arm, version in (("stable", "3"), ("candidate", "4"))[: 2 if index % 20 == 0 else 1]:
            for code in (200, 500):
                meter.request(
                    LogLine(
                        model=name,
                        arm=arm,
                        version=version,
                        cluster=f"{name}-v{version}",
                        code=code,
                        details="via_upstream",
                    )
                )
    assert len(meter.expose(Report())) < 3e6


def test_only_what_has_changed_is_written_down_again(tmp_path: Path) -> None:
    """A part is rendered when its inputs are new; the file and its version depend on all parts."""
    files, rendered = XdsFiles(Home(tmp_path)), list[str]()

    def part(name: str, value: int) -> Part:
        def render() -> JSON:
            rendered.append(name)
            return {name: value, f"{name}-too": value}

        return Part(name=name, inputs=(value,), render=render)

    def write(*values: int) -> str:
        parts = [part(f"part-{index}", value) for index, value in enumerate(values)]
        return files.write_rollouts(parts, lambda entries: {"routes": entries, "last": True})

    first = write(1, 2, 3)
    assert write(1, 2, 3) == first
    assert write(1, 5, 3) != first
    assert rendered == ["part-0", "part-1", "part-2", "part-1"]
    assert write(1, 2, 3) == first
    content = Home(tmp_path).rollouts.read_bytes()
    Home(tmp_path).rollouts.unlink()
    assert write(1, 2, 3) == first
    assert Home(tmp_path).rollouts.read_bytes() == content
    (resource,) = json.loads(content)["resources"]
    assert resource["routes"]["part-1-too"] == 2
    assert (len(resource["routes"]), resource["last"]) == (6, True)
    assert write() != first

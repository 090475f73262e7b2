"""Bad plans and refused configurations change nothing; a restart neither."""

import os
import resource
import socket
from pathlib import Path
from typing import Any

import pytest
from gateway_client import Load
from gateway_lab import Gateway, Served, plan, wait_for, write

from fairlead_gateway.adapters.clock import SystemClock
from fairlead_gateway.adapters.envoy import CHECKED, EnvoyAdmin, EnvoyValidator
from fairlead_gateway.adapters.files import FolderSource, Home, PlanMemory, XdsFiles
from fairlead_gateway.app import apply
from fairlead_gateway.app.apply import Applier, ApplierPorts, ApplierSettings
from fairlead_gateway.domain.plan import parse_plan, plan_digest
from fairlead_gateway.domain.render.listener import ListenerSettings
from fairlead_gateway.domain.render.shared import JSON


@pytest.mark.parametrize("bad", ["{", '{"traffic": {"model": 1}}', "[]"])
def test_a_bad_plan_keeps_the_last_good_one(served: Served, bad: str) -> None:
    """A plan that is wrong is reported and not followed; other models are not held up."""
    gateway, model = served.gateway, served.model
    before = gateway.applied()[model]
    write(gateway.home / "served-models" / model / "status.json", bad)
    wait_for(lambda: model in gateway.agent("/readyz").json()["problems"])  # type: ignore[union-attr]
    other = Served(gateway, f"{model}-b")
    other.upstream("3")
    other.apply(None)
    assert gateway.applied()[model] == before
    assert served.ask({})[0].code == 200
    other.close()
    served.apply(2000)
    assert model not in gateway.agent("/readyz").json()["problems"]  # type: ignore[union-attr]


def xds(home: Path) -> dict[str, tuple[int, bytes]]:
    """Return each of Envoy's files, with when it was written."""
    files = sorted((home / "gateway" / "xds").rglob("*.json"))
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_restart_of_the_agent_changes_nothing(iris: Gateway) -> None:
    """Killed and started again, also over a bad plan, the agent leaves Envoy's files alone."""
    before, applied = xds(iris.home), iris.applied()
    load = Load(iris.port)

    def happening() -> None:
        iris.kill("agent")
        iris.start_agent()
        wait_for(lambda: iris.applied() == applied)
        iris.kill("agent")
        write(iris.home / "served-models" / "iris" / "status.json", "{")
        iris.start_agent()
        wait_for(lambda: iris.applied() == applied)
        iris.kill("agent")
        (iris.home / "served-models").rename(iris.home / "away")
        iris.start_agent()
        wait_for(lambda: iris.agent("/livez"))
        (iris.home / "away").rename(iris.home / "served-models")
        wait_for(lambda: iris.applied() == applied)

    load.during(happening)
    assert load.failures == []
    assert len(load.answers) > 100
    assert xds(iris.home) == before


def test_a_restart_of_envoy_needs_nobody(iris: Gateway) -> None:
    """Envoy killed and started again serves from its files, with the agent dead."""
    iris.kill("agent")
    iris.kill("envoy")
    iris.start_envoy()
    wait_for(lambda: iris_answers(iris))


def iris_answers(gateway: Gateway) -> bool:
    """Tell whether a prediction succeeds."""
    try:
        return gateway.post().status_code == 200
    except OSError:
        return False
    except Exception as error:
        if "Connect" in type(error).__name__:
            return False
        raise


class Approving:
    """A validator that approves of everything."""

    def check(self, static: JSON) -> str | None:
        """Approve."""
        return None


def applier(gateway: Gateway, validator: Any, patience: float = 10.0) -> Applier:
    """Make an applier in this process."""
    home = Home(gateway.home)
    listener = ListenerSettings(
        host="127.0.0.1", port=gateway.port, access_log=str(home.access_log)
    )
    ports = ApplierPorts(
        source=FolderSource(home),
        files=XdsFiles(home),
        envoy=EnvoyAdmin(gateway.admin),
        validator=validator,
        memory=PlanMemory(home.memory),
        clock=SystemClock(),
    )
    settings = ApplierSettings(
        listener=listener,
        scopes=str(home.scopes),
        rollouts=str(home.rollouts),
        grace=0.1,
        patience=patience,
    )
    return Applier(settings, ports)


def test_checking_a_plan_leaves_the_log_alone(iris: Gateway) -> None:
    """A log that was moved away is made anew by the Envoy that serves, not by one that checks."""
    iris.kill("agent")
    log = Home(iris.home).access_log
    log.rename(log.with_name("access.log.1"))
    made = applier(iris, EnvoyValidator(iris.home))
    iris.put(plan(weight=5000, timeout=9.0))
    wait_for(lambda: made.step() and followed(made) == 9.0)
    assert not log.exists()
    made._ports.envoy.close()  # type: ignore[attr-defined]


def followed(made: Applier) -> float:
    """Return the timeout of the plan Envoy follows, 0 before there is one."""
    applied = made.report.applied.get("iris")
    return applied.plan.timeout if applied else 0.0


def test_a_port_that_was_taken_is_listened_at(tmp_path: Path) -> None:
    """What Envoy could not do when it read a file it is told again, and does once it can."""
    (tmp_path / "served-models").mkdir()
    gateway = Gateway(tmp_path)
    try:
        with socket.socket() as other:
            other.bind(("127.0.0.1", gateway.port))
            other.listen()
            gateway.start_envoy()
            made = applier(gateway, Approving(), patience=0.5)
            gateway.put(plan(weight=None))
            wait_for(lambda: made.step() and "envoy" in made.report.problems)
        wait_for(lambda: made.step() and made.report.ready)
        assert made.report.problems == {}
        made._ports.envoy.close()  # type: ignore[attr-defined]
    finally:
        gateway.stop()


def test_a_file_envoy_could_not_read_is_read_again(iris: Gateway) -> None:
    """An Envoy that has no file descriptor left for a moment misses no change for good."""
    iris.kill("agent")
    made = applier(iris, Approving(), patience=0.5)
    wait_for(lambda: made.step() and made.report.ready)
    envoy = iris.processes["envoy"].pid
    limit = resource.prlimit(envoy, resource.RLIMIT_NOFILE)
    resource.prlimit(envoy, resource.RLIMIT_NOFILE, (1, limit[1]))
    iris.put(plan(weight=6000))
    wait_for(lambda: made.step() and "rollouts" in made.report.problems.get("envoy", ""))
    resource.prlimit(envoy, resource.RLIMIT_NOFILE, limit)
    wait_for(lambda: made.step() and made.report.applied["iris"].plan.arms[0].weight == 6000)
    assert made.report.problems == {}
    made._ports.envoy.close()  # type: ignore[attr-defined]


def test_checks_that_were_killed_leave_no_more_than_one_file(tmp_path: Path) -> None:
    """What a killed check left is overwritten by the next one, and removed."""
    left = tmp_path / CHECKED
    left.write_text("half of a confi")
    assert EnvoyValidator(tmp_path).check({}) is None
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_is_killed_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was short of memory has said nothing about the plan; an Envoy that breaks down has."""
    envoy = tmp_path / "envoy"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for blow, is_refused in (("KILL", False), ("SEGV", True)):
        envoy.write_text(f"#!/bin/sh\nkill -{blow} $$\n")
        envoy.chmod(0o755)
        assert (EnvoyValidator(tmp_path).check({}) is not None) == is_refused


@pytest.mark.parametrize("validated", [True, False], ids=["before", "after"])
def test_a_refused_plan_keeps_the_old_configuration(
    iris: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    validated: bool,
) -> None:
    """What Envoy refuses, asked before or noticed after, is dropped, reported and not retried."""
    iris.kill("agent")
    render = apply.render_model_routes

    def broken(plan_: Any) -> JSON:
        routes = render(plan_)
        if plan_.timeout == 9.0:
            routes["/v2/models/iris/"]["no_such_field"] = 1
        return routes

    monkeypatch.setattr(apply, "render_model_routes", broken)
    made = applier(iris, EnvoyValidator(iris.home) if validated else Approving())
    wait_for(lambda: made.step() and made.report.ready)
    good = made.report.applied["iris"]
    before = xds(iris.home)
    iris.put(plan(weight=5000, timeout=9.0))
    wait_for(lambda: made.step() and "iris" in made.report.problems)
    wait_for(lambda: made.step() > 0.01)
    assert made.report.applied["iris"] == good
    assert made.report.rejected == 1
    assert {k: v[1] for k, v in xds(iris.home).items()} == {k: v[1] for k, v in before.items()}
    assert iris.post().status_code == 200
    after = plan(weight=5000)
    iris.put(after)
    digest = plan_digest(parse_plan(after))
    wait_for(lambda: made.step() and plan_digest(made.report.applied["iris"].plan) == digest)
    assert made.report.problems == {}
    made._ports.envoy.close()  # type: ignore[attr-defined]

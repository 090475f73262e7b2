"""Each chart is upgraded in the middle of a rollout, so that its pods roll: nobody notices."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fairlead_e2e.helm import install, uninstall
from fairlead_e2e.kube import Document
from fairlead_e2e.platform import CONTROLLER, GATEWAY, Platform
from fairlead_e2e.served import HELD, SPEC, Served, unique
from fairlead_e2e.settings import ROOT

Serve = Callable[..., Served]
TURN = {"podAnnotations": {"fairlead.dev/e2e-turn": "again"}}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The charts as they were before their last change."""
    git = ("git", "-C", str(ROOT))
    log = subprocess.run(
        [*git, "log", "-2", "--format=%H", "--", "charts"], capture_output=True, check=False
    )
    commits = log.stdout.decode().split()
    if len(commits) < 2:
        pytest.skip("needs the charts of the commit before: a clone with its history")
    folder = tmp_path_factory.mktemp("before")
    archive = subprocess.run(
        [*git, "archive", commits[1], "charts"], capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder / "charts"


def _uids(pods: list[Document]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def test_upgrade_fairlead(serve: Serve, platform: Platform, before: Path) -> None:
    """From the charts before, all pods roll: the rollout goes on, no request fails."""
    platform.install_fairlead(folder=before)
    served = serve(HELD)
    old = _uids([*platform.pods(CONTROLLER), *platform.pods(GATEWAY)])
    with served.load() as load:
        rollout = served.hold_at_half()
        platform.install_fairlead({"controller": TURN, "gateway": TURN, "experiments": TURN})
        platform.await_whole()
        assert not old & _uids([*platform.pods(CONTROLLER), *platform.pods(GATEWAY)])
        assert served.rollout()["id"] == rollout
        load.await_sent(60)
        served.ask("promote")
        served.await_serving("2")
    served.assert_unnoticed(load.report)


def test_upgrade_mlflow(serve: Serve, platform: Platform, before: Path) -> None:
    """From the charts before, server and stores roll: the rollout goes on, nothing is lost."""
    platform.install_mlflow(folder=before)
    served = serve(HELD)
    with served.load() as load:
        rollout = served.hold_at_half()
        platform.install_mlflow({"server": TURN, "postgresql": TURN, "s3": TURN})
        platform.await_whole()
        assert served.rollout()["id"] == rollout
        served.ask("promote")
        served.await_serving("2")
        tags = served.await_tag("2", "promoted", within=60)
    served.assert_unnoticed(load.report)
    assert tags["rollout.id"] == rollout


def test_upgrade_model(platform: Platform, team: str, before: Path) -> None:
    """The release of a model gets other resources: both arms roll, the rollout goes on."""
    served = Served(platform=platform, namespace=team, name="upgraded", model=unique("Upgraded"))
    served.promote(served.register(1))
    served.register(2)
    install(served.name, "model", team, _values(served, "64Mi"), folder=before)
    served.await_serving("1")
    with served.load() as load:
        rollout = served.hold_at_half()
        old = _uids([*served.pods("1"), *served.pods("2")])
        install(served.name, "model", team, _values(served, "80Mi"))
        for version in ("1", "2"):
            served.await_pods_replaced(version, old)
        assert served.rollout()["id"] == rollout
        load.await_sent(60)
        served.ask("promote")
        served.await_serving("2")
    served.assert_unnoticed(load.report)
    uninstall(served.name, team)


def _values(served: Served, memory: str) -> Document:
    resources = {"requests": {"cpu": "20m", "memory": memory}, "limits": {"memory": "1Gi"}}
    rollout = {key: value for key, value in HELD["rollout"].items() if key != "guardrails"}
    return {
        "model": served.model,
        "rollout": {**rollout, "guardrails": {"errors": None}},
        "server": {**SPEC["server"], "resources": resources},
    }

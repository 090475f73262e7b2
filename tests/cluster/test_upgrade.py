"""Each chart is upgraded in the middle of a rollout, so that its pods roll: nobody notices."""

from collections.abc import Callable

from fairlead_e2e.helm import install, uninstall
from fairlead_e2e.kube import Document
from fairlead_e2e.platform import CONTROLLER, GATEWAY, Platform
from fairlead_e2e.served import HELD, SPEC, Served

Serve = Callable[..., Served]
TURN = {"podAnnotations": {"fairlead.dev/e2e-turn": "again"}}


def _uids(pods: list[Document]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def test_upgrade_fairlead(serve: Serve, platform: Platform) -> None:
    """Controller, gateway and experiments all roll: the rollout goes on, no request fails."""
    served = serve(HELD)
    before = _uids([*platform.pods(CONTROLLER), *platform.pods(GATEWAY)])
    with served.load() as load:
        served.promote("2")
        served.await_weight(5_000)
        rollout = served.rollout()["id"]
        platform.install_fairlead({"controller": TURN, "gateway": TURN, "experiments": TURN})
        platform.await_whole()
        assert not before & _uids([*platform.pods(CONTROLLER), *platform.pods(GATEWAY)])
        assert served.rollout()["id"] == rollout
        load.await_sent(60)
        served.ask("promote")
        served.await_serving("2")
    served.assert_unnoticed(load.report)


def test_upgrade_mlflow(serve: Serve, platform: Platform) -> None:
    """MLflow's server and stores roll: the rollout goes on, and its verdict gets there."""
    served = serve(HELD)
    with served.load() as load:
        served.promote("2")
        served.await_weight(5_000)
        rollout = served.rollout()["id"]
        platform.install_mlflow({"server": TURN, "postgresql": TURN, "s3": TURN})
        platform.await_whole()
        assert served.rollout()["id"] == rollout
        served.ask("promote")
        served.await_serving("2")
        tags = served.await_tag("2", "promoted", within=60)
    served.assert_unnoticed(load.report)
    assert tags["rollout.id"] == rollout


def test_upgrade_model(platform: Platform, team: str) -> None:
    """The release of a model gets other resources: both arms roll, the rollout goes on."""
    served = Served(platform=platform, namespace=team, name="upgraded", model="Upgraded")
    served.promote(served.register(1))
    served.register(2)
    install(served.name, "model", team, _values(served, "64Mi"))
    served.await_serving("1")
    with served.load() as load:
        served.promote("2")
        served.await_weight(5_000)
        rollout = served.rollout()["id"]
        before = _uids([*served.pods("1"), *served.pods("2")])
        install(served.name, "model", team, _values(served, "80Mi"))
        for version in ("1", "2"):
            served.await_pods_replaced(version, before)
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

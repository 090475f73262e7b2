"""A part of the platform is away in the middle of a rollout: what serves goes on serving."""

from collections.abc import Callable

from fairlead_e2e.faults import away
from fairlead_e2e.platform import Platform
from fairlead_e2e.served import HELD, Served
from fairlead_e2e.waiting import Stopwatch, wait_until

Serve = Callable[..., Served]
Measured = Callable[[str, float], None]
TOLD_WITHIN = 30.0


def await_told(served: Served, condition: str, *names: str) -> float:
    """Wait until a condition and an event name what is away; returns the seconds it took."""
    clock = Stopwatch()

    def told() -> bool:
        found = served.condition(condition)
        return found is not None and all(name in found["message"] for name in names)

    wait_until(told, TOLD_WITHIN, f"{condition} names {names}", served.told)
    seconds = clock.seconds
    found = served.condition(condition)
    assert found is not None
    events = lambda: [e["message"] for e in served.events(found["reason"])]  # noqa: E731
    wait_until(
        lambda: any(all(name in message for name in names) for message in events()),
        TOLD_WITHIN,
        f"an event {found['reason']} names {names}",
        events,
    )
    return seconds


def await_untold(served: Served, condition: str) -> None:
    """Wait until a condition is gone."""
    wait_until(lambda: served.condition(condition) is None, 60, f"{condition} is over", served.told)


def test_experiments_away(serve: Serve, platform: Platform, measured: Measured) -> None:
    """Without the experiments service the weight holds; no exposure is lost, the rollout ends well."""
    served = serve(HELD)
    with served.load() as load:
        rollout = served.hold_at_half()
        with away(platform.kube, "Deployment", platform.name, "fairlead-experiments"):
            seconds = await_told(served, "ExperimentsUnavailable", "experiments")
            load.await_sent(200)
            assert served.weight() == 5_000
        await_untold(served, "ExperimentsUnavailable")
        served.ask("promote")
        served.await_serving("2")
    measured("until the absence of experiments is told", seconds)
    served.assert_unnoticed(load.report)
    assert_counted(served, rollout, load.report.count(rollout=rollout))


def assert_counted(served: Served, rollout: str, answers: int) -> None:
    """Check that every answer of the rollout was counted once, those of the outage too."""
    platform = served.platform

    def counted() -> int:
        arms = platform.analysis(rollout)["arms"]
        return int(arms["stable"]["requests"] + arms["candidate"]["requests"])

    wait_until(lambda: counted() == answers, 60, f"{answers} exposures are counted", counted)


def test_mlflow_away(serve: Serve, platform: Platform, measured: Measured) -> None:
    """Without MLflow the rollout goes on; the verdict is written back when it is there again."""
    served = serve(HELD)
    with served.load() as load:
        served.promote("2")
        served.await_weight(2_000)
        with away(platform.kube, "Deployment", platform.mlflow_namespace, "mlflow"):
            seconds = await_told(served, "RegistryUnavailable", "mlflow")
            served.await_weight(5_000)
            # A pod that ends now cannot fetch its version again before MLflow is back.
            served.ask("abort")
            served.await_state("2", "aborted")
            load.await_sent(100)
        await_untold(served, "RegistryUnavailable")
        served.await_tag("2", "aborted", within=60)
    measured("until the absence of MLflow is told", seconds)
    served.assert_unnoticed(load.report)


def test_postgresql_restarted(serve: Serve, platform: Platform) -> None:
    """The databases of experiments and of MLflow are restarted: the rollout goes on."""
    served = serve(HELD)
    with served.load() as load:
        rollout = served.hold_at_half()
        databases = (
            (platform.name, "fairlead-postgresql"),
            (platform.mlflow_namespace, "mlflow-postgresql"),
        )
        for namespace, name in databases:
            uid = _uid(served, namespace, f"{name}-0")
            platform.kube.delete("Pod", namespace, f"{name}-0")
            wait_until(
                lambda: _uid(served, namespace, f"{name}-0") not in {"", uid},  # noqa: B023
                90,
                f"{name} is started again",
            )
        for namespace, name in databases:
            platform.kube.await_rolled_out("StatefulSet", namespace, name)
        wait_until(platform.mlflow_answers, 60, "MLflow answers")
        assert served.rollout()["id"] == rollout
        served.ask("promote")
        served.await_serving("2")
        served.await_tag("2", "promoted", within=60)
    served.assert_unnoticed(load.report)
    assert_counted(served, rollout, load.report.count(rollout=rollout))


def _uid(served: Served, namespace: str, pod: str) -> str:
    found = served.platform.kube.get("Pod", namespace, pod) or {}
    uid: str = (found.get("metadata") or {}).get("uid", "")
    return uid


def test_storage_away(serve: Serve, platform: Platform) -> None:
    """Without MLflow's S3 server a candidate waits, and the condition says what it cannot get."""
    served = serve()
    with served.load() as load:
        with away(platform.kube, "StatefulSet", platform.mlflow_namespace, "mlflow-s3"):
            served.promote("2")
            served.await_state("2", "pending")
            await_told(served, "Progressing", "version 2", "artifact store")
            load.await_sent(60)
        served.await_state("2", "promoted")
        served.await_serving("2")
    served.assert_unnoticed(load.report)
    assert load.report.values("2") == {2.0}


def test_mlflow_database_away(serve: Serve, platform: Platform) -> None:
    """Without MLflow's database the condition names MLflow, and traffic stays as it is."""
    served = serve()
    with served.load() as load:
        with away(platform.kube, "StatefulSet", platform.mlflow_namespace, "mlflow-postgresql"):
            await_told(served, "RegistryUnavailable", "mlflow")
            load.await_sent(60)
            assert served.status()["stable"] == "1"
        wait_until(platform.mlflow_answers, 90, "MLflow answers")
        await_untold(served, "RegistryUnavailable")
    served.assert_unnoticed(load.report)


def test_database_of_experiments_away(serve: Serve, platform: Platform) -> None:
    """Without the database of experiments the condition names the service, and the weight holds."""
    served = serve(HELD)
    with served.load() as load:
        rollout = served.hold_at_half()
        with away(platform.kube, "StatefulSet", platform.name, "fairlead-postgresql"):
            await_told(served, "ExperimentsUnavailable", "experiments")
            load.await_sent(60)
            assert served.weight() == 5_000
        await_untold(served, "ExperimentsUnavailable")
        served.ask("promote")
        served.await_serving("2")
    served.assert_unnoticed(load.report)
    assert_counted(served, rollout, load.report.count(rollout=rollout))


def test_wrong_account_at_mlflow(serve: Serve, platform: Platform) -> None:
    """With a wrong password the condition says so within 30 s, and never shows it."""
    served = serve()
    kube, secret = platform.kube, "fairlead-mlflow"
    before = kube.get("Secret", platform.name, secret)
    assert before is not None
    wrong = "d3JvbmctcGFzc3dvcmQtNDcxMQ=="
    with served.load() as load:
        try:
            kube.patch("Secret", platform.name, secret, {"data": {"password": wrong}})
            _restart_controllers(platform)
            await_told(served, "RegistryUnavailable", "mlflow", "401")
            told = served.told() + "".join(e["message"] for e in served.events())
            logs = [
                kube.log(platform.name, pod["metadata"]["name"], "controller")
                for pod in platform.pods({"app.kubernetes.io/component": "controller"})
            ]
            assert "wrong-password-4711" not in told + "".join(logs)
            load.await_sent(60)
        finally:
            kube.patch("Secret", platform.name, secret, {"data": before["data"]})
            _restart_controllers(platform)
        await_untold(served, "RegistryUnavailable")
    served.assert_unnoticed(load.report)


def _restart_controllers(platform: Platform) -> None:
    """Have the controllers read their account again."""
    labels = {"app.kubernetes.io/component": "controller"}
    old = {pod["metadata"]["name"] for pod in platform.pods(labels)}
    for name in old:
        platform.kube.delete("Pod", platform.name, name)
    wait_until(
        lambda: platform.leader() not in {"", *old}, 60, "a new controller leads", platform.leader
    )

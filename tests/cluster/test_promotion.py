"""A person promotes a version in MLflow, and the cluster follows without a failed request."""

from collections.abc import Callable

from fairlead_e2e.served import HELD, Served

Serve = Callable[..., Served]
MANY = 4_000  # units: an objective looks at 500 of each arm before it decides


def test_promote_by_stage(serve: Serve) -> None:
    """A version set to Production is put on trial step by step and becomes stable."""
    # Given version 1 under load
    served = serve()
    with served.load() as load:
        # When version 2 is set to Production
        served.promote("2")
        # Then it gets each step's weight, and in the end all traffic
        served.await_weight(2_000)
        served.await_weight(5_000)
        served.await_serving("2")
        load.await_answer_by("2")
        load.await_sent(100)
        tags = served.await_tag("2", "promoted")
    served.assert_unnoticed(load.report)
    assert load.report.values("2") == {2.0}
    assert served.summary()["state"] == "promoted: GuardrailsHeld"
    assert tags["rollout.baseline_version"] == "1"
    assert load.report.last["1"] < load.report.at - 0.2


def test_promote_by_alias(serve: Serve) -> None:
    """With an alias in the ServedModel, moving the alias does the same."""
    # Given the alias at version 1
    served = serve({"registry": {"production": {"alias": "champion"}}})
    with served.load() as load:
        # When the alias moves
        served.set_alias("champion", "2")
        # Then version 2 becomes stable
        served.await_weight(2_000)
        served.await_serving("2")
        load.await_sent(60)
    served.assert_unnoticed(load.report)
    assert load.report.values("2") == {2.0}


def test_win_is_promoted(serve: Serve) -> None:
    """A candidate whose outcomes are better is promoted, with the numbers in MLflow."""
    served = serve(HELD)
    with served.load(outcomes=True, units=MANY, rate=100) as load:
        served.promote("2")
        rollout = served.await_state("2", "promoted")
        served.await_serving("2")
        tags = served.await_tag("2", "promoted")
    served.assert_unnoticed(load.report)
    assert rollout["reason"] == "ObjectiveBetter"
    assert float(tags["rollout.effect"]) > 0
    assert float(tags["rollout.ci_low"]) > 0


def test_lose_is_aborted(serve: Serve) -> None:
    """A candidate whose outcomes are worse is aborted; stable never stops."""
    # Given version 2, which answers more, as the stable one
    served = serve({**HELD, "registry": {"onAbort": "revert"}})
    served.promote("2")
    served.await_state("2", "running")
    served.ask("promote")
    served.await_serving("2")
    with served.load(outcomes=True, units=MANY, rate=100) as load:
        # When version 1, which answers less, is put on trial
        served.promote("1")
        rollout = served.await_state("1", "aborted")
        served.await_serving("2")
        # Then MLflow has the verdict, and its pointer is moved back as the ServedModel asks
        tags = served.await_tag("1", "aborted")
        load.await_sent(60)
    served.assert_unnoticed(load.report)
    assert rollout["reason"] == "ObjectiveWorse"
    assert float(tags["rollout.effect"]) < 0
    assert served.summary()["state"] == "aborted: ObjectiveWorse"
    assert served.condition("Aborted")
    assert served.status()["stable"] == "2"


def test_best_of_several_is_promoted(serve: Serve) -> None:
    """Of two candidates by alias the better one becomes stable, the other one is out."""
    # Given version 1 under load, and aliases for candidates
    candidates = [{"alias": "challenger-a"}, {"alias": "challenger-b"}]
    served = serve({**HELD, "registry": {"candidates": candidates}}, versions=1)
    worse, better = served.register(0.0), served.register(2.0)
    with served.load(outcomes=True, units=2 * MANY, rate=100) as load:
        # When one alias names a version that answers less, and one a version that answers more
        served.set_alias("challenger-a", worse)
        served.set_alias("challenger-b", better)
        # Then the better one gets all traffic, and MLflow has both verdicts
        served.await_serving(better)
        won = served.await_tag(better, "promoted")
        lost = served.await_tag(worse, "aborted")
        load.await_sent(60)
    served.assert_unnoticed(load.report)
    assert served.status()["stable"] == better
    assert load.report.values(worse) == {0.0}
    assert won["rollout.reason"].startswith("ObjectiveBetter")
    assert lost["rollout.reason"].startswith(("ObjectiveWorse", "OtherPromoted"))
    history = {(entry["candidate"], entry["state"]) for entry in served.status()["history"]}
    # A look between the two aliases put the first version on trial alone, until the second came.
    assert history - {(worse, "superseded")} == {(worse, "aborted"), (better, "promoted")}


def test_supersede(serve: Serve) -> None:
    """A newer version that arrives in a rollout takes the candidate's place."""
    served = serve(HELD, versions=3)
    with served.load() as load:
        served.promote("2")
        served.await_weight(5_000)
        # When version 3 arrives
        served.promote("3")
        served.await_state("3", "running")
        served.await_weight(5_000)
        load.await_answer_by("3")
        # Then version 2 is out, and version 1 still the stable one
        tags = served.await_tag("2", "superseded")
        assert served.status()["stable"] == "1"
        served.ask("promote")
        served.await_serving("3")
        load.await_sent(60)
    served.assert_unnoticed(load.report)
    assert tags["rollout.reason"].startswith("Superseded")
    history = [(entry["candidate"], entry["state"]) for entry in served.status()["history"]]
    assert history == [("2", "superseded"), ("3", "promoted")]


def test_roll_back(serve: Serve) -> None:
    """Moving Production back to the version before is a rollout of its own, to pods still there."""
    served = serve({"server": {"keep": {"versions": 1, "for": "5m"}}})
    with served.load() as load:
        # Given version 2 after a promotion
        served.promote("2")
        served.await_serving("2")
        kept = {pod["metadata"]["uid"] for pod in served.ready_pods("1")}
        # When Production names version 1 again
        served.promote("1")
        served.await_state("1", "promoted")
        served.await_serving("1")
        load.await_sent(60)
    # Then the pods that were kept serve, and none was started
    served.assert_unnoticed(load.report)
    assert kept
    assert {pod["metadata"]["uid"] for pod in served.ready_pods("1")} == kept

"""No request fails while replicas die, plans change, and versions come and go."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway_client import Connection, versions
from gateway_lab import Gateway, Served, answered, black_hole, plan, wait_for


def test_one_of_two_stable_replicas_is_killed(mortal: Served) -> None:
    """A killed replica of stable costs no request."""
    replica = mortal.upstream("3")
    mortal.apply(1000)
    load = mortal.load()

    def happening() -> None:
        answered(load)
        mortal.gateway.kill(replica)
        answered(load)

    load.during(happening)
    assert load.failures == []


def test_the_only_candidate_replica_is_killed(mortal: Served) -> None:
    """Stable stands in for a dead candidate, and the log holds it against the candidate."""
    mortal.apply(5000)
    load = mortal.load()

    def happening() -> None:
        answered(load)
        mortal.gateway.kill(mortal.replicas[1])
        answered(load, 1000)

    load.during(happening)
    assert load.failures == []
    lines = [line for line in mortal.log(len(load.answers)) if line["arm"] == "candidate"]
    stood_in = [line for line in lines if line["version"] == "3"]
    assert len(stood_in) > 100
    assert {line["cluster"] for line in stood_in} == {f"{mortal.model}-v4"}
    assert any(line["attempts"] > 1 for line in stood_in)
    sample = f'{{arm="candidate",model="{mortal.model}"}}'
    metric = mortal.gateway.metric
    wait_for(lambda: metric(f"fairlead_gateway_fallbacks_total{sample}") == len(stood_in))
    assert metric(f"fairlead_gateway_retries_total{sample}") > 0


def test_a_node_is_lost_with_the_candidate_and_a_stable_replica(mortal: Served) -> None:
    """Two of three replicas swallow what is sent to them: the third answers every request."""
    gateway, model = mortal.gateway, mortal.model
    gateway.remove("4", model)
    with black_hole() as one, black_hole() as other:
        gateway.black_hole("4", model, one)
        gateway.black_hole("3", model, other)
        mortal.apply(5000)
        total = {version: {"healthy": n, "total": n} for version, n in (("3", 2), ("4", 1))}
        wait_for(lambda: gateway.applied()[model]["versions"] == total)
        load = mortal.load()
        load.during(lambda: answered(load, 1000))
    assert load.failures == []
    assert {line["version"] for line in mortal.log(1000)} == {"3"}


def test_a_hundred_weights_under_load(served: Served) -> None:
    """A hundred changes of weight cost no request."""
    load = served.load()

    def happening() -> None:
        for index in range(100):
            served.apply(100 * index)

    load.during(happening)
    assert load.failures == []
    assert set(versions(load.answers)) == {"3", "4"}


def test_rollouts_begin_and_end_under_load(served: Served) -> None:
    """Ten rollouts of a model, and other models that come and go: no request fails."""
    load = served.load()
    other = Served(served.gateway, f"{served.model}-b")

    def happening() -> None:
        for _ in range(10):
            served.apply(None)
            other.apply(None)
            served.apply(5000)
            other.close()

    load.during(happening)
    assert load.failures == []
    assert set(versions(load.answers)) == {"3", "4"}


def test_versions_come_and_go_under_load(mortal: Served) -> None:
    """A new version is added, takes all traffic, and the old ones go: no request fails."""
    load = mortal.load()
    gateway, model = mortal.gateway, mortal.model

    def happening() -> None:
        mortal.upstream("5")
        wait_for(
            lambda: gateway.applied()[model]["versions"].get("5") == {"healthy": 1, "total": 1}
        )
        arms = [
            {"arm": "candidate", "version": "5", "weight": 5000},
            {"arm": "stable", "version": "3", "weight": 5000},
        ]
        mortal.apply(5000, arms=arms)
        answered(load)
        mortal.apply(None, arms=[{"arm": "stable", "version": "5", "weight": 10_000}])
        gateway.remove("3", model)
        gateway.remove("4", model)
        gone = f"cluster.{model}-v3.membership_total"
        wait_for(lambda: gateway.stat(gone) == "")
        gateway.kill(mortal.replicas[0])
        answered(load)

    load.during(happening)
    assert load.failures == []
    assert load.answers[-1].headers["x-model-version"] == "5"


def test_replica_taken_out_before_it_ends(mortal: Served) -> None:
    """A replica that is no longer ready gets no more traffic, at once."""
    mortal.upstream("3")
    endpoints = mortal.gateway.workloads[f"{mortal.model}-v3"]
    endpoints[0]["ready"] = False
    mortal.gateway.publish("3", mortal.model)
    versions_of = lambda: mortal.gateway.applied()[mortal.model]["versions"]["3"]  # noqa: E731
    wait_for(lambda: versions_of() == {"healthy": 1, "total": 2})
    mortal.gateway.kill(mortal.replicas[0])
    answers = mortal.ask(*[{}] * 50)
    assert {answer.code for answer in answers} == {200}
    assert {line["attempts"] for line in mortal.log(50)} == {1}


@pytest.mark.parametrize("on_reset", [True, False])
def test_503_is_asked_again(served: Served, on_reset: bool) -> None:
    """A candidate that answers 503 is replaced by stable, whatever is said about resets."""
    served.apply(10_000, retries={"attempts": 2, "onReset": on_reset})
    (answer,) = served.ask({"x-unit-id": "a", "x-test-code": "503"})
    assert answer.code == 503
    assert served.log(1)[0]["attempts"] == 3


@pytest.mark.parametrize("unit", [{"query": "session"}, {"header": "x-new"}, {"cookie": "new"}])
def test_a_new_unit_under_load(served: Served, unit: dict[str, str]) -> None:
    """A unit no plan has named before changes the listener: no request fails."""
    load = served.load()

    def happening() -> None:
        answered(load)
        served.apply(5000, unit=unit)
        answered(load)

    load.during(happening)
    assert load.failures == []


def test_a_new_unit_breaks_no_long_request(gateway: Gateway) -> None:
    """A request that takes longer than any drain goes on, whatever unit another model brings."""
    gateway.upstream("3")
    gateway.apply(plan(weight=None, timeout=30.0))
    gateway.upstream("3", "other")
    with ThreadPoolExecutor() as pool:
        long = pool.submit(gateway.post, headers={"x-test-delay": "8"}, timeout=30)
        wait_for(lambda: int(gateway.stat("http.gateway.downstream_rq_active")) > 0)
        gateway.apply(plan("other", None, unit={"header": "x-other"}))
        assert long.result().status_code == 200


def test_kept_connections_are_closed_for_a_new_unit(served: Served) -> None:
    """An answer on a connection from before says that it closes: the next one knows the unit."""
    kept = Connection(lambda: served.gateway.port)

    async def ask_before_and_after() -> list[str]:
        before = await kept.ask(served.path, {})
        await asyncio.to_thread(served.apply, 10_000, unit={"header": "x-newer"})
        after = await kept.ask(served.path, {"x-newer": "a"})
        anew = await kept.ask(served.path, {"x-newer": "a"})
        kept.close()
        assert "connection" not in before.headers
        assert after.headers["connection"] == "close"
        return [answer.headers["x-rollout-arm"] for answer in (before, anew)]

    assert asyncio.run(ask_before_and_after()) == ["stable", "candidate"]

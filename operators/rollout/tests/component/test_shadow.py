"""Shadows: who gets copies, and the gate before the first step."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from fairlead_rollout.domain.explain import explain
from fairlead_rollout.domain.snapshot import Verb, Verdict
from fairlead_rollout.domain.status import ConditionType, RolloutState

World = Any
STAGING = {"stage": "Staging", "share": 25}
RULES = {
    "steps": [{"weight": 10, "for": "30s"}],
    "maxDuration": "1h",
    "guardrails": {"shadow": {"maxDisagreement": 0.05, "tolerance": 0.5, "share": 12.5}},
}


@pytest.fixture
def gated(make_world: Callable[..., World], build_manifest: Callable[..., Any]) -> World:
    """Return a world with a gate, in which version 2 is ready and gets copies."""
    world = make_world(build_manifest(rollout=RULES))
    world.shadow_state = "insufficient"
    world.run_until(lambda: world.status.stable == "1")
    world.production = "2"
    world.run_until(lambda: copies(world) == {"2": 1_250} and world.rollout.id in world.records_)
    return world


def copies(world: World) -> dict[str, int]:
    """Return the shares of the versions that get copies."""
    return {c["version"]: c["share"] for c in (world.status.traffic or {}).get("shadow", ())}


def waiting(world: World) -> str:
    """Return the reason of what is waited for."""
    condition = world.status.condition(ConditionType.PROGRESSING)
    assert condition is not None
    return condition.reason


def test_a_shadow_gets_the_share_that_the_spec_states(
    make_world: Callable[..., World], build_manifest: Callable[..., Any]
) -> None:
    """The share is in percent in the spec, and of 10,000 in the plan."""
    world = make_world(build_manifest(registry={"shadow": STAGING}))
    world.shadow = "7"
    world.run_until(lambda: copies(world) == {"7": 2_500})


def test_a_candidate_gets_copies_and_no_weight_while_the_gate_holds(gated: World) -> None:
    """Without enough pairs nothing moves, however long it takes, and the deadline is no matter."""
    gated.run(100, every=15.0)

    assert gated.rollout.state is RolloutState.PENDING
    assert (gated.weight, copies(gated)) == (0, {"2": 1_250})
    assert gated.status.traffic["rollout"] is None
    assert waiting(gated) == "ComparingShadow"


def test_the_rule_reaches_the_experiments_service(gated: World) -> None:
    """What the gate is judged by is in the rollout's record."""
    record = gated.records_[gated.rollout.id]

    assert record["guardrails"]["shadow"] == {
        "maxDisagreement": 0.05,
        "tolerance": 0.5,
        "minimumPairs": 200,
    }


def test_a_gate_that_is_passed_gives_the_first_weight(gated: World) -> None:
    """Once the comparison holds, the candidate answers, and gets copies no longer."""
    gated.shadow_state = "holding"
    gated.run_until(lambda: gated.weight == 1_000)

    assert copies(gated) == {}
    assert gated.rollout.state is RolloutState.RUNNING


def test_a_candidate_that_disagrees_is_aborted_before_it_answers(gated: World) -> None:
    """A worse comparison ends the rollout with its reason, and no weight was ever given."""
    gated.shadow_state, gated.verdict, gated.why = "worse", Verdict.WORSE, "version 2 disagrees"
    gated.run_until(lambda: not gated.rollout.is_active)

    assert (gated.rollout.state, gated.rollout.reason) == (RolloutState.ABORTED, "ShadowWorse")
    gated.run(3)
    assert gated.tags["2"]["rollout.reason"] == "ShadowWorse: version 2 disagrees"
    assert (gated.weight, copies(gated), gated.status.stable) == (0, {}, "1")


@pytest.mark.parametrize("place", ["gated", "stepped"])
def test_an_abort_ends_the_copies_while_the_registry_is_away(
    place: str, request: pytest.FixtureRequest
) -> None:
    """What got copies as a candidate is not taken for the version that the registry names."""
    world = request.getfixturevalue(place)
    world.shadow_state = "holding" if place == "stepped" else "insufficient"
    world.run_until(lambda: copies(world) == {"2": 4_000 if place == "stepped" else 1_250})
    world.registry_up = False
    world.run(2)
    world.ask(Verb.ABORT)
    world.run_until(lambda: not world.rollout.is_active)
    world.run(10, every=2.0)

    assert copies(world) == {}
    assert {workload.version for workload in world.running} == {"1"}


@pytest.fixture
def stepped(make_world: Callable[..., World], build_manifest: Callable[..., Any]) -> World:
    """Return a world with a gate and a step of copies after it, in which the gate holds."""
    steps = [{"shadow": 40, "for": "10m"}, *RULES["steps"]]
    world = make_world(build_manifest(rollout={**RULES, "steps": steps}))
    world.shadow_state = "insufficient"
    world.run_until(lambda: world.status.stable == "1")
    world.production = "2"
    world.run_until(lambda: copies(world) == {"2": 1_250} and world.rollout.id in world.records_)
    return world


def test_the_gate_comes_before_a_step_of_copies_and_each_has_its_own_share(stepped: World) -> None:
    """The gate takes as long as it needs; then the step takes its time, whatever was compared."""
    stepped.run(100, every=15.0)
    assert (stepped.rollout.step, copies(stepped)) == (None, {"2": 1_250})

    stepped.shadow_state = "holding"
    stepped.run_until(lambda: stepped.rollout.step_started_at is not None)
    began = stepped.time
    assert (stepped.rollout.step, copies(stepped), stepped.weight) == (0, {"2": 4_000}, 0)

    stepped.shadow_state = "insufficient"
    stepped.run_until(lambda: stepped.weight == 1_000, every=5.0)
    assert stepped.time - began >= timedelta(minutes=10)
    assert copies(stepped) == {}


def test_what_a_step_of_copies_finds_against_the_candidate_aborts_by_the_gates_rule(
    stepped: World,
) -> None:
    """Passing the gate is not for good: its limit holds for the copies that come after it too."""
    stepped.shadow_state = "holding"
    stepped.run_until(lambda: stepped.rollout.step_started_at is not None)
    stepped.shadow_state, stepped.verdict = "worse", Verdict.WORSE
    stepped.run()

    assert (stepped.rollout.state, stepped.rollout.reason) == (RolloutState.ABORTED, "ShadowWorse")
    assert copies(stepped) == {}


def test_a_gate_holds_while_experiments_is_away(gated: World) -> None:
    """Without numbers the candidate neither answers nor goes."""
    gated.experiments_up, gated.shadow_state = False, "holding"
    gated.run(20, every=1.0)
    assert (gated.weight, waiting(gated)) == (0, "AnalysisUnavailable")

    gated.experiments_up = True
    gated.run_until(lambda: gated.weight == 1_000)


def test_a_gate_that_never_decides_ends_at_the_longest_duration(gated: World) -> None:
    """A candidate that stays unknown is aborted, whatever `onInconclusive` says."""
    gated.time += timedelta(hours=1)
    gated.run_until(lambda: not gated.rollout.is_active)

    assert (gated.rollout.state, gated.rollout.reason) == (RolloutState.ABORTED, "Inconclusive")


def test_a_person_may_hold_and_pass_over_the_gate(gated: World) -> None:
    """Pausing holds a gate that would be passed; promoting needs none."""
    gated.ask(Verb.PAUSE, "hold")
    gated.run(2)
    gated.shadow_state = "holding"
    gated.run(3)
    held = (gated.weight, waiting(gated))
    gated.ask(Verb.PROMOTE, "go")
    gated.run_until(lambda: gated.status.stable == "2")

    assert held == (0, "Paused")


def test_a_candidate_that_does_not_start_is_still_late(
    make_world: Callable[..., World], build_manifest: Callable[..., Any]
) -> None:
    """The progress deadline holds for starting, with a gate as without one."""
    world = make_world(build_manifest(rollout=RULES))
    world.run_until(lambda: world.status.stable == "1")
    world.production = "2"
    world.broken["2"] = (1, "it hangs")
    world.run_until(lambda: world.status.rollout and not world.rollout.is_active, every=5.0)

    assert world.rollout.state is RolloutState.ABORTED


def test_a_registry_outage_keeps_both_kinds_of_copies_apart(
    make_world: Callable[..., World], build_manifest: Callable[..., Any]
) -> None:
    """While MLflow is away, the shadow and the gated candidate go on with their own shares."""
    world = make_world(build_manifest(registry={"shadow": STAGING}, rollout=RULES))
    world.shadow, world.shadow_state = "7", "insufficient"
    world.run_until(lambda: world.status.stable == "1")
    world.production = "2"
    world.run_until(lambda: copies(world) == {"7": 2_500, "2": 1_250})
    world.registry_up = False
    world.run(10, every=1.0)
    assert copies(world) == {"7": 2_500, "2": 1_250}


COMPARISON = {
    "stable": "1",
    "shadow": "7",
    "pairs": 12_000,
    "compared": 9_990,
    "disagreement": 0.0212,
    "disagreementLow": 0.0167,
    "disagreementHigh": 0.0265,
    "errors": {"stable": 1, "shadow": 4, "both": 2},
    "unpaired": {"stable": 3, "shadow": 0},
    "numbers": {"mean": 0.01, "quantiles": {"5": -0.1, "95": 0.2}},
    "durationMs": {"stable": {"median": 2.1}, "shadow": {"median": 2.4}},
}


def test_explain_tells_of_the_shadow(
    make_world: Callable[..., World], build_manifest: Callable[..., Any]
) -> None:
    """People read who gets copies, and how it compares: agreement, differences, errors, times."""
    world = make_world(build_manifest(registry={"shadow": STAGING}))
    world.shadow = "7"
    world.run_until(lambda: copies(world) == {"7": 2_500})
    served = world.store_.read("flight-delay")

    def told(*comparisons: Any) -> str:
        return explain(
            served.name, served.spec, world.status, None, world.time, comparisons=comparisons
        )

    assert "Version 7 gets copies of 25 % of the predictions" in told()
    assert "nothing has been compared yet" in told()
    text = told(COMPARISON)
    for part in ("12,000 requests", "2.12% (1.67% to 2.65%)", "+0.01", "2.4 ms", "alone failed 4"):
        assert part in text
    nothing = told({**COMPARISON, "compared": 0, "disagreement": None})
    assert "none of them comparable yet" in nothing

"""The rollout policies: what each does by itself, and what it leaves to a person."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from fairlead_rollout.domain.explain import explain
from fairlead_rollout.domain.snapshot import Verb, Verdict
from fairlead_rollout.domain.status import ConditionType, RolloutState

World = Any
OBJECTIVE = {"outcome": "squared_error", "better": "lower", "minimumEffect": 0.01}
GUARDRAIL_WORSE = ({"name": "errors", "state": "worse"},)
Maker = Callable[..., World]


@pytest.fixture
def trial(make_world: Maker, build_manifest: Callable[..., Any]) -> Maker:
    """Return a maker of worlds in which version 2 has just been promoted beside a serving one."""

    def make(steps: list[dict[str, Any]], *, server: Any = None, **rollout: Any) -> World:
        kept = server or {"replicas": 2, "keep": {"versions": 0}}
        rules = {"steps": steps, "maxDuration": "1h", **rollout}
        world = make_world(build_manifest(rollout=rules, server=kept))
        world.run_until(lambda: world.status.stable == "1")
        world.production = "2"
        return world

    return make


def progress(world: World) -> tuple[str, str]:
    """Return the reason and the message of what is waited for."""
    condition = world.status.condition(ConditionType.PROGRESSING)
    assert condition is not None
    return condition.reason, condition.message


def told(world: World) -> list[str]:
    """Return the reasons of all events, oldest first."""
    return [event["reason"] for event in world.store_.events("flight-delay")]


def explained(world: World) -> str:
    """Return what `fairlead explain` prints."""
    served = world.store_.read("flight-delay")
    return explain(served.name, served.spec, world.status, None, world.time)


# ------------------------------------------------------------------ a fixed split


@pytest.fixture
def split(trial: Maker) -> World:
    """Return a world in which a fixed split of half and half runs."""
    steps = [{"weight": 5, "for": "10s"}, {"weight": 50, "until": "stopped"}]
    world = trial(steps, objective=OBJECTIVE, maxDuration="28d")
    world.run_until(lambda: world.weight == 5_000 and progress(world)[0] == "SplitHolding")
    return world


@pytest.mark.parametrize("verdict", list(Verdict)[:4])
def test_a_split_holds_whatever_the_objective_says(split: World, verdict: Verdict) -> None:
    """For weeks neither a better nor a worse objective promotes or aborts."""
    split.verdict = verdict
    split.run(27, every=86_400)
    assert (split.weight, split.status.stable, split.rollout.is_active) == (5_000, "1", True)


def test_an_objective_against_the_candidate_does_not_stop_a_split_at_its_first_step(
    trial: Maker,
) -> None:
    """What a split reports decides nothing at any step."""
    world = trial(
        [{"weight": 5, "for": "10s"}, {"weight": 50, "until": "stopped"}], objective=OBJECTIVE
    )
    world.verdict = Verdict.WORSE
    world.run_until(lambda: world.weight == 5_000)


@pytest.mark.parametrize(
    ("verdict", "guardrails", "reason"),
    [
        (Verdict.WORSE, GUARDRAIL_WORSE, "GuardrailWorse"),
        (Verdict.INVALID, (), "SampleRatioMismatch"),
    ],
)
def test_a_split_is_guarded_all_the_time(
    split: World, verdict: Verdict, guardrails: Any, reason: str
) -> None:
    """A guardrail or a wrong split aborts at once."""
    split.verdict, split.guardrails = verdict, guardrails
    split.run()
    assert (split.weight, split.rollout.reason) == (0, reason)


@pytest.mark.parametrize(("verb", "stable"), [(Verb.PROMOTE, "2"), (Verb.ABORT, "1")])
def test_a_person_ends_a_split(split: World, verb: Verb, stable: str) -> None:
    """Either way, at any time."""
    split.ask(verb)
    split.run_until(lambda: not split.rollout.is_active)
    assert split.status.stable == stable
    assert "by ada" in split.rollout.message


def test_a_split_that_nobody_ends_keeps_stable(split: World) -> None:
    """`maxDuration` ends it, and the version stays out until it is asked for again."""
    split.time += timedelta(days=28)
    split.run(2)
    assert (split.rollout.state, split.rollout.reason) == (RolloutState.ABORTED, "SplitOver")
    split.run(20, every=1.0)
    assert (split.status.stable, split.status.attempts) == ("1", 1)


def test_a_split_writes_nothing_while_it_holds(split: World) -> None:
    """Numbers that change with every request are no news for weeks."""
    before = split.writes
    split.why = "squared_error -0.013 over 880 and 900 units"
    split.run(5, every=60.0)
    assert split.writes == before


def test_a_split_is_explained_with_what_ends_it(split: World) -> None:
    """The words name both ways out, and the time that ends it otherwise."""
    text = explained(split)
    for needle in ("50 %", "fairlead promote", "fairlead abort", "28d"):
        assert needle in text

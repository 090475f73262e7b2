"""The controller is killed at every write of every policy, started again, and ends the same.

Each story runs once whole, then once for each of its writes with a controller that is killed there:
before the write, which is where it stands after the write before, too, as a pass has no other state.
One story is killed after each as well, so that this is not taken for granted.
"""

from collections.abc import Callable
from typing import Any

import pytest

from fairlead_rollout.domain.snapshot import Verb, Verdict
from fairlead_rollout.domain.status import RolloutState

World = Any
Story = Callable[[World], None]
KEEP_NONE = {"replicas": 2, "keep": {"versions": 0}}
KEEP_ONE = {"replicas": 2, "keep": {"versions": 1, "for": "1h"}}
OBJECTIVE = {"outcome": "squared_error", "better": "lower", "minimumEffect": 0.01}
WEEK = 7 * 86_400.0  # seconds


def until(world: World, condition: Callable[[], bool]) -> None:
    """Go on until something is so; a pass every three seconds, to keep the stories short."""
    world.run_until(condition, every=3.0)


def settle(world: World, *versions: str) -> None:
    """Go on until everybody has been told, and these versions alone have processes."""
    until(world, lambda: not world.status.writeback)
    until(world, lambda: {w.version for w in world.running} == set(versions))


def on_trial(world: World, version: str) -> None:
    """Have MLflow name a version, and go on until it has its first weight."""
    world.production = version
    until(world, lambda: _has_weight(world, version))


def _has_weight(world: World, version: str) -> bool:
    rollout = world.status.rollout
    return rollout is not None and rollout.candidate == version and world.weight > 0


def serving(world: World, version: str) -> None:
    """Go on until a version is stable and nothing is on trial."""
    until(world, lambda: world.status.stable == version and not _is_on_trial(world))


def _is_on_trial(world: World) -> bool:
    return world.status.rollout is not None and world.rollout.is_active


def by_hand(world: World, verb: Verb, request: str) -> None:
    """Ask as a person would, and go on until that has been seen."""
    world.ask(verb, request)
    until(world, lambda: world.status.handled_request == request)


def promoted(world: World, version: str) -> None:
    """Put a version on trial and promote it by hand."""
    on_trial(world, version)
    by_hand(world, Verb.PROMOTE, f"promote-{version}")
    serving(world, version)


def judged(world: World) -> None:
    """Promote version 2, abort version 3, let version 4 fail to load."""
    serving(world, "1")
    on_trial(world, "2")
    until(world, lambda: world.weight == 5_000)
    world.verdict = Verdict.BETTER
    serving(world, "2")
    world.verdict = Verdict.INSUFFICIENT
    on_trial(world, "3")
    world.verdict = Verdict.WORSE
    until(world, lambda: world.rollout.state is RolloutState.ABORTED)
    world.verdict, world.production = Verdict.INSUFFICIENT, "4"
    world.broken["4"] = (3, "cannot load")
    until(world, lambda: world.rollout.candidate == "4" and not world.rollout.is_active)
    settle(world, "2")


def split(world: World) -> None:
    """Hold a split for weeks whatever is found, and end one each way."""
    serving(world, "1")
    for version, verb, stable in (("2", Verb.ABORT, "1"), ("3", Verb.PROMOTE, "3")):
        on_trial(world, version)
        until(world, lambda: world.weight == 5_000 and world.rollout.step_started_at is not None)
        for verdict in (Verdict.BETTER, Verdict.WORSE, Verdict.INSUFFICIENT):
            world.verdict = verdict
            world.run(every=WEEK)
        assert (world.weight, world.status.stable) == (5_000, "1")
        by_hand(world, verb, f"end-{version}")
        serving(world, stable)
        settle(world, stable)


def approvals(world: World) -> None:
    """Approve a step by tag and the promotion by a person."""
    serving(world, "1")
    on_trial(world, "2")
    until(world, lambda: world.rollout.awaiting)
    until(world, lambda: world.rollout.approval_seen is not None)
    world.approvals["2"] = "true"
    until(world, lambda: world.weight == 5_000)
    until(world, lambda: world.rollout.awaiting)
    assert world.status.stable == "1"
    world.ask(Verb.APPROVE, step=1)
    serving(world, "2")
    settle(world, "2")


def shadow_first(world: World) -> None:
    """Go from copies to a promotion, and abort the next version while it gets copies."""
    serving(world, "1")
    world.production = "2"
    until(world, lambda: bool(world.status.traffic["shadow"]))
    world.run_until(lambda: world.weight == 500, every=300.0)
    serving(world, "2")
    settle(world, "2")
    world.production = "3"
    until(world, lambda: bool(world.status.traffic["shadow"]))
    by_hand(world, Verb.ABORT, "abort")
    serving(world, "2")
    settle(world, "2")


def shadow_gate(world: World) -> None:
    """Let version 2 answer once the comparison has let it, and end version 3 on it."""
    serving(world, "1")
    world.production = "2"
    until(world, lambda: bool(world.status.traffic["shadow"]))
    world.shadow_state = "holding"
    promoted(world, "2")
    settle(world, "2")
    world.shadow_state, world.production = "insufficient", "3"
    until(world, lambda: bool(world.status.traffic["shadow"]))
    world.shadow_state, world.verdict = "worse", Verdict.WORSE
    until(world, lambda: world.rollout.reason == "ShadowWorse")
    settle(world, "2")


def superseded(world: World) -> None:
    """Have version 3 arrive while version 2 is on trial, and take its place."""
    serving(world, "1")
    on_trial(world, "2")
    promoted(world, "3")
    settle(world, "3")


def queued(world: World) -> None:
    """Have versions 3 and 4 arrive during the trial: the later one has its turn after it."""
    serving(world, "1")
    on_trial(world, "2")
    for version in ("3", "4"):
        world.production = version
        until(world, lambda v=version: world.status.waiting == v)
    assert world.rollout.candidate == "2"
    by_hand(world, Verb.PROMOTE, "promote")
    until(world, lambda: _has_weight(world, "4"))
    assert world.status.stable == "2"
    by_hand(world, Verb.ABORT, "abort")
    serving(world, "2")
    settle(world, "2")


def refused(world: World) -> None:
    """Have version 3 arrive during the trial: it stays out, until a person wants it."""
    serving(world, "1")
    on_trial(world, "2")
    world.production = "3"
    until(world, lambda: world.status.settled == "3")
    by_hand(world, Verb.PROMOTE, "promote")
    serving(world, "2")
    settle(world, "2")
    world.run(3, every=60.0)
    assert world.status.attempts == 1
    by_hand(world, Verb.RETRY, "retry")
    until(world, lambda: _has_weight(world, "3"))
    by_hand(world, Verb.ABORT, "abort")
    serving(world, "2")
    settle(world, "2")


def rolled_back(world: World) -> None:
    """Go back by the command, forward again, and back by moving the pointer."""
    serving(world, "1")
    promoted(world, "2")
    by_hand(world, Verb.ROLLBACK, "back")
    serving(world, "1")
    promoted(world, "3")
    world.production = "1"
    serving(world, "1")
    settle(world, "1", "3")


def rolled_back_by_steps(world: World) -> None:
    """Put the older version on trial, by the command, and promote it."""
    serving(world, "1")
    promoted(world, "2")
    by_hand(world, Verb.ROLLBACK, "back")
    until(world, lambda: _has_weight(world, "1"))
    by_hand(world, Verb.PROMOTE, "promote-1")
    serving(world, "1")
    settle(world, "1")


STEP = [{"weight": 10, "for": "10m"}]
SHADOWED = [{"shadow": 20, "for": "10m"}, {"weight": 5, "for": "1s"}, {"weight": 50, "for": "1s"}]
SPLIT = [{"weight": 5, "for": "1s"}, {"weight": 50, "until": "stopped"}]
GATED = [{"weight": 5, "until": "approved"}, {"weight": 50, "for": "1s"}]
GATE = {"shadow": {"maxDisagreement": 0.02, "minimumPairs": 100}}
STORIES = [
    pytest.param(judged, {}, False, id="judged"),
    pytest.param(judged, {}, True, id="judged-after-the-write"),
    pytest.param(
        split,
        {"rollout": {"steps": SPLIT, "objective": OBJECTIVE, "maxDuration": "90d"}},
        False,
        id="split",
    ),
    pytest.param(
        approvals, {"rollout": {"steps": GATED, "promotion": "approved"}}, False, id="approval"
    ),
    pytest.param(
        shadow_first,
        {"rollout": {"steps": SHADOWED, "minimumRequests": 0}},
        False,
        id="shadow-first",
    ),
    pytest.param(
        shadow_gate, {"rollout": {"steps": STEP, "guardrails": GATE}}, False, id="shadow-gate"
    ),
    pytest.param(superseded, {"rollout": {"steps": STEP}}, False, id="restart"),
    pytest.param(queued, {"rollout": {"steps": STEP, "onNewVersion": "queue"}}, False, id="queue"),
    pytest.param(
        refused, {"rollout": {"steps": STEP, "onNewVersion": "refuse"}}, False, id="refuse"
    ),
    pytest.param(
        rolled_back,
        {"rollout": {"steps": STEP, "rollback": "immediate"}, "server": KEEP_ONE},
        False,
        id="rollback",
    ),
    pytest.param(rolled_back_by_steps, {"rollout": {"steps": STEP}}, False, id="rollback-by-steps"),
]


@pytest.mark.parametrize(("story", "spec", "after"), STORIES)
def test_killed_at_any_write_the_second_run_ends_the_same(
    kill_everywhere: Callable[..., None],
    build_manifest: Callable[..., Any],
    story: Story,
    spec: dict[str, Any],
    after: bool,
) -> None:
    """Same state, history, tags, records and decisions; nothing routed to is ever without processes."""
    kill_everywhere(story, after=after, document=build_manifest(**{"server": KEEP_NONE, **spec}))

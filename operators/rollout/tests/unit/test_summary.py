"""A status in the few words of a table's row."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from fairlead_rollout.domain.status import Condition, Rollout, RolloutState, Status
from fairlead_rollout.domain.summary import Summary, summary_of, weight_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROLLOUT = Rollout(
    id="r",
    candidate="4",
    baseline="3",
    state=RolloutState.RUNNING,
    started_at=NOW,
    step=0,
    reason="StepHolding",
)
PLAN = {"arms": [{"arm": "candidate", "weight": 125}, {"arm": "stable", "weight": 9_875}]}
ON_TRIAL = Status(stable="3", rollout=ROLLOUT, traffic=PLAN)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(Status(), ("", "", "", "waiting"), id="new"),
        pytest.param(Status(stable="3"), ("3", "", "", "serving"), id="serving"),
        pytest.param(ON_TRIAL, ("3", "4", "1.25 %", "running: StepHolding"), id="on trial"),
        pytest.param(
            replace(ON_TRIAL, rollout=replace(ROLLOUT, state=RolloutState.PENDING), traffic=None),
            ("3", "4", "0 %", "pending: StepHolding"),
            id="pending",
        ),
        pytest.param(
            replace(ON_TRIAL, rollout=replace(ROLLOUT, paused=True, reason="Paused")),
            ("3", "4", "1.25 %", "paused: Paused"),
            id="paused",
        ),
        pytest.param(
            replace(
                ON_TRIAL,
                traffic={"arms": [{"arm": "stable", "weight": 10_000}]},
                rollout=replace(ROLLOUT, state=RolloutState.ABORTED, reason="CandidateFailed"),
            ),
            ("3", "", "", "aborted: CandidateFailed"),
            id="aborted",
        ),
    ],
)
def test_a_row_says_what_serves_what_is_on_trial_and_why(
    status: Status, expected: tuple[str, str, str, str]
) -> None:
    """Version on trial and weight are there only while a rollout runs."""
    stable, candidate, weight, state = expected
    made = Summary(stable=stable, candidate=candidate, weight=weight, state=state)
    assert summary_of(status) == made


def test_what_a_person_must_mend_comes_first() -> None:
    """Stalled is said whatever a rollout does."""
    stalled = Condition(
        type="Stalled",
        status="True",
        reason="InvalidSpec",
        message="spec.model: is missing",
        last_transition_time=NOW,
    )
    status = replace(ON_TRIAL, conditions=(stalled,))
    assert summary_of(status).state == "stalled: InvalidSpec"
    assert summary_of(status).stable == "3"


def test_without_a_plan_the_weight_is_nothing() -> None:
    """Before the first plan and outside a rollout nobody is on trial."""
    assert weight_of(Status()) == 0
    assert weight_of(ON_TRIAL) == 125

"""The analysis as a pure function: aggregates in, one document out."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from fairlead_experiments.app.validation import read_rollout
from fairlead_experiments.domain.analysis import State, analyse, judge_guardrails
from fairlead_experiments.domain.effect import Arm
from fairlead_experiments.domain.linear import Moments, StepMoments
from fairlead_experiments.domain.records import Aggregates, Kind, Requests, Standing, UnitCounts

Build = Callable[..., dict[str, Any]]
AT = datetime(2026, 1, 1, 0, 10, tzinfo=UTC)


def measured(effect: float, n: int = 1200) -> dict[str, Any]:
    """One step in which both arms measured `n` units that differ by `effect`, sd 0.1."""
    arms = plain(n, 0.2, n * 0.01), plain(n, 0.2 + effect, n * 0.01)
    return {
        "moments": (StepMoments(2, *arms),),
        "standing": {(2, arm): Standing(n, waiting=7, missing=2) for arm in Arm},
        "standing_distinct": {arm: Standing(n, waiting=7, missing=2) for arm in Arm},
    }


def plain(n: int, mean: float, m2: float) -> Moments:
    """Moments of values without denominator or covariate."""
    return Moments(n, (mean, 0.0, 0.0), ((m2, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))


def traffic(candidate: int = 1000, errors: int = 0, slow: int = 0) -> dict[str, Any]:
    """Requests of step 2; each bad one is another unit's."""
    return {
        "requests": {
            (2, "stable"): Requests(1000, 1000),
            (2, "candidate"): Requests(candidate, candidate, errors, slow),
        },
        "bad_units": {
            Kind.ERRORS: {(2, "candidate"): errors},
            Kind.SLOW: {(2, "candidate"): slow},
        },
    }


def units(stable: int = 1250, candidate: int = 1250) -> dict[str, Any]:
    """Units first met in step 2."""
    return {
        "units": {
            (2, "stable"): UnitCounts(stable, stable),
            (2, "candidate"): UnitCounts(candidate, candidate),
        },
        "distinct": {Arm.STABLE: stable, Arm.CANDIDATE: candidate},
    }


@pytest.mark.parametrize(
    ("parts", "verdict", "words"),
    [
        pytest.param([], "insufficient", "no unit has been seen yet", id="nothing"),
        pytest.param(
            [traffic(), units(), measured(-0.013, n=400)],
            "insufficient",
            "400 units of version 4 and 400 of version 3 measured, 500 of each needed",
            id="before the burn-in",
        ),
        pytest.param(
            [traffic(), units(), measured(-0.05)],
            "better",
            "version 4 is better: squared_error -0.05 (95 % confidence sequence",
            id="better, because lower is",
        ),
        pytest.param(
            [traffic(), units(), measured(0.05)], "worse", "version 4 is worse", id="worse"
        ),
        pytest.param(
            [traffic(), units(), measured(0.0)], "holding", "not yet told apart", id="holding"
        ),
        pytest.param(
            [traffic(errors=60), units(), measured(-0.05)],
            "worse",
            "version 4 is worse: 60 of its 1,000 requests failed (60 units), 0 of 1,000 of version 3's",
            id="a guardrail before the objective",
        ),
        pytest.param(
            [traffic(slow=60), units(), measured(-0.05)],
            "worse",
            "60 of its 1,000 requests were slower than 0.2 s (60 units)",
            id="slow",
        ),
        pytest.param(
            [traffic(candidate=20, errors=10), units()],
            "worse",
            "version 4 is broken: 10 of 20 requests in step 2 failed",
            id="broken",
        ),
        pytest.param(
            [traffic(candidate=49), units(), measured(0.0)],
            "insufficient",
            "49 of the 50 requests needed in step 2",
            id="too few requests in the step",
        ),
        pytest.param(
            [traffic(errors=60), units(1250, 800), measured(-0.05)],
            "invalid",
            "the candidate met 800 of 2,050 units (39.02%) where 50.00% were expected",
            id="lost units before anything else",
        ),
    ],
)
def test_verdict(record: Build, parts: list[dict[str, Any]], verdict: str, words: str) -> None:
    """The verdict is the first state that applies, and its reason is that judge's sentence."""
    given: dict[str, Any] = {}
    for part in parts:
        given |= part

    document = analyse(read_rollout("r1", record()), Aggregates(**given), at=AT)

    assert document["verdict"] == verdict
    assert words in str(document["reason"])


def test_without_an_objective_guardrails_decide(record: Build) -> None:
    """A rollout without objective holds while its guardrails do, and says so."""
    rollout = read_rollout("r1", record(objective=None))

    document = analyse(rollout, Aggregates(**traffic(), **units()), at=AT)

    assert (document["verdict"], document["objective"]) == ("holding", None)


def test_without_anything_to_judge_it_holds(record: Build) -> None:
    """No objective and no guardrails: shares are all there is to look at."""
    rollout = read_rollout("r1", record(objective=None, guardrails=None))

    document = analyse(rollout, Aggregates(**units()), at=AT)

    assert (document["verdict"], document["guardrails"]) == ("holding", [])


def test_a_constant_outcome_holds(record: Build) -> None:
    """Where every unit measured the same there is no error to divide by, and no verdict."""
    arm = plain(600, 1.0, 0.0)
    data = Aggregates(
        **traffic(),
        **units(),
        moments=(StepMoments(2, arm, arm),),
        standing_distinct={arm: Standing(600) for arm in Arm},
    )

    document = analyse(read_rollout("r1", record()), data, at=AT)

    assert document["verdict"] == "holding"
    assert "the same for every unit" in str(document["reason"])


def test_enormous_evidence_stays_a_number(record: Build) -> None:
    """An e-value beyond what JSON can hold is written as 1e300."""
    data = Aggregates(**traffic(), **units(), **measured(-10.0, n=100_000))
    objective = record()["objective"] | {"minimumEffect": 10}

    document: Any = analyse(read_rollout("r1", record(objective=objective)), data, at=AT)

    assert document["objective"]["evalue"] == pytest.approx(1e300)


def test_steps_show_who_waits(record: Build) -> None:
    """A step names its units, the mixed ones, and the ones that wait for an outcome or miss it."""
    mixed = {"mixed": {2: 3}, "mixed_distinct": 3}
    data = Aggregates(**traffic(), **units(), **measured(0.0), **mixed)

    document: Any = analyse(read_rollout("r1", record()), data, at=AT)

    assert [step["index"] for step in document["steps"]] == [0, 1, 2]
    assert document["steps"][2]["mixed"] == 3
    assert document["steps"][2]["stable"]["waiting"] == 7
    assert document["steps"][2]["stable"]["missing"] == 2
    assert document["steps"][0]["effect"] is None
    assert document["srm"]["mixed"] == 3
    assert document["srm"]["mixedShare"] == pytest.approx(3 / 1250)
    assert "both arms" not in document["objective"]["reason"]


@pytest.mark.parametrize(
    ("mixed", "objective", "state", "words"),
    [
        pytest.param(
            13,
            {},
            "better",
            "; 13 units (1.0% of the candidate's) met both arms and are left out from then on",
            id="some are told",
        ),
        pytest.param(
            126,
            {},
            "insufficient",
            "more than 10% of version 4's units went back to version 3: what is left is no fair "
            "comparison of squared_error; 2 and 2 had none when it was due and are left out; "
            "126 units (10.1% of the candidate's)",
            id="too many, and nothing is decided",
        ),
        pytest.param(
            0,
            {"window": 3600, "missing": "zero"},
            "better",
            "; 7 and 7 units wait for their outcome; 2 and 2 had none when it was due and are "
            "counted as 0",
            id="a window",
        ),
        pytest.param(
            0,
            {"kind": "binary"},
            "better",
            "; 4 outcomes are neither 0 nor 1 and are left out",
            id="values that are refused",
        ),
    ],
)
def test_the_reason_says_who_is_not_in_the_comparison(
    record: Build, mixed: int, objective: dict[str, Any], state: str, words: str
) -> None:
    """Mixed, waiting and missing units and refused values are told beside the result."""
    rollout = read_rollout("r1", record(objective=record()["objective"] | objective))
    refused = {Arm.STABLE: 4} if objective.get("kind") == "binary" else {}
    given = {**traffic(), **units(), **measured(-0.05), "refused": refused}

    document: Any = analyse(rollout, Aggregates(**given, mixed_distinct=mixed), at=AT)

    assert document["objective"]["state"] == state
    assert words in document["objective"]["reason"]


def test_a_ratio_is_named_by_both_its_outcomes(record: Build) -> None:
    """The reason of a ratio says what is divided by what."""
    ratio = {"kind": "ratio", "outcome": "revenue", "denominator": "orders"}
    rollout = read_rollout("r1", record(objective=record()["objective"] | ratio))
    products = ((12.0, 0.0, 0.0), (0.0, 12.0, 0.0), (0.0, 0.0, 0.0))
    arms = (Moments(1200, (mean, 2.0, 0.0), products) for mean in (0.4, 0.6))
    given = {**measured(0.0), "moments": (StepMoments(2, *arms),)}

    document: Any = analyse(rollout, Aggregates(**traffic(), **units(), **given), at=AT)

    assert document["objective"]["effect"] == pytest.approx(0.1)
    assert "version 4 is worse: revenue / orders +0.1 (95 %" in document["objective"]["reason"]
    assert document["steps"][2]["candidate"]["mean"] == pytest.approx(0.3)


def test_units_decide_not_requests(record: Build) -> None:
    """Sixty bad requests are evidence where they are sixty units', none where they are one's."""
    data = Aggregates(**traffic(errors=60), **units())
    one = replace(data, bad_units={Kind.ERRORS: {(2, "candidate"): 1}})
    rollout = read_rollout("r1", record(objective=None))

    many, few = (judge_guardrails(rollout, found)[0] for found in (data, one))

    assert (many.state, few.state) == (State.WORSE, State.HOLDING)
    assert few.numbers["candidateBad"] == 60
    assert few.numbers["candidateBadUnits"] == 1
    assert few.reason.startswith(
        "errors within the margin: 60 of version 4's 1,000 requests failed (1 unit), "
        "0 of 1,000 of version 3's; e-value "
    )


def test_a_step_of_unknown_weight_is_no_evidence(record: Build) -> None:
    """Units of a step that the record does not have are shown; no share is known to hold them to."""
    steps = [{"index": 0, "weight": 5000}]
    rollout = read_rollout("r1", record(objective=None, steps=steps))

    errors = judge_guardrails(rollout, Aggregates(**traffic(errors=60)))[0]

    assert errors.numbers["evalue"] == pytest.approx(1.0)
    assert errors.numbers["candidateBadUnits"] == 60

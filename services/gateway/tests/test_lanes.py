"""Several candidates on trial beside each other, each with units of its own."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
from gateway_lab import Served, plan, wait_for
from hypothesis import given
from hypothesis import strategies as st
from test_keys import TESTER, entry, exposures
from test_plan import SCHEMA

from fairlead_gateway.domain.assignment import assign_arm, outside_of
from fairlead_gateway.domain.documents import PlanError
from fairlead_gateway.domain.plan import parse_plan, plan_digest, to_dict

IDS = [f"{i}0000000-0000-4000-8000-000000000000" for i in range(1, 5)]
UNITS = [f"N{i}" for i in range(2_000)] + ["ü-1", "日本", "a b", "1" * 300]
HOLDOUT = {"reason": "holdout", "salt": "holdout:iris", "from": 2_000, "to": 10_000}


def lane(index: int, of: int, weight: int, step: int = 0) -> dict[str, Any]:
    """Make one of several equal lanes, whose candidate is version 4 and up."""
    return {
        "from": 10_000 * index // of,
        "to": 10_000 * (index + 1) // of,
        "rollout": IDS[index],
        "step": step,
        "arms": [
            {"arm": "candidate", "version": str(4 + index), "weight": weight},
            {"arm": "stable", "version": "3", "weight": 10_000 - weight},
        ],
    }


def lanes(*weights: int | None) -> dict[str, Any]:
    """Make a plan's lanes; one without a weight has no trial any more."""
    found = [lane(i, len(weights), w) for i, w in enumerate(weights) if w is not None]
    return {"lanes": {"salt": "lane:iris", "trials": found}}


def side_by_side(*weights: int | None, **more: Any) -> dict[str, Any]:
    """Make a plan with lanes."""
    return plan(weight=None, **lanes(*weights), **more)


def versions_of(document: dict[str, Any], units: Sequence[str]) -> list[str]:
    """Return the version that each unit is assigned to."""
    known = parse_plan(document)
    return [assign_arm(known, unit).version for unit in units]


# --- the plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(100, 5000), (None, 5000), (0, 10_000, 1)])
def test_round_trip(weights: tuple[int | None, ...]) -> None:
    """A plan with lanes is one to the schema, and is written as it was read."""
    document = side_by_side(*weights)
    jsonschema.validate(document, SCHEMA)
    assert to_dict(parse_plan(document)) == document
    assert plan_digest(parse_plan(document)) != plan_digest(parse_plan(plan(weight=None)))


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("trials", [], "lanes.trials"),
        ("salt", "a b", "lanes.salt"),
        ("more", 1, "lanes.more"),
        ("trials.0.more", 1, "lanes.trials[0].more"),
        ("trials.0.from", -1, "lanes.trials[0].from"),
        ("trials.1.to", 10_001, "lanes.trials[1].to"),
        ("trials.1.step", -1, "lanes.trials[1].step"),
        ("trials.1.rollout", 7, "lanes.trials[1].rollout"),
        ("trials.0.arms.0.version", "v4", "lanes.trials[0].arms[0].version"),
    ],
)
def test_what_the_schema_refuses_is_refused(path: str, value: Any, field: str) -> None:
    """Both ends refuse the same lanes, and the error names the field."""
    document = changed(path, value)
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(document)
    assert refused(document) == field


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("trials.1.from", 4_999, "lanes.trials[1].from"),
        ("trials.0.to", 0, "lanes.trials[0].to"),
        ("trials.0.rollout", "mine", "lanes.trials[0].rollout"),
        ("trials.0.arms", plan(weight=None)["arms"], "lanes.trials[0].arms"),
        ("trials.0.arms.1.version", "2", "lanes.trials[0].arms"),
        ("trials.0.arms.1.weight", 1, "lanes.trials[0].arms"),
        ("trials.1.arms.0.version", "4", "lanes"),
    ],
)
def test_rules_over_several_fields(path: str, value: Any, field: str) -> None:
    """Lanes lie apart, each tries a version of its own, and stable is the plan's own."""
    assert refused(changed(path, value)) == field


def test_lanes_are_not_for_one_rollout_nor_for_cookies() -> None:
    """A rollout alone has no lanes; a cookie's unit cannot be told apart where lanes are."""
    assert refused(plan(**lanes(1000, 1000))) == "lanes"
    assert refused(side_by_side(1000, 1000, unit={"cookie": "a"})) == "lanes"


def changed(path: str, value: Any) -> dict[str, Any]:
    """Change one field of good lanes."""
    document = copy.deepcopy(side_by_side(1000, 5000))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = document["lanes"]
    for part in parents:
        target = target[part]
    target[last] = value
    return document


def refused(document: dict[str, Any]) -> str:
    """Return the field that a plan is refused for."""
    with pytest.raises(PlanError) as caught:
        parse_plan(document)
    return caught.value.field


# --- assignment -----------------------------------------------------------------------------------

weights = st.integers(0, 10_000)
units = st.text(min_size=1).filter(lambda unit: unit.encode("utf-8", "ignore").decode() == unit)


@given(unit=units, low=st.lists(weights, min_size=2, max_size=4), data=st.data())
def test_ramping_up_moves_nobody_out_of_a_candidate(
    unit: str, low: list[int], data: st.DataObject
) -> None:
    """Whatever the candidates' weights grow to, each by itself, who met one stays with it."""
    high = [data.draw(st.integers(w, 10_000)) for w in low]
    (before,), (after,) = (
        versions_of(side_by_side(*low), [unit]),
        versions_of(side_by_side(*high), [unit]),
    )
    assert before in {"3", after}


@given(unit=units, given_weights=st.lists(weights, min_size=2, max_size=4), data=st.data())
def test_a_dropped_candidate_moves_nobody_else(
    unit: str, given_weights: list[int], data: st.DataObject
) -> None:
    """The units of a candidate that is out go to stable, and all others stay where they are."""
    out = data.draw(st.integers(0, len(given_weights) - 1))
    left = [None if i == out else w for i, w in enumerate(given_weights)]
    (before,) = versions_of(side_by_side(*given_weights), [unit])
    (after,) = versions_of(side_by_side(*left), [unit])
    assert after == ("3" if before == str(4 + out) else before)


@pytest.mark.parametrize("of", [2, 3, 4])
def test_each_candidate_gets_its_share(of: int) -> None:
    """The lanes are equal, all units are in one, and in each the share is the weight."""
    many = [f"unit-{i}" for i in range(20_000)]
    found = versions_of(side_by_side(*[5000] * of), many)
    for index in range(of):
        share = found.count(str(4 + index)) / len(many)
        assert abs(share - 0.5 / of) < 4 * math.sqrt(0.25 / of / len(many))
    assert {outside_of(parse_plan(side_by_side(*[5000] * of)), u) for u in many} == {None}


# --- Envoy ----------------------------------------------------------------------------------------


@pytest.fixture
def several(served: Served) -> Served:
    """Give a served model with versions 3, 4, 5 and 6."""
    for version in ("5", "6"):
        served.gateway.borrow(version, served.model)
    return served


def apply(served: Served, *weights: int | None, **more: Any) -> dict[str, Any]:
    """Have Envoy follow a plan with lanes."""
    document = served.plan(None, **lanes(*weights), **more)
    served.gateway.apply(document)
    return document


def served_versions(served: Served, units: Sequence[str] = UNITS) -> list[str]:
    """Ask for every unit, and return the versions that answered, in the units' order."""
    asked = [{"x-unit-id": u, "x-inference-id": f"i{i}"} for i, u in enumerate(units)]
    found = {a.headers["x-inference-id"]: a.headers["x-model-version"] for a in served.ask(*asked)}
    return [found[f"i{index}"] for index in range(len(units))]


@pytest.mark.parametrize(
    ("given_weights", "more"),
    [
        ((5000, 5000), {}),
        ((100, 10_000), {}),
        ((1000, 5000, 10_000), {}),
        ((None, 5000, 1000), {}),
        ((5000, 5000), {"eligible": [HOLDOUT]}),
    ],
    ids=["two", "each its own weight", "three", "one is out", "with a holdout"],
)
def test_envoy_and_assign_agree(
    several: Served, given_weights: tuple[int | None, ...], more: dict[str, Any]
) -> None:
    """Each unit gets the version that `assign_arm` says, and counts in the rollout of its lane."""
    document = apply(several, *given_weights, **more)
    known = parse_plan(document)
    assert served_versions(several) == versions_of(document, UNITS)
    counted = {e.unit: (e.rollout, e.arm) for e in exposures(several, len(UNITS))}
    inside = [unit for unit in UNITS if outside_of(known, unit) is None]
    assert set(counted) == set(inside)
    by_version = {str(4 + i): (IDS[i], "candidate") for i in range(4)}
    for unit in inside:
        version = assign_arm(known, unit).version
        if version != "3":
            assert counted[unit] == by_version[version]
        else:
            assert counted[unit][1] == "stable"
    assert {rollout for rollout, _ in counted.values()} == {
        IDS[i] for i, weight in enumerate(given_weights) if weight is not None
    }


def test_candidates_never_lose_a_unit(several: Served) -> None:
    """While the weights grow, one candidate after the other, nobody leaves a candidate."""
    before = ["3"] * len(UNITS)
    for given_weights in ((100, 0), (100, 5000), (1000, 5000), (10_000, 5000), (10_000, 10_000)):
        apply(several, *given_weights)
        now = served_versions(several)
        assert all(was in {"3", version} for was, version in zip(before, now, strict=True))
        before = now
    assert set(before) == {"4", "5"}


def test_a_dropped_candidate_costs_no_request(several: Served) -> None:
    """Weights grow and a candidate goes while requests come: none fails, nor is one counted twice."""
    apply(several, 1000, 1000)
    load = several.load()

    def happening() -> None:
        for given_weights in ((5000, 5000), (None, 5000), (None, 10_000)):
            apply(several, *given_weights)
        several.apply(None)

    load.during(happening)
    assert {answer.code for answer in load.answers} == {200}


@pytest.mark.parametrize("kind", ["query", "request"])
def test_other_units_have_lanes_too(several: Served, kind: str) -> None:
    """A unit is in one lane, wherever it is found."""
    document = apply(several, 10_000, 5000, unit={kind: {"query": "u", "request": {}}[kind]})
    for unit in UNITS[:40]:
        query = f"?u={unit}" if kind == "query" else ""
        url = f"{several.gateway.url}{several.path}{query}"
        answer = several.gateway.client.post(url, headers={"x-inference-id": unit})
        assert answer.headers["x-model-version"] == versions_of(document, [unit])[0], unit


def test_a_request_without_a_unit_is_stable_s(several: Served) -> None:
    """It counts as one without a unit in the first lane's rollout."""
    apply(several, 10_000, 10_000)
    assert {a.headers["x-rollout-arm"] for a in several.ask({}, {"x-unit-id": ""})} == {"stable"}
    assert [(e.unit, e.rollout) for e in exposures(several, 2)] == [(None, IDS[0])] * 2


def test_units_of_a_candidate_that_is_out_are_not_counted(several: Served) -> None:
    """They are counted as requests outside, for the reason `lane`."""
    known = parse_plan(apply(several, None, 5000))
    out = [unit for unit in UNITS if outside_of(known, unit) == "lane"][:50]
    assert set(served_versions(several, out)) == {"3"}
    assert exposures(several, len(out)) == []
    counted = f'fairlead_gateway_outside_total{{model="{several.model}",reason="lane"}}'
    wait_for(lambda: several.gateway.metric(counted) == len(out))


def test_a_person_gets_the_candidate_of_a_unit_s_lane(several: Served) -> None:
    """Who may choose the candidate gets the one of the unit's lane, without a unit the first."""
    document = apply(several, 0, 0, overrideKeys=[entry("tester")])
    ready = versions_of({**document, **lanes(10_000, 10_000)}, UNITS)
    chosen = {**TESTER, "x-override-arm": "candidate"}
    for unit, version in list(zip(UNITS, ready, strict=True))[:20]:
        (answer,) = several.ask({**chosen, "x-unit-id": unit})
        assert answer.headers["x-model-version"] == version
    (answer,) = several.ask(chosen)
    assert answer.headers["x-model-version"] == "4"

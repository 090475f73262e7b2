"""Units that are kept out of rollouts, and rollouts that are kept apart from each other."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from gateway_lab import Served, plan, wait_for
from gateway_tokens import Issuer
from test_keys import TESTER, entry, exposures

from fairlead_gateway.domain.assignment import assign, bucket_of, outside_of
from fairlead_gateway.domain.plan import parse_plan

HOLDOUT = {"reason": "holdout", "salt": "holdout:iris", "from": 2_000, "to": 10_000}
UNITS = [f"N{i}" for i in range(2_000)] + ["ü-1", "日本", "a b", "1" * 300]


def layer(start: int, end: int, name: str = "home") -> dict[str, Any]:
    """Make a part of a layer."""
    return {"reason": "layer", "salt": f"layer:{name}", "from": start, "to": end}


def correlation(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return phi, the correlation of two yes-or-no columns."""
    n, a, b = len(first), sum(first), sum(second)
    both = sum(x and y for x, y in zip(first, second, strict=True))
    return (n * both - a * b) / math.sqrt(a * (n - a) * b * (n - b))


def served_arms(served: Served, units: Sequence[str] = UNITS) -> list[str]:
    """Ask for every unit, and return the arms in the units' order."""
    asked = [{"x-unit-id": u, "x-inference-id": f"i{i}"} for i, u in enumerate(units)]
    arms = {a.headers["x-inference-id"]: a.headers["x-rollout-arm"] for a in served.ask(*asked)}
    return [arms[f"i{index}"] for index in range(len(units))]


@pytest.mark.parametrize(
    ("eligible", "weight"),
    [
        ([HOLDOUT], 100),
        ([HOLDOUT], 5_000),
        ([layer(0, 5_000)], 10_000),
        ([layer(2_500, 7_500)], 1_000),
        ([HOLDOUT, layer(3_333, 10_000)], 5_000),
    ],
    ids=["holdout", "holdout at half", "first half", "middle", "both"],
)
def test_envoy_and_assign_agree(served: Served, eligible: list[Any], weight: int) -> None:
    """Who is outside goes to stable and is no exposure; who is inside goes where it always went."""
    served.apply(weight, eligible=eligible)
    known = parse_plan(plan(weight=weight, eligible=eligible))
    assert served_arms(served) == [str(assign(known, unit)) for unit in UNITS]
    counted = {found.unit: found.arm for found in exposures(served, len(UNITS))}
    inside = [unit for unit in UNITS if outside_of(known, unit) is None]
    assert counted == {unit: str(assign(known, unit)) for unit in inside}
    assert 0 < len(inside) < len(UNITS)


def test_a_split_with_a_holdout_is_what_its_weight_says(served: Served) -> None:
    """Among what is counted the share is the weight: held out units do not dilute stable."""
    served.apply(5000, eligible=[HOLDOUT])
    served_arms(served)
    arms = [found.arm for found in exposures(served, len(UNITS))]
    assert abs(arms.count("candidate") - len(arms) / 2) < 4 * math.sqrt(len(arms) / 4)
    assert abs(len(arms) - 0.8 * len(UNITS)) < 4 * math.sqrt(len(UNITS) * 0.8 * 0.2)
    outside = f'fairlead_gateway_outside_total{{model="{served.model}",reason="holdout"}}'
    wait_for(lambda: served.gateway.metric(outside) == len(UNITS) - len(arms))


@pytest.mark.parametrize("kind", ["query", "jwtClaim", "request"])
def test_other_units_are_kept_out_too(served: Served, kind: str) -> None:
    """A unit has one place, wherever it is found."""
    issuer = Issuer()
    name: Any = {"query": "u", "jwtClaim": "sub", "request": {}}[kind]
    jwt = {"jwt": issuer.jwt()} if kind == "jwtClaim" else {}
    served.apply(10_000, unit={kind: name}, eligible=[HOLDOUT], **jwt)
    known = parse_plan(plan(weight=10_000, eligible=[HOLDOUT]))
    for unit in UNITS[:40]:
        headers = issuer.bearer(sub=unit) if kind == "jwtClaim" else {}
        query = f"?u={unit}" if kind == "query" else ""
        url = f"{served.gateway.url}{served.path}{query}"
        answer = served.gateway.client.post(url, headers={**headers, "x-inference-id": unit})
        assert answer.headers["x-rollout-arm"] == assign(known, unit), unit


def test_a_request_without_a_unit_is_not_held_out(served: Served) -> None:
    """It goes to stable and is counted, as without a holdout."""
    served.apply(10_000, eligible=[HOLDOUT])
    assert {a.headers["x-rollout-arm"] for a in served.ask({}, {"x-unit-id": ""})} == {"stable"}
    assert [found.unit for found in exposures(served, 2)] == [None, None]


def test_a_person_may_choose_for_a_unit_that_is_held_out(served: Served) -> None:
    """The choice counts, and is not counted."""
    known = parse_plan(plan(eligible=[HOLDOUT]))
    held = next(unit for unit in UNITS if outside_of(known, unit))
    served.apply(1000, eligible=[HOLDOUT], overrideKeys=[entry("tester")])
    (answer,) = served.ask({**TESTER, "x-override-arm": "candidate", "x-unit-id": held})
    assert answer.headers["x-rollout-arm"] == "candidate"
    assert exposures(served, 1) == []


def test_without_a_rollout_nobody_is_kept_out(served: Served) -> None:
    """Stable answers everybody, and nothing is counted as outside."""
    served.apply(None, eligible=[HOLDOUT])
    assert set(served_arms(served, UNITS[:50])) == {"stable"}
    assert {line["outside"] for line in served.log(50)} == {None}


# --- several rollouts at once ---------------------------------------------------------------------


def on_trial(salt: str, weight: int, eligible: list[Any], units: Sequence[str]) -> list[bool]:
    """Tell which units a rollout puts into its candidate."""
    more = {"eligible": eligible} if eligible else {}
    known = parse_plan(plan(weight=weight, salt=salt, **more))
    return [assign(known, unit) == "candidate" for unit in units]


def test_rollouts_of_one_layer_share_no_unit(served: Served) -> None:
    """In Envoy: with all weight on the candidate each unit is on trial in exactly one of two."""
    arms = []
    for salt, part in (("first", layer(0, 5_000)), ("second", layer(5_000, 10_000))):
        served.apply(10_000, salt=salt, eligible=[part])
        arms.append(served_arms(served))
    assert all(set(pair) == {"candidate", "stable"} for pair in zip(*arms, strict=True))


@pytest.mark.parametrize("weight", [100, 1000, 5000])
def test_parts_of_a_layer_never_overlap(weight: int) -> None:
    """At any weight, over many units, no unit is in the candidate of two parts of a layer."""
    units = [f"unit-{i}" for i in range(20_000)]
    parts = [layer(0, 3_333), layer(3_333, 6_667), layer(6_667, 10_000)]
    trials = [on_trial(f"s{i}", weight, [part], units) for i, part in enumerate(parts)]
    assert max(map(sum, zip(*trials, strict=True))) == 1
    for trial in trials:
        share = weight / 10_000 / 3
        assert abs(sum(trial) - 20_000 * share) < 5 * math.sqrt(20_000 * share)


def test_salts_are_independent() -> None:
    """Over 100 pairs of salts of every kind the correlation is that of chance alone.

    Of 10,000 units it has a standard deviation of 0.01; the largest of 4,950 pairs stays below 5
    of these in all but 1 of 350 runs, were the salts drawn anew, which they are not.
    """
    units = [f"N{i}" for i in range(10_000)]
    columns = [[bucket_of(f"salt-{s}", u) < 1000 for u in units] for s in range(70)]
    columns += [on_trial("any", 10_000, [layer(0, 1_000, f"l{s}")], units) for s in range(30)]
    found = [correlation(a, b) for i, a in enumerate(columns) for b in columns[:i]]
    assert len(found) == 4_950
    assert max(map(abs, found)) < 0.05
    assert abs(sum(found) / len(found)) < 0.001
    assert 0.009 < math.sqrt(sum(phi * phi for phi in found) / len(found)) < 0.011


def test_salts_are_independent_in_envoy(served: Served) -> None:
    """What Envoy really does with two salts, and with a range and a salt, is uncorrelated."""
    columns = []
    for changes in ({"salt": "a"}, {"salt": "b"}, {"salt": "a", "eligible": [layer(0, 5_000)]}):
        served.apply(10_000 if "eligible" in changes else 5000, **changes)
        columns.append([arm == "candidate" for arm in served_arms(served)])
    for i, first in enumerate(columns):
        for second in columns[:i]:
            assert abs(correlation(first, second)) < 4 / math.sqrt(len(UNITS))

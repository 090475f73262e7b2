"""The plan at this end agrees with the published schema, and assignment with its promises."""

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from gateway_lab import plan
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.domain.assignment import assign, bucket_of, outside_of
from fairlead_gateway.domain.documents import PlanError
from fairlead_gateway.domain.plan import parse_plan, plan_digest, to_dict

SCHEMA = json.loads(
    (Path(__file__).parents[3] / "docs/reference/traffic-plan.schema.json").read_text()
)
CONTRACTS = (Path(__file__).parents[3] / "docs/reference/contracts.md").read_text()


def accepts(document: Any) -> bool:
    """Ask the schema."""
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(document))


def changed(path: str, value: Any) -> dict[str, Any]:
    """Change one field of a good plan."""
    document = copy.deepcopy(plan(**EVERYTHING))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = document
    for part in parents:
        target = target[part]
    target[last] = value
    return document


KEYS = ["dashboard:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="]

EVERYTHING: dict[str, Any] = {
    "shadow": [{"version": "5", "share": 10}],
    "jwt": {"issuer": "https://id", "audiences": ["a"], "jwks": "{}", "required": True},
    "overrideKeys": KEYS,
    "rateLimit": {"by": "unit", "requests": 5, "seconds": 1.0},
    "eligible": [{"reason": "holdout", "salt": "holdout:iris", "from": 500, "to": 10_000}],
}
"""A plan's optional parts."""

HOLDOUT: dict[str, Any] = EVERYTHING["eligible"][0]

WRONG = [
    ("model", "Iris"),
    ("model", "a" * 64),
    ("model", 1),
    ("rollout", 5),
    ("step", -1),
    ("step", True),
    ("salt", "a:b"),
    ("unit", {}),
    ("unit", {"header": "a", "cookie": "b"}),
    ("unit", {"header": "X-Unit"}),
    ("unit", {"cookie": "a=b"}),
    ("unit", {"query": ""}),
    ("unit", {"request": {"a": 1}}),
    ("unit", {"path": "a"}),
    ("unit", {"jwtClaim": "a b"}),
    ("jwt", {}),
    ("jwt.issuer", ""),
    ("jwt.audiences", []),
    ("jwt.audiences", "flights"),
    ("jwt.jwks", ""),
    ("jwt.required", 1),
    ("jwt.more", 1),
    ("apiKeys", []),
    ("apiKeys", ["dashboard:secret"]),
    ("overrideKeys", KEYS[0]),
    ("overrideKeys", [KEYS[0].replace("=", "")]),
    ("rateLimit", {}),
    ("rateLimit.by", "address"),
    ("rateLimit.requests", 0),
    ("rateLimit.requests", 1_000_001),
    ("rateLimit.seconds", 0.01),
    ("rateLimit.seconds", 86_401),
    ("eligible", []),
    ("eligible.0.salt", "a b"),
    ("eligible.0.reason", ""),
    ("eligible.0.from", -1),
    ("eligible.0.to", 10_001),
    ("eligible.0.more", 1),
    ("arms", []),
    ("arms.0.arm", "shadow"),
    ("arms.0.version", "v4"),
    ("arms.0.weight", -1),
    ("arms.0.weight", 1.5),
    ("arms.0.more", 1),
    ("shadow.0.share", 0),
    ("fallback", "x"),
    ("timeout", 0),
    ("timeout", 3601),
    ("timeout", "5s"),
    ("retries.attempts", 11),
    ("retries.onReset", 1),
    ("limits.maxBodyBytes", 1023),
    ("more", 1),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_what_the_schema_refuses_is_refused(path: str, value: Any) -> None:
    """Both ends refuse the same documents, and the error names the field."""
    document = changed(path, value)
    assert not accepts(document)
    with pytest.raises(PlanError) as caught:
        parse_plan(document)
    field = re.sub(r"\.(\d+)", r"[\1]", path)
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"arms": list(reversed(plan()["arms"]))}, "arms"),
        ({"arms": plan()["arms"][:1]}, "arms"),
        ({"arms": [*plan()["arms"], plan()["arms"][1]]}, "arms"),
        ({"arms": plan(weight=None)["arms"], "rollout": None}, "step"),
        ({"rollout": None, "step": None, "fallback": None}, "arms"),
        ({"rollout": None, "step": None}, "fallback"),
        ({"rollout": "mine"}, "rollout"),
        ({"step": None}, "step"),
        ({"unit": {"jwtClaim": "sub"}}, "jwt"),
        ({"apiKeys": KEYS, "jwt": EVERYTHING["jwt"]}, "apiKeys"),
        ({"apiKeys": KEYS * 2}, "apiKeys"),
        ({"overrideKeys": KEYS * 2}, "overrideKeys"),
        ({"rateLimit": EVERYTHING["rateLimit"], "unit": {"request": {}}}, "rateLimit.by"),
        ({"rateLimit": EVERYTHING["rateLimit"] | {"by": "client"}}, "apiKeys"),
        ({"eligible": [HOLDOUT | {"to": 500}]}, "eligible[0].to"),
        ({"eligible": [HOLDOUT | {"from": 0}]}, "eligible[0]"),
        ({"eligible": [HOLDOUT], "unit": {"cookie": "a"}}, "eligible"),
        ({"step": 10**20}, "step"),
        ({"step": 1e20}, "step"),
        ({"shadow": [{"version": "5", "share": 1}] * 2}, "shadow"),
    ],
)
def test_rules_over_several_fields(change: dict[str, Any], field: str) -> None:
    """What a schema cannot say is checked here, and the error names the field."""
    with pytest.raises(PlanError) as caught:
        parse_plan(plan(**change))
    assert caught.value.field == field


def test_missing_fields_are_named() -> None:
    """Every field is required, by the schema and here."""
    for name in SCHEMA["required"]:
        document = plan()
        del document[name]
        assert not accepts(document)
        with pytest.raises(PlanError, match=name):
            parse_plan(document)


@pytest.mark.parametrize(
    "more", [{}, EVERYTHING, {"apiKeys": KEYS}], ids=["least", "everything", "keys"]
)
@pytest.mark.parametrize("weight", [None, 0, 1, 10_000])
def test_round_trip(weight: int | None, more: dict[str, Any]) -> None:
    """A plan that is read and written again is the same document, with the same digest."""
    document = plan(weight=weight, **more)
    assert accepts(document)
    assert to_dict(parse_plan(document)) == document
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert plan_digest(parse_plan(document)) == hashlib.sha256(canonical).hexdigest()[:16]


def test_the_contract_s_example() -> None:
    """The example in the contract is a plan."""
    example = json.loads(CONTRACTS.split("```json\n")[1].split("```")[0])
    assert accepts(example)
    assert to_dict(parse_plan(example)) == example


units = st.text(min_size=1).filter(lambda unit: unit.encode("utf-8", "ignore").decode() == unit)
weights = st.integers(0, 10_000)


@given(unit=units, low=weights, high=weights)
def test_assignment_is_monotone(unit: str, low: int, high: int) -> None:
    """A unit of the candidate stays with it at every higher weight."""
    low, high = sorted((low, high))
    if assign(parse_plan(plan(weight=low)), unit) == "candidate":
        assert assign(parse_plan(plan(weight=high)), unit) == "candidate"


@given(unit=units, weight=weights)
def test_assignment_is_total(unit: str, weight: int) -> None:
    """Every unit has an arm, the candidate exactly below the weight."""
    arm = assign(parse_plan(plan(weight=weight)), unit)
    assert (arm == "candidate") == (bucket_of(plan()["salt"], unit) < weight)


@given(unit=units, weight=weights, held=st.integers(1, 9_999))
def test_a_holdout_is_outside_every_rollout(unit: str, weight: int, held: int) -> None:
    """A unit outside is stable's at every weight and salt; one inside is assigned as ever."""
    eligible = [HOLDOUT | {"from": held}]
    made = parse_plan(plan(weight=weight, eligible=eligible))
    other = parse_plan(plan(weight=10_000, eligible=eligible, salt="another"))
    outside = outside_of(made, unit)
    assert outside == outside_of(other, unit)
    if outside is None:
        assert assign(made, unit) == assign(parse_plan(plan(weight=weight)), unit)
        assert assign(other, unit) == "candidate"
    else:
        assert (outside, assign(other, unit)) == ("holdout", "stable")


@given(unit=units, low=st.integers(1, 9_999), high=st.integers(1, 9_999))
def test_a_larger_holdout_keeps_who_is_in_it(unit: str, low: int, high: int) -> None:
    """Growing a holdout takes units out of rollouts, and lets none in."""
    low, high = sorted((low, high))
    small, large = (parse_plan(plan(eligible=[HOLDOUT | {"from": each}])) for each in (low, high))
    assert outside_of(small, unit) is None or outside_of(large, unit) == "holdout"


@pytest.mark.parametrize("unit", [None, ""])
def test_no_unit_is_stable(unit: str | None) -> None:
    """An absent or empty unit is never in the candidate."""
    assert assign(parse_plan(plan(weight=10_000)), unit) == "stable"

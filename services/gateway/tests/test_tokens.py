"""A model that asks for a token lets in who has a good one, and may take its unit from a claim."""

import time
from typing import Any

import pytest
from gateway_client import Answer, seen
from gateway_lab import Served, plan, wait_for
from gateway_tokens import Issuer
from test_answers import error, get

from fairlead_gateway.domain.assignment import assign
from fairlead_gateway.domain.plan import parse_plan

ISSUER = Issuer()
BY_CLAIM: dict[str, Any] = {"unit": {"jwtClaim": "sub"}, "jwt": ISSUER.jwt()}


def arm_of(answer: Answer) -> str:
    """Return the arm."""
    return answer.headers["x-rollout-arm"]


@pytest.mark.parametrize("weight", [100, 1000, 5000])
def test_the_claim_is_the_unit(served: Served, weight: int) -> None:
    """At 1, 10 and 50 percent every subject goes to the arm `assign` says, and is logged."""
    served.apply(weight, **BY_CLAIM)
    subjects = [f"user-{i}" for i in range(1_000)] + ["ü 日本", "a|b"]
    expected = {unit: str(assign(parse_plan(plan(weight=weight)), unit)) for unit in subjects}
    answers = served.ask(
        *({**ISSUER.bearer(sub=u), "x-inference-id": f"i{i}"} for i, u in enumerate(subjects))
    )
    arms = {subjects[int(a.headers["x-inference-id"][1:])]: arm_of(a) for a in answers}
    assert arms == expected
    assert {line["unit"]: line["arm"] for line in served.log(len(subjects))} == expected


def test_what_a_client_says_of_its_unit_is_ignored(served: Served) -> None:
    """Headers that look like a unit, ours or the default one, move nobody."""
    served.apply(5000, **BY_CLAIM)
    forged = {"x-fairlead-claim": "b", "x-fairlead-unit": "b", "x-unit-id": "b", "sub": "b"}
    subjects = [f"user-{i}" for i in range(100)]
    answers = served.ask(
        *({**ISSUER.bearer(sub=u), "x-inference-id": u, **forged} for u in subjects)
    )
    expected = {u: str(assign(parse_plan(plan(weight=5000)), u)) for u in subjects}
    assert {a.headers["x-inference-id"]: arm_of(a) for a in answers} == expected
    assert set(expected.values()) == {"stable", "candidate"}
    assert "x-fairlead-claim" not in seen(answers[0])["headers"]
    assert "authorization" not in seen(answers[0])["headers"]


@pytest.mark.parametrize(
    ("claim", "value", "unit"),
    [("tenant", "acme", "acme"), ("number", 42, "42"), ("vip", True, "true")],
)
def test_claims_of_other_kinds(served: Served, claim: str, value: Any, unit: str) -> None:
    """A text, a whole number or a boolean is a unit; a dot leads into an object."""
    served.apply(10_000, unit={"jwtClaim": f"app.{claim}"}, jwt=ISSUER.jwt())
    (answer,) = served.ask(ISSUER.bearer(app={claim: value}))
    assert arm_of(answer) == "candidate"
    assert served.log(1)[0]["unit"] == unit


def test_a_token_without_the_claim_goes_to_stable(served: Served) -> None:
    """It is good, and has no unit."""
    served.apply(10_000, **BY_CLAIM)
    (answer,) = served.ask(ISSUER.bearer())
    assert (answer.code, arm_of(answer)) == (200, "stable")
    assert served.log(1)[0]["unit"] is None


NOW = int(time.time())
REFUSED = {
    "none": ({}, 401, "missing"),
    "not a token": ({"authorization": "Bearer abc"}, 401, "form"),
    "another scheme": ({"authorization": "Basic abc"}, 401, "missing"),
    "in the address": ({"x-test-path": "token"}, 401, "missing"),
    "expired": (ISSUER.bearer(exp=NOW - 3600), 401, "expired"),
    "without an end": (ISSUER.bearer(exp=None), 401, "verification"),
    "not yet": (ISSUER.bearer(nbf=NOW + 3600), 401, "not yet"),
    "of another issuer": (ISSUER.bearer(iss="https://evil.example.com/"), 401, "issuer"),
    "for another audience": (ISSUER.bearer(aud="others"), 403, "Audiences"),
    "for no audience": (ISSUER.bearer(aud=None), 403, "Audiences"),
    "of another key": (Issuer().bearer(), 401, "verification"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_who_is_refused(served: Served, case: str) -> None:
    """Without a good token there is a 401 or 403 that says why, and nothing is counted."""
    headers, code, why = REFUSED[case]
    served.apply(10_000, **BY_CLAIM)
    if headers.pop("x-test-path", ""):
        served.path += f"?access_token={ISSUER.token(sub='a')}"
    (answer,) = served.ask(headers)
    assert answer.code == code
    assert error(answer)["error_code"] == ("UNAUTHENTICATED" if code == 401 else "FORBIDDEN")
    assert why in error(answer)["message"]
    assert served.model in error(answer)["message"]
    assert answer.headers["x-inference-id"]
    (line,) = served.log(1)
    assert (line["arm"], line["version"]) == (None, None)


def test_other_paths_ask_for_a_token_too(served: Served) -> None:
    """A model's documents and the other protocol are behind the same door."""
    served.apply(None, jwt=ISSUER.jwt())
    for path in (f"/models/{served.model}/docs", f"/v2/models/{served.model}"):
        assert get(served, path).status_code == 401
        assert get(served, path, headers=ISSUER.bearer()).status_code == 200


def test_a_token_may_be_optional(served: Served) -> None:
    """Without one a request goes to stable and is no unit; a bad one is refused all the same."""
    served.apply(10_000, unit={"jwtClaim": "sub"}, jwt=ISSUER.jwt(required=False))
    answers = served.ask({}, connections=1) + served.ask(ISSUER.bearer(sub="a"), connections=1)
    assert [arm_of(answer) for answer in answers] == ["stable", "candidate"]
    (refused,) = served.ask(ISSUER.bearer(sub="a", exp=NOW - 3600))
    assert refused.code == 401
    assert [line["unit"] for line in served.log(3)] == [None, "a", None]


def test_a_token_beside_another_unit(served: Served) -> None:
    """The door alone: the unit stays the header's."""
    served.apply(5000, jwt=ISSUER.jwt())
    units = [f"N{i}" for i in range(100)]
    answers = served.ask(
        *({**ISSUER.bearer(sub="same"), "x-unit-id": u, "x-inference-id": u} for u in units)
    )
    expected = {u: str(assign(parse_plan(plan(weight=5000)), u)) for u in units}
    assert {a.headers["x-inference-id"]: arm_of(a) for a in answers} == expected


def test_a_key_that_is_taken_back_lets_nobody_in(served: Served) -> None:
    """New keys count for connections from before, too, and cut none of them."""
    second = Issuer("second")
    old, new = ISSUER.bearer(sub="a"), second.bearer(sub="a")
    served.apply(1000, **BY_CLAIM)
    post = served.gateway.post
    assert post(served.model, headers=old).status_code == 200
    served.apply(1000, unit={"jwtClaim": "sub"}, jwt=second.jwt())
    assert post(served.model, headers=old).status_code == 401
    assert post(served.model, headers=new).status_code == 200


def test_keys_envoy_cannot_read_change_nothing(served: Served) -> None:
    """The plan is refused before it is followed; the one before stays, and the reason is told."""
    served.apply(1000, **BY_CLAIM)
    served.gateway.put(served.plan(5000, unit={"jwtClaim": "sub"}, jwt=ISSUER.jwt(jwks="no keys")))

    def told() -> bool:
        answer = served.gateway.agent("/readyz")
        return answer is not None and served.model in answer.text

    wait_for(told)
    assert served.ask(ISSUER.bearer(sub="a"))[0].code == 200

"""Keys that let a request in, and keys that choose an arm."""

import base64
import hashlib
from typing import Any

import pytest
from gateway_client import Answer, seen
from gateway_lab import Served, wait_for
from gateway_tokens import Issuer
from test_answers import error, get

from fairlead_gateway.domain.exposure import LogLine, exposure_of

KEY = "a-long-random-key"


def entry(client: str, key: str = KEY) -> str:
    """Write what a plan holds of a key."""
    return f"{client}:{{SHA}}{base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest()).decode()}"


def basic(client: str, key: str = KEY) -> str:
    """Write what a client sends of it."""
    return f"Basic {base64.b64encode(f'{client}:{key}'.encode()).decode()}"


BAD = {
    "none": {},
    "another": {"{name}": basic("tester", "wrong")},
    "of another client": {"{name}": basic("other")},
    "of nobody": {"{name}": basic("nobody", "")},
    "the hash": {"{name}": basic("tester", entry("tester").partition(":")[2])},
    "no credentials": {"{name}": "Basic !"},
}


def bad(case: str, name: str) -> dict[str, str]:
    """Send a bad key under a header's name."""
    return {given.format(name=name): value for given, value in BAD[case].items()}


# --- keys that let a request in -------------------------------------------------------------------


def test_a_key_lets_in(served: Served) -> None:
    """Each client has a key of its own; the model sees neither the key nor a forged name."""
    served.apply(1000, apiKeys=[entry("tester"), entry("dashboard", "2")])
    for header in (basic("tester"), basic("dashboard", "2")):
        (answer,) = served.ask({"authorization": header, "x-fairlead-client": "forged"})
        assert answer.code == 200
        assert not {"authorization", "x-fairlead-client"} & set(seen(answer)["headers"])


@pytest.mark.parametrize("case", BAD)
def test_without_a_good_key_nobody_comes_in(served: Served, case: str) -> None:
    """Every path of the model answers 401 and says why, and nothing is counted."""
    served.apply(10_000, apiKeys=[entry("tester")])
    headers = bad(case, "authorization")
    (answer,) = served.ask({**headers, "x-unit-id": "a"})
    assert answer.code == 401
    assert error(answer)["error_code"] == "UNAUTHENTICATED"
    assert "authentication failed" in error(answer)["message"]
    for path in (f"/models/{served.model}/docs", f"/v2/models/{served.model}"):
        assert get(served, path, headers=headers).status_code == 401
    assert {line["arm"] for line in served.log(3)} == {None}


# --- keys that choose an arm ----------------------------------------------------------------------

TESTER = {"x-override-key": basic("tester")}


def exposures(served: Served, least: int) -> list[Any]:
    """Return what of the log is an exposure."""
    lines = [LogLine(**line) for line in served.log(least)]
    return [found for found in map(exposure_of, lines) if found is not None]


@pytest.mark.parametrize(("weight", "arm"), [(0, "candidate"), (10_000, "stable")])
def test_a_person_chooses_an_arm(served: Served, weight: int, arm: str) -> None:
    """A key chooses any arm at any weight; the answer says so, and there is no exposure."""
    served.apply(weight, overrideKeys=[entry("tester")])
    sample = f'fairlead_gateway_overrides_total{{arm="{arm}",model="{served.model}"'
    answers = served.ask(*[{**TESTER, "x-override-arm": arm, "x-unit-id": "a"}] * 20)
    assert {answer.headers["x-rollout-arm"] for answer in answers} == {arm}
    version = {"candidate": "4", "stable": "3"}[arm]
    assert {answer.headers["x-model-version"] for answer in answers} == {version}
    assert not {"x-override-key", "x-override-arm"} & set(seen(answers[0])["headers"])
    assert exposures(served, 20) == []
    wait_for(lambda: served.gateway.metric(sample) == 20)


@pytest.mark.parametrize("case", BAD)
def test_who_has_no_key_chooses_nothing(served: Served, case: str) -> None:
    """A choice without a good key is a 401: not the arm that was asked for, nor another."""
    served.apply(1000, overrideKeys=[entry("tester")])
    headers = bad(case, "x-override-key") | {"x-override-arm": "candidate"}
    (answer,) = served.ask({**headers, "authorization": basic("tester")})
    assert answer.code == 401
    assert served.log(1)[0]["arm"] is None


def test_requests_that_choose_nothing_are_counted(served: Served) -> None:
    """Keys of persons change nothing for all others, with the key or without."""
    served.apply(10_000, overrideKeys=[entry("tester")])
    answers = served.ask({"x-unit-id": "a"}, {**TESTER, "x-unit-id": "b"})
    assert {answer.headers["x-rollout-arm"] for answer in answers} == {"candidate"}
    assert {found.unit for found in exposures(served, 2)} == {"a", "b"}


@pytest.mark.parametrize("arm", ["shadow", "", "candidate, stable", "Candidate"])
def test_an_arm_that_is_none(served: Served, arm: str) -> None:
    """Anything but the two arms is a 400 that names the header."""
    served.apply(1000, overrideKeys=[entry("tester")])
    (answer,) = served.ask({**TESTER, "x-override-arm": arm})
    assert answer.code == 400
    assert error(answer)["field"] == "x-override-arm"
    assert "stable or candidate" in error(answer)["message"]


def test_without_a_rollout_there_is_but_stable(served: Served) -> None:
    """A candidate that does not exist is stood in for, and the answer says so."""
    served.apply(None, overrideKeys=[entry("tester")])
    (answer,) = served.ask({**TESTER, "x-override-arm": "candidate"})
    assert (answer.code, answer.headers["x-rollout-arm"]) == (200, "stable")


def test_without_keys_of_persons_the_choice_is_ignored(served: Served) -> None:
    """The request is assigned and counted as any other."""
    served.apply(10_000)
    (answer,) = served.ask({**TESTER, "x-override-arm": "stable", "x-unit-id": "a"})
    assert answer.headers["x-rollout-arm"] == "candidate"
    assert len(exposures(served, 1)) == 1


def test_a_choice_goes_through_the_model_s_door(served: Served) -> None:
    """Who may choose an arm still needs the token, or the key, the model asks for."""
    choice = {**TESTER, "x-override-arm": "candidate"}

    def ask(**headers: str) -> Answer:
        return served.ask({**choice, **headers})[0]

    issuer = Issuer()
    keys = [entry("tester")]
    served.apply(0, overrideKeys=keys, jwt=issuer.jwt(), unit={"jwtClaim": "sub"})
    assert ask().code == 401
    assert ask(**issuer.bearer(sub="a")).headers["x-rollout-arm"] == "candidate"
    served.apply(0, overrideKeys=keys, apiKeys=[entry("shop", "1")])
    assert ask().code == 401
    assert ask(authorization=basic("shop", "1")).headers["x-rollout-arm"] == "candidate"

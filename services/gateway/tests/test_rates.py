"""One client or unit that asks too often is told so, and no other is."""

from collections import Counter
from typing import Any

import pytest
from gateway_lab import Served
from gateway_tokens import Issuer
from test_answers import error, get
from test_keys import basic, entry

FIVE = {"by": "unit", "requests": 5, "seconds": 3600}


def codes(served: Served, headers: list[dict[str, str]]) -> Counter[tuple[str, int]]:
    """Ask, and count the codes by the first part of the id the test gave."""
    asked = [{**h, "x-inference-id": f"{h.pop('who')}.{i}"} for i, h in enumerate(headers)]
    return Counter((a.headers["x-inference-id"].split(".")[0], a.code) for a in served.ask(*asked))


@pytest.mark.parametrize("kind", ["header", "cookie", "jwtClaim"])
def test_each_unit_has_its_own_rate(served: Served, kind: str) -> None:
    """Of eight requests of each of 40 units exactly five are answered, wherever the unit is."""
    issuer = Issuer()
    more: dict[str, Any] = {"jwt": issuer.jwt()} if kind == "jwtClaim" else {}
    served.apply(5000, unit={kind: "sub"}, rateLimit=FIVE, **more)
    units = [f"u{i}" for i in range(40)]
    carried = {
        "header": lambda unit: {"sub": unit},
        "cookie": lambda unit: {"cookie": f"a=b; sub={unit}"},
        "jwtClaim": lambda unit: issuer.bearer(sub=unit),
    }[kind]
    found = codes(served, [{**carried(unit), "who": unit} for unit in units for _ in range(8)])
    assert found == {(u, code): n for u in units for code, n in ((200, 5), (429, 3))}


def test_requests_without_a_unit_share_a_rate(served: Served) -> None:
    """Who leaves the unit out gets no further than one unit, and takes nothing from the others."""
    served.apply(5000, rateLimit=FIVE)
    found = codes(served, [{"who": "none"} for _ in range(8)])
    assert found == {("none", 200): 5, ("none", 429): 3}
    assert codes(served, [{"who": "a", "x-unit-id": "a"}] * 1) == {("a", 200): 1}


def test_a_rate_by_client(served: Served) -> None:
    """The key tells who asks, whatever the unit."""
    keys = [entry("one", "1"), entry("two", "2")]
    served.apply(5000, apiKeys=keys, rateLimit=FIVE | {"by": "client"})
    asked = [
        {"who": who, "authorization": basic(who, key), "x-unit-id": f"u{i}"}
        for who, key in (("one", "1"), ("two", "2"))
        for i in range(8)
    ]
    assert codes(served, asked) == {
        (w, c): n for w in ("one", "two") for c, n in ((200, 5), (429, 3))
    }


def test_what_is_told_to_who_asks_too_often(served: Served) -> None:
    """A 429 in our form, with what is left and when more is; it is no exposure."""
    served.apply(5000, rateLimit=FIVE | {"requests": 1})
    first, second = (served.ask({"x-unit-id": "a"})[0] for _ in range(2))
    assert (first.code, first.headers["x-ratelimit-remaining"]) == (200, "0")
    assert second.code == 429
    assert error(second)["error_code"] == "RATE_LIMITED"
    assert served.model in error(second)["message"]
    assert 0 < int(second.headers["x-ratelimit-reset"]) <= 3600
    assert second.headers["x-inference-id"]
    assert [line["version"] is None for line in served.log(2)] == [False, True]
    assert served.log(2)[1]["arm"] is None


@pytest.mark.parametrize(
    "headers",
    [{"x-large": "a" * 62_000}, {f"x-{i}": "a" for i in range(101)}],
    ids=["large", "many"],
)
def test_headers_that_are_too_large(served: Served, headers: dict[str, str]) -> None:
    """More than 60 KiB of headers, or more than 100, is a 431 in our form."""
    answer = get(served, served.path, method="POST", headers=headers)
    assert answer.status_code == 431
    assert error(answer)["error_code"] == "HEADERS_TOO_LARGE"


def test_headers_that_are_not(served: Served) -> None:
    """Below both limits a request is answered."""
    headers = {f"x-{i}": "a" * 700 for i in range(80)}
    assert get(served, served.path, method="POST", headers=headers).status_code == 200

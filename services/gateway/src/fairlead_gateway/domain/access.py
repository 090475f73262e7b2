"""Who may ask a model: and how often: what a traffic plan says of tokens, keys and rates."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fairlead_gateway.domain.documents import (
    read_boolean,
    read_integer,
    read_items,
    read_number,
    read_object,
    read_text,
    require,
    require_match,
    require_within,
)

JSON = dict[str, object]

_MOST = 1_000_000
_SHORTEST, _LONGEST = 0.1, 86_400

_KEY = re.compile(r"[A-Za-z0-9._-]{1,64}:\{SHA\}[A-Za-z0-9+/]{27}=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Jwt:
    """The tokens a model's requests carry.

    Attributes:
        issuer: Who makes them (`iss`).
        audiences: For whom they may be made (`aud`); one of them is enough.
        jwks: The public keys they are signed for, a JSON Web Key Set (RFC 7517) as text.
        required: Whether a request without one is refused.
    """

    issuer: str
    audiences: tuple[str, ...]
    jwks: str
    required: bool

    def __post_init__(self) -> None:
        """Check that nothing is empty: an empty audience would let in tokens made for others."""
        for name in ("issuer", "audiences", "jwks"):
            require(bool(getattr(self, name)), f"jwt.{name}", "must not be empty")


class By(StrEnum):
    """Whom a rate is counted for."""

    CLIENT = "client"
    UNIT = "unit"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """How often one client, or one unit, may ask.

    Attributes:
        by: Whom the requests are counted for; those of nobody are counted together.
        requests: How many may come at once, and again after each period.
        seconds: The period.
    """

    by: By
    requests: int
    seconds: float

    def __post_init__(self) -> None:
        """Check what Envoy can count."""
        require_within(self.requests, 1, _MOST, "rateLimit.requests")
        in_range = _SHORTEST <= self.seconds <= _LONGEST
        reason = f"must be from {_SHORTEST} to {_LONGEST} seconds"
        require(in_range, "rateLimit.seconds", reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may ask a model, and how often.

    Attributes:
        jwt: The tokens to check; None to check none.
        api_keys: Whose key lets a request in, each with its hash as in a file of htpasswd; none
            to ask for no key.
        rate_limit: How often each may ask; None for as often as they like.
        override_keys: Whose key chooses an arm, in the same form; none to let nobody choose.
    """

    jwt: Jwt | None = None
    api_keys: tuple[str, ...] = ()
    override_keys: tuple[str, ...] = ()
    rate_limit: RateLimit | None = None

    def __post_init__(self) -> None:
        """Check the keys; a token and a key would be in the same header."""
        for name, lines in (("apiKeys", self.api_keys), ("overrideKeys", self.override_keys)):
            for index, line in enumerate(lines):
                require_match(_KEY, line, f"{name}[{index}]")
            clients = {line.partition(":")[0] for line in lines}
            require(len(clients) == len(lines), name, "must not name one client twice")
        both = self.jwt is not None and self.api_keys
        require(not both, "apiKeys", "must not be there beside jwt")
        by_client = self.rate_limit is not None and self.rate_limit.by is By.CLIENT
        require(not by_client or bool(self.api_keys), "apiKeys", "is required by rateLimit.by")


OPTIONAL = ("jwt", "apiKeys", "overrideKeys", "rateLimit")
"""The fields of a traffic plan that are about access."""


def parse_access(plan: Mapping[str, object]) -> Access:
    """Read what a plan's document says of access.

    Args:
        plan: The document; what it does not say is not asked for.

    Raises:
        PlanError: It breaks a rule; the error names the field.
    """
    return Access(
        jwt=_parse_jwt(plan["jwt"]) if "jwt" in plan else None,
        api_keys=_parse_keys(plan, "apiKeys"),
        override_keys=_parse_keys(plan, "overrideKeys"),
        rate_limit=_parse_rate_limit(plan["rateLimit"]) if "rateLimit" in plan else None,
    )


def access_to_dict(access: Access) -> JSON:
    """Write the fields of a plan that are about access, the inverse of `parse_access`."""
    fields = {
        "jwt": None if access.jwt is None else _jwt_to_dict(access.jwt),
        "apiKeys": list(access.api_keys),
        "overrideKeys": list(access.override_keys),
        "rateLimit": None if access.rate_limit is None else _rate_limit_to_dict(access.rate_limit),
    }
    return {name: value for name, value in fields.items() if value}


def _parse_rate_limit(value: object) -> RateLimit:
    fields = read_object(value, "rateLimit", ["by", "requests", "seconds"])
    by = read_text(fields["by"], "rateLimit.by")
    require(by in set(By), "rateLimit.by", "must be client or unit")
    return RateLimit(
        by=By(by),
        requests=read_integer(fields["requests"], "rateLimit.requests"),
        seconds=read_number(fields["seconds"], "rateLimit.seconds"),
    )


def _rate_limit_to_dict(limit: RateLimit) -> JSON:
    return {"by": str(limit.by), "requests": limit.requests, "seconds": limit.seconds}


def _parse_keys(plan: Mapping[str, object], name: str) -> tuple[str, ...]:
    if name not in plan:
        return ()
    keys = tuple(read_text(item, field) for field, item in read_items(plan[name], name))
    require(bool(keys), name, "must not be empty")
    return keys


def _parse_jwt(value: object) -> Jwt:
    fields = read_object(value, "jwt", ["issuer", "audiences", "jwks", "required"])
    audiences = read_items(fields["audiences"], "jwt.audiences")
    return Jwt(
        issuer=read_text(fields["issuer"], "jwt.issuer"),
        audiences=tuple(read_text(item, field) for field, item in audiences),
        jwks=read_text(fields["jwks"], "jwt.jwks"),
        required=read_boolean(fields["required"], "jwt.required"),
    )


def _jwt_to_dict(jwt: Jwt) -> JSON:
    return {
        "issuer": jwt.issuer,
        "audiences": list(jwt.audiences),
        "jwks": jwt.jwks,
        "required": jwt.required,
    }

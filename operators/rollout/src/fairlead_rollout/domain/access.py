"""Who may ask a model: the parts of `spec.traffic` that the gateway checks requests by."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fairlead_rollout.domain.durations import parse_duration
from fairlead_rollout.domain.errors import InvalidSpecError

SHORTEST_PERIOD, LONGEST_PERIOD = timedelta(milliseconds=100), timedelta(days=1)

_PUBLIC = frozenset({"RSA", "EC", "OKP"})
_JWKS = "spec.traffic.jwt.jwks"


@dataclass(frozen=True, kw_only=True)
class Jwt:
    """The tokens that are asked for; see the ServedModel's reference for the fields."""

    issuer: str
    audiences: tuple[str, ...]
    jwks: str
    required: bool


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """How often one client, or one unit, may ask."""

    by: str
    requests: int
    period: timedelta


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask a model, and how often; what is None or empty asks for nothing.

    Attributes:
        jwt: The tokens that are asked for.
        api_keys: Names and hashes of the keys that let requests in.
        override_keys: Names and hashes of the keys that choose an arm.
        rate_limit: How often each may ask.
    """

    jwt: Jwt | None
    api_keys: tuple[str, ...]
    override_keys: tuple[str, ...]
    rate_limit: RateLimit | None


def parse_access(traffic: Mapping[str, Any]) -> Access:
    """Read the parts of `spec.traffic` that are about access.

    Raises:
        InvalidSpecError: Something a schema cannot say is wrong; the message names the field.
    """
    if "jwtClaim" in traffic["unit"] and "jwt" not in traffic:
        raise InvalidSpecError(
            "spec.traffic.jwt: is missing; a unit that is a claim needs to know whose tokens count"
        )
    if "apiKeys" in traffic and "jwt" in traffic:
        raise InvalidSpecError(
            "spec.traffic.apiKeys: a token and a key would be in the same header; ask for one of both"
        )
    return Access(
        jwt=_parse_jwt(traffic["jwt"]) if "jwt" in traffic else None,
        api_keys=_parse_keys("apiKeys", traffic.get("apiKeys", ())),
        override_keys=_parse_keys("overrideKeys", traffic.get("overrideKeys", ())),
        rate_limit=_parse_rate_limit(traffic) if "rateLimit" in traffic else None,
    )


def render_access(access: Access) -> dict[str, Any]:
    """Render the fields of a TrafficPlan that are about access; what is not asked for is absent."""
    fields = {
        "jwt": None if access.jwt is None else _render_jwt(access.jwt),
        "apiKeys": list(access.api_keys),
        "overrideKeys": list(access.override_keys),
        "rateLimit": None if access.rate_limit is None else _render_rate_limit(access.rate_limit),
    }
    return {name: value for name, value in fields.items() if value}


def _render_jwt(jwt: Jwt) -> dict[str, Any]:
    return {
        "issuer": jwt.issuer,
        "audiences": list(jwt.audiences),
        "jwks": jwt.jwks,
        "required": jwt.required,
    }


def _render_rate_limit(limit: RateLimit) -> dict[str, Any]:
    return {
        "by": limit.by,
        "requests": limit.requests,
        "seconds": limit.period.total_seconds(),
    }


def _parse_rate_limit(traffic: Mapping[str, Any]) -> RateLimit:
    limit = traffic["rateLimit"]
    if limit["by"] == "client" and "apiKeys" not in traffic:
        raise InvalidSpecError(
            "spec.traffic.rateLimit.by: a rate by client needs spec.traffic.apiKeys, which tells "
            "clients apart"
        )
    if limit["by"] == "unit" and "request" in traffic["unit"]:
        raise InvalidSpecError(
            "spec.traffic.rateLimit.by: a rate by unit needs a unit that asks more than once; "
            "count by client"
        )
    period = parse_duration("spec.traffic.rateLimit.per", limit["per"])
    if not SHORTEST_PERIOD <= period <= LONGEST_PERIOD:
        raise InvalidSpecError("spec.traffic.rateLimit.per: must be from 100ms to 24h")
    return RateLimit(by=limit["by"], requests=limit["requests"], period=period)


def _parse_keys(field: str, lines: Sequence[str]) -> tuple[str, ...]:
    clients = [line.partition(":")[0] for line in lines]
    twice = sorted({client for client in clients if clients.count(client) > 1})
    if twice:
        raise InvalidSpecError(
            f"spec.traffic.{field}: names {', '.join(twice)} twice; to change a key without a gap, "
            "give the client a second name"
        )
    return tuple(lines)


def _parse_jwt(jwt: Mapping[str, Any]) -> Jwt:
    _check_jwks(jwt["jwks"])
    return Jwt(
        issuer=jwt["issuer"],
        audiences=tuple(jwt["audiences"]),
        jwks=jwt["jwks"],
        required=jwt["required"],
    )


def _check_jwks(text: str) -> None:
    """Refuse what is no set of public keys: the plan is no place for a secret (RFC 7517, 7518)."""
    try:
        keys = json.loads(text)["keys"]
    except (ValueError, KeyError, TypeError):
        keys = None
    if not isinstance(keys, list) or not keys:
        raise InvalidSpecError(
            f'{_JWKS}: must be a JSON Web Key Set, as text: {{"keys": [...]}} with at least one key'
        )
    for index, key in enumerate(keys):
        if not isinstance(key, dict) or key.get("kty") not in _PUBLIC:
            raise InvalidSpecError(f"{_JWKS}: key {index} must be of type RSA, EC or OKP")
        if "d" in key:
            raise InvalidSpecError(f"{_JWKS}: key {index} is a private one; give its public part")

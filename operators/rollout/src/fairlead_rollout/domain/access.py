"""Who may ask a model: the parts of `spec.traffic` that the gateway checks requests by."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairlead_rollout.domain.errors import InvalidSpecError

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
class Access:
    """Who may ask a model; None asks for nothing."""

    jwt: Jwt | None = None


def parse_access(traffic: Mapping[str, Any]) -> Access:
    """Read the parts of `spec.traffic` that are about access.

    Raises:
        InvalidSpecError: Something a schema cannot say is wrong; the message names the field.
    """
    if "jwtClaim" in traffic["unit"] and "jwt" not in traffic:
        raise InvalidSpecError(
            "spec.traffic.jwt: is missing; a unit that is a claim needs to know whose tokens count"
        )
    return Access(jwt=_parse_jwt(traffic["jwt"]) if "jwt" in traffic else None)


def render_access(access: Access) -> dict[str, Any]:
    """Render the fields of a TrafficPlan that are about access; what is not asked for is absent."""
    if access.jwt is None:
        return {}
    jwt = access.jwt
    return {
        "jwt": {
            "issuer": jwt.issuer,
            "audiences": list(jwt.audiences),
            "jwks": jwt.jwks,
            "required": jwt.required,
        }
    }


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

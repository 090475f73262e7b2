"""Who may ask a model: what a traffic plan says of tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

from fairlead_gateway.domain.documents import (
    read_boolean,
    read_items,
    read_object,
    read_text,
    require,
)

JSON = dict[str, object]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may ask a model.

    Attributes:
        jwt: The tokens to check; None to check none.
    """

    jwt: Jwt | None = None


OPTIONAL = ("jwt",)
"""The fields of a traffic plan that are about access."""


def parse_access(plan: Mapping[str, object]) -> Access:
    """Read what a plan's document says of access.

    Args:
        plan: The document; what it does not say is not asked for.

    Raises:
        PlanError: It breaks a rule; the error names the field.
    """
    return Access(jwt=_parse_jwt(plan["jwt"]) if "jwt" in plan else None)


def access_to_dict(access: Access) -> JSON:
    """Write the fields of a plan that are about access, the inverse of `parse_access`."""
    return {} if access.jwt is None else {"jwt": _jwt_to_dict(access.jwt)}


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

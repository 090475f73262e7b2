"""The filters that let requests in.

Envoy's filter for tokens takes its keys from the listener alone. A listener that changes closes
connections, and would not change together with the routes. So the listener has but a place for it
(the composite filter), which each model's routes fill: what one model asks for is no part of
another's, and is checked, applied and taken back with its routes.
"""

from collections.abc import Sequence

from fairlead_gateway.domain.access import Jwt
from fairlead_gateway.domain.render.shared import (
    CLAIM_HEADER,
    CLIENT_HEADER,
    JSON,
    OVERRIDE_KEY,
    TYPE,
)

JWT_FILTER = "fairlead.jwt"
KEY_FILTER = "fairlead.keys"
OVERRIDE_FILTER = "fairlead.override"

_FILTERS = f"{TYPE}extensions.filters"
_MATCHING = f"{TYPE}extensions.common.matching.v3"
_PROVIDER = "token"


def render_access_filters() -> list[JSON]:
    """Render the listener's filters, which do nothing until a route says what."""
    skip = {"@type": f"{_FILTERS}.common.matcher.action.v3.SkipFilter"}
    return [
        {
            "name": JWT_FILTER,
            "disabled": True,
            "typed_config": {
                "@type": f"{_MATCHING}.ExtensionWithMatcher",
                "extension_config": {
                    "name": "envoy.filters.http.composite",
                    "typed_config": {"@type": f"{_FILTERS}.http.composite.v3.Composite"},
                },
                "xds_matcher": {"on_no_match": {"action": {"name": "skip", "typed_config": skip}}},
            },
        },
        {
            "name": KEY_FILTER,
            "disabled": True,
            "typed_config": {**_nobody(), "forward_username_header": CLIENT_HEADER},
        },
        {
            "name": OVERRIDE_FILTER,
            "disabled": True,
            "typed_config": {**_nobody(), "authentication_header": OVERRIDE_KEY},
        },
    ]


def _nobody() -> JSON:
    """Render a filter of keys that lets nobody in: no key is known whose hash is all zeros."""
    users = "nobody:{SHA}" + "A" * 27 + "="
    kind = f"{_FILTERS}.http.basic_auth.v3.BasicAuth"
    return {"@type": kind, "users": {"inline_string": users}}


def render_keys(lines: Sequence[str]) -> JSON:
    """Render whose key a route takes.

    Args:
        lines: Names and hashes, as in a file of htpasswd.
    """
    kind = f"{_FILTERS}.http.basic_auth.v3.BasicAuthPerRoute"
    return {"@type": kind, "users": {"inline_string": "\n".join(lines)}}


def render_jwt(jwt: Jwt, claim: str | None) -> JSON:
    """Render what a route asks of a request's token.

    Args:
        jwt: The tokens.
        claim: The claim that is the unit, if one is.
    """
    execute = {
        "@type": f"{_FILTERS}.http.composite.v3.ExecuteFilterAction",
        "typed_config": {
            "name": "envoy.filters.http.jwt_authn",
            "typed_config": _authentication(jwt, claim),
        },
    }
    return {
        "@type": f"{_MATCHING}.ExtensionWithMatcherPerRoute",
        "xds_matcher": {"on_no_match": {"action": {"name": "jwt", "typed_config": execute}}},
    }


def _authentication(jwt: Jwt, claim: str | None) -> JSON:
    asked: JSON = {"provider_name": _PROVIDER}
    if not jwt.required:
        asked = {"requires_any": {"requirements": [asked, {"allow_missing": {}}]}}
    return {
        "@type": f"{_FILTERS}.http.jwt_authn.v3.JwtAuthentication",
        "providers": {_PROVIDER: _provider(jwt) | ({} if claim is None else _unit(claim))},
        "rules": [{"match": {"prefix": "/"}, "requires": asked}],
    }


def _provider(jwt: Jwt) -> JSON:
    return {
        "issuer": jwt.issuer,
        "audiences": list(jwt.audiences),
        "local_jwks": {"inline_string": jwt.jwks},
        # By default a token in the address would do, too, and addresses are logged in many places.
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "require_expiration": True,
    }


def _unit(claim: str) -> JSON:
    """Render what makes a claim the unit: the route is looked for again, now with the claim."""
    header = {"header_name": CLAIM_HEADER, "claim_name": claim}
    return {"claim_to_headers": [header], "clear_route_cache": True}

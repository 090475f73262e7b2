"""How often one client, or one unit, may ask."""

from fairlead_gateway.domain.access import By, RateLimit
from fairlead_gateway.domain.plan import UnitKind
from fairlead_gateway.domain.render.shared import CLIENT_HEADER, JSON, TYPE

RATE_FILTER = "envoy.filters.http.local_ratelimit"

_KIND = f"{TYPE}extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_KEY = "asker"
_MOST = 10_000  # Askers that are remembered; of more, those that asked longest ago are forgotten.


def render_rate_filter() -> JSON:
    """Render the listener's filter, which does nothing until a route says what."""
    return {
        "name": RATE_FILTER,
        "disabled": True,
        "typed_config": {"@type": _KIND, "stat_prefix": "rate"},
    }


def render_rate_limit(limit: RateLimit, kind: UnitKind, header: str) -> JSON:
    """Render the limit of a route.

    Args:
        limit: The limit.
        kind: Where the unit is found.
        header: The request header that holds the unit, if one does.
    """
    bucket = {
        "max_tokens": limit.requests,
        "tokens_per_fill": limit.requests,
        "fill_interval": f"{limit.seconds:.3f}s",
    }
    always = {"default_value": {"numerator": 100}}
    return {
        "@type": _KIND,
        "stat_prefix": "rate",
        "filter_enabled": always,
        "filter_enforced": always,
        "rate_limits": [{"actions": [_asker(limit, kind, header)]}],
        "descriptors": [{"entries": [{"key": _KEY}], "token_bucket": bucket}],
        "max_dynamic_descriptors": _MOST,
        # The bucket of those who say not who they are; the others leave it alone.
        "token_bucket": bucket,
        "always_consume_default_token_bucket": False,
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
    }


def _asker(limit: RateLimit, kind: UnitKind, header: str) -> JSON:
    if limit.by is By.UNIT and kind is UnitKind.COOKIE:
        path = {"key": "fairlead", "path": [{"key": "unit"}]}
        return {"metadata": {"descriptor_key": _KEY, "metadata_key": path, "source": "DYNAMIC"}}
    name = CLIENT_HEADER if limit.by is By.CLIENT else header
    return {"request_headers": {"header_name": name, "descriptor_key": _KEY}}

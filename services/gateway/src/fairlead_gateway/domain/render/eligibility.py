"""Which requests are kept out of the split: those of units that are not eligible."""

from fairlead_gateway.domain.eligibility import BUCKETS, Range
from fairlead_gateway.domain.render.shared import JSON, TYPE
from fairlead_gateway.domain.render.units import TEXT

_HASHING = f"{TYPE}extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing"


def render_inside(each: Range, header: str) -> JSON:
    """Render what matches a request whose unit is inside a range; one without a unit is not.

    Args:
        each: The range.
        header: The request header that holds the unit.
    """
    parts = [render_text(header)]
    if each.start > 0:
        parts.append(_reaches(each, each.start, header))
    if each.end < BUCKETS:
        parts.append({"not_matcher": _reaches(each, each.end, header)})
    return parts[0] if len(parts) == 1 else {"and_matcher": {"predicate": parts}}


def render_outside(each: Range, header: str) -> JSON:
    """Render what matches a request whose unit is outside a range; one without a unit is inside.

    Args:
        each: The range.
        header: The request header that holds the unit.
    """
    ends: list[JSON] = []
    if each.start > 0:
        ends.append({"not_matcher": _reaches(each, each.start, header)})
    if each.end < BUCKETS:
        ends.append(_reaches(each, each.end, header))
    outside = ends[0] if len(ends) == 1 else {"or_matcher": {"predicate": ends}}
    return {"and_matcher": {"predicate": [render_text(header), outside]}}


def _reaches(each: Range, bucket: int, header: str) -> JSON:
    """Render what matches a unit whose hash is in a bucket or behind it."""
    hashing = {"@type": _HASHING, "modulo": BUCKETS, "threshold": bucket, "seed": str(each.seed)}
    return {
        "single_predicate": {
            "input": _input(header),
            "custom_match": {
                "name": "envoy.matching.matchers.consistent_hashing",
                "typed_config": hashing,
            },
        }
    }


def render_text(header: str) -> JSON:
    """Render what matches a request with a unit."""
    text = {"safe_regex": {"google_re2": {}, "regex": TEXT}}
    return {"single_predicate": {"input": _input(header), "value_match": text}}


def _input(header: str) -> JSON:
    kind = f"{TYPE}type.matcher.v3.HttpRequestHeaderMatchInput"
    return {"name": "unit", "typed_config": {"@type": kind, "header_name": header}}

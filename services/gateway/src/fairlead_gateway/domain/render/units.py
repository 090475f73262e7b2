"""Where the unit of a request is found, from the client's request to the hash and the log."""

from collections.abc import Iterable
from dataclasses import dataclass

from fairlead_gateway.domain.plan import TrafficPlan, Unit, UnitKind
from fairlead_gateway.domain.render.shared import CLAIM_HEADER, JSON, expression, set_header

UNIT_HEADER = "x-fairlead-unit"
"""The request header that carries the unit as it was assigned, from the route to the log."""

DEFAULT_UNIT = Unit(kind=UnitKind.HEADER, name="x-unit-id")

# Envoy's expressions see bytes. Only text can be hashed, logged and assigned alike.
TEXT = (
    r"(?:[\x01-\x7f]"
    r"|[\xc2-\xdf][\x80-\xbf]"
    r"|\xe0[\xa0-\xbf][\x80-\xbf]"
    r"|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    r"|\xed[\x80-\x9f][\x80-\xbf]"
    r"|\xf0[\x90-\xbf][\x80-\xbf]{2}"
    r"|[\xf1-\xf3][\x80-\xbf]{3}"
    r"|\xf4[\x80-\x8f][\x80-\xbf]{2})+"
)

_HEADERS = {UnitKind.REQUEST: "x-inference-id", UnitKind.JWT_CLAIM: CLAIM_HEADER}
"""The units that are in a header of one name for all models."""

COPIED = {UnitKind.HEADER: "REQ", UnitKind.QUERY: "QUERY_PARAM"}
"""The units the listener copies to a header of their own, and Envoy's operator that reads them."""


def units_of(plans: Iterable[TrafficPlan]) -> frozenset[Unit]:
    """Return the units the listener must find; the default one always, as plans come and go."""
    return frozenset(plan.unit for plan in plans if plan.unit.kind in COPIED) | {DEFAULT_UNIT}


def internal_header(unit: Unit) -> str:
    """Name the header that carries a unit from the listener to the route.

    A parameter's name is spelled in hexadecimal, as its case counts and a header's does not.
    """
    name = unit.name if unit.kind is UnitKind.HEADER else unit.name.encode().hex()
    return f"x-fairlead-from-{unit.kind}-{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a route finds its unit.

    Attributes:
        header: The request header that holds it.
        present: The regular expression that the whole header matches if there is a unit.
        rewrite: What is replaced to get from the header's value to what is hashed.
        unit: The format of the unit itself, for the log.
    """

    header: str
    present: str
    rewrite: JSON
    unit: str


def source_of(plan: TrafficPlan) -> Source:
    """Tell where the routes of a plan find its unit."""
    if plan.unit.kind is UnitKind.COOKIE:
        pattern = cookie_pattern(plan.unit.name)
        rewrite = {"pattern": expression(pattern), "substitution": f"{plan.salt}:\\1"}
        return Source(
            header="cookie",
            present=pattern,
            rewrite=rewrite,
            unit="%DYNAMIC_METADATA(fairlead:unit)%",
        )
    header = _HEADERS.get(plan.unit.kind) or internal_header(plan.unit)
    return Source(
        header=header,
        present=TEXT,
        rewrite={"pattern": expression("^"), "substitution": f"{plan.salt}:"},
        unit=f"%REQ({header})%",
    )


def cookie_pattern(name: str) -> str:
    """Return the expression that finds a cookie's value in the whole cookie header.

    The first cookie of that name with a value counts, without the quotes and the spaces around
    it. A value with a quote inside counts as absent.
    """
    return f'^(?:[^;]*;)*?\\s*{name}\\s*=\\s*"?([^";]*[^"; ])"?\\s*(?:;.*)?$'


def copy_units(units: Iterable[Unit]) -> list[JSON]:
    """Render the headers that carry the units, each with the value a client has sent."""
    return [set_header(internal_header(unit), _value(unit)) for unit in sorted(units)]


def _value(unit: Unit) -> str:
    return f"%{COPIED[unit.kind]}({unit.name})%"

"""Which units may meet a candidate: `spec.traffic.holdout` and `spec.traffic.layer`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairlead_rollout.domain.errors import InvalidSpecError
from fairlead_rollout.domain.shares import TOTAL_WEIGHT, parse_share


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A part of the units that several served models share out.

    Attributes:
        name: The layer's; the same units are at the same place for all models that name it.
        start: The first place of this model's part, of 10,000.
        end: The first place behind it.
    """

    name: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Eligibility:
    """Which units may meet a candidate.

    Attributes:
        holdout: The units that never do, of 10,000.
        layer: The part of the units that may; None is all.
    """

    holdout: int
    layer: Layer | None


def parse_eligibility(traffic: Mapping[str, Any]) -> Eligibility:
    """Read the parts of `spec.traffic` that keep units out of rollouts.

    Raises:
        InvalidSpecError: Something a schema cannot say is wrong; the message names the field.
    """
    eligibility = Eligibility(
        holdout=parse_share("spec.traffic.holdout:", traffic["holdout"]),
        layer=_parse_layer(traffic["layer"]) if "layer" in traffic else None,
    )
    if "cookie" in traffic["unit"] and render_eligible(eligibility, ""):
        field = "layer" if "layer" in traffic else "holdout"
        raise InvalidSpecError(
            f"spec.traffic.{field}: cannot be told from a cookie; "
            "take the unit from a header, a query parameter or a token's claim"
        )
    return eligibility


def render_eligible(eligibility: Eligibility, name: str) -> list[dict[str, Any]]:
    """Render the ranges of a TrafficPlan that keep units out; none if all are eligible.

    Args:
        eligibility: What the person asked for.
        name: The ServedModel's name: it is the holdout's salt, so that a unit that is held out
            stays so from rollout to rollout.
    """
    holdout, layer = eligibility.holdout, eligibility.layer
    ranges = []
    if holdout:
        ranges.append(_range("holdout", f"holdout:{name}", holdout, TOTAL_WEIGHT))
    if layer is not None and (layer.start, layer.end) != (0, TOTAL_WEIGHT):
        ranges.append(_range("layer", f"layer:{layer.name}", layer.start, layer.end))
    return ranges


def _range(reason: str, salt: str, start: int, end: int) -> dict[str, Any]:
    return {"reason": reason, "salt": salt, "from": start, "to": end}


def _parse_layer(layer: Mapping[str, Any]) -> Layer:
    start = parse_share("spec.traffic.layer.from:", layer["from"])
    end = parse_share("spec.traffic.layer.to:", layer["to"])
    if start >= end:
        raise InvalidSpecError("spec.traffic.layer.to: must be above spec.traffic.layer.from")
    return Layer(name=layer["name"], start=start, end=end)

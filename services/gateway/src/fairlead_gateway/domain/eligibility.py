"""Which units may be assigned to a candidate: what a traffic plan says of holdout and layer."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead_gateway.domain.documents import (
    PlanError,
    read_integer,
    read_items,
    read_object,
    read_text,
    require,
    require_match,
    require_within,
)

BUCKETS = 10_000
"""The places a unit can have in a range's scale."""

FIELD = "eligible"
"""The field of a traffic plan."""

_REASON = re.compile(r"[a-z]{1,32}")
SCALE_SALT = re.compile(r"[A-Za-z0-9:._-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The units that are eligible; every other goes to stable and is not counted.

    Attributes:
        reason: What is said of a unit outside, `holdout` or `layer`.
        salt: What sets this scale apart from every other.
        start: The first bucket inside, of `BUCKETS`.
        end: The first bucket behind it.
    """

    reason: str
    salt: str
    start: int
    end: int

    def __post_init__(self) -> None:
        """Check that some units are inside, and some may be outside."""
        require_match(_REASON, self.reason, f"{FIELD}.reason")
        require_match(SCALE_SALT, self.salt, f"{FIELD}.salt")
        require_within(self.start, 0, BUCKETS, f"{FIELD}.from")
        require_within(self.end, 0, BUCKETS, f"{FIELD}.to")
        require(self.start < self.end, f"{FIELD}.to", "must be above from")
        everything = (self.start, self.end) == (0, BUCKETS)
        require(not everything, FIELD, "must leave out a range that keeps nobody out")

    @property
    def seed(self) -> int:
        """The seed of the hash that places a unit: the first 8 bytes of the salt's SHA-256."""
        return int.from_bytes(hashlib.sha256(self.salt.encode()).digest()[:8], "big")


def parse_eligible(plan: Mapping[str, object]) -> tuple[Range, ...]:
    """Read a plan's ranges; none if the field is absent.

    Args:
        plan: The plan's document.

    Raises:
        PlanError: It breaks a rule; the error names the field.
    """
    if FIELD not in plan:
        return ()
    ranges = tuple(_parse_range(*item) for item in read_items(plan[FIELD], FIELD))
    require(bool(ranges), FIELD, "must not be empty")
    return ranges


def eligible_to_dict(ranges: tuple[Range, ...]) -> dict[str, object]:
    """Write the field of a plan, the inverse of `parse_eligible`."""
    if not ranges:
        return {}
    return {FIELD: [_range_to_dict(each) for each in ranges]}


def _parse_range(field: str, value: object) -> Range:
    fields = read_object(value, field, ["reason", "salt", "from", "to"])
    try:
        return Range(
            reason=read_text(fields["reason"], f"{FIELD}.reason"),
            salt=read_text(fields["salt"], f"{FIELD}.salt"),
            start=read_integer(fields["from"], f"{FIELD}.from"),
            end=read_integer(fields["to"], f"{FIELD}.to"),
        )
    except PlanError as error:
        raise PlanError(error.field.replace(FIELD, field), error.reason) from error


def _range_to_dict(each: Range) -> dict[str, object]:
    return {"reason": each.reason, "salt": each.salt, "from": each.start, "to": each.end}

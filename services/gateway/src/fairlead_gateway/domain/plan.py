"""The traffic plan: how the traffic of one served model is split right now."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from fairlead_gateway.domain.access import OPTIONAL, Access, By, access_to_dict, parse_access
from fairlead_gateway.domain.documents import (
    PlanError,
    read_boolean,
    read_integer,
    read_items,
    read_number,
    read_object,
    read_optional_text,
    read_text,
    require,
    require_match,
    require_within,
)
from fairlead_gateway.domain.eligibility import FIELD as ELIGIBLE
from fairlead_gateway.domain.eligibility import (
    SCALE_SALT,
    Range,
    eligible_to_dict,
    parse_eligible,
)

TOTAL_WEIGHT = 10_000
"""Weights are shares of this total; it never changes, or units would change sides."""

_LONGEST_TIMEOUT = 3600
_MODEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[0-9]+")
_SALT = re.compile(r"[A-Za-z0-9-]*")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class ArmName(StrEnum):
    """The two sides a unit can be assigned to."""

    CANDIDATE = "candidate"
    STABLE = "stable"


class UnitKind(StrEnum):
    """Where the unit of a request is found."""

    HEADER = "header"
    COOKIE = "cookie"
    QUERY = "query"
    JWT_CLAIM = "jwtClaim"
    REQUEST = "request"


_KINDS = ", ".join(UnitKind)

_UNIT_NAMES = {
    UnitKind.HEADER: re.compile(r"[a-z0-9]([-a-z0-9_]{0,62}[a-z0-9])?"),
    UnitKind.COOKIE: re.compile(r"[A-Za-z0-9_-]{1,64}"),
    UnitKind.QUERY: re.compile(r"[A-Za-z0-9_.-]{1,64}"),
    UnitKind.JWT_CLAIM: re.compile(r"[A-Za-z0-9_.-]{1,64}"),
}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Unit:
    """What is assigned: the value a header, cookie, query parameter or claim has, or each request.

    Attributes:
        kind: Where the unit is found.
        name: The header's, cookie's, parameter's or claim's name, whose dots lead into objects;
            empty where each request is a unit.
    """

    kind: UnitKind
    name: str = ""

    def __post_init__(self) -> None:
        """Check the name against the kind."""
        pattern = _UNIT_NAMES.get(self.kind)
        if pattern is None:
            require(not self.name, "unit.request", "must be an empty object")
        else:
            require_match(pattern, self.name, f"unit.{self.kind}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of the split.

    Attributes:
        arm: The side.
        version: The model version that serves it.
        weight: Its share of `TOTAL_WEIGHT`.
    """

    arm: ArmName
    version: str
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """The units of one candidate, where several candidates are on trial beside each other.

    Attributes:
        salt: What sets the scale that all lanes of a plan lie on apart from every other.
        start: The first bucket inside, of `BUCKETS`.
        end: The first bucket behind it.
        rollout: The rollout's UUID.
        step: The rollout's step.
        arms: The sides of the lane's own split, the candidate first; their weights sum to 10,000.
    """

    salt: str
    start: int
    end: int
    rollout: str
    step: int
    arms: tuple[Arm, ...]

    @property
    def range(self) -> Range:
        """The lane as a range of units."""
        return Range(reason=LANES, salt=self.salt, start=self.start, end=self.end)


LANES = "lane"
"""What is said of a unit that is in no lane with a trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """A version that gets copies of requests and never answers.

    Attributes:
        version: The model version.
        share: Copied requests, of 10,000.
    """

    version: str
    share: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often a request is sent again.

    Attributes:
        attempts: Sendings after the first one.
        on_reset: Whether a request whose connection broke may be sent again, and one without an
            answer after half the timeout to another endpoint, too.
    """

    attempts: int
    on_reset: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPlan:
    """How the traffic of one served model is split.

    Attributes:
        model: The name in the path, a DNS label.
        rollout: The rollout's UUID, or None while none is running.
        step: The rollout's step, or None while none is running.
        salt: What sets this split apart from every other.
        unit: What is assigned.
        arms: The sides, the candidate first; their weights sum to 10,000.
        shadow: Versions that get copies.
        fallback: The version that answers when the assigned arm cannot.
        timeout: Seconds until a request is given up.
        retries: How often a request is sent again.
        max_body_bytes: The largest request body.
        access: Who may ask.
        eligible: The ranges a unit must be in to be assigned to the candidate, and counted.
        lanes: One for each of several rollouts beside each other, each of other units; then
            `rollout` is None and `arms` hold stable alone.
    """

    model: str
    rollout: str | None
    step: int | None
    salt: str
    unit: Unit
    arms: tuple[Arm, ...]
    shadow: tuple[Shadow, ...]
    fallback: str | None
    timeout: float
    retries: Retries
    max_body_bytes: int
    access: Access = field(default_factory=Access)
    eligible: tuple[Range, ...] = ()
    lanes: tuple[Lane, ...] = ()

    def __post_init__(self) -> None:
        """Check every rule a single field or several together must keep."""
        require_match(_MODEL, self.model, "model")
        require_match(_SALT, self.salt, "salt")
        _check_rollout(self)
        _check_arms(self)
        _check_shadow(self.shadow)
        _check_lanes(self)
        needs_jwt = self.unit.kind is UnitKind.JWT_CLAIM and self.access.jwt is None
        require(not needs_jwt, "jwt", "is required where the unit is a claim of it")
        limit = self.access.rate_limit
        per_request = self.unit.kind is UnitKind.REQUEST and limit and limit.by is By.UNIT
        require(not per_request, "rateLimit.by", "must be client where each request is a unit")
        is_cookie = self.unit.kind is UnitKind.COOKIE
        require(not (is_cookie and self.eligible), "eligible", "must be absent for a cookie's unit")
        in_range = 0 < self.timeout <= _LONGEST_TIMEOUT
        require(in_range, "timeout", f"must be above 0 and at most {_LONGEST_TIMEOUT} seconds")
        require_within(self.retries.attempts, 0, 10, "retries.attempts")
        require(self.max_body_bytes >= 1024, "limits.maxBodyBytes", "must be at least 1024")  # noqa: PLR2004

    @property
    def stable(self) -> Arm:
        """The side that gets what has no unit, and everything on abort."""
        return self.arms[-1]

    @property
    def is_on_trial(self) -> bool:
        """Whether a rollout is running, or several."""
        return self.rollout is not None or bool(self.lanes)

    @property
    def trials(self) -> "tuple[TrafficPlan, ...]":
        """What each rollout's units are routed by: the plan itself, or one plan for each lane."""
        return tuple(self.in_lane(lane) for lane in self.lanes) or (self,)

    def in_lane(self, lane: Lane) -> "TrafficPlan":
        """Return the plan that the units of a lane are routed by: one rollout, as if alone."""
        return replace(
            self,
            rollout=lane.rollout,
            step=lane.step,
            salt=lane.rollout,
            arms=lane.arms,
            fallback=self.stable.version,
            lanes=(),
        )

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version the plan names, each once, the arms' first."""
        arms = [*self.arms, *(arm for lane in self.lanes for arm in lane.arms)]
        named = [arm.version for arm in arms] + [copy.version for copy in self.shadow]
        return tuple(dict.fromkeys([*named, *filter(None, [self.fallback])]))


def parse_plan(document: object) -> TrafficPlan:
    """Read a traffic plan from its JSON document.

    Args:
        document: The decoded JSON.

    Returns:
        The plan.

    Raises:
        PlanError: The document breaks a rule; the error names the field.
    """
    known = (
        "model rollout step salt unit arms shadow fallback timeout retries limits".split()  # noqa: SIM905
    )
    fields = read_object(document, "plan", known, optional=[*OPTIONAL, ELIGIBLE, "lanes"])
    retries = read_object(fields["retries"], "retries", ["attempts", "onReset"])
    limits = read_object(fields["limits"], "limits", ["maxBodyBytes"])
    return TrafficPlan(
        model=read_text(fields["model"], "model"),
        rollout=read_optional_text(fields["rollout"], "rollout"),
        step=None if fields["step"] is None else read_integer(fields["step"], "step"),
        salt=read_text(fields["salt"], "salt"),
        unit=_parse_unit(fields["unit"]),
        arms=tuple(_parse_arm(*item) for item in read_items(fields["arms"], "arms")),
        shadow=tuple(_parse_shadow(*item) for item in read_items(fields["shadow"], "shadow")),
        fallback=read_optional_text(fields["fallback"], "fallback"),
        timeout=read_number(fields["timeout"], "timeout"),
        retries=Retries(
            attempts=read_integer(retries["attempts"], "retries.attempts"),
            on_reset=read_boolean(retries["onReset"], "retries.onReset"),
        ),
        max_body_bytes=read_integer(limits["maxBodyBytes"], "limits.maxBodyBytes"),
        access=parse_access(fields),
        eligible=parse_eligible(fields),
        lanes=_parse_lanes(fields),
    )


def to_dict(plan: TrafficPlan) -> dict[str, object]:
    """Write a plan as its JSON document, the inverse of `parse_plan`."""
    request = plan.unit.kind is UnitKind.REQUEST
    return {
        "model": plan.model,
        "rollout": plan.rollout,
        "step": plan.step,
        "salt": plan.salt,
        "unit": {str(plan.unit.kind): {} if request else plan.unit.name},
        "arms": _arms_to_list(plan.arms),
        "shadow": [{"version": copy.version, "share": copy.share} for copy in plan.shadow],
        "fallback": plan.fallback,
        "timeout": plan.timeout,
        "retries": {"attempts": plan.retries.attempts, "onReset": plan.retries.on_reset},
        "limits": {"maxBodyBytes": plan.max_body_bytes},
        **access_to_dict(plan.access),
        **eligible_to_dict(plan.eligible),
        **_lanes_to_dict(plan.lanes),
    }


def _arms_to_list(arms: tuple[Arm, ...]) -> list[dict[str, object]]:
    return [{"arm": str(arm.arm), "version": arm.version, "weight": arm.weight} for arm in arms]


def _lanes_to_dict(lanes: tuple[Lane, ...]) -> dict[str, object]:
    if not lanes:
        return {}
    trials = [
        {
            "from": lane.start,
            "to": lane.end,
            "rollout": lane.rollout,
            "step": lane.step,
            "arms": _arms_to_list(lane.arms),
        }
        for lane in lanes
    ]
    return {"lanes": {"salt": lanes[0].salt, "trials": trials}}


def plan_digest(plan: TrafficPlan) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the plan's canonical JSON."""
    # The timeout keeps the type it came with, so 5 and 5.0 digest as their writer wrote them.
    canonical = json.dumps(to_dict(plan), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


def check_model(name: str, field: str) -> None:
    """Check a served model's name.

    Raises:
        PlanError: It cannot stand in a path.
    """
    require_match(_MODEL, name, field)


def check_version(version: str, field: str) -> None:
    """Check a model version.

    Raises:
        PlanError: It is no number.
    """
    require_match(_VERSION, version, field)


def _check_rollout(plan: TrafficPlan) -> None:
    if plan.rollout is None:
        require(plan.step is None, "step", "must be null while no rollout is running")
        require(plan.fallback is None, "fallback", "must be null while no rollout is running")
        return
    require_match(_UUID, plan.rollout, "rollout")
    require(plan.step is not None, "step", "must be a number while a rollout is running")
    require((plan.step or 0) >= 0, "step", "must be at least 0")
    if plan.fallback is not None:
        require_match(_VERSION, plan.fallback, "fallback")


def _check_arms(plan: TrafficPlan) -> None:
    for index, arm in enumerate(plan.arms):
        require_match(_VERSION, arm.version, f"arms[{index}].version")
        require_within(arm.weight, 0, TOTAL_WEIGHT, f"arms[{index}].weight")
    names = [arm.arm for arm in plan.arms]
    require(names.count(ArmName.STABLE) == 1, "arms", "must hold exactly one stable arm")
    require(names.count(ArmName.CANDIDATE) <= 1, "arms", "must hold at most one candidate arm")
    require(names[-1] is ArmName.STABLE, "arms", "must list the candidate first")
    if plan.rollout is None:
        require(len(names) == 1, "arms", "must hold stable alone while no rollout is running")
    total = sum(arm.weight for arm in plan.arms)
    require(total == TOTAL_WEIGHT, "arms", f"weights must sum to {TOTAL_WEIGHT}, not {total}")
    versions = {arm.version for arm in plan.arms}
    require(len(versions) == len(names), "arms", "must not name one version twice")


def _check_shadow(shadow: tuple[Shadow, ...]) -> None:
    for index, copy in enumerate(shadow):
        require_match(_VERSION, copy.version, f"shadow[{index}].version")
        require_within(copy.share, 1, TOTAL_WEIGHT, f"shadow[{index}].share")
    versions = {copy.version for copy in shadow}
    require(len(versions) == len(shadow), "shadow", "must not name one version twice")


def _check_lanes(plan: TrafficPlan) -> None:
    """Check that lanes do not touch each other, and that each is a plan that could stand alone."""
    if not plan.lanes:
        return
    require(plan.rollout is None, "lanes", "must be absent while one rollout is running alone")
    require(plan.unit.kind is not UnitKind.COOKIE, "lanes", "must be absent for a cookie's unit")
    reached = 0
    for index, lane in enumerate(plan.lanes):
        field = f"lanes.trials[{index}]"
        require_within(lane.start, 0, TOTAL_WEIGHT, f"{field}.from")
        require_within(lane.end, 0, TOTAL_WEIGHT, f"{field}.to")
        require(lane.start >= reached, f"{field}.from", "must not be within the lane before")
        require(lane.start < lane.end, f"{field}.to", "must be above from")
        reached = lane.end
        _check_trial(plan, lane, field)
    candidates = [lane.arms[0].version for lane in plan.lanes]
    require(len(set(candidates)) == len(candidates), "lanes", "must not try one version twice")


def _check_trial(plan: TrafficPlan, lane: Lane, field: str) -> None:
    try:
        trial = plan.in_lane(lane)
    except PlanError as error:
        raise PlanError(f"{field}.{error.field}", error.reason) from error
    same = trial.stable.version == plan.stable.version
    require(same, f"{field}.arms", "must name the plan's stable version")
    require(len(trial.arms) > 1, f"{field}.arms", "must hold a candidate")


def _parse_lanes(plan: Mapping[str, object]) -> tuple[Lane, ...]:
    if "lanes" not in plan:
        return ()
    fields = read_object(plan["lanes"], "lanes", ["salt", "trials"])
    salt = read_text(fields["salt"], "lanes.salt")
    require_match(SCALE_SALT, salt, "lanes.salt")
    items = read_items(fields["trials"], "lanes.trials")
    require(bool(items), "lanes.trials", "must not be empty")
    return tuple(_parse_lane(salt, *item) for item in items)


def _parse_lane(salt: str, field: str, value: object) -> Lane:
    fields = read_object(value, field, ["from", "to", "rollout", "step", "arms"])
    return Lane(
        salt=salt,
        start=read_integer(fields["from"], f"{field}.from"),
        end=read_integer(fields["to"], f"{field}.to"),
        rollout=read_text(fields["rollout"], f"{field}.rollout"),
        step=read_integer(fields["step"], f"{field}.step"),
        arms=tuple(_parse_arm(*item) for item in read_items(fields["arms"], f"{field}.arms")),
    )


def _parse_unit(value: object) -> Unit:
    fields = read_object(value, "unit", [])
    require(len(fields) == 1, "unit", f"must be exactly one of {_KINDS}")
    (key, inner) = next(iter(fields.items()))
    require(key in set(UnitKind), "unit", f"must be exactly one of {_KINDS}")
    kind = UnitKind(key)
    if kind is UnitKind.REQUEST:
        require(inner == {} and isinstance(inner, dict), "unit.request", "must be an empty object")
        return Unit(kind=kind)
    return Unit(kind=kind, name=read_text(inner, f"unit.{kind}"))


def _parse_arm(field: str, value: object) -> Arm:
    fields = read_object(value, field, ["arm", "version", "weight"])
    name = read_text(fields["arm"], f"{field}.arm")
    require(name in set(ArmName), f"{field}.arm", "must be candidate or stable")
    return Arm(
        arm=ArmName(name),
        version=read_text(fields["version"], f"{field}.version"),
        weight=read_integer(fields["weight"], f"{field}.weight"),
    )


def _parse_shadow(field: str, value: object) -> Shadow:
    fields = read_object(value, field, ["version", "share"])
    return Shadow(
        version=read_text(fields["version"], f"{field}.version"),
        share=read_integer(fields["share"], f"{field}.share"),
    )

"""The traffic plan: how the traffic of one served model is split right now."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

TOTAL_WEIGHT = 10_000
"""Weights are shares of this total; it never changes, or units would change sides."""

_LONGEST_TIMEOUT = 3600
_LARGEST_INTEGER = 2**53
"""What every reader of JSON can tell from its neighbours."""

_MODEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[0-9]+")
_SALT = re.compile(r"[A-Za-z0-9-]*")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class PlanError(ValueError):
    """A traffic plan breaks a rule.

    Args:
        field: The path of the field at fault, as in ``arms[0].weight``.
        reason: What the field must be.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class ArmName(StrEnum):
    """The two sides a unit can be assigned to."""

    CANDIDATE = "candidate"
    STABLE = "stable"


class UnitKind(StrEnum):
    """Where the unit of a request is found."""

    HEADER = "header"
    COOKIE = "cookie"
    QUERY = "query"
    REQUEST = "request"


_UNIT_NAMES = {
    UnitKind.HEADER: re.compile(r"[a-z0-9]([-a-z0-9_]{0,62}[a-z0-9])?"),
    UnitKind.COOKIE: re.compile(r"[A-Za-z0-9_-]{1,64}"),
    UnitKind.QUERY: re.compile(r"[A-Za-z0-9_.-]{1,64}"),
}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Unit:
    """What is assigned: the value of a header, a cookie or a query parameter, or each request.

    Attributes:
        kind: Where the unit is found.
        name: The header's, cookie's or parameter's name; empty where each request is a unit.
    """

    kind: UnitKind
    name: str = ""

    def __post_init__(self) -> None:
        """Check the name against the kind."""
        pattern = _UNIT_NAMES.get(self.kind)
        if pattern is None:
            _require(not self.name, "unit.request", "must be an empty object")
        else:
            _match(pattern, self.name, f"unit.{self.kind}")


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
        on_reset: Whether a request whose connection broke may be sent again.
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

    def __post_init__(self) -> None:
        """Check every rule a single field or several together must keep."""
        _match(_MODEL, self.model, "model")
        _match(_SALT, self.salt, "salt")
        _check_rollout(self)
        _check_arms(self)
        _check_shadow(self.shadow)
        in_range = 0 < self.timeout <= _LONGEST_TIMEOUT
        _require(in_range, "timeout", f"must be above 0 and at most {_LONGEST_TIMEOUT} seconds")
        _within(self.retries.attempts, 0, 10, "retries.attempts")
        _require(self.max_body_bytes >= 1024, "limits.maxBodyBytes", "must be at least 1024")  # noqa: PLR2004

    @property
    def stable(self) -> Arm:
        """The side that gets what has no unit, and everything on abort."""
        return self.arms[-1]

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version the plan names, each once, the arms' first."""
        named = [arm.version for arm in self.arms] + [copy.version for copy in self.shadow]
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
    fields = _object(document, "plan", known)
    retries = _object(fields["retries"], "retries", ["attempts", "onReset"])
    limits = _object(fields["limits"], "limits", ["maxBodyBytes"])
    return TrafficPlan(
        model=_text(fields["model"], "model"),
        rollout=_optional_text(fields["rollout"], "rollout"),
        step=None if fields["step"] is None else _integer(fields["step"], "step"),
        salt=_text(fields["salt"], "salt"),
        unit=_parse_unit(fields["unit"]),
        arms=tuple(_parse_arm(*item) for item in _items(fields["arms"], "arms")),
        shadow=tuple(_parse_shadow(*item) for item in _items(fields["shadow"], "shadow")),
        fallback=_optional_text(fields["fallback"], "fallback"),
        timeout=_number(fields["timeout"], "timeout"),
        retries=Retries(
            attempts=_integer(retries["attempts"], "retries.attempts"),
            on_reset=_boolean(retries["onReset"], "retries.onReset"),
        ),
        max_body_bytes=_integer(limits["maxBodyBytes"], "limits.maxBodyBytes"),
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
        "arms": [
            {"arm": str(arm.arm), "version": arm.version, "weight": arm.weight} for arm in plan.arms
        ],
        "shadow": [{"version": copy.version, "share": copy.share} for copy in plan.shadow],
        "fallback": plan.fallback,
        "timeout": plan.timeout,
        "retries": {"attempts": plan.retries.attempts, "onReset": plan.retries.on_reset},
        "limits": {"maxBodyBytes": plan.max_body_bytes},
    }


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
    _match(_MODEL, name, field)


def check_version(version: str, field: str) -> None:
    """Check a model version.

    Raises:
        PlanError: It is no number.
    """
    _match(_VERSION, version, field)


def _check_rollout(plan: TrafficPlan) -> None:
    if plan.rollout is None:
        _require(plan.step is None, "step", "must be null while no rollout is running")
        _require(plan.fallback is None, "fallback", "must be null while no rollout is running")
        return
    _match(_UUID, plan.rollout, "rollout")
    _require(plan.step is not None, "step", "must be a number while a rollout is running")
    _require((plan.step or 0) >= 0, "step", "must be at least 0")
    if plan.fallback is not None:
        _match(_VERSION, plan.fallback, "fallback")


def _check_arms(plan: TrafficPlan) -> None:
    for index, arm in enumerate(plan.arms):
        _match(_VERSION, arm.version, f"arms[{index}].version")
        _within(arm.weight, 0, TOTAL_WEIGHT, f"arms[{index}].weight")
    names = [arm.arm for arm in plan.arms]
    _require(names.count(ArmName.STABLE) == 1, "arms", "must hold exactly one stable arm")
    _require(names.count(ArmName.CANDIDATE) <= 1, "arms", "must hold at most one candidate arm")
    _require(names[-1] is ArmName.STABLE, "arms", "must list the candidate first")
    if plan.rollout is None:
        _require(len(names) == 1, "arms", "must hold stable alone while no rollout is running")
    total = sum(arm.weight for arm in plan.arms)
    _require(total == TOTAL_WEIGHT, "arms", f"weights must sum to {TOTAL_WEIGHT}, not {total}")
    versions = {arm.version for arm in plan.arms}
    _require(len(versions) == len(names), "arms", "must not name one version twice")


def _check_shadow(shadow: tuple[Shadow, ...]) -> None:
    for index, copy in enumerate(shadow):
        _match(_VERSION, copy.version, f"shadow[{index}].version")
        _within(copy.share, 1, TOTAL_WEIGHT, f"shadow[{index}].share")
    versions = {copy.version for copy in shadow}
    _require(len(versions) == len(shadow), "shadow", "must not name one version twice")


def _parse_unit(value: object) -> Unit:
    fields = _object(value, "unit", [])
    _require(len(fields) == 1, "unit", "must be exactly one of header, cookie, query, request")
    (key, inner) = next(iter(fields.items()))
    _require(key in set(UnitKind), "unit", "must be exactly one of header, cookie, query, request")
    kind = UnitKind(key)
    if kind is UnitKind.REQUEST:
        _require(inner == {} and isinstance(inner, dict), "unit.request", "must be an empty object")
        return Unit(kind=kind)
    return Unit(kind=kind, name=_text(inner, f"unit.{kind}"))


def _parse_arm(field: str, value: object) -> Arm:
    fields = _object(value, field, ["arm", "version", "weight"])
    name = _text(fields["arm"], f"{field}.arm")
    _require(name in set(ArmName), f"{field}.arm", "must be candidate or stable")
    return Arm(
        arm=ArmName(name),
        version=_text(fields["version"], f"{field}.version"),
        weight=_integer(fields["weight"], f"{field}.weight"),
    )


def _parse_shadow(field: str, value: object) -> Shadow:
    fields = _object(value, field, ["version", "share"])
    return Shadow(
        version=_text(fields["version"], f"{field}.version"),
        share=_integer(fields["share"], f"{field}.share"),
    )


def _object(value: object, field: str, keys: Sequence[str]) -> Mapping[str, object]:
    """Return an object that holds exactly these keys, or any keys if none are given."""
    if not isinstance(value, dict):
        raise PlanError(field, "must be an object")
    prefix = "" if field == "plan" else f"{field}."
    for key in keys:
        _require(key in value, f"{prefix}{key}", "is required")
    for key in value:
        _require(not keys or key in keys, f"{prefix}{key}", "is not a field of a traffic plan")
    return value


def _items(value: object, field: str) -> list[tuple[str, object]]:
    if not isinstance(value, list):
        raise PlanError(field, "must be a list")
    return [(f"{field}[{index}]", item) for index, item in enumerate(value)]


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise PlanError(field, "must be a string")
    return value


def _optional_text(value: object, field: str) -> str | None:
    return None if value is None else _text(value, field)


def _integer(value: object, field: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has one kind of number; the schema takes 1.0 for an integer, too.
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanError(field, "must be an integer")
    # Beyond, it could not be written down again, and would hold up every other model's plan.
    _require(abs(value) <= _LARGEST_INTEGER, field, f"must be at most {_LARGEST_INTEGER}")
    return value


def _number(value: object, field: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise PlanError(field, "must be a number")
    return value


def _boolean(value: object, field: str) -> bool:
    if not isinstance(value, bool):
        raise PlanError(field, "must be true or false")
    return value


def _match(pattern: re.Pattern[str], value: str, field: str) -> None:
    _require(pattern.fullmatch(value) is not None, field, f"must match {pattern.pattern}")


def _within(value: int, low: int, high: int, field: str) -> None:
    _require(low <= value <= high, field, f"must be from {low} to {high}")


def _require(condition: bool, field: str, reason: str) -> None:  # noqa: FBT001 - reads as a sentence.
    if not condition:
        raise PlanError(field, reason)

"""The `spec` of a ServedModel as frozen values.

The schema (`served-model.schema.json`) has checked types and filled in defaults before; what a
schema cannot say is checked here.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from fairlead_rollout.domain.access import Access, parse_access
from fairlead_rollout.domain.durations import parse_duration
from fairlead_rollout.domain.eligibility import Eligibility, parse_eligibility
from fairlead_rollout.domain.errors import InvalidSpecError
from fairlead_rollout.domain.shares import parse_share

SMALLEST_ALPHA = 1e-6  # the experiments service takes no smaller one
LONGEST_TIMEOUT = timedelta(hours=1)  # the gateway takes no longer one


class OnAbort(StrEnum):
    """What happens to the registry's pointer when a rollout is aborted."""

    KEEP = "keep"
    REVERT = "revert"


class OnInconclusive(StrEnum):
    """What happens when `maxDuration` has passed without a decision."""

    KEEP = "keep"
    PROMOTE = "promote"


class Until(StrEnum):
    """What ends a step that no time ends."""

    DECIDED = "decided"
    STOPPED = "stopped"
    APPROVED = "approved"


class OnNewVersion(StrEnum):
    """What becomes of a version that arrives while another is on trial."""

    RESTART = "restart"
    QUEUE = "queue"
    REFUSE = "refuse"


class Rollback(StrEnum):
    """How production goes back to a version that was stable before."""

    ROLLOUT = "rollout"
    IMMEDIATE = "immediate"


class Promotion(StrEnum):
    """Whether a candidate that has passed is promoted at once, or when a person has approved."""

    AUTOMATIC = "automatic"
    APPROVED = "approved"


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """Where the registry points to a version: a stage or an alias, exactly one of both."""

    stage: str | None = None
    alias: str | None = None

    def __str__(self) -> str:
        return f"stage {self.stage}" if self.stage else f"alias {self.alias}"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One entry of `rollout.steps`.

    Attributes:
        weight: The candidate's share, of 10,000.
        shadow: Requests of which the candidate gets copies, of 10,000; then its weight is 0.
        duration: How long the weight is held; None where something else ends the step.
        until: What ends it; None where time does.
    """

    weight: int = 0
    shadow: int = 0
    duration: timedelta | None = None
    until: Until | None = None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The outcome that decides.

    Attributes:
        outcome: Name of the outcome; of a ratio, the numerator.
        kind: `mean`, `binary` or `ratio`.
        denominator: What a ratio divides by; None for the other kinds.
        minimum_effect: The smallest difference of means worth finding, in the outcome's unit.
        alpha: The probability of promoting or aborting an equal version, however often one looks.
        cap: A unit's value beyond this counts as this; None caps nothing.
        window: How long after a unit's first request in a step its outcome is due, or None.
        missing: What a unit without an outcome counts as then: `ignore` or `zero`.
        covariate: The outcome of the time before the rollout that explains part of it, or None.
    """

    outcome: str
    better: str
    minimum_effect: float
    alpha: float
    kind: str
    denominator: str | None
    cap: float | None
    window: timedelta | None
    missing: str
    covariate: str | None


@dataclass(frozen=True, kw_only=True)
class ShadowGuardrail:
    """What a candidate must keep as a shadow before it answers.

    Attributes:
        max_disagreement: The largest share of requests on which it may disagree with stable.
        tolerance: How far numbers may differ and agree, in the prediction's unit.
        minimum_pairs: Requests that are compared at least.
        share: Requests it gets copies of meanwhile, of 10,000.
    """

    max_disagreement: float
    tolerance: float
    minimum_pairs: int
    share: int


@dataclass(frozen=True, kw_only=True)
class Guardrails:
    """What must not get worse; margins are relative (0.25 = a quarter more), None is off."""

    errors_margin: float | None
    latency_margin: float | None
    slower_than: timedelta | None
    shadow: ShadowGuardrail | None = None


@dataclass(frozen=True, kw_only=True)
class RolloutSpec:
    """How a candidate is put on trial."""

    steps: tuple[Step, ...]
    max_duration: timedelta
    progress_deadline: timedelta
    minimum_requests: int
    on_inconclusive: OnInconclusive
    guardrails: Guardrails
    objective: Objective | None
    promotion: Promotion = Promotion.AUTOMATIC
    on_new_version: OnNewVersion = OnNewVersion.RESTART
    rollback: Rollback = Rollback.ROLLOUT

    @property
    def fingerprint(self) -> str:
        """Return what changes with any rule; a trial is judged by the rules it began with."""
        judged_by = {k: v for k, v in _rules(self).items() if k not in _JUDGE_NOTHING}
        return hashlib.sha256(repr(judged_by).encode()).hexdigest()[:12]

    @property
    def is_split(self) -> bool:
        """Say whether only a person ends it: the objective is reported and decides nothing."""
        return self.steps[-1].until is Until.STOPPED

    @property
    def asks_a_person(self) -> bool:
        """Say whether anything waits for an approval."""
        return any(self.is_approved_after(index) for index in range(len(self.steps)))

    def is_approved_after(self, index: int) -> bool:
        """Say whether a person has to approve what comes after a step."""
        is_last = index == len(self.steps) - 1
        return self.steps[index].until is Until.APPROVED or (
            is_last and self.promotion is Promotion.APPROVED and not self.is_split
        )


# Who has the last word, and what other versions do: nothing is counted otherwise.
_JUDGE_NOTHING = frozenset({"promotion", "on_new_version", "rollback"})


def _rules(value: Any) -> Any:
    """Return what a rule says beyond its defaults: a field that is new ends no running trial."""
    if is_dataclass(value):
        given = {f.name: getattr(value, f.name) for f in fields(value)}
        defaults = {f.name: f.default for f in fields(value)}
        return {k: _rules(v) for k, v in given.items() if v != defaults[k]}
    return [_rules(item) for item in value] if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, kw_only=True)
class Keep:
    """How many versions that were stable are kept running, and how long each."""

    versions: int
    duration: timedelta


@dataclass(frozen=True, kw_only=True)
class Autoscaling:
    """More processes under load.

    Attributes:
        max_replicas: Processes of one version at most.
        cpu_percent: Processor use that is aimed at, in percent of what is requested.
    """

    max_replicas: int
    cpu_percent: int


@dataclass(frozen=True, kw_only=True)
class ServedModelSpec:
    """What a person wants served, and how.

    Attributes:
        shadow_share: Requests that the shadow gets copies of, of 10,000.
        candidates: Aliases whose versions are put on trial beside each other.
        replicas: Processes of the stable version, at least.
        image: The serving image; None is the installation's own. On one machine it means nothing,
            as `resources`, `autoscaling` and `template` do.
        resources: Requests and limits of a container; None are the installation's own.
        template: What is merged into a version's pod template.
    """

    model: str
    production: Pointer
    shadow: Pointer | None
    shadow_share: int
    candidates: tuple[str, ...]
    on_abort: OnAbort
    unit: Mapping[str, Any]
    timeout: timedelta
    max_body_bytes: int
    retry_on_reset: bool
    access: Access
    eligibility: Eligibility
    rollout: RolloutSpec
    replicas: int
    environment: str
    keep: Keep
    image: str | None
    resources: Mapping[str, Any] | None
    autoscaling: Autoscaling | None
    template: Mapping[str, Any]


def parse_weight(percent: float) -> int:
    """Turn a weight in percent (steps of 0.01) into one of 10,000.

    Raises:
        InvalidSpecError: The weight is finer than 0.01 or outside 0 to 100.
    """
    return parse_share("spec.rollout.steps:", percent)


def parse_spec(spec: Mapping[str, Any]) -> ServedModelSpec:
    """Build the spec from a document that the schema has already accepted and completed.

    Raises:
        InvalidSpecError: Something a schema cannot say is wrong; the message names the field.
    """
    registry, traffic, server = spec["registry"], spec["traffic"], spec["server"]
    candidates = _parse_candidates(spec)
    return ServedModelSpec(
        model=spec["model"],
        production=Pointer(**registry["production"]),
        shadow=_parse_shadow(registry),
        shadow_share=_parse_share("spec.registry.shadow", registry.get("shadow", {})),
        candidates=candidates,
        on_abort=OnAbort(registry["onAbort"]),
        unit=traffic["unit"],
        timeout=_parse_timeout(traffic["timeout"]),
        max_body_bytes=traffic["maxBodyBytes"],
        retry_on_reset=traffic["retryOnReset"],
        access=parse_access(traffic),
        eligibility=parse_eligibility(traffic),
        rollout=_parse_rollout(spec["rollout"]),
        replicas=server["replicas"],
        environment=server["environment"],
        keep=_parse_keep(server["keep"]),
        image=server.get("image"),
        resources=server.get("resources"),
        autoscaling=_parse_autoscaling(server),
        template=_parse_template(server.get("template", {})),
    )


def _parse_candidates(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the aliases of several candidates, and check what they need beside them."""
    registry, field = spec["registry"], "spec.registry.candidates"
    aliases = tuple(entry["alias"] for entry in registry.get("candidates", ()))
    if not aliases:
        return ()
    if len(set(aliases)) < len(aliases):
        raise InvalidSpecError(f"{field}: must not name one alias twice")
    for other in ("production", "shadow"):
        if registry.get(other, {}).get("alias") in aliases:
            raise InvalidSpecError(f"{field}: must not name the alias of spec.registry.{other}")
    if "objective" not in spec["rollout"]:
        raise InvalidSpecError(
            f"{field}: needs spec.rollout.objective, which tells the best of them from the others"
        )
    alpha = spec["rollout"]["objective"]["alpha"]
    if alpha / len(aliases) < SMALLEST_ALPHA:
        raise InvalidSpecError(
            f"spec.rollout.objective.alpha: {alpha:g} is too small for {len(aliases)} candidates, "
            f"who share it; take at least {len(aliases) * SMALLEST_ALPHA:g}"
        )
    if "cookie" in spec["traffic"]["unit"]:
        raise InvalidSpecError(
            f"{field}: their units cannot be told apart by a cookie; "
            "take the unit from a header, a query parameter or a token's claim"
        )
    return aliases


def _parse_shadow(registry: Mapping[str, Any]) -> Pointer | None:
    shadow = registry.get("shadow")
    return Pointer(stage=shadow.get("stage"), alias=shadow.get("alias")) if shadow else None


def _parse_share(field: str, part: Mapping[str, Any]) -> int:
    """Turn a share in percent into one of 10,000; without one it is all.

    Raises:
        InvalidSpecError: The share is finer than 0.01, or none.
    """
    share = part.get("share", 100)
    try:
        parsed = parse_weight(share)
    except InvalidSpecError:
        parsed = 0
    if parsed == 0:
        raise InvalidSpecError(
            f"{field}.share: {share} is not a percentage above 0 and up to 100 in steps of 0.01"
        )
    return parsed


def _parse_template(template: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check the parts of a pod template that are built upon; Kubernetes checks all others."""
    field = "spec.server.template"
    parts = _with_objects(field, template, ("metadata", "spec"))
    if "metadata" in parts:
        names = ("labels", "annotations")
        parts["metadata"] = _with_objects(f"{field}.metadata", parts["metadata"], names)
    return parts


def _with_objects(field: str, document: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a document in which these parts are objects; one that is null says nothing."""
    kept = {k: v for k, v in document.items() if v is not None or k not in names}
    for name in names:
        if not isinstance(kept.get(name, {}), Mapping):
            found = type(kept[name]).__name__
            raise InvalidSpecError(f"{field}.{name}: must be of type object, is {found}")
    return kept


def _parse_keep(keep: Mapping[str, Any]) -> Keep:
    return Keep(
        versions=keep["versions"], duration=parse_duration("spec.server.keep.for", keep["for"])
    )


def _parse_autoscaling(server: Mapping[str, Any]) -> Autoscaling | None:
    autoscaling = server.get("autoscaling")
    if autoscaling is None:
        return None
    if autoscaling["maxReplicas"] < server["replicas"]:
        raise InvalidSpecError(
            "spec.server.autoscaling.maxReplicas: must not be below spec.server.replicas"
        )
    return Autoscaling(
        max_replicas=autoscaling["maxReplicas"], cpu_percent=autoscaling["cpuPercent"]
    )


def _parse_timeout(text: str) -> timedelta:
    timeout = parse_duration("spec.traffic.timeout", text)
    if not timedelta(0) < timeout <= LONGEST_TIMEOUT:
        raise InvalidSpecError("spec.traffic.timeout: must be above 0 and at most 1h")
    return timeout


def _parse_rollout(rollout: Mapping[str, Any]) -> RolloutSpec:
    steps = tuple(_parse_step(step) for step in rollout["steps"])
    objective = _parse_objective(rollout.get("objective"))
    max_duration = parse_duration("spec.rollout.maxDuration", rollout["maxDuration"])
    _check_steps(steps, objective)
    if objective and objective.window and objective.window >= max_duration:
        raise InvalidSpecError(
            "spec.rollout.objective.window: must be below spec.rollout.maxDuration, "
            "or the rollout ends before any outcome is due"
        )
    spec = RolloutSpec(
        steps=steps,
        max_duration=max_duration,
        progress_deadline=parse_duration(
            "spec.rollout.progressDeadline", rollout["progressDeadline"]
        ),
        minimum_requests=rollout["minimumRequests"],
        on_inconclusive=OnInconclusive(rollout["onInconclusive"]),
        guardrails=_parse_guardrails(rollout["guardrails"]),
        objective=objective,
        promotion=Promotion(rollout["promotion"]),
        on_new_version=OnNewVersion(rollout["onNewVersion"]),
        rollback=Rollback(rollout["rollback"]),
    )
    _check_unasked(spec)
    return spec


def _parse_step(step: Mapping[str, Any]) -> Step:
    return Step(
        weight=parse_weight(step.get("weight", 0)),
        shadow=parse_weight(step.get("shadow", 0)),
        duration=parse_duration("spec.rollout.steps", step["for"]) if "for" in step else None,
        until=Until(step["until"]) if "until" in step else None,
    )


def _check_steps(steps: tuple[Step, ...], objective: Objective | None) -> None:
    for index, step in enumerate(steps):
        field, before = f"spec.rollout.steps[{index}]", steps[:index]
        if step.shadow and any(not earlier.shadow for earlier in before):
            raise InvalidSpecError(f"{field}.shadow: must come before every step with a weight")
        if not step.shadow and any(step.weight <= s.weight for s in before if not s.shadow):
            raise InvalidSpecError(f"{field}.weight: must be above the weight of the step before")
        if not step.shadow and step.weight == 0 and step.until is not Until.APPROVED:
            raise InvalidSpecError(
                f"{field}.weight: must be above 0, unless the step says 'until: approved'"
            )
        if step.until in {Until.DECIDED, Until.STOPPED} and index < len(steps) - 1:
            raise InvalidSpecError(f"{field}: only the last step may say 'until: {step.until}'")
    _check_end(f"spec.rollout.steps[{len(steps) - 1}]", steps[-1], objective)


def _check_end(field: str, last: Step, objective: Objective | None) -> None:
    """Check that what ends the last step can happen."""
    if last.weight == 0:
        raise InvalidSpecError(f"{field}: the last step needs a weight above 0")
    if last.until is Until.DECIDED and objective is None:
        raise InvalidSpecError(
            f"{field}: 'until: decided' needs spec.rollout.objective; "
            "without an objective write how long to hold the weight, such as 'for: 10m'"
        )
    if objective is not None and last.until not in {Until.DECIDED, Until.STOPPED}:
        raise InvalidSpecError(
            f"{field}: with spec.rollout.objective the last step holds until the objective has "
            "decided or a person stops it; write 'until: decided' or 'until: stopped'"
        )


def _check_unasked(rollout: RolloutSpec) -> None:
    """Check that nothing promotes by itself what only a person may promote."""
    needs_a_person = rollout.is_split or rollout.asks_a_person
    if rollout.on_inconclusive is OnInconclusive.PROMOTE and needs_a_person:
        raise InvalidSpecError(
            "spec.rollout.onInconclusive: 'promote' would promote by itself what is left to a person; "
            "write 'keep'"
        )


def _parse_objective(objective: Mapping[str, Any] | None) -> Objective | None:
    if objective is None:
        return None
    if not math.isfinite(objective["minimumEffect"]):
        raise InvalidSpecError("spec.rollout.objective.minimumEffect: must be a finite number")
    _check_objective(objective)
    window = objective.get("window")
    return Objective(
        outcome=objective["outcome"],
        better=objective["better"],
        minimum_effect=float(objective["minimumEffect"]),
        alpha=float(objective["alpha"]),
        kind=objective["kind"],
        denominator=objective.get("denominator"),
        cap=float(objective["cap"]) if "cap" in objective else None,
        window=_parse_window(window) if window is not None else None,
        missing=objective["missing"],
        covariate=objective.get("covariate"),
    )


def _check_objective(objective: Mapping[str, Any]) -> None:
    """Refuse parts that do not belong together."""
    field, kind = "spec.rollout.objective", objective["kind"]
    if (kind == "ratio") != ("denominator" in objective):
        raise InvalidSpecError(
            f"{field}.denominator: a ratio needs a denominator, and no other kind has one"
        )
    if objective.get("denominator") == objective["outcome"]:
        raise InvalidSpecError(
            f"{field}.denominator: must be another outcome than {field}.outcome, the numerator"
        )
    if "cap" in objective and (kind == "binary" or not math.isfinite(objective["cap"])):
        raise InvalidSpecError(f"{field}.cap: must be a finite number, and not of a binary kind")
    if objective["missing"] == "zero" and ("window" not in objective or kind == "ratio"):
        raise InvalidSpecError(
            f"{field}.missing: 'zero' needs a window, and a ratio has no use for it: "
            "its sums are 0 without outcomes"
        )


def _parse_window(text: str) -> timedelta:
    window = parse_duration("spec.rollout.objective.window", text)
    if not window:
        raise InvalidSpecError("spec.rollout.objective.window: must be above 0")
    return window


def _parse_guardrails(guardrails: Mapping[str, Any]) -> Guardrails:
    errors, latency = guardrails.get("errors"), guardrails.get("latency")
    return Guardrails(
        errors_margin=float(errors["margin"]) if errors else None,
        latency_margin=float(latency["margin"]) if latency else None,
        slower_than=parse_duration(
            "spec.rollout.guardrails.latency.slowerThan", latency["slowerThan"]
        )
        if latency
        else None,
        shadow=_parse_shadow_guardrail(guardrails.get("shadow")),
    )


def _parse_shadow_guardrail(shadow: Mapping[str, Any] | None) -> ShadowGuardrail | None:
    if shadow is None:
        return None
    field = "spec.rollout.guardrails.shadow"
    if not math.isfinite(shadow["tolerance"]):
        raise InvalidSpecError(f"{field}.tolerance: must be a finite number")
    return ShadowGuardrail(
        max_disagreement=float(shadow["maxDisagreement"]),
        tolerance=float(shadow["tolerance"]),
        minimum_pairs=shadow["minimumPairs"],
        share=_parse_share(field, shadow),
    )

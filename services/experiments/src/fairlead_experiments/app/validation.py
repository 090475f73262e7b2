"""Reads what callers send: each item becomes a record, or is named with its field and reason.

Written out by hand because a batch of 10,000 items is read on every request and because a reason
must never repeat what was sent, which the messages of validation libraries do.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from fairlead_experiments.app.errors import BadRequestError
from fairlead_experiments.domain.effect import Arm
from fairlead_experiments.domain.predictions import Prediction
from fairlead_experiments.domain.records import (
    FULL_WEIGHT,
    Decision,
    ErrorGuardrail,
    Exposure,
    LatencyGuardrail,
    Missing,
    Objective,
    ObjectiveKind,
    Outcome,
    Rollout,
    RolloutStep,
    ShadowGuardrail,
)
from fairlead_experiments.domain.times import microseconds

T = TypeVar("T")

Item = object
"""Whatever JSON an item is."""

BATCH_LIMIT = 10_000
SKEW = timedelta(days=1)
"""How far ahead of ours a caller's clock may be."""

LARGEST_VALUE = 1e100
"""Sums of squares of larger outcomes would not be finite."""

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_OUTCOME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MODEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_TIME = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)
_MISSING = object()
_STEPS, _CODES, _ATTEMPTS, _SLOWEST = 999, range(100, 600), 1000, 1e9
_UNIT, _VERSION, _REASON, _REGISTERED_MODEL = 256, 64, 5000, 256
_LONGEST_WINDOW = 10 * 366 * 86400.0
_WORD = 64
_ROWS, _TEXT, _PAIRS = 10_000_000, 100, 10_000
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Rejection:
    """An item that was not taken."""

    index: int
    field: str
    reason: str


class _Invalid(Exception):  # noqa: N818 - it never leaves this module
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


def read_exposures(
    items: Sequence[Item], *, now: datetime
) -> tuple[list[Exposure], list[Rejection]]:
    """Read a batch of exposures: the valid ones, and the others by index."""
    latest = microseconds(now + SKEW)
    return _read(items, lambda item: _exposure(item, latest))


def read_outcomes(items: Sequence[Item], *, now: datetime) -> tuple[list[Outcome], list[Rejection]]:
    """Read a batch of outcomes: the valid ones, and the others by index."""
    latest = microseconds(now + SKEW)
    return _read(items, lambda item: _outcome(item, latest))


def read_predictions(
    items: Sequence[Item], *, now: datetime
) -> tuple[list[Prediction], list[Rejection]]:
    """Read a batch of predictions: the valid ones, and the others by index."""
    latest = microseconds(now + SKEW)
    return _read(items, lambda item: _prediction(item, latest))


def read_tolerance(text: str) -> float:
    """Read a tolerance as it stands in a query.

    Raises:
        BadRequestError: It is no number from 0.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= LARGEST_VALUE:
        raise BadRequestError("must be a number from 0 to 1e+100", field="tolerance")
    return number


def is_identifier(text: str) -> bool:
    """Tell whether something may be called by a text: no record has another id."""
    return _ID.fullmatch(text) is not None


def check_query(name: str, text: str | None) -> None:
    """Refuse what a database cannot be asked for.

    Raises:
        BadRequestError: It has a control character; PostgreSQL takes no NUL.
    """
    if text is not None and _CONTROL.search(text):
        raise BadRequestError("must not have control characters", field=name)


def read_rollout(rollout_id: str, document: Item) -> Rollout:
    """Read the record of a rollout.

    Raises:
        BadRequestError: A field is missing or wrong; it is named.
    """
    try:
        return _rollout(rollout_id, document)
    except _Invalid as invalid:
        raise BadRequestError(invalid.reason, field=invalid.field) from invalid


def read_decision(rollout_id: str, decision_id: str, document: Item) -> Decision:
    """Read a decision of a rollout.

    Raises:
        BadRequestError: A field is missing or wrong; it is named.
    """
    try:
        return _decision(rollout_id, decision_id, document)
    except _Invalid as invalid:
        raise BadRequestError(invalid.reason, field=invalid.field) from invalid


def _read(items: Sequence[Item], read: Callable[[Item], T]) -> tuple[list[T], list[Rejection]]:
    taken: list[T] = []
    rejected: list[Rejection] = []
    for index, item in enumerate(items):
        try:
            taken.append(read(item))
        except _Invalid as invalid:
            rejected.append(Rejection(index, invalid.field, invalid.reason))
    return taken, rejected


def _exposure(item: Item, latest: int) -> Exposure:
    fields = _object(item)
    inference_id = _identifier(fields, "inferenceId")
    return Exposure(
        inference_id=inference_id,
        rollout=_identifier(fields, "rollout"),
        step=_integer(fields, "step", 0, _STEPS),
        arm=_choice(fields, "arm", (Arm.STABLE.value, Arm.CANDIDATE.value)),
        version=_optional_text(fields, "version", _VERSION),
        unit=_optional_text(fields, "unit", _UNIT) or None,
        at=_moment(fields, "at", latest),
        code=_code(fields),
        attempts=_integer(fields, "attempts", 0, _ATTEMPTS),
        duration_ms=_number(fields, "durationMs", 0.0, _SLOWEST),
    )


def _outcome(item: Item, latest: int) -> Outcome:
    fields = _object(item)
    name = _outcome_name(fields, "outcome")
    value = _value(fields)
    observed = _moment(fields, "observedAt", latest)
    if fields.get("inferenceId") is not None:
        if fields.get("unit") is not None:
            raise _Invalid("unit", "give either inferenceId, or unit and model")
        key = _identifier(fields, "inferenceId")
        return Outcome(f"inference:{key}", name, 0, value, observed, inference_id=key)
    if fields.get("unit") is None and fields.get("model") is None:
        raise _Invalid("inferenceId", "give inferenceId, or unit and model")
    model = _model(fields)
    unit = _text(fields, "unit", _UNIT)
    subject = f"unit:{model}:{unit}"
    return Outcome(subject, name, observed, value, observed, model=model, unit=unit)


def _prediction(item: Item, latest: int) -> Prediction:
    fields = _object(item)
    if not isinstance(fields.get("shadow"), bool):
        raise _Invalid("shadow", _wanted(fields.get("shadow", _MISSING), "must be true or false"))
    return Prediction(
        inference_id=_identifier(fields, "inferenceId"),
        model=_model(fields),
        version=_text(fields, "version", _VERSION),
        is_shadow=fields["shadow"] is True,
        at=_moment(fields, "at", latest),
        code=_code(fields),
        duration_ms=_number(fields, "durationMs", 0.0, _SLOWEST),
        rows=_integer(fields, "rows", 0, _ROWS),
        value=_predicted(fields["prediction"]) if "prediction" in fields else None,
    )


def _predicted(value: object) -> str:
    """Write what was predicted as JSON, the same for the same value."""
    if isinstance(value, str):
        is_short = len(value) <= _TEXT and not _SURROGATE.search(value)
        reason = f"a text must have at most {_TEXT} characters, and no half surrogate pairs"
    elif isinstance(value, int | float):
        is_short, reason = abs(value) <= LARGEST_VALUE, "a number must be within 1e100"
    else:
        is_short, reason = value is None, "must be a text, a number, true, false or null"
    if not is_short:
        raise _Invalid("prediction", reason)
    return json.dumps(value)


def _rollout(rollout_id: str, document: Item) -> Rollout:
    if not _ID.fullmatch(rollout_id):
        raise _Invalid("id", "must be 1 to 64 of A-Z a-z 0-9 . _ : -")
    fields = _object(document)
    guarded = _part(fields, "guardrails") or {}
    return Rollout(
        id=rollout_id,
        model=_model(fields),
        stable=_text(fields, "stable", _VERSION),
        candidate=_text(fields, "candidate", _VERSION),
        started_at=_datetime(fields, "startedAt"),
        decided_at=None if fields.get("decidedAt") is None else _datetime(fields, "decidedAt"),
        state=_text(fields, "state", _VERSION),
        reason=_optional_text(fields, "reason", _REASON) or "",
        steps=_steps(fields),
        objective=_objective(_part(fields, "objective")),
        errors=_errors(_part(guarded, "errors", "guardrails.")),
        latency=_latency(_part(guarded, "latency", "guardrails.")),
        registered_model=_optional_text(fields, "registeredModel", _REGISTERED_MODEL),
        shadow=_shadow(_part(guarded, "shadow", "guardrails.")),
    )


def _decision(rollout_id: str, decision_id: str, document: Item) -> Decision:
    """Read what is the same for all decisions; what each looked at is kept as it was sent."""
    for name, value in (("rollout", rollout_id), ("id", decision_id)):
        if not _ID.fullmatch(value):
            raise _Invalid(name, "must be 1 to 64 of A-Z a-z 0-9 . _ : -")
    fields = _object(document)
    for name in ("verdict", "check", "reason"):
        _text(fields, name, _WORD)
    for name in ("message", "summary"):
        _text(fields, name, _REASON)
    for name in ("to", "thresholds", "inputs"):
        if _part(fields, name) is None:
            raise _Invalid(name, _wanted(fields.get(name, _MISSING), "must be an object"))
    _part(fields, "from")
    _optional_text(fields, "rules", _WORD)
    at = microseconds(_datetime(fields, "at"))
    _check_json(fields)
    return Decision(decision_id, rollout_id, at, {**fields, "id": decision_id})


def _check_json(fields: dict[str, object]) -> None:
    """Refuse what can be read as JSON and not be written again."""
    try:
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "must have finite numbers, whole characters and few levels"
        raise _Invalid("inputs", reason) from error


def _steps(fields: dict[str, object]) -> tuple[RolloutStep, ...]:
    steps = fields.get("steps", _MISSING)
    if not isinstance(steps, list):
        raise _Invalid("steps", _wanted(steps, "must be a list"))
    if len(steps) > _STEPS:
        raise _Invalid("steps", f"must have at most {_STEPS} entries")
    found: dict[int, RolloutStep] = {}
    for place, entry in enumerate(steps):
        path = f"steps[{place}]."
        if not isinstance(entry, dict):
            raise _Invalid(f"steps[{place}]", "must be an object")
        index = _integer(entry, "index", 0, _STEPS, path)
        if index in found:
            raise _Invalid(f"{path}index", "must not be given twice")
        found[index] = RolloutStep(index, _integer(entry, "weight", 0, FULL_WEIGHT, path))
    return tuple(found[index] for index in sorted(found))


def _objective(fields: dict[str, object] | None) -> Objective | None:
    if fields is None:
        return None
    path = "objective."
    effect = _number(fields, "minimumEffect", 0.0, LARGEST_VALUE, path)
    alpha = _number(fields, "alpha", 0.0, 1.0, path) if "alpha" in fields else 0.05
    if effect < 1 / LARGEST_VALUE:
        raise _Invalid(f"{path}minimumEffect", "must be above 0")
    if not 1e-6 <= alpha <= 0.5:  # noqa: PLR2004
        raise _Invalid(f"{path}alpha", "must be from 0.000001 to 0.5")
    found = Objective(
        outcome=_outcome_name(fields, "outcome", path),
        better=_choice(fields, "better", ("higher", "lower"), path),
        minimum_effect=effect,
        alpha=alpha,
        kind=ObjectiveKind(_choice({"kind": "mean", **fields}, "kind", tuple(ObjectiveKind), path)),
        denominator=_optional_name(fields, "denominator", path),
        cap=_optional_number(fields, "cap", LARGEST_VALUE, path),
        window=_optional_number(fields, "window", _LONGEST_WINDOW, path),
        missing=Missing(_choice({"missing": "ignore", **fields}, "missing", tuple(Missing), path)),
        covariate=_optional_name(fields, "covariate", path),
    )
    _check_objective(found, path)
    return found


def _check_objective(objective: Objective, path: str) -> None:
    """Refuse parts that do not belong together."""
    if objective.is_ratio != (objective.denominator is not None):
        rule = "must be given for the kind ratio, and for no other"
        raise _Invalid(f"{path}denominator", rule)
    if objective.denominator == objective.outcome:
        raise _Invalid(f"{path}denominator", "must be another outcome than the numerator")
    if objective.kind is ObjectiveKind.BINARY and objective.cap is not None:
        raise _Invalid(f"{path}cap", "must not be given for the kind binary")
    if objective.missing is Missing.ZERO and (objective.window is None or objective.is_ratio):
        rule = "may be zero only with a window, and for no ratio: its sums are 0 without outcomes"
        raise _Invalid(f"{path}missing", rule)


def _errors(fields: dict[str, object] | None) -> ErrorGuardrail | None:
    if fields is None:
        return None
    return ErrorGuardrail(_number(fields, "margin", 0.0, 1000.0, "guardrails.errors."))


def _latency(fields: dict[str, object] | None) -> LatencyGuardrail | None:
    if fields is None:
        return None
    path = "guardrails.latency."
    slower_than = _number(fields, "slowerThan", 0.0, _SLOWEST, path)
    return LatencyGuardrail(slower_than, _number(fields, "margin", 0.0, 1000.0, path))


def _shadow(fields: dict[str, object] | None) -> ShadowGuardrail | None:
    if fields is None:
        return None
    path = "guardrails.shadow."
    share = _number(fields, "maxDisagreement", 0.0, 1.0, path)
    if not share:
        raise _Invalid(f"{path}maxDisagreement", "must be above 0")
    return ShadowGuardrail(
        max_disagreement=share,
        tolerance=_number(fields, "tolerance", 0.0, LARGEST_VALUE, path),
        minimum_pairs=_integer(fields, "minimumPairs", 1, _PAIRS, path),
    )


# --- fields ---------------------------------------------------------------------------------


def _object(item: Item) -> dict[str, object]:
    if not isinstance(item, dict):
        raise _Invalid("", "must be an object")
    return item


def _part(fields: dict[str, object], name: str, path: str = "") -> dict[str, object] | None:
    part = fields.get(name)
    if part is not None and not isinstance(part, dict):
        raise _Invalid(f"{path}{name}", "must be an object or null")
    return part


def _wanted(value: object, reason: str) -> str:
    return "is missing" if value is _MISSING else reason


def _text(fields: dict[str, object], name: str, most: int) -> str:
    value = fields.get(name, _MISSING)
    if not isinstance(value, str):
        raise _Invalid(name, _wanted(value, "must be a string"))
    if not 1 <= len(value) <= most:
        raise _Invalid(name, f"must have 1 to {most} characters")
    if _CONTROL.search(value):
        raise _Invalid(name, "must not have control characters or half surrogate pairs")
    return value


def _optional_text(fields: dict[str, object], name: str, most: int) -> str | None:
    value = fields.get(name)
    return None if value is None or value == "" else _text(fields, name, most)


def _matching(
    fields: dict[str, object], name: str, pattern: re.Pattern[str], rule: str, path: str = ""
) -> str:
    value = fields.get(name, _MISSING)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _Invalid(f"{path}{name}", _wanted(value, f"must be {rule}"))
    return value


def _outcome_name(fields: dict[str, object], name: str, path: str = "") -> str:
    return _matching(fields, name, _OUTCOME, "1 to 64 of A-Z a-z 0-9 _ . -", path)


def _optional_name(fields: dict[str, object], name: str, path: str) -> str | None:
    return None if fields.get(name) is None else _outcome_name(fields, name, path)


def _identifier(fields: dict[str, object], name: str) -> str:
    return _matching(fields, name, _ID, "1 to 64 of A-Z a-z 0-9 . _ : -")


def _model(fields: dict[str, object]) -> str:
    return _matching(fields, "model", _MODEL, "a DNS label of at most 63 characters")


def _choice(fields: dict[str, object], name: str, of: tuple[str, ...], path: str = "") -> str:
    value = fields.get(name, _MISSING)
    if not isinstance(value, str) or value not in of:
        raise _Invalid(f"{path}{name}", _wanted(value, f"must be {' or '.join(of)}"))
    return value


def _integer(fields: dict[str, object], name: str, low: int, high: int, path: str = "") -> int:
    value = fields.get(name, _MISSING)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _Invalid(
            f"{path}{name}", _wanted(value, f"must be an integer from {low} to {high:,}")
        )
    return value


def _code(fields: dict[str, object]) -> int:
    value = fields.get("code", _MISSING)
    if value == 0 and type(value) is int:
        return 0
    if type(value) is not int or value not in _CODES:
        raise _Invalid("code", _wanted(value, "must be an HTTP status code, or 0 for no answer"))
    return value


def _number(fields: dict[str, object], name: str, low: float, high: float, path: str = "") -> float:
    value = fields.get(name, _MISSING)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _Invalid(
            f"{path}{name}", _wanted(value, f"must be a number from {low:g} to {high:g}")
        )
    return float(value)


def _optional_number(fields: dict[str, object], name: str, high: float, path: str) -> float | None:
    """A number above 0, or None."""
    if fields.get(name) is None:
        return None
    value = _number(fields, name, 0.0, high, path)
    if value < 1 / LARGEST_VALUE:
        raise _Invalid(f"{path}{name}", "must be above 0")
    return value


def _value(fields: dict[str, object]) -> float:
    value = fields.get("value", _MISSING)
    if not isinstance(value, int | float) or not abs(value) <= LARGEST_VALUE:
        raise _Invalid("value", _wanted(value, "must be a number within 1e100, true or false"))
    return float(value)


def _moment(fields: dict[str, object], name: str, latest: int) -> int:
    found = microseconds(_datetime(fields, name))
    if found > latest:
        raise _Invalid(name, "must not be more than a day ahead of the server's clock")
    return found


def _datetime(fields: dict[str, object], name: str) -> datetime:
    value = fields.get(name, _MISSING)
    reason = "must be an RFC 3339 time with a zone, such as 2026-01-01T00:00:00Z"
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise _Invalid(name, _wanted(value, reason))
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _Invalid(name, reason) from error

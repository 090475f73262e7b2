"""The ServedModel's schema: completes a document with defaults and checks it."""

import copy
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import Any

import jsonschema

from fairlead_rollout.domain.errors import InvalidSpecError
from fairlead_rollout.domain.spec import ServedModelSpec, parse_spec

Document = dict[str, Any]


@functools.cache
def served_model_schema() -> Document:
    """Return the JSON schema of a ServedModel."""
    text = resources.files(__package__).joinpath("served-model.schema.json").read_text("utf-8")
    schema: Document = json.loads(text)
    return schema


def complete_manifest(manifest: Any) -> Document:
    """Check a ServedModel document and fill in defaults, as an API server would.

    Raises:
        InvalidSpecError: The message names each wrong field, what is wrong, and never a value
            that could be a secret.
    """
    schema = served_model_schema()
    document = copy.deepcopy(manifest)
    if isinstance(document, dict):
        _fill(schema, schema, document)
    validator = jsonschema.Draft202012Validator(schema)
    problems = sorted(validator.iter_errors(document), key=lambda e: e.json_path)
    if problems:
        raise InvalidSpecError("; ".join(_describe(problem) for problem in problems[:5]))
    _refuse_non_finite(document, "")
    completed: Document = document
    return completed


def _refuse_non_finite(value: Any, field: str) -> None:
    """Refuse `.nan` and `.inf`, which YAML knows, a schema lets pass and JSON cannot carry."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidSpecError(f"{field.removeprefix('.')}: must be a finite number")
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    for name, part in parts:
        _refuse_non_finite(part, f"{field}.{name}")


def read_spec(manifest: Any) -> ServedModelSpec:
    """Read the spec out of a ServedModel document.

    Raises:
        InvalidSpecError: The document is wrong; the message names the field.
    """
    return parse_spec(complete_manifest(manifest)["spec"])


def read_stored_spec(manifest: Any) -> ServedModelSpec:
    """Read the spec out of a ServedModel that an API server keeps.

    Fields that this schema does not have are ignored: the API server has checked the document
    against a newer one, whose defaults stand in every ServedModel while an installation is upgraded
    or rolled back.

    Raises:
        InvalidSpecError: The document is wrong; the message names the field.
    """
    schema = served_model_schema()
    return read_spec(_known(schema, schema, manifest))


def _known(root: Document, schema: Mapping[str, Any], value: Any) -> Any:
    """Return a value without the fields that its schema does not have."""
    schema = _resolve(root, schema)
    if isinstance(value, list):
        return [_known(root, schema.get("items", {}), item) for item in value]
    if not isinstance(value, dict):
        return value
    parts, is_closed = schema.get("properties", {}), schema.get("additionalProperties") is False
    return {
        name: _known(root, parts.get(name, {}), part)
        for name, part in value.items()
        if name in parts or not is_closed
    }


def _resolve(root: Document, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    ref = schema.get("$ref")
    if ref is None:
        return schema
    return {**root["$defs"][ref.removeprefix("#/$defs/")], **schema}


def _fill(root: Document, schema: Mapping[str, Any], value: Any) -> None:
    schema = _resolve(root, schema)
    if isinstance(value, list):
        for item in value:
            _fill(root, schema.get("items", {}), item)
    if not isinstance(value, dict):
        return
    for name, given in schema.get("properties", {}).items():
        part = _resolve(root, given)
        if name not in value and "default" in part:
            value[name] = copy.deepcopy(part["default"])
        if name in value:
            _fill(root, part, value[name])


def _describe(problem: jsonschema.ValidationError) -> str:
    field = problem.json_path.removeprefix("$").removeprefix(".") or "the document"
    describe = _DESCRIPTIONS.get(str(problem.validator), _plainly)
    return f"{field}: {describe(problem)}"


def _plainly(problem: Any) -> str:
    return f"{problem.validator} is {problem.validator_value}"


def _fields(problem: Any) -> str:
    return ", ".join(problem.schema.get("properties", {})) or "none"


def _unknown(problem: Any) -> str:
    unknown = ", ".join(sorted(set(problem.instance) - set(problem.schema.get("properties", {}))))
    return f"has unknown fields {unknown} (known: {_fields(problem)})"


def _missing(problem: Any) -> str:
    missing = ", ".join(n for n in problem.validator_value if n not in problem.instance)
    return f"is missing {missing}"


_DESCRIPTIONS: Mapping[str, Callable[[Any], str]] = {
    "required": _missing,
    "additionalProperties": _unknown,
    "type": lambda p: f"must be of type {p.validator_value}, is {type(p.instance).__name__}",
    "enum": lambda p: f"must be {' or '.join(p.validator_value)}",
    "const": lambda p: f"must be {p.validator_value}",
    "oneOf": lambda _: "needs exactly one of for, until, and one of weight, shadow",
    "minProperties": lambda p: f"needs exactly one of {_fields(p)}",
    "maxProperties": lambda p: f"needs exactly one of {_fields(p)}",
    "pattern": lambda p: f"must match {p.validator_value}",
    "exclusiveMinimum": lambda p: f"must be above {p.validator_value}",
}

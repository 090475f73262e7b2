"""The CustomResourceDefinition: structural, described, with defaults that are valid."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest

from fairlead_rollout.adapters.crd import build_crd
from fairlead_rollout.adapters.schema import complete_manifest
from fairlead_rollout.domain.lanes import Lane
from fairlead_rollout.domain.status import Rollout, RolloutState, Status, to_document
from fairlead_rollout.domain.summary import summary_of

Document = dict[str, Any]
Found = tuple[str, Document]

CRD = build_crd()
(VERSION,) = CRD["spec"]["versions"]
ROOT = VERSION["schema"]["openAPIV3Schema"]


def schemas(schema: Document, path: str = "") -> Iterator[Found]:
    """Yield every schema with its path."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from schemas(part, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from schemas(schema[key], f"{path}[]")


ALL = dict(schemas(ROOT))


def is_free(schema: Document) -> bool:
    """Say whether a schema leaves open what it holds."""
    return bool(schema.get("x-kubernetes-int-or-string"))


def test_the_schema_is_structural() -> None:
    """Every part has a type; nothing is there that the API server refuses."""
    foreign = {"$ref", "$defs", "const", "anyOf", "$schema", "title", "definitions"}
    for path, schema in ALL.items():
        assert is_free(schema) or isinstance(schema.get("type"), str), path
        assert not foreign & schema.keys(), path
        assert schema.get("additionalProperties") is not False, path
        assert not {"properties", "additionalProperties"} <= schema.keys(), path
        assert (schema.get("type") == "array") == ("items" in schema), path


def test_alternatives_say_no_more_than_what_is_required() -> None:
    """In a structural schema types and defaults stand outside of `oneOf`."""
    for path, schema in ALL.items():
        for part in schema.get("oneOf", ()):
            assert part.keys() == {"required"}, path
            assert set(part["required"]) <= schema["properties"].keys(), path


def test_every_field_is_described() -> None:
    """`kubectl explain` says what each is for."""
    standard = {"", ".apiVersion", ".kind", ".metadata"}
    for path, schema in ALL.items():
        if path not in standard and not path.endswith("[]"):
            assert schema.get("description", "").endswith((".", ":", "`")), path


def test_every_default_is_valid() -> None:
    """The API server checks them when the CRD is installed; so do we."""
    with_default = [(path, s) for path, s in ALL.items() if "default" in s]
    assert len(with_default) > 15
    for path, schema in with_default:
        # OpenAPI 3.0 writes an exclusive minimum as a flag, as JSON schema once did.
        errors = jsonschema.Draft4Validator(schema).iter_errors(schema["default"])
        assert [error.message for error in errors] == [], path


def test_required_fields_are_there() -> None:
    """A required field without a schema could never be given."""
    for path, schema in ALL.items():
        assert set(schema.get("required", ())) <= schema.get("properties", {}).keys(), path


def test_only_the_pod_template_and_what_is_told_are_kept_unknown() -> None:
    """All other fields are known by name."""
    unknown = {p for p, s in ALL.items() if s.get("x-kubernetes-preserve-unknown-fields")}
    assert unknown == {".spec.server.template", ".status.writeback[].content"}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "metadata.name must have at most 40"),
        (".spec", "registry.candidates needs rollout.objective"),
        (".spec", "cannot be told apart by a cookie"),
        (".spec.model", "cannot be changed"),
        (".spec.registry", "must not name one alias twice"),
        (".spec.registry", "must not name the alias of production"),
        (".spec.registry.shadow.share", "in steps of 0.01"),
        (".spec.traffic", "needs traffic.jwt"),
        (".spec.traffic", "ask for one of both"),
        (".spec.traffic", "holdout and layer cannot be told from a cookie"),
        (".spec.traffic", "layer.to must be above layer.from"),
        (".spec.traffic", "a rate by client needs traffic.apiKeys"),
        (".spec.traffic", "a rate by unit needs a unit that asks more than once"),
        (".spec.traffic.holdout", "in steps of 0.01"),
        (".spec.rollout", "'until: decided' needs rollout.objective"),
        (".spec.rollout", "the last step holds until the objective has decided"),
        (".spec.rollout", "what is left to a person; write"),
        (".spec.rollout", "left to a person by promotion"),
        (".spec.rollout.steps", "must come before every step with a weight"),
        (".spec.rollout.steps[].shadow", "in steps of 0.01"),
        (".spec.rollout.steps", "above the weight of the step before"),
        (".spec.rollout.steps", "only the last step may say"),
        (".spec.rollout.steps", "the last step needs a weight above 0"),
        (".spec.rollout.steps[]", "weight must be above 0, unless"),
        (".spec.rollout.steps[].weight", "in steps of 0.01"),
        (".spec.rollout.guardrails.shadow.share", "in steps of 0.01"),
        (".spec.rollout.objective", "a ratio needs a denominator"),
        (".spec.rollout.objective", "another outcome than the numerator"),
        (".spec.rollout.objective", "a binary objective has no cap"),
        (".spec.rollout.objective", "'missing: zero' needs a window"),
        (".spec.server", "maxReplicas must not be below"),
    ],
)
def test_what_a_schema_cannot_say_is_a_rule(path: str, words: str) -> None:
    """Each rule has a message that names the field and the remedy."""
    rules = ALL[path]["x-kubernetes-validations"]
    assert any(words in rule["message"] and rule["rule"] for rule in rules)


def test_every_rule_has_a_test() -> None:
    """A rule that is added is added above."""
    assert sum(len(s.get("x-kubernetes-validations", ())) for s in ALL.values()) == 31


def test_the_columns_show_fields_that_exist() -> None:
    """A misspelt path would show an empty column for ever."""
    columns = {c["name"]: c for c in VERSION["additionalPrinterColumns"]}
    assert list(columns)[:6] == ["Model", "Stable", "Candidate", "Weight", "State", "Age"]
    for column in columns.values():
        path = column["jsonPath"]
        if "[?" not in path and not path.startswith(".metadata"):
            assert path in ALL, path


def test_the_status_has_its_own_writer() -> None:
    """People change the spec, the controller the status."""
    assert VERSION["subresources"] == {"status": {}}
    assert (VERSION["served"], VERSION["storage"]) == (True, True)
    assert CRD["spec"]["scope"] == "Namespaced"
    assert CRD["spec"]["names"]["shortNames"] == ["sm"]


def test_the_schema_knows_every_part_of_a_status() -> None:
    """The API server drops what a schema does not know, and says nothing."""
    rollout = Rollout(
        id="",
        candidate="2",
        baseline="1",
        state=RolloutState.RUNNING,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        alias="a",
        lane=Lane(index=0, of=2),
    )
    status = Status(rollout=rollout, beside=(rollout,), turned_away=("3",))
    document = {**to_document(status), "summary": to_document(summary_of(status))}
    written = document["rollout"].keys()
    assert written == ROOT["properties"]["status"]["properties"]["rollout"]["properties"].keys()
    assert document.keys() == ROOT["properties"]["status"]["properties"].keys()


def test_defaults_are_the_same_on_one_machine() -> None:
    """Both ways to fill in a ServedModel lead to the same spec."""
    smallest = {
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": "ServedModel",
        "metadata": {"name": "m"},
        "spec": {"model": "M"},
    }
    filled = _defaulted(ROOT["properties"]["spec"], {"model": "M"})
    assert filled == complete_manifest(smallest)["spec"]


def _defaulted(schema: Document, value: Any) -> Any:
    """Fill in defaults as the API server does: from the outside in."""
    if isinstance(value, list):
        return [_defaulted(schema["items"], item) for item in value]
    if not isinstance(value, dict):
        return value
    parts = schema.get("properties", {})
    given = {name: part["default"] for name, part in parts.items() if "default" in part} | value
    return {n: _defaulted(parts[n], v) if n in parts else v for n, v in given.items()}

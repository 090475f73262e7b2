"""The ServedModel's CustomResourceDefinition, made from its JSON schema.

The schema is the one source. What OpenAPI in Kubernetes says otherwise is translated here: no
references, `nullable` instead of a type `null`, a structural schema without
`additionalProperties: false` (unknown fields are refused by the API server's field validation).
"""

from collections.abc import Mapping
from typing import Any

from fairlead_rollout.adapters.schema import served_model_schema

Document = dict[str, Any]

GROUP, VERSION, PLURAL = "fairlead.dev", "v1alpha1", "servedmodels"
MAX_NAME = 40
_KEPT = frozenset(
    {
        *("description", "type", "default", "enum", "format", "pattern", "required", "oneOf"),
        *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        *("minimum", "maximum"),
    }
)
_NAME_RULES = [
    {
        "rule": f"size(self.metadata.name) <= {MAX_NAME} && !self.metadata.name.contains('.')",
        "message": f"metadata.name must have at most {MAX_NAME} lower case letters, digits and dashes: it is part of the path and of the pods' names",
    }
]


def build_crd() -> Document:
    """Build the CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": "ServedModel",
                "listKind": "ServedModelList",
                "plural": PLURAL,
                "singular": "servedmodel",
                "shortNames": ["sm"],
                "categories": ["fairlead"],
            },
            "versions": [_version(served_model_schema())],
        },
    }


def _version(schema: Document) -> Document:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            _column("Model", ".spec.model"),
            _column("Stable", ".status.summary.stable"),
            _column("Candidate", ".status.summary.candidate"),
            _column("Weight", ".status.summary.weight"),
            _column("State", ".status.summary.state"),
            {**_column("Age", ".metadata.creationTimestamp"), "type": "date"},
            {
                **_column("Reason", '.status.conditions[?(@.type=="Progressing")].message'),
                "priority": 1,
            },
        ],
        "schema": {"openAPIV3Schema": _root(schema)},
    }


def _column(name: str, path: str) -> Document:
    return {"name": name, "type": "string", "jsonPath": path}


def _root(schema: Document) -> Document:
    return {
        "type": "object",
        "description": schema["description"],
        "required": ["spec"],
        "x-kubernetes-validations": _NAME_RULES,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _structural(schema, schema["properties"]["spec"]),
            "status": _structural(schema, {"$ref": "#/$defs/status"}),
        },
    }


def _structural(root: Document, schema: Mapping[str, Any]) -> Document:
    """Translate one schema and all below it."""
    schema = _resolved(root, schema)
    made = {k: v for k, v in schema.items() if k in _KEPT or k.startswith("x-kubernetes-")}
    if "const" in schema:
        made["enum"] = [schema["const"]]
    if "enum" in made:
        made.setdefault("type", "string")
    if isinstance(made.get("type"), list):
        made["type"] = next(kind for kind in made["type"] if kind != "null")
        made["nullable"] = True
    if "exclusiveMinimum" in schema:
        made |= {"minimum": schema["exclusiveMinimum"], "exclusiveMinimum": True}
    if "items" in schema:
        made["items"] = _structural(root, schema["items"])
    if "properties" in schema:
        parts = schema["properties"].items()
        made["properties"] = {name: _structural(root, part) for name, part in parts}
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = _structural(root, schema["additionalProperties"])
    return made


def _resolved(root: Document, schema: Mapping[str, Any]) -> Document:
    ref = schema.get("$ref")
    if ref is None:
        return dict(schema)
    target = root["$defs"][ref.removeprefix("#/$defs/")]
    return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}

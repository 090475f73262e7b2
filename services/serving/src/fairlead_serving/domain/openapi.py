"""Builds the OpenAPI document of a model from its signature."""

from collections.abc import Mapping
from dataclasses import dataclass

from fairlead_serving.domain.examples import build_examples
from fairlead_serving.domain.openapi_parts import answer, content, read_of, refusals
from fairlead_serving.domain.openapi_v2 import infer_components, infer_paths
from fairlead_serving.domain.schemas import (
    Schema,
    list_of,
    lists_schema,
    nullable,
    object_of,
    params_schema,
    predictions_schema,
    record_schema,
    ref,
    row_schema,
    rows_of,
    tensor_row_schema,
    tensor_schema,
    tuple_of,
    value_schema,
)
from fairlead_serving.domain.signature import (
    ArrayOf,
    Kind,
    Signature,
)

_PREDICT = "mlflow"
_PROCESS = "process"
_TEXT: Schema = {"type": "string"}
_REFUSALS = {
    "400": "The body is not of the protocol, or not of the model's signature; `field` says where.",
    "408": "The request took too long to arrive.",
    "413": "The body is too long, or has too many rows.",
    "415": "The content type is neither `application/json` nor `text/csv`, in UTF-8; "
    "or a `content-encoding` says that the body is compressed.",
    "500": "The model raised.",
    "503": "The model is still being loaded, or has too much to do.",
}
_ABOUT = """Every other path answers 404, every other method 405, in the form of an error: that of
the Open Inference Protocol below `/v2`, else that of `/invocations`.

Numbers as text, and whatever else MLflow takes without changing it, are taken where this document
asks for the value itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a document is about.

    Attributes:
        name: The name of the model.
        version: Its version; may be empty.
        signature: Its signature.
        example: A payload that the model was saved with, or None.
        max_body_bytes: The largest body taken.
        max_rows: The most rows of one request.
    """

    name: str
    version: str
    signature: Signature
    example: object
    max_body_bytes: int
    max_rows: int


def build_openapi(subject: Subject) -> Schema:
    """Build the document.

    Args:
        subject: What it is about.

    Returns:
        An OpenAPI 3.1 document.
    """
    name, version, signature = subject.name, subject.version, subject.signature
    examples = build_examples(subject.example, signature)
    limits = f"Taken are {subject.max_body_bytes} bytes and {subject.max_rows} rows."
    return {
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": version or "0",
            "description": f"{_ABOUT}\n\n{limits}",
        },
        "servers": [{"url": "."}],
        "paths": {
            "/invocations": {"post": _invocations(signature, examples.json, examples.csv)},
            **infer_paths(name, version, examples.infer),
            **_process_paths(),
        },
        "components": {
            "schemas": {**_components(signature), **infer_components(name, version, signature)}
        },
    }


def _invocations(signature: Signature, example: object, csv: str | None) -> Schema:
    body = content(ref("Payload"), example)
    if _takes_csv(signature):
        text: Schema = {
            **_TEXT,
            "description": "The first line names the columns; an empty cell is a missing value.",
        }
        body["text/csv"] = {"schema": text} if csv is None else {"schema": text, "example": csv}
    return {
        "operationId": "predict",
        "tags": [_PREDICT],
        "summary": "Predict",
        "requestBody": {"required": True, "content": body},
        "responses": {
            "200": answer("The predictions, one for each row.", "Predictions"),
            **refusals(_REFUSALS, "Error"),
        },
    }


def _process_paths() -> Schema:
    loading = refusals({"503": "The model is still being loaded."}, "Error")
    yes = _text("Yes.")
    state = {"200": yes, "503": _text("No: it is being loaded, or the process ends.")}
    document = {"description": "This document.", "content": content({"type": "object"})}
    page = {"description": "A page to try requests.", "content": {"text/html": {"schema": _TEXT}}}
    described: Mapping[str, tuple[str, str, Schema]] = {
        "/livez": ("isAlive", "Whether the process runs", {"200": yes}),
        "/readyz": ("isReady", "Whether the model is loaded and warm", state),
        "/ping": ("ping", "The same, by MLflow's name", state),
        "/health": ("health", "The same, by MLflow's other name", state),
        "/version": ("getVersion", "The version of Fairlead", {"200": _text("A version.")}),
        "/metrics": ("getMetrics", "Metrics for Prometheus", {"200": _text("Metrics.")}),
        "/openapi.json": ("getDocument", "This document", {"200": document, **loading}),
        "/docs": ("getDocs", "A page to try requests", {"200": page}),
    }
    return {
        path: read_of(name, _PROCESS, summary, responses)
        for path, (name, summary, responses) in described.items()
    }


def _text(words: str) -> Schema:
    return {"description": words, "content": {"text/plain": {"schema": _TEXT}}}


def _takes_csv(signature: Signature) -> bool:
    """Tell whether lines of cells can say what the model takes."""
    if not signature.tensors:
        return all(isinstance(spec.type, Kind) for spec in signature.columns if spec.required)
    dimensions = 2 if signature.tensors[0].name is None else 1
    return all(len(spec.shape) == dimensions for spec in signature.tensors)


def _components(signature: Signature) -> Schema:
    forms = {
        "".join(map(str.capitalize, key.split("_"))): _form(key, schema)
        for key, schema in _forms(signature).items()
    }
    payload = {"oneOf": [ref(name) for name in forms]} if len(forms) > 1 else forms.popitem()[1]
    schemas: Schema = {
        "Payload": payload,
        **forms,
        "Params": params_schema(signature.params),
        "Predictions": object_of(
            {"predictions": predictions_schema(signature.outputs)}, ["predictions"]
        ),
        "Error": _error(),
    }
    if signature.columns and signature.has_names:
        schemas["Record"] = record_schema(signature.columns) | {
            "description": "A row. Columns that the model does not know are left out."
        }
    return schemas


def _form(key: str, schema: Schema) -> Schema:
    return object_of({key: schema, "params": ref("Params")}, [key])


def _error() -> Schema:
    field = nullable(_TEXT) | {"description": "The column or key that the message is about."}
    properties = {"error_code": _TEXT, "message": _TEXT, "field": field}
    return object_of(properties, ["error_code", "message", "field"])


def _forms(signature: Signature) -> Mapping[str, Schema]:
    if signature.tensors:
        return _tensor_forms(signature)
    if not signature.columns:
        return _open_forms()
    return _named_forms(signature) if signature.has_names else _unnamed_forms(signature)


def _named_forms(signature: Signature) -> Mapping[str, Schema]:
    columns = signature.columns
    records = rows_of(ref("Record"))
    # Where lists are values, an object with lists is one row.
    is_flat = all(isinstance(spec.type, Kind) for spec in columns)
    values = [records, lists_schema(columns) if is_flat else ref("Record")]
    if len(columns) == 1 and isinstance(columns[0].type, Kind | ArrayOf):
        values.append(rows_of(value_schema(columns[0].type)))
    names = tuple_of([{"type": "string", "const": str(column.name)} for column in columns])
    names["description"] = "In another order too, if the data have it."
    return {
        "dataframe_split": _split(names, signature) | {"required": ["columns", "data"]},
        "dataframe_records": records,
        "instances": {"anyOf": values},
        "inputs": {"anyOf": values},
    }


def _unnamed_forms(signature: Signature) -> Mapping[str, Schema]:
    columns = signature.columns
    names = list_of(_TEXT) | {
        "minItems": len(columns),
        "maxItems": len(columns),
        "uniqueItems": True,
    }
    rows = rows_of(row_schema(columns))
    if len(columns) == 1 and isinstance(columns[0].type, Kind):
        rows = {"anyOf": [rows, rows_of(value_schema(columns[0].type))]}
    return {"dataframe_split": _split(names, signature), "instances": rows, "inputs": rows}


def _split(names: Schema, signature: Signature) -> Schema:
    properties = {
        "columns": names,
        "data": rows_of(row_schema(signature.columns)),
        "index": list_of({}),
    }
    return object_of(properties, ["data"]) | {"additionalProperties": False}


def _open_forms() -> Mapping[str, Schema]:
    """Describe the forms of a model without a signature, which has to check its input itself."""
    anything: Schema = {
        "anyOf": [
            rows_of({}),
            {"type": ["object", "string", "number", "boolean"]},
        ]
    }
    names = list_of({"type": ["string", "integer"]}) | {"minItems": 1, "uniqueItems": True}
    split = object_of(
        {"columns": names, "data": rows_of(rows_of({})), "index": list_of({})}, ["data"]
    )
    return {
        "dataframe_split": split | {"additionalProperties": False},
        "dataframe_records": rows_of({"type": "object", "minProperties": 1}),
        "instances": anything,
        "inputs": anything,
    }


def _tensor_forms(signature: Signature) -> Mapping[str, Schema]:
    specs = signature.tensors
    if specs[0].name is None:
        schema = tensor_schema(specs[0])
        return {"inputs": schema, "instances": schema}
    named = {str(spec.name): tensor_schema(spec) for spec in specs}
    whole = object_of(named, list(named))
    if not signature.has_rows or not all(spec.shape for spec in specs):
        return {"inputs": whole}
    row = {str(spec.name): tensor_row_schema(spec) for spec in specs}
    return {"inputs": whole, "instances": rows_of(object_of(row, list(row)))}

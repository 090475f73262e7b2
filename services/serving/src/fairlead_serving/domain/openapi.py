"""Builds the OpenAPI document of a model from its signature."""

from collections.abc import Mapping, Sequence
from typing import Any

from fairlead_serving.domain.signature import (
    Anything,
    ArrayOf,
    Column,
    Kind,
    MapOf,
    ObjectOf,
    Param,
    Signature,
    Tensor,
    ValueType,
)

Schema = dict[str, Any]

_SCALARS: Mapping[Kind, Schema] = {
    Kind.BOOLEAN: {"type": "boolean"},
    Kind.INTEGER: {"type": "integer", "format": "int32"},
    Kind.LONG: {"type": "integer", "format": "int64"},
    Kind.FLOAT: {"type": ["number", "null"], "format": "float"},
    Kind.DOUBLE: {"type": ["number", "null"], "format": "double"},
    Kind.STRING: {"type": ["string", "null"]},
    Kind.BINARY: {"type": "string", "contentEncoding": "base64"},
    Kind.DATETIME: {"type": ["string", "null"], "format": "date-time"},
}
_ERRORS = {
    "400": "The payload is not of the model's signature.",
    "413": "The body is too long.",
    "415": "The content type is not known.",
    "500": "The model raised.",
    "503": "The model is still being loaded.",
}


def build_openapi(name: str, version: str, signature: Signature, example: object) -> Schema:
    """Build the document.

    Args:
        name: The name of the model.
        version: Its version; may be empty.
        signature: The model's.
        example: A payload that the model was saved with, or None.

    Returns:
        An OpenAPI 3.1 document.
    """
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": version or "0"},
        "servers": [{"url": "."}],
        "paths": {
            "/invocations": {"post": _invocations(example)},
            "/livez": {"get": _probe("isAlive", "Whether the process runs.")},
            "/readyz": {"get": _probe("isReady", "Whether the model is loaded and warm.")},
        },
        "components": {"schemas": _components(signature)},
    }


def _invocations(example: object) -> Schema:
    payload: Schema = {"schema": _ref("Payload")}
    if example is not None:
        payload["example"] = example
    return {
        "operationId": "predict",
        "summary": "Predict",
        "requestBody": {
            "required": True,
            "content": {"application/json": payload, "text/csv": {"schema": {"type": "string"}}},
        },
        "responses": {
            "200": _answer("The predictions, one for each row.", "Predictions"),
            **{code: _answer(words, "Error") for code, words in _ERRORS.items()},
        },
    }


def _probe(operation: str, summary: str) -> Schema:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": operation,
        "summary": summary,
        "responses": {
            "200": {"description": "Yes.", "content": text},
            "503": {"description": "No.", "content": text},
        },
    }


def _answer(words: str, schema: str) -> Schema:
    return {"description": words, "content": {"application/json": {"schema": _ref(schema)}}}


def _components(signature: Signature) -> Schema:
    forms = _tensor_forms(signature) if signature.tensors else _column_forms(signature)
    schemas: Schema = {
        "Payload": {"oneOf": [_form(key, schema) for key, schema in forms.items()]},
        "Params": _params(signature.params),
        "Predictions": _object({"predictions": _predictions(signature.outputs)}, ["predictions"]),
        "Error": _error(),
    }
    if signature.columns and signature.has_names:
        schemas["Record"] = _record(signature.columns)
    return schemas


def _form(key: str, schema: Schema) -> Schema:
    return _object({key: schema, "params": _ref("Params")}, [key])


def _error() -> Schema:
    text = {"type": "string"}
    optional = {"type": ["string", "null"], "description": "What the message is about."}
    return _object(
        {"error_code": text, "message": text, "field": optional}, ["error_code", "message"]
    )


def _column_forms(signature: Signature) -> Mapping[str, Schema]:
    record = _ref("Record") if signature.columns and signature.has_names else {"type": "object"}
    records = _list_of(record)
    values = records if signature.has_names else {}
    return {
        "dataframe_split": _split(signature.columns),
        "dataframe_records": records,
        "instances": values,
        "inputs": {"anyOf": [values, _columns(signature.columns)]} if values else {},
    }


def _tensor_forms(signature: Signature) -> Mapping[str, Schema]:
    if signature.tensors[0].name is None:
        schema = _tensor(signature.tensors[0])
    else:
        named = {str(spec.name): _tensor(spec) for spec in signature.tensors}
        schema = _object(named, list(named))
    return {"inputs": schema, "instances": schema if signature.tensors[0].name is None else {}}


def _record(columns: Sequence[Column]) -> Schema:
    properties = {str(column.name): _type(column.type) for column in columns}
    return _object(properties, [str(column.name) for column in columns if column.required])


def _columns(columns: Sequence[Column]) -> Schema:
    properties = {str(column.name): _list_of(_type(column.type)) for column in columns}
    return _object(properties, [str(column.name) for column in columns if column.required])


def _split(columns: Sequence[Column]) -> Schema:
    names: Schema = {"type": "string"}
    if columns and columns[0].name is not None:
        names["examples"] = [column.name for column in columns]
    return _object({"columns": _list_of(names), "data": _list_of(_list_of({}))}, ["data"])


def _params(params: Sequence[Param]) -> Schema:
    properties = {
        param.name: {
            **(_list_of(_type(param.type)) if param.is_list else _type(param.type)),
            "default": param.default,
        }
        for param in params
    }
    return {**_object(properties, []), "additionalProperties": False}


def _predictions(outputs: Sequence[Column | Tensor]) -> Schema:
    if not outputs:
        return {}
    if isinstance(outputs[0], Tensor):
        return _tensor(outputs[0]) if outputs[0].name is None else {}
    columns = [output for output in outputs if isinstance(output, Column)]
    if columns[0].name is None:
        return _list_of(_type(columns[0].type)) if len(columns) == 1 else {}
    return _list_of(_record(columns))


def _tensor(spec: Tensor) -> Schema:
    schema: Schema = _tensor_item(spec.dtype)
    for length in reversed(spec.shape):
        schema = _list_of(schema)
        if length >= 0:
            schema |= {"minItems": length, "maxItems": length}
    return schema


def _tensor_item(dtype: str) -> Schema:
    if dtype.startswith(("int", "uint")):
        return {"type": "integer"}
    if dtype.startswith("float"):
        return {"type": ["number", "null"]}
    return {"type": "boolean"} if dtype == "bool" else {}


def _type(kind: ValueType) -> Schema:
    match kind:
        case Kind():
            return dict(_SCALARS[kind])
        case ArrayOf(items):
            return _list_of(_type(items))
        case MapOf(values):
            return {"type": "object", "additionalProperties": _type(values)}
        case ObjectOf(properties):
            required = [item.name for item in properties if item.required]
            return _object({item.name: _type(item.type) for item in properties}, required)
        case Anything():
            return {}


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _object(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}

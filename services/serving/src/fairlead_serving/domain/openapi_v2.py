"""Describes the Open Inference Protocol of one model: its inputs, its outputs, its paths."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fairlead_serving.domain.openapi_parts import answer, content, read_of, refusals
from fairlead_serving.domain.schemas import (
    Schema,
    item_kind,
    item_schema,
    list_of,
    nullable,
    object_of,
    param_schema,
    ref,
    rows_of,
    tensor_schema,
    tuple_of,
    value_schema,
)
from fairlead_serving.domain.signature import (
    ArrayOf,
    Column,
    Kind,
    Param,
    Signature,
    Tensor,
    ValueType,
)
from fairlead_serving.domain.v2 import DEFAULT_OUTPUT, DTYPES

_TAG = "inference"
_TEXT: Schema = {"type": "string"}
_ROWS: Schema = {"type": "integer", "minimum": 1}
_WHOLE = ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8")
_REAL = ("FP64", "FP32", "FP16")
_TAKEN: Mapping[ValueType, tuple[str, ...]] = {
    Kind.BOOLEAN: ("BOOL",),
    Kind.INTEGER: ("INT32", "INT16", "INT8", "UINT16", "UINT8"),
    Kind.LONG: _WHOLE,
    Kind.FLOAT: ("FP32", "FP16", *_WHOLE),
    Kind.DOUBLE: (*_REAL, *_WHOLE),
}
"""The datatypes whose values a column takes as they are, its own first; else text."""
_GIVEN: Mapping[ValueType, tuple[str, ...]] = {
    Kind.BOOLEAN: ("BOOL",),
    Kind.INTEGER: _WHOLE,
    Kind.LONG: _WHOLE,
    Kind.FLOAT: _REAL,
    Kind.DOUBLE: _REAL,
}
_BYTES = ("BYTES",)
_REFUSALS = {
    "400": "The request is not of the protocol, or not of the model's signature.",
    "408": "The request took too long to arrive.",
    "413": "The body is too long, or has too many rows.",
    "415": "A `content-encoding` says that the body is compressed.",
    "500": "The model raised.",
    "503": "The model is still being loaded, or has too much to do.",
}
_INFER = """Inputs come in the order of the signature here; any order is taken. The values fill
the shape, flat or nested, and all inputs have one number of rows. Columns may also be one input of
the shape [rows, columns]. A parameter that the model does not declare is left out.

As `application/octet-stream` the values of inputs may be bytes behind the JSON, in the order of the
inputs: each says `binary_data_size` in its parameters and has no `data`; the header
`Inference-Header-Content-Length` says how many bytes are JSON."""
_LENGTH: Schema = {
    "description": "How many bytes of the body are JSON; the others are values of tensors.",
    "schema": {"type": "integer", "minimum": 0},
}


def infer_components(name: str, version: str, signature: Signature) -> Schema:
    """Give the schemas of the protocol.

    Args:
        name: The name of the model.
        version: Its version; may be empty.
        signature: The model's.

    Returns:
        Schemas by name.
    """
    inputs, outputs = _inputs(signature), _outputs(signature.outputs)
    return {
        **{name: schema for variants in inputs for name, schema in variants.items()},
        **{f"InferOutput{number}": schema for number, schema in enumerate(outputs, 1)},
        "InferRequest": _request(signature),
        "InferRequestedOutput": _requested(signature.outputs),
        "InferResponse": _response(name, version, len(outputs)),
        "InferError": object_of({"error": _TEXT}, ["error"]),
        "ServerMetadata": object_of(
            {"name": _TEXT, "version": _TEXT, "extensions": list_of(_TEXT)},
            ["name", "version", "extensions"],
        ),
        "ServerLive": object_of({"live": {"type": "boolean"}}, ["live"]),
        "ServerReady": object_of({"ready": {"type": "boolean"}}, ["ready"]),
        "ModelReady": object_of(
            {"name": _one(name), "ready": {"type": "boolean"}}, ["name", "ready"]
        ),
        "ModelMetadata": _metadata(name),
        "TensorMetadata": object_of(
            {"name": _TEXT, "datatype": _enum(DTYPES), "shape": list_of({"type": "integer"})},
            ["name", "datatype", "shape"],
        ),
    }


def infer_paths(name: str, version: str, example: object) -> Schema:
    """Give the paths of the protocol, with the model's own name and version in them.

    Args:
        name: The name of the model.
        version: Its version; may be empty.
        example: An infer request, or None.

    Returns:
        Path items by path.
    """
    model = f"/v2/models/{quote(name, safe='')}"
    paths = {
        "/v2": _read("getServer", "What serves", "ServerMetadata", {}),
        "/v2/health/live": _read("isServerLive", "Whether the process runs", "ServerLive", {}),
        "/v2/health/ready": _state("isServerReady", "Whether the model is ready", "ServerReady"),
    }
    for prefix, suffix in ((model, ""), (f"{model}/versions/{version or '1'}", "OfVersion")):
        paths[prefix] = _read(
            f"getModel{suffix}",
            "The inputs and outputs of the model",
            "ModelMetadata",
            {"503": "The model is still being loaded."},
        )
        paths[f"{prefix}/ready"] = _state(
            f"isModelReady{suffix}", "Whether the model is ready", "ModelReady"
        )
        paths[f"{prefix}/infer"] = {"post": _infer(f"infer{suffix}", example)}
    # The gateway has these at its root, and the document two levels down.
    return {path: item | {"servers": [{"url": "../.."}]} for path, item in paths.items()}


def _read(operation: str, summary: str, schema: str, refused: Mapping[str, str]) -> Schema:
    responses = {"200": answer("It answers.", schema), **refusals(refused, "InferError")}
    return read_of(operation, _TAG, summary, responses)


def _state(operation: str, summary: str, schema: str) -> Schema:
    responses = {"200": answer("Yes.", schema), "503": answer("Not now.", schema)}
    return read_of(operation, _TAG, summary, responses)


def _infer(operation: str, example: object) -> Schema:
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    good = answer("The outputs, one value or more for each row.", "InferResponse")
    good["content"] |= binary
    good["headers"] = {"Inference-Header-Content-Length": _LENGTH}
    return {
        "operationId": operation,
        "tags": [_TAG],
        "summary": "Predict",
        "description": _INFER,
        "parameters": [{"name": "Inference-Header-Content-Length", "in": "header", **_LENGTH}],
        "requestBody": {
            "required": True,
            "content": content(ref("InferRequest"), example) | binary,
        },
        "responses": {"200": good, **refusals(_REFUSALS, "InferError")},
    }


def _request(signature: Signature) -> Schema:
    properties = {
        "id": _TEXT,
        "inputs": _input_list(signature),
        "outputs": list_of(ref("InferRequestedOutput")),
        "parameters": _parameters(signature.params),
    }
    return object_of(properties, ["inputs"])


def _input_list(signature: Signature) -> Schema:
    if not signature.has_inputs:
        return rows_of(ref("InferInput1"))
    specs: Sequence[Column | Tensor] = signature.columns or signature.tensors
    refs = [_ref_to(variants) for variants in _inputs(signature)]
    required = [
        schema
        for schema, spec in zip(refs, specs, strict=True)
        if isinstance(spec, Tensor) or spec.required
    ]
    optional = [schema for schema in refs if schema not in required]
    if not optional:
        return tuple_of(required)
    lengths = {"minItems": max(len(required), 1), "maxItems": len(refs)}
    first = {"prefixItems": required} if required else {}
    return {"type": "array", **first, "items": {"oneOf": optional}, **lengths}


def _ref_to(variants: Mapping[str, Schema]) -> Schema:
    refs = [ref(name) for name in variants]
    return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _parameters(params: Sequence[Param]) -> Schema:
    properties = {param.name: param_schema(param) for param in params}
    binary: Schema = {"type": "boolean", "description": "Answer with bytes behind the JSON."}
    return object_of({**properties, "binary_data_output": binary}, [])


def _inputs(signature: Signature) -> list[Mapping[str, Schema]]:
    """Give the schemas of each input by name: one, or one for each way to say it."""
    if signature.tensors:
        is_only = len(signature.tensors) == 1
        return [
            {f"InferInput{number}": _tensor_input(spec, is_only=is_only)}
            for number, spec in enumerate(signature.tensors, 1)
        ]
    if signature.columns:
        return [
            _column_inputs(f"InferInput{number}", spec)
            for number, spec in enumerate(signature.columns, 1)
        ]
    shape = rows_of({"type": "integer", "minimum": 1})
    return [{"InferInput1": _input(_TEXT, shape, tuple(DTYPES), rows_of({}))}]


def _tensor_input(spec: Tensor, *, is_only: bool) -> Schema:
    kind = item_kind(spec.dtype)
    lengths: list[Schema] = [
        {"type": "integer", **({"minimum": 1} if length < 0 else {"const": length})}
        for length in spec.shape
    ]
    data: Schema = {"anyOf": [rows_of(item_schema(spec.dtype)), tensor_schema(spec)]}
    name = _TEXT if is_only else _one(str(spec.name))
    return _input(
        name,
        tuple_of(lengths),
        _TAKEN.get(kind, _BYTES),
        data if len(spec.shape) > 1 else tensor_schema(spec),
    )


def _column_inputs(component: str, spec: Column) -> Mapping[str, Schema]:
    name, kind = _TEXT if spec.name is None else _one(spec.name), spec.type
    if isinstance(kind, Kind):
        return {component: _plain_input(name, kind)}
    json: Schema = {"type": "string", "contentMediaType": "application/json"}
    text = _input(name, tuple_of([_ROWS]), _BYTES, rows_of(json))
    if not isinstance(kind, ArrayOf) or not isinstance(kind.items, Kind):
        return {component: text}
    value = value_schema(kind)["items"]
    data = {"anyOf": [rows_of(value), rows_of(rows_of(value))]}
    lists = _input(name, tuple_of([_ROWS, _ROWS]), _TAKEN.get(kind.items, _BYTES), data)
    return {f"{component}AsLists": lists, f"{component}AsText": text}


def _plain_input(name: Schema, kind: Kind) -> Schema:
    value = value_schema(kind)
    data = {"anyOf": [rows_of(value), rows_of(tuple_of([value]))]}
    shape = {"type": "array", "prefixItems": [_ROWS, {"type": "integer", "const": 1}]}
    schema = _input(name, shape | {"minItems": 1, "maxItems": 2}, _TAKEN.get(kind, _BYTES), data)
    if kind is Kind.BINARY:
        base64 = object_of({"content_type": _one("base64")}, ["content_type"])
        schema["properties"]["parameters"] = base64
        schema["required"].append("parameters")
    return schema


def _input(name: Schema, shape: Schema, datatypes: Sequence[str], data: Schema) -> Schema:
    properties = {
        "name": name,
        "shape": shape,
        "datatype": _enum(datatypes),
        "data": data,
        "parameters": {"type": "object"},
    }
    return object_of(properties, ["name", "shape", "datatype", "data"])


def _response(name: str, version: str, outputs: int) -> Schema:
    described = [ref(f"InferOutput{number}") for number in range(1, outputs + 1)]
    properties = {
        "model_name": _one(name),
        "outputs": list_of(described[0] if outputs == 1 else {"anyOf": described}),
        "parameters": object_of({"content_type": _enum(("np", "str", "pd"))}, ["content_type"]),
        "id": {**_TEXT, "description": "That of the request, if it has one."},
    }
    required = ["model_name", "outputs", "parameters"]
    if not version:
        return object_of(properties, required)
    return object_of({**properties, "model_version": _one(version)}, [*required, "model_version"])


def _outputs(outputs: Sequence[Column | Tensor]) -> list[Schema]:
    names = _output_names(outputs)
    if not names:
        return [_output(_TEXT, tuple(DTYPES), {})]
    return [
        _output(_one(name), *_output_type(spec)) for name, spec in zip(names, outputs, strict=True)
    ]


def _output_names(outputs: Sequence[Column | Tensor]) -> list[str]:
    """Give the names of the outputs, as far as the signature tells them."""
    if len(outputs) == 1:
        return [outputs[0].name or DEFAULT_OUTPUT]
    return (
        [] if any(spec.name is None for spec in outputs) else [str(spec.name) for spec in outputs]
    )


def _output_type(spec: Column | Tensor) -> tuple[Sequence[str], Schema]:
    """Give the datatypes of an output and the schema of one value; nested values are text."""
    kind = item_kind(spec.dtype) if isinstance(spec, Tensor) else spec.type
    if kind not in _GIVEN:
        return _BYTES, nullable(_TEXT)
    value = item_schema(spec.dtype) if isinstance(spec, Tensor) else value_schema(kind)
    return _GIVEN[kind], value


def _output(name: Schema, datatypes: Sequence[str], value: Schema) -> Schema:
    size: Schema = {
        "type": "integer",
        "minimum": 0,
        "description": "How many bytes behind the JSON are its values; then there is no data.",
    }
    parameters = {"content_type": _enum(("np", "str")), "binary_data_size": size}
    properties = {
        "name": name,
        "datatype": _enum(datatypes),
        "shape": list_of({"type": "integer", "minimum": 0}),
        "parameters": object_of(parameters, ["content_type"]),
        "data": list_of(value),
    }
    return object_of(properties, ["name", "datatype", "shape", "parameters"])


def _requested(outputs: Sequence[Column | Tensor]) -> Schema:
    names = _output_names(outputs)
    name = _enum(names) if names else _TEXT
    binary: Schema = {"type": "boolean", "description": "Give its values as bytes."}
    parameters = object_of({"binary_data": binary}, [])
    return object_of({"name": name, "parameters": parameters}, ["name"])


def _metadata(name: str) -> Schema:
    properties: dict[str, Any] = {
        "name": _one(name),
        "versions": list_of(_TEXT),
        "platform": _one("mlflow"),
        "inputs": list_of(ref("TensorMetadata")),
        "outputs": list_of(ref("TensorMetadata")),
    }
    return object_of(properties, list(properties))


def _one(value: str) -> Schema:
    return {"type": "string", "const": value}


def _enum(values: Sequence[str] | Mapping[str, str]) -> Schema:
    return {"type": "string", "enum": list(values)}

"""The JSON Schemas of what a signature describes: values, columns, tensors, parameters, answers.

A schema is as strict as MLflow's own form of a value. What is taken beyond it (a number as text,
0 and 1 for booleans) is in `docs/reference/input-types.md`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fairlead_serving.domain.nested import MISSING_ITEMS, takes_null
from fairlead_serving.domain.scalars import FLOAT16_MAX, FLOAT32_MAX, FLOAT64_MAX, RANGES
from fairlead_serving.domain.signature import (
    Anything,
    ArrayOf,
    Column,
    Kind,
    MapOf,
    ObjectOf,
    Param,
    Tensor,
    ValueType,
)
from fairlead_serving.domain.tensors import whole_range
from fairlead_serving.domain.values import MAY_NOT_MISS

Schema = dict[str, Any]

_DAY = (
    r"(16(7[89]|[89][0-9])|1[7-9][0-9]{2}|2([01][0-9]{2}|2([0-5][0-9]|6[01])))"
    r"-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
    r"|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|[12][0-9]))"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6}0*)?)?"
_ZONE = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_MAY_LACK = "May be left out, or null, if it is so in every row."


def _number(name: str, low: float, high: float) -> Schema:
    kind = "integer" if name.startswith("int") else "number"
    return {"type": kind, "format": name, "minimum": low, "maximum": high}


_SCALARS: Mapping[Kind, Schema] = {
    Kind.BOOLEAN: {"type": "boolean"},
    Kind.INTEGER: _number("int32", *RANGES[Kind.INTEGER]),
    Kind.LONG: _number("int64", *RANGES[Kind.LONG]),
    Kind.FLOAT: _number("float", -FLOAT32_MAX, FLOAT32_MAX),
    Kind.DOUBLE: _number("double", -FLOAT64_MAX, FLOAT64_MAX),
    Kind.STRING: {"type": "string"},
    Kind.BINARY: {
        "type": "string",
        "contentEncoding": "base64",
        "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    },
    # Not `format: date-time`, which is not without a zone, as MLflow's datetime is.
    Kind.DATETIME: {
        "type": "string",
        "pattern": f"^{_DAY}([T ]{_TIME}{_ZONE}?)?$",
        "description": "A date and time in ISO 8601; one with a zone becomes UTC.",
    },
}

_ITEMS: Mapping[str, Schema] = {
    "str": {"type": "string"},
    "bytes": {"type": "string", "pattern": "^[\\u0000-\\u007f]*$"},
    "object": {},
}
_KINDS = {"bool": Kind.BOOLEAN, "float16": Kind.FLOAT, "float32": Kind.FLOAT}


def value_schema(kind: ValueType, *, required: bool = True) -> Schema:
    """Describe the values of a column; null is one of those that may be missing."""
    if not isinstance(kind, Kind):
        return _nested_schema(kind, required=required)
    return dict(_SCALARS[kind]) if kind in MAY_NOT_MISS else nullable(_SCALARS[kind])


def _nested_schema(kind: ValueType, *, required: bool) -> Schema:
    """Describe what `read_nested` takes."""
    schema = _schema_of(kind, required=required)
    return schema if required and not takes_null(kind) else nullable(schema)


def _schema_of(kind: ValueType, *, required: bool) -> Schema:
    match kind:
        case Kind():
            return dict(_SCALARS[kind])
        case ArrayOf(Kind() as items):
            scalar = _SCALARS[items]
            return list_of(nullable(scalar) if items in MISSING_ITEMS else dict(scalar))
        case ArrayOf(items):
            return list_of(_nested_schema(items, required=required))
        case MapOf(values):
            schema = _nested_schema(values, required=required)
            return {"type": "object", "additionalProperties": schema}
        case ObjectOf():
            return _object_schema(kind, required=required)
        case Anything():
            return {}


def _object_schema(kind: ObjectOf, *, required: bool) -> Schema:
    fields = {
        item.name: _nested_schema(item.type, required=item.required) for item in kind.properties
    }
    needed = [item.name for item in kind.properties if item.required]
    schema = object_of(fields, needed) | {"additionalProperties": False}
    if required or not needed:
        return schema
    return {"anyOf": [schema, {"type": "object", "maxProperties": 0}]}


def column_schema(column: Column) -> Schema:
    """Describe one value of a column."""
    schema = value_schema(column.type, required=column.required)
    if column.required or column.type not in MAY_NOT_MISS or not schema:
        return schema
    return nullable(schema) | {"description": _MAY_LACK}


def record_schema(columns: Sequence[Column]) -> Schema:
    """Describe a row as an object."""
    properties = {str(column.name): column_schema(column) for column in columns}
    required = [str(column.name) for column in columns if column.required]
    schema = object_of(properties, required)
    return schema if required else schema | {"minProperties": 1}


def row_schema(columns: Sequence[Column]) -> Schema:
    """Describe a row as a list, in the order of the signature."""
    return tuple_of([column_schema(column) for column in columns])


def lists_schema(columns: Sequence[Column]) -> Schema:
    """Describe a table as an object with a list for each column."""
    properties = {str(column.name): rows_of(column_schema(column)) for column in columns}
    required = [str(column.name) for column in columns if column.required]
    schema = object_of(properties, required) | {
        "additionalProperties": False,
        "description": "The lists have one length.",
    }
    return schema if required else schema | {"minProperties": 1}


def params_schema(params: Sequence[Param]) -> Schema:
    """Describe the inference parameters, with their defaults."""
    properties = {
        param.name: {
            **param_schema(param),
            "default": param.default,
        }
        for param in params
    }
    return object_of(properties, []) | {"additionalProperties": False}


def param_schema(param: Param) -> Schema:
    """Describe one inference parameter; MLflow takes null for any scalar."""
    kind = param.type
    value = nullable(_SCALARS[kind]) if isinstance(kind, Kind) else value_schema(kind)
    return list_of(value) if param.is_list else value


def tensor_schema(spec: Tensor) -> Schema:
    """Describe a tensor as nested lists; a length that the signature leaves open is at least 1."""
    schema = item_schema(spec.dtype)
    for length in reversed(spec.shape):
        schema = rows_of(schema) if length < 0 else fixed_list_of(schema, length)
    return schema


def tensor_row_schema(spec: Tensor) -> Schema:
    """Describe what one row has of a tensor."""
    return tensor_schema(Tensor(spec.name, spec.dtype, spec.shape[1:]))


def item_schema(dtype: str) -> Schema:
    """Describe an item of a tensor."""
    whole = whole_range(dtype)
    if whole is not None:
        low, high = whole
        return {"type": "integer", "minimum": low, "maximum": high}
    if dtype == "float16":
        return nullable(_number("float", -FLOAT16_MAX, FLOAT16_MAX))
    if dtype in _ITEMS:
        return dict(_ITEMS[dtype])
    return value_schema(item_kind(dtype))


def item_kind(dtype: str) -> Kind:
    """Give the kind of column whose values are most like those of a tensor."""
    if whole_range(dtype) is not None:
        return Kind.LONG
    if dtype in _ITEMS:
        return Kind.STRING
    if dtype.startswith("datetime"):
        return Kind.DATETIME
    return _KINDS.get(dtype, Kind.DOUBLE)


def predictions_schema(outputs: Sequence[Column | Tensor]) -> Schema:
    """Describe what `predictions` holds; a model may give one answer for all rows at once."""
    columns = [output for output in outputs if isinstance(output, Column)]
    tensors = [output for output in outputs if isinstance(output, Tensor)]
    if tensors and tensors[0].name is None:
        return _given_schema(tensors[0])
    if tensors:
        named = {str(spec.name): _given_schema(spec) for spec in tensors}
        return object_of(named, list(named))
    if not columns:
        return {}
    if columns[0].name is None:
        return _one_or_many(column_schema(columns[0])) if len(columns) == 1 else {}
    record = record_schema(columns)
    values = [list_of(column_schema(columns[0]))] if len(columns) == 1 else []
    return {"anyOf": [list_of(record), record, *values]}


def _given_schema(spec: Tensor) -> Schema:
    """Describe a tensor that a model gives, which may be empty where its length is open."""
    schema = item_schema(spec.dtype)
    for length in reversed(spec.shape):
        schema = list_of(schema) if length < 0 else fixed_list_of(schema, length)
    return schema


def _one_or_many(schema: Schema) -> Schema:
    return {"anyOf": [list_of(schema), schema]} if schema else {}


def nullable(schema: Schema) -> Schema:
    """Describe the same, or null."""
    if not schema:
        return {}
    if isinstance(schema.get("type"), str):
        return schema | {"type": [schema["type"], "null"]}
    return schema if "null" in schema.get("type", ()) else {"anyOf": [schema, {"type": "null"}]}


def list_of(schema: Schema) -> Schema:
    """Describe a list."""
    return {"type": "array", "items": schema}


def rows_of(schema: Schema) -> Schema:
    """Describe a list that is not empty."""
    return list_of(schema) | {"minItems": 1}


def fixed_list_of(schema: Schema, length: int) -> Schema:
    """Describe a list of a length."""
    return list_of(schema) | {"minItems": length, "maxItems": length}


def tuple_of(schemas: Sequence[Schema]) -> Schema:
    """Describe a list with a schema for each item."""
    if all(schema == schemas[0] for schema in schemas):
        return fixed_list_of(schemas[0], len(schemas))
    length = len(schemas)
    return {"type": "array", "prefixItems": [*schemas], "minItems": length, "maxItems": length}


def object_of(properties: Schema, required: list[str]) -> Schema:
    """Describe an object."""
    return {"type": "object", "properties": properties, "required": required}


def ref(name: str) -> Schema:
    """Refer to a component."""
    return {"$ref": f"#/components/schemas/{name}"}

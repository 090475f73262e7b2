"""The Open Inference Protocol, version 2: reads infer requests against a signature.

Values come as JSON lists, flat or nested, or as bytes behind the JSON (the binary tensor extension
of the Triton clients); gRPC has the same tensors in its own messages. How inputs meet a signature:

- tensors: by name; a single input fits a single tensor whatever it is called
- columns: an input of the shape [rows] or [rows, 1] for each, by name, as MLServer's pandas
  convention has it; or a single input of the shape [rows, columns], by position
- no signature: a single input is an array, several are columns
"""

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson

from fairlead_serving.domain.data import Array, Columns, Data, Layout, Records, Request
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.params import read_params
from fairlead_serving.domain.scalars import FLOAT16_MAX, FLOAT32_MAX, FLOAT64_MAX
from fairlead_serving.domain.signature import (
    ArrayOf,
    Column,
    Kind,
    Name,
    Signature,
    Tensor,
    ValueType,
)
from fairlead_serving.domain.tensors import (
    check_array,
    flatten,
    place_of,
    to_tensors,
    whole_range,
)
from fairlead_serving.domain.values import is_given, read_column

DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
"""The protocol's datatypes and what numpy calls them."""

_REALS = {"FP16": FLOAT16_MAX, "FP32": FLOAT32_MAX, "FP64": FLOAT64_MAX}
DEFAULT_OUTPUT = "output-1"
"""What MLServer calls the only output of an MLflow model."""

_CODES = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}


class Input(msgspec.Struct, frozen=True):
    """One input.

    Attributes:
        field: Where it is in the request: its name is the caller's word, which no message holds.
        name: What the caller calls it.
        shape: Its shape.
        datatype: Its datatype.
        values: Its values in C order.
        content_type: What strings are by MLServer's word: `base64` bytes, `pd_json` JSON.
    """

    field: str
    name: str
    shape: tuple[int, ...]
    datatype: str
    values: Sequence[Any]
    content_type: str = ""


KINDS: Mapping[ValueType, str] = {
    Kind.BOOLEAN: "BOOL",
    Kind.INTEGER: "INT32",
    Kind.LONG: "INT64",
    Kind.FLOAT: "FP32",
    Kind.DOUBLE: "FP64",
    Kind.STRING: "BYTES",
    Kind.BINARY: "BYTES",
    Kind.DATETIME: "BYTES",
}
"""The datatype that a column's values have."""


class Wanted(msgspec.Struct, frozen=True):
    """An output that was asked for by name, in JSON or as bytes (`binary_data`)."""

    name: str
    parameters: dict[str, Any] = {}


class Infer(msgspec.Struct, frozen=True):
    """An infer request.

    Attributes:
        request: What to predict on.
        id: What the caller calls it.
        outputs: The outputs that were asked for; all if there are none.
        is_binary: Whether outputs are wanted as bytes unless one says otherwise.
    """

    request: Request
    id: str | None = None
    outputs: Sequence[Wanted] = ()
    is_binary: bool = False


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class _Document(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[Wanted] | None = None


_decode = msgspec.json.Decoder(_Document).decode


def read_infer(body: bytes, json_length: int | None, signature: Signature) -> Infer:
    """Read the body of an infer request.

    Args:
        body: JSON, and behind it the values of binary tensors.
        json_length: How many bytes are JSON; None if all are.
        signature: The model's.

    Returns:
        The checked request.

    Raises:
        BadInputError: It is not of the protocol, or not of the signature.
    """
    document = _parse(body if json_length is None else body[:json_length])
    inputs = _read_inputs(document.inputs, b"" if json_length is None else body[json_length:])
    parameters = document.parameters or {}
    return Infer(
        to_request(inputs, parameters, signature),
        document.id,
        document.outputs or (),
        parameters.get("binary_data_output") is True,
    )


def to_request(
    inputs: Sequence[Input], parameters: Mapping[str, Any], signature: Signature
) -> Request:
    """Check inputs against a signature.

    Args:
        inputs: The inputs.
        parameters: Those of the request; what the signature does not declare is the protocol's
            business, or another server's.
        signature: The model's.

    Returns:
        What to predict on.

    Raises:
        BadInputError: They are not of the signature.
    """
    if not inputs:
        raise BadInputError("There are no inputs.", "inputs")
    if len({tensor.name for tensor in inputs}) < len(inputs):
        raise BadInputError("'inputs' names a tensor twice.", "inputs")
    for tensor in inputs:
        _check_whole(tensor)
    known = {param.name for param in signature.params}
    given = {name: value for name, value in parameters.items() if name in known}
    return Request(_to_data(inputs, signature), read_params(given, signature.params))


def _parse(body: bytes) -> _Document:
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        # The message names types and the path, never a value.
        raise BadInputError(f"The body is not an infer request: {error}.", _path(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError("The body is not valid JSON.") from error


def _path(error: msgspec.ValidationError) -> str | None:
    _, found, path = str(error).rpartition(" - at `$.")
    return path.rstrip("`") if found else None


def _read_inputs(tensors: Sequence[_Tensor], binary: bytes) -> list[Input]:
    inputs, at = [], 0
    for number, tensor in enumerate(tensors):
        field, parameters = f"inputs[{number}]", tensor.parameters or {}
        size = parameters.get("binary_data_size")
        if size is None:
            values = _listed(field, tensor)
        elif type(size) is int and 0 <= size <= len(binary) - at:
            values = unpack(field, tensor.datatype, binary[at : at + size])
            at += size
        else:
            raise BadInputError(f"'{field}' has a binary_data_size that is not in the body.", field)
        kind = str(parameters.get("content_type"))
        shape = tuple(tensor.shape)
        inputs.append(Input(field, tensor.name, shape, tensor.datatype, values, kind))
    if at < len(binary):
        raise BadInputError("There are bytes behind the JSON that no input names.", "inputs")
    return inputs


def _listed(field: str, tensor: _Tensor) -> Sequence[Any]:
    if tensor.data is None:
        raise BadInputError(f"'{field}' has no data.", field)
    if any(type(item) is list for item in tensor.data):
        return flatten(field, tensor.data)[0]
    return tensor.data


def _check_whole(tensor: Input) -> None:
    if tensor.datatype not in DTYPES:
        words = f"'{tensor.field}' has a datatype that is none of {', '.join(DTYPES)}."
        raise BadInputError(words, tensor.field)
    shape, count = list(tensor.shape), len(tensor.values)
    if any(length < 0 for length in shape) or math.prod(shape) != count:
        words = f"'{tensor.field}' has {count} values, which do not fill the shape {shape}."
        raise BadInputError(words, tensor.field)
    _check_values(tensor, _DATATYPES[tensor.datatype])


class _Datatype(msgspec.Struct, frozen=True):
    """What values of a datatype are.

    Attributes:
        words: What to call one.
        types: Python's types for it.
        low: The smallest number.
        high: The largest.
    """

    words: str
    types: frozenset[type]
    low: float = 0
    high: float = 0

    def has(self, value: Any) -> bool:
        """Tell whether a value is one, or null: the signature says whether it may be missing."""
        # JSON does not tell 7.0 from 7.
        is_whole = type(value) is float and value.is_integer() and int in self.types
        is_one = is_whole or type(value) in self.types
        return value is None or (is_one and (not self.high or self.fits([value])))

    def fits(self, numbers: Sequence[float]) -> bool:
        """Tell whether numbers are in the range; NaN is, for those that have it."""
        return not (min(numbers) < self.low or max(numbers) > self.high)


def _datatype(name: str) -> _Datatype:
    if name in _REALS:
        words = f"a finite number of {name[2:]} bits ({name})"
        return _Datatype(words, frozenset({int, float}), -_REALS[name], _REALS[name])
    whole = whole_range(DTYPES[name])
    if whole is not None:
        low, high = whole
        return _Datatype(f"a whole number from {low} to {high} ({name})", frozenset({int}), *whole)
    if name == "BOOL":
        return _Datatype("true or false (BOOL)", frozenset({bool, int}), 0, 1)
    return _Datatype("a string (BYTES)", frozenset({str, bytes}))


_DATATYPES = {name: _datatype(name) for name in DTYPES}


def _check_values(tensor: Input, datatype: _Datatype) -> None:
    """Check values against the datatype that the caller gave them, whatever the model takes."""
    values = tensor.values
    is_plain = datatype.types.issuperset(map(type, values))
    if is_plain and (not values or not datatype.high or datatype.fits(values)):
        return
    wrong = next((at for at, value in enumerate(values) if not datatype.has(value)), None)
    if wrong is not None:
        place = f"{tensor.field}.data{place_of(wrong, tensor.shape)}"
        raise BadInputError(f"'{place}' is not {datatype.words}.", place)


def unpack(field: str, datatype: str, data: bytes) -> Sequence[Any]:
    """Read the values of a binary tensor: little-endian; strings have their length before them.

    Args:
        field: Where the tensor is in the request, for messages.
        datatype: Its datatype.
        data: Its bytes.

    Returns:
        The values in C order.

    Raises:
        BadInputError: The bytes are not whole values.
    """
    if datatype == "BYTES":
        return _unpack_strings(field, data)
    code = _CODES.get(datatype)
    if code is None or len(data) % struct.calcsize(f"<{code}"):
        raise BadInputError(f"'{field}' has bytes that are no values of its datatype.", field)
    return struct.unpack(f"<{len(data) // struct.calcsize(f'<{code}')}{code}", data)


def _unpack_strings(field: str, data: bytes) -> list[bytes]:
    strings, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at) if at + 4 <= len(data) else (len(data),)
        at += 4 + length
        if at > len(data):
            raise BadInputError(f"'{field}' has bytes that are no strings.", field)
        strings.append(data[at - length : at])
    return strings


def _to_data(inputs: Sequence[Input], signature: Signature) -> Data:
    if signature.tensors:
        return _to_tensors(inputs, signature.tensors)
    if signature.columns:
        return _to_table(inputs, signature)
    return _unchecked(inputs)


def _to_tensors(inputs: Sequence[Input], specs: Sequence[Tensor]) -> Data:
    by_name = {tensor.name: tensor for tensor in inputs}
    if len(specs) == 1 and len(inputs) == 1:
        by_name = {str(specs[0].name): inputs[0]}
    arrays = {}
    for spec in specs:
        tensor = by_name.get(str(spec.name))
        if tensor is None:
            what = "a single input" if spec.name is None else f"the input '{spec.name}'"
            raise BadInputError(f"The model takes {what}, which is missing.", spec.name)
        arrays[spec.name] = check_array(tensor.field, _plain(tensor), tensor.shape, spec)
    return to_tensors(arrays)


def _to_table(inputs: Sequence[Input], signature: Signature) -> Data:
    columns, names = signature.columns, signature.column_names
    if (
        len(inputs) == 1
        and inputs[0].shape[1:] == (len(columns),)
        and (len(columns) > 1 or inputs[0].name not in names)
    ):
        return _by_position(inputs[0], columns, names)
    by_name: Mapping[Name, Input] = {tensor.name: tensor for tensor in inputs}
    if not signature.has_names and len(inputs) == len(columns):
        by_name = dict(enumerate(inputs))
    return _by_name(by_name, columns, names)


def _by_position(tensor: Input, columns: Sequence[Column], names: tuple[Name, ...]) -> Data:
    if not tensor.values:
        raise BadInputError("There are no rows.", tensor.field)
    width, values = len(columns), _plain(tensor)
    layout = Layout(names, tuple(spec.type for spec in columns))
    if layout.only_type is not None:
        values = read_column(tensor.field, values, layout.only_type)
        rows = [values[at : at + width] for at in range(0, len(values), width)]
        return Records(layout, rows)
    by_column = [values[at::width] for at in range(width)]
    cells = [
        read_column(tensor.field, column, spec.type, required=spec.required)
        for column, spec in zip(by_column, columns, strict=True)
    ]
    return Columns(layout, cells)


def _by_name(
    by_name: Mapping[Name, Input], columns: Sequence[Column], names: Sequence[Name]
) -> Data:
    kept = []
    for name, spec in zip(names, columns, strict=True):
        tensor = by_name.get(name)
        if tensor is None and spec.required:
            raise BadInputError(f"The input '{name}' is missing.", str(name))
        cells = None if tensor is None else _cells(tensor, spec)
        if cells is not None and is_given(spec, cells):
            read = read_column(str(name), cells, spec.type, required=spec.required)
            kept.append((name, spec.type, read))
    if len({len(cells) for *_, cells in kept}) != 1:
        raise BadInputError("The inputs differ in how many rows they have.", "inputs")
    if not kept[0][2]:
        raise BadInputError("There are no rows.", "inputs")
    chosen, types, found = zip(*kept, strict=True)
    return Columns(Layout(chosen, types), found)


def _cells(tensor: Input, spec: Column) -> Sequence[Any]:
    """Give one value for each row, as JSON would have it."""
    values = _plain(tensor)
    if spec.type is Kind.BINARY and tensor.content_type != "base64":
        raw = (value.encode() if isinstance(value, str) else value for value in tensor.values)
        return [base64.b64encode(value).decode() if value else value for value in raw]
    is_json = tensor.content_type == "pd_json"
    if isinstance(spec.type, ArrayOf) and len(tensor.shape) == 2 and not is_json:  # noqa: PLR2004
        width = tensor.shape[1]
        return [list(values[at : at + width]) for at in range(0, len(values), width or 1)]
    if tensor.shape[1:] not in {(), (1,)}:
        raise BadInputError(
            f"'{tensor.field}' must have the shape [rows] or [rows, 1], not {list(tensor.shape)}.",
            tensor.field,
        )
    if isinstance(spec.type, Kind) and not is_json:
        return values
    return [_json(tensor.field, one) for one in values]


def _json(field: str, value: object) -> object:
    """Read a nested value, which the protocol can only send as text."""
    try:
        return orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError as error:
        raise BadInputError(f"'{field}' must hold JSON.", field) from error


def _plain(tensor: Input) -> Sequence[Any]:
    """Give the values with strings for bytes."""
    if tensor.datatype != "BYTES":
        return tensor.values
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in tensor.values]
    except UnicodeDecodeError as error:
        raise BadInputError(f"'{tensor.field}' is not in UTF-8.", tensor.field) from error


def _unchecked(inputs: Sequence[Input]) -> Data:
    if len(inputs) > 1 and all(tensor.shape[1:] in {(), (1,)} for tensor in inputs):
        if len({len(tensor.values) for tensor in inputs}) > 1:
            raise BadInputError("The inputs differ in how many rows they have.", "inputs")
        names = tuple(tensor.name for tensor in inputs)
        return Columns(Layout(names), [_plain(tensor) for tensor in inputs])
    arrays: dict[str | None, Array] = {
        tensor.name: check_array(
            tensor.field,
            _plain(tensor),
            tensor.shape,
            Tensor(tensor.name, DTYPES[tensor.datatype], tensor.shape),
        )
        for tensor in inputs
    }
    return to_tensors({None: next(iter(arrays.values()))} if len(arrays) == 1 else arrays)

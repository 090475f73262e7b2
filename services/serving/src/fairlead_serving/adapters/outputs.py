"""Turns predictions into the output tensors of the Open Inference Protocol, and writes them."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from fairlead_serving.domain.answers import Answer
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.signature import Column, Tensor
from fairlead_serving.domain.v2 import DEFAULT_OUTPUT, DTYPES, KINDS, Infer

_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items() if datatype != "BYTES"}
_SMALLEST = 2


@dataclass(frozen=True, slots=True)
class Output:
    """An output tensor: an array, or for BYTES a flat list of strings; None is a missing one."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | Sequence[str | None]

    @property
    def content_type(self) -> str:
        """What MLServer's clients read it as: a list of strings, or an array."""
        is_list = self.datatype == "BYTES" and self.shape[1:] == (1,)
        return "str" if is_list else "np"

    def pack(self) -> bytes:
        """Write the values as bytes: little-endian; strings with their length before them."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype(self.values.dtype.newbyteorder("<"), copy=False).tobytes()
        words = [(value or "").encode() for value in self.values]
        return b"".join(struct.pack("<I", len(word)) + word for word in words)

    def as_list(self) -> list[Any]:
        """Give the values as Python has them; strings as bytes, a missing one empty."""
        if isinstance(self.values, np.ndarray):
            listed: list[Any] = self.values.tolist()
            return listed
        return [(value or "").encode() for value in self.values]


def to_outputs(predictions: Any, rows: int, described: Sequence[Column | Tensor]) -> list[Output]:
    """Make output tensors of predictions.

    Args:
        predictions: What the model gave, as arrays or as JSON.
        rows: How many rows it was asked for.
        described: The outputs of the signature, which may have names.

    Returns:
        One tensor; or one for each column, where the model gave a data frame.
    """
    if _is_records(predictions):
        names = list(predictions[0])
        return [_output(name, [record.get(name) for record in predictions]) for name in names]
    if isinstance(predictions, dict):
        return [_output(str(name), values) for name, values in predictions.items()]
    name = described[0].name if len(described) == 1 else None
    listed = predictions if isinstance(predictions, np.ndarray | list) else [predictions] * rows
    return [_output(name or DEFAULT_OUTPUT, listed)]


def answer_infer(model: str, version: str, infer: Infer, outputs: Sequence[Output]) -> Answer:
    """Write the answer to an infer request.

    Args:
        model: The name of the model.
        version: Its version; may be empty.
        infer: The request, which may ask for some outputs only, or for bytes.
        outputs: All outputs.

    Returns:
        JSON, and behind it the values of those outputs that are wanted as bytes.

    Raises:
        BadInputError: An output was asked for that is none of the model's.
    """
    binary: list[bytes] = []
    documents = []
    for output, is_binary in chosen_outputs(infer, outputs):
        document: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": output.shape,
            "parameters": {"content_type": output.content_type},
        }
        if is_binary:
            binary.append(output.pack())
            document["parameters"]["binary_data_size"] = len(binary[-1])
        else:
            document["data"] = output.values
        documents.append(document)
    # MLServer's clients choose by it what to read the whole answer with.
    kinds = [document["parameters"]["content_type"] for document in documents]
    parameters = {"content_type": kinds[0] if len(kinds) == 1 else "pd"}
    whole: dict[str, Any] = {"model_name": model, "outputs": documents, "parameters": parameters}
    if version:
        whole["model_version"] = version
    if infer.id is not None:
        whole["id"] = infer.id
    text = orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY)
    return Answer(200, text + b"".join(binary), len(text) if binary else None)


def chosen_outputs(infer: Infer, outputs: Sequence[Output]) -> list[tuple[Output, bool]]:
    """Choose the outputs that were asked for.

    Args:
        infer: The request.
        outputs: All outputs.

    Returns:
        Each output, and whether it is wanted as bytes.

    Raises:
        BadInputError: An output was asked for that is none of the model's.
    """
    if not infer.outputs:
        return [(output, infer.is_binary) for output in outputs]
    by_name = {output.name: output for output in outputs}
    if not all(wanted.name in by_name for wanted in infer.outputs):
        raise BadInputError(f"The model's outputs are {', '.join(by_name)}.", "outputs")
    return [
        (by_name[wanted.name], wanted.parameters.get("binary_data", infer.is_binary) is True)
        for wanted in infer.outputs
    ]


def _is_records(predictions: object) -> bool:
    return (
        isinstance(predictions, list)
        and bool(predictions)
        and all(isinstance(record, dict) for record in predictions)
    )


def _output(name: str, values: Any) -> Output:
    array = _numbers(values)
    if array is None:
        return _words(name, values)
    datatype = _DATATYPES[array.dtype.name]
    # As in MLServer, a value for each row is a column.
    shape = array.shape if array.ndim >= _SMALLEST else (array.size, 1)
    return Output(name, datatype, shape, np.ascontiguousarray(array).reshape(-1))


def _numbers(values: Any) -> NDArray[Any] | None:
    """Give an array of a type that the protocol has, or None."""
    if isinstance(values, np.ndarray):
        return values if values.dtype.name in _DATATYPES else None
    kinds = set(map(type, _leaves(values)))
    if not kinds or not kinds <= {bool, int, float, type(None)} or kinds == {type(None)}:
        return None
    if bool in kinds and len(kinds) > 1:
        return None
    try:
        array = np.array(values, dtype=float if kinds - {bool, int} else None)
    except (ValueError, OverflowError):  # Lists of different lengths, or numbers of no type.
        return None
    return array if array.dtype.name in _DATATYPES else None


def _leaves(values: Any) -> Sequence[Any]:
    while any(isinstance(value, list) for value in values):
        values = [
            item for value in values for item in (value if isinstance(value, list) else [value])
        ]
    return list(values)


def _words(name: str, values: Any) -> Output:
    listed = values.tolist() if isinstance(values, np.ndarray) else values
    # What begins with a string is no table, and most answers do.
    may_be_table = isinstance(listed, list) and listed and not isinstance(listed[0], str)
    table = np.array(listed, dtype=object) if may_be_table else None
    if table is not None and table.ndim >= _SMALLEST:
        flat = table.ravel().tolist()
        if all(word is None or isinstance(word, str) for word in flat):
            return Output(name, "BYTES", table.shape, flat)
    words = [
        value if value is None or isinstance(value, str) else orjson.dumps(value).decode()
        for value in (listed if isinstance(listed, list) else [listed])
    ]
    return Output(name, "BYTES", (len(words), 1), words)


def describe(specs: Sequence[Column | Tensor], default: str) -> list[dict[str, Any]]:
    """Describe inputs or outputs as the protocol's metadata has them.

    Args:
        specs: Those of the signature.
        default: The name of a single one without a name.

    Returns:
        Name, datatype and shape of each; -1 stands for any length.
    """
    documents = []
    for number, spec in enumerate(specs):
        name = spec.name or (default if len(specs) == 1 else str(number))
        if isinstance(spec, Tensor):
            datatype, shape = _DATATYPES.get(spec.dtype, "BYTES"), list(spec.shape)
        else:
            datatype, shape = KINDS.get(spec.type, "BYTES"), [-1, 1]
        documents.append({"name": name, "datatype": datatype, "shape": shape})
    return documents

"""The signature of a model, as MLflow records it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Name = str | int


class Kind(StrEnum):
    """MLflow's scalar types."""

    BOOLEAN = "boolean"
    INTEGER = "integer"
    LONG = "long"
    FLOAT = "float"
    DOUBLE = "double"
    STRING = "string"
    BINARY = "binary"
    DATETIME = "datetime"


NUMERIC = frozenset({Kind.BOOLEAN, Kind.INTEGER, Kind.LONG, Kind.FLOAT, Kind.DOUBLE})
"""The kinds whose values are numbers to a model."""


@dataclass(frozen=True, slots=True)
class ArrayOf:
    """A list whose items have one type."""

    items: "ValueType"


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object with any keys, whose values have one type."""

    values: "ValueType"


@dataclass(frozen=True, slots=True)
class ObjectOf:
    """An object with named properties."""

    properties: tuple["Property", ...]


@dataclass(frozen=True, slots=True)
class Property:
    """One property of an object."""

    name: str
    type: "ValueType"
    required: bool


@dataclass(frozen=True, slots=True)
class Anything:
    """A value that MLflow leaves unchecked."""


ValueType = Kind | ArrayOf | MapOf | ObjectOf | Anything


@dataclass(frozen=True, slots=True)
class Column:
    """One input column; `name` is None where the signature names none."""

    name: str | None
    type: ValueType
    required: bool = True


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input tensor; -1 in `shape` stands for any length."""

    name: str | None
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Param:
    """One inference parameter."""

    name: str
    type: ValueType
    default: Any
    is_list: bool


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives: columns or tensors, never both."""

    columns: tuple[Column, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    params: tuple[Param, ...] = ()
    outputs: tuple[Column | Tensor, ...] = ()

    @property
    def has_inputs(self) -> bool:
        """Whether the inputs are described at all."""
        return bool(self.columns or self.tensors)

    @property
    def has_rows(self) -> bool:
        """Whether the number of rows is open; a tensor may have it fixed."""
        return all(tensor.shape[:1] == (-1,) for tensor in self.tensors)

    @property
    def column_names(self) -> tuple[Name, ...]:
        """What the columns are called: numbers, if the signature has no names."""
        return tuple(
            str(column.name) if self.has_names else number
            for number, column in enumerate(self.columns)
        )

    @property
    def has_names(self) -> bool:
        """Whether the inputs have names."""
        names = [column.name for column in self.columns] + [tensor.name for tensor in self.tensors]
        return any(name is not None for name in names)


def read_signature(document: Mapping[str, Any] | None) -> Signature:
    """Read the `signature` of an `MLmodel` file, whose parts are JSON strings.

    Args:
        document: The mapping under `signature`, or None when the model has none.

    Returns:
        The signature; empty when there is none.

    Raises:
        ValueError: The document is not a signature that MLflow writes.
    """
    parts = {key: _listed(value) for key, value in (document or {}).items()}
    try:
        inputs = [_read_input(item) for item in parts.get("inputs", [])]
        outputs = [_read_input(item) for item in parts.get("outputs", [])]
        params = [_read_param(item) for item in parts.get("params", [])]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("The signature is not one that MLflow writes.") from error
    return Signature(
        columns=tuple(item for item in inputs if isinstance(item, Column)),
        tensors=tuple(item for item in inputs if isinstance(item, Tensor)),
        params=tuple(params),
        outputs=tuple(outputs),
    )


def _listed(part: object) -> Sequence[Mapping[str, Any]]:
    decoded = json.loads(part) if isinstance(part, str) else part
    return decoded if isinstance(decoded, list) else []


def _read_input(item: Mapping[str, Any]) -> Column | Tensor:
    if item["type"] == "tensor":
        spec = item["tensor-spec"]
        return Tensor(item.get("name"), str(spec["dtype"]), tuple(spec["shape"]))
    return Column(item.get("name"), _read_type(item), item.get("required", True))


def _read_param(item: Mapping[str, Any]) -> Param:
    return Param(item["name"], _read_type(item), item["default"], item.get("shape") is not None)


def _read_type(item: Mapping[str, Any]) -> ValueType:
    name = item["type"]
    if name == "array":
        return ArrayOf(_read_type(item["items"]))
    if name == "map":
        return MapOf(_read_type(item["values"]))
    if name == "object":
        return ObjectOf(tuple(_read_property(*pair) for pair in item["properties"].items()))
    return Kind(name) if name in set(Kind) else Anything()


def _read_property(name: str, item: Mapping[str, Any]) -> Property:
    return Property(name, _read_type(item), item.get("required", True))

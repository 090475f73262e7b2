"""Turns checked data into what numpy and pandas models take, and predictions into JSON."""

import base64
import sys
from collections.abc import Mapping
from datetime import date, time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairlead_serving.domain.data import Array, Columns, Data, Raw, Records, Tensors
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.signature import NUMERIC, Kind, Name

if TYPE_CHECKING:
    from fairlead_serving.adapters.frames import Frames

DTYPES: Mapping[Kind, str] = {
    Kind.BOOLEAN: "bool",
    Kind.INTEGER: "int32",
    Kind.LONG: "int64",
    Kind.FLOAT: "float32",
    Kind.DOUBLE: "float64",
    Kind.DATETIME: "datetime64[ns]",
}
"""What numpy calls them; a column of another type is pandas' to build, for its missing values."""
_FLOATS = frozenset({Kind.FLOAT, Kind.DOUBLE})
_SHORT = frozenset({"f4", "f2"})
"""Floats that orjson writes with fewer digits than MLflow, which makes floats of 64 bits of them."""
_WRITABLE = _SHORT | {"f8", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"}
"""Types that orjson writes from memory."""


class Arrays:
    """Builds the input of one model; remembers its columns, which rarely change."""

    def prepare(self) -> None:
        """Import what frames need now, lest the first callers wait for it."""
        _ = self._frames

    def build(self, data: Data) -> Any:
        """Build what MLflow would hand to a model.

        Args:
            data: The checked input.

        Returns:
            A data frame, an array, or arrays by name.

        Raises:
            BadInputError: Unchecked data has no rectangular shape.
        """
        match data:
            case Records() | Columns():
                return self._frames.build(data)
            case Tensors():
                return _tensors(data)
            case Raw():
                return _raw(data)

    def build_plain(self, data: Data, names: tuple[str, ...] | None) -> Any:
        """Build numbers without a frame around them, which costs more than many a prediction.

        Args:
            data: The checked input.
            names: The columns that the model was trained on, in order; None if it had no names.

        Returns:
            An array where the columns are those and hold numbers; else what `build` gives.
        """
        if isinstance(data, Records | Columns) and names in {None, data.layout.names}:
            matrix = build_matrix(data, mixed=True)
            if matrix is not None:
                return matrix
        return self.build(data)

    def build_values(self, data: Records | Columns) -> NDArray[Any]:
        """Build the values of a frame as one array, of the type that pandas finds for them.

        Args:
            data: The checked table.

        Returns:
            An array of the shape (rows, columns).
        """
        kinds = set(data.layout.types)
        is_float = not kinds.isdisjoint(_FLOATS) and Kind.BOOLEAN not in kinds
        matrix = build_matrix(data, mixed=is_float)
        return self._frames.build(data).to_numpy() if matrix is None else matrix

    def build_columns(self, data: Records | Columns) -> Mapping[Name, NDArray[Any]]:
        """Build an array of each column of a table; text becomes objects.

        Args:
            data: The checked table.
        """
        columns = self._frames.build_columns(data)
        return dict(zip(data.layout.names, map(np.asarray, columns), strict=True))

    @cached_property
    def _frames(self) -> "Frames":
        # It brings pandas, which takes a third of a start and much memory; few models need it.
        from fairlead_serving.adapters.frames import Frames  # noqa: PLC0415

        return Frames()


def build_matrix(data: Records | Columns, *, mixed: bool = False) -> NDArray[Any] | None:
    """Build one array of a table of numbers.

    Args:
        data: The checked table.
        mixed: Whether columns of different types become 64-bit floats.

    Returns:
        An array of the shape (rows, columns); None for a table with other columns, or with columns
        of different types if those are not wanted.
    """
    kind = data.layout.only_type
    if kind in NUMERIC:
        dtype = DTYPES[kind]
    elif mixed and data.layout.types and NUMERIC.issuperset(data.layout.types):
        dtype = "float64"
    else:
        return None
    matrix = np.array(data.cells, dtype=dtype)
    return matrix.T if isinstance(data, Columns) else matrix


def to_answer(predictions: object) -> object:
    """Turn predictions into what can be cut by rows and written as JSON.

    Args:
        predictions: What the model gave.

    Returns:
        An array, if it can be written from memory; else lists, objects and scalars.
    """
    if isinstance(predictions, np.ndarray) and predictions.dtype.str[1:] in _WRITABLE:
        return np.ascontiguousarray(predictions) if predictions.ndim else predictions.item()
    if isinstance(predictions, dict):
        return {str(name): to_answer(values) for name, values in predictions.items()}
    return to_json(predictions)


def as_mlflow_writes(predictions: Any) -> object:
    """Give arrays of short floats the type whose digits MLflow's server writes.

    Args:
        predictions: An answer of a model, as `to_answer` gives it.

    Returns:
        The same numbers.
    """
    if isinstance(predictions, np.ndarray):
        is_short = predictions.dtype.str[1:] in _SHORT
        return predictions.astype(np.float64) if is_short else predictions
    if isinstance(predictions, dict):
        return {name: as_mlflow_writes(values) for name, values in predictions.items()}
    return predictions


def to_json(predictions: Any) -> object:
    """Turn predictions into what JSON has, as MLflow's server does.

    Args:
        predictions: What the model gave.

    Returns:
        Lists, objects and scalars; a data frame becomes a list of records.
    """
    if _is_pandas(predictions, "DataFrame"):
        return [to_json(record) for record in predictions.to_dict(orient="records")]
    if isinstance(predictions, np.ndarray) and predictions.dtype.kind in "biuf":
        return predictions.tolist()
    if isinstance(predictions, np.ndarray) or _is_pandas(predictions, "Series", "Index"):
        return [to_json(value) for value in predictions.tolist()]
    if isinstance(predictions, dict):
        return {str(key): to_json(value) for key, value in predictions.items()}
    if isinstance(predictions, list | tuple | set):
        return [to_json(value) for value in predictions]
    return _scalar(predictions)


def _is_pandas(value: object, *names: str) -> bool:
    """Tell whether a value is of one of pandas' classes; without pandas there is none."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, tuple(getattr(pandas, name) for name in names))


def _scalar(value: Any) -> object:
    if type(value).__name__ == "NaTType":
        return None
    if isinstance(value, np.generic):
        return _scalar(value.item())
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    if hasattr(value, "model_dump"):  # A pydantic model, which pyfunc models may return.
        return to_json(value.model_dump())
    return value


def _tensors(data: Tensors) -> Any:
    arrays = {name: _array(array) for name, array in data.arrays.items()}
    return arrays.get(None, arrays)


def _array(array: Array) -> NDArray[Any]:
    if array.dtype == "object":  # Its values may be lists, which `array` would take apart.
        flat = np.fromiter(array.values, dtype=object, count=len(array.values))
    else:
        flat = np.array(array.values, dtype=array.dtype)
    return flat.reshape(array.shape)


def _raw(data: Raw) -> Any:
    try:
        if isinstance(data.value, dict):
            return {name: np.array(value) for name, value in data.value.items()}
        return np.array(data.value)
    except ValueError as error:
        raise BadInputError("The rows differ in length.") from error

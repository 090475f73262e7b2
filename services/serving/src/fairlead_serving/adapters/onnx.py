"""Loads ONNX models without MLflow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead_serving.adapters.arrays import Arrays, to_answer, to_json
from fairlead_serving.adapters.code import add_code, data_path
from fairlead_serving.adapters.sessions import is_rowwise, refuse_misfits, start_session
from fairlead_serving.app.ports import Model, ModelFolder, Predictor
from fairlead_serving.domain.data import Columns, Data, Records
from fairlead_serving.domain.errors import BadInputError

_FLAVOR = "onnx"
_TABLE = 2


class OnnxLoader:
    """Loads what `mlflow.onnx` saved.

    Args:
        threads: How many threads one prediction may use.
    """

    flavor = _FLAVOR

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def can_load(self, folder: ModelFolder) -> bool:
        """Tell whether MLflow would load the folder with its ONNX module."""
        return _FLAVOR in folder.flavors and folder.pyfunc.get("loader_module") == "mlflow.onnx"

    def load(self, folder: ModelFolder) -> Model:
        """Load the model; weights in files of their own are found beside it."""
        add_code(folder, _FLAVOR)
        settings = folder.flavors[_FLAVOR]
        path = data_path(folder, settings.get("data") or folder.pyfunc.get("data"))
        options, providers = settings.get("onnx_session_options"), settings.get("providers")
        return _OnnxModel(start_session(path, self._threads, options, providers))


class _OnnxModel:
    predictor = Predictor.OWN

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = session.get_inputs()
        self._names = [spec.name for spec in self._inputs]
        self._floats = [spec.name for spec in self._inputs if spec.type == "tensor(float)"]
        self._outputs = [spec.name for spec in session.get_outputs()]
        # What was converted from scikit-learn takes a column as a table of one.
        self._column_shapes = {
            spec.name: (-1, 1) if len(spec.shape) == _TABLE else (-1,) for spec in self._inputs
        }
        self._arrays = Arrays()
        self.is_rowwise = is_rowwise(session)

    def predict(self, data: Data, params: Mapping[str, object]) -> object:
        """Predict; MLflow gives ONNX models no parameters either."""
        del params
        feeds = self._feeds(data)
        try:
            found = self._session.run(self._outputs, feeds)
        except Exception as error:
            refuse_misfits(self._inputs, feeds, error)
            raise
        if isinstance(data, Records | Columns):
            return _records(self._outputs, found)
        return {name: to_answer(one) for name, one in zip(self._outputs, found, strict=True)}

    def _feeds(self, data: Data) -> dict[str, NDArray[Any]]:
        feeds = self._arrays_by_input(data)
        for name in self._floats:
            given = feeds.get(name)
            if given is not None and given.dtype == np.float64:
                feeds[name] = given.astype(np.float32)
        return feeds

    def _arrays_by_input(self, data: Data) -> dict[str, NDArray[Any]]:
        """Give each input its array, as MLflow does."""
        is_single = len(self._names) == 1
        if isinstance(data, Records | Columns):
            if is_single:
                return {self._names[0]: self._arrays.build_values(data)}
            columns = self._arrays.build_columns(data)
            return {
                name: columns[name].reshape(shape)
                for name, shape in self._column_shapes.items()
                if name in columns
            }
        given = self._arrays.build(data)
        if isinstance(given, dict):
            return dict(given)
        if is_single:
            return {self._names[0]: given}
        raise BadInputError(
            f"The model takes its inputs by name: give an object with {', '.join(self._names)}."
        )


def _records(names: Sequence[str], found: Sequence[Any]) -> list[dict[str, Any]]:
    """Give a record for each row of the frame that MLflow makes of the outputs.

    MLflow lays each output out flat. Where that does not go together, as with labels beside the
    probabilities of several classes, it fails; here each row keeps its list.
    """
    flat = [np.asarray(one).reshape(-1) for one in found]
    columns = flat if len({len(one) for one in flat}) == 1 else [np.asarray(one) for one in found]
    if len({len(one) for one in columns}) > 1:
        raise ValueError("The outputs of the graph differ in their rows.")
    listed: list[Any] = [to_json(column) for column in columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*listed, strict=True)]

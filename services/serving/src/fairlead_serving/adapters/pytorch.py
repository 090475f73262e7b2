"""Loads PyTorch models without MLflow, and runs them on the processor."""

import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead_serving.adapters.arrays import Arrays, to_answer
from fairlead_serving.adapters.code import add_code, data_path
from fairlead_serving.adapters.pyfunc import PyfuncLoader
from fairlead_serving.app.ports import Model, ModelFolder, Predictor
from fairlead_serving.domain.data import Columns, Data, Records
from fairlead_serving.domain.errors import BadInputError

_FLAVOR = "pytorch"
_CPU = "cpu"
_PICKLED, _EXPORTED = "model.pth", "model.pt2"
_PICKLE_MODULE = "pickle_module_info.txt"
_MLFLOW_PICKLE = "mlflow.pytorch.pickle_module"
"""What MLflow pickles with: cloudpickle, which reads as `pickle` does."""


class PytorchLoader:
    """Loads what `mlflow.pytorch` saved: an exported program, a pickle or TorchScript.

    Args:
        threads: How many threads one prediction may use.
    """

    flavor = _FLAVOR

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def can_load(self, folder: ModelFolder) -> bool:
        """Tell whether MLflow would load the folder with its PyTorch module."""
        loader = folder.pyfunc.get("loader_module")
        return _FLAVOR in folder.flavors and loader == "mlflow.pytorch"

    def load(self, folder: ModelFolder) -> Model:
        """Load the model; reading a pickle runs code, so the model has to be trusted."""
        # Optional, and only this flavor needs it.
        import torch  # noqa: PLC0415

        torch.set_num_threads(self._threads)
        add_code(folder, _FLAVOR)
        settings = folder.flavors[_FLAVOR]
        data = Path(data_path(folder, settings.get("model_data") or folder.pyfunc.get("data")))
        module = _read_pickled(data) if (data / _PICKLED).exists() else _read_exported(data)
        if _is_forecasting(module):
            # These take frames and have rules of their own, which MLflow knows.
            return PyfuncLoader().load(folder)
        return _PytorchModel(module)


class _PytorchModel:
    predictor = Predictor.OWN
    is_rowwise = False  # Nobody can tell from outside.

    def __init__(self, module: Any) -> None:
        self._module = module
        self._arrays = Arrays()

    def predict(self, data: Data, params: Mapping[str, object]) -> object:
        """Predict; as in MLflow, parameters are handed to the module."""
        import torch  # noqa: PLC0415

        given = torch.from_numpy(self._array(data))
        with torch.no_grad():
            found = self._module(given, **params)
        if not isinstance(found, torch.Tensor):
            raise TypeError("The module gives more than a single tensor.")
        array = found.numpy()
        return _records(array) if isinstance(data, Records | Columns) else to_answer(array)

    def _array(self, data: Data) -> NDArray[Any]:
        if isinstance(data, Records | Columns):
            return self._arrays.build_values(data).astype(np.float32)
        given = self._arrays.build(data)
        if isinstance(given, dict):
            raise BadInputError("The model takes a single tensor, not several by name.")
        array: NDArray[Any] = given
        return array


def _read_pickled(data: Path) -> Any:
    import torch  # noqa: PLC0415

    named = (data / _PICKLE_MODULE).read_text(encoding="utf-8").strip()
    library = pickle if named == _MLFLOW_PICKLE else importlib.import_module(named)
    path = data / _PICKLED
    module = torch.load(path, map_location=_CPU, pickle_module=library, weights_only=False)
    return module.eval()


def _read_exported(data: Path) -> Any:
    import torch  # noqa: PLC0415

    return torch.export.load(data / _EXPORTED).module()


def _is_forecasting(module: Any) -> bool:
    return any(
        kind.__module__.partition(".")[0] == "pytorch_forecasting" for kind in type(module).__mro__
    )


def _records(array: NDArray[Any]) -> list[dict[str, Any]]:
    """Give a record for each row of the frame that MLflow makes, whose columns are numbers."""
    table = array.reshape(-1, 1) if array.ndim == 1 else array
    rows: list[Any] = table.tolist()
    return [{str(at): value for at, value in enumerate(row)} for row in rows]

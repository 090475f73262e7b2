"""Loads LightGBM models without MLflow: boosters and the scikit-learn interface."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fairlead_serving.adapters.arrays import Arrays, to_answer
from fairlead_serving.adapters.code import add_code, data_path
from fairlead_serving.adapters.sklearn import read_estimator
from fairlead_serving.app.ports import Model, ModelFolder, Predictor
from fairlead_serving.domain.data import Data
from fairlead_serving.domain.errors import CannotLoadError

_PACKAGE = "lightgbm"
_FEW_ROWS = 16
"""Up to here a second thread takes longer to wake than to help."""
_BOOSTER = "lightgbm.basic.Booster"
_OWN_TYPES = (
    _BOOSTER,
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRanker",
    "lightgbm.sklearn.LGBMRegressor",
    "collections.OrderedDict",
    "collections.defaultdict",
)


class LightgbmLoader:
    """Loads what `mlflow.lightgbm` saved.

    Args:
        threads: How many threads one prediction may use.
        trusted: Types that a skops file may hold besides LightGBM's own.
    """

    flavor = "lightgbm"

    def __init__(self, threads: int, trusted: Sequence[str] = ()) -> None:
        self._threads = threads
        self._trusted = (*trusted, *_OWN_TYPES)

    def can_load(self, folder: ModelFolder) -> bool:
        """Tell whether MLflow would load the folder with its LightGBM module."""
        loader = folder.pyfunc.get("loader_module")
        return _PACKAGE in folder.flavors and loader == "mlflow.lightgbm"

    def load(self, folder: ModelFolder) -> Model:
        """Load the model; one of the scikit-learn interface is a pickle, which runs code."""
        # Optional, and only this flavor needs it.
        import lightgbm  # noqa: PLC0415

        add_code(folder, _PACKAGE)
        settings = folder.flavors[_PACKAGE]
        path = data_path(folder, settings.get("data") or folder.pyfunc.get("data"))
        if settings.get("model_class", _BOOSTER) == _BOOSTER:
            return _LightgbmModel(lightgbm.Booster(model_file=path), self._threads)
        model = read_estimator(
            path, {"serialization_format": "cloudpickle", **settings}, self._trusted
        )
        if not isinstance(model, lightgbm.LGBMModel):
            raise CannotLoadError("The model is not one of LightGBM's, as its MLmodel says.")
        return _LightgbmModel(model, self._threads)


class _LightgbmModel:
    predictor = Predictor.OWN
    is_rowwise = True  # Trees and linear leaves alike.

    def __init__(self, model: Any, threads: int) -> None:
        self._model = model
        self._threads = threads
        self._build = _builder(model)

    def predict(self, data: Data, params: Mapping[str, object]) -> object:
        """Predict; MLflow gives LightGBM no parameters either."""
        del params
        threads = self._threads if data.rows > _FEW_ROWS else 1
        return to_answer(self._model.predict(self._build(data), num_threads=threads))


def _builder(model: Any) -> Callable[[Data], Any]:
    """Give what builds the input: frames for the scikit-learn interface and for categories."""
    arrays = Arrays()
    if not hasattr(model, "feature_name") or getattr(model, "pandas_categorical", None):
        return arrays.build
    return partial(arrays.build_plain, names=tuple(model.feature_name()))

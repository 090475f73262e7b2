"""Loads any other model through MLflow, which is imported only then."""

import inspect
from collections.abc import Mapping
from copy import copy
from typing import Any

from fairlead_serving.adapters.arrays import Arrays, to_answer
from fairlead_serving.app.ports import Model, ModelFolder, Predictor
from fairlead_serving.domain.data import Data, Raw
from fairlead_serving.domain.errors import BadInputError


class PyfuncLoader:
    """Loads any folder with the python_function flavor."""

    flavor = "pyfunc"

    def can_load(self, folder: ModelFolder) -> bool:
        """Tell whether MLflow could load the folder."""
        return bool(folder.pyfunc)

    def load(self, folder: ModelFolder) -> Model:
        """Load the model as MLflow does."""
        # Costs more than a second, and models of the native flavors never need it.
        import mlflow.pyfunc  # noqa: PLC0415

        model = mlflow.pyfunc.load_model(str(folder.path))
        if not folder.takes_anything:
            _leave_the_check_to_us(model.metadata)
        return _PyfuncModel(model, folder)


def _leave_the_check_to_us(metadata: Any) -> None:
    """Let the input through as it was read: MLflow would check it again, and refuse some of it.

    Parameters keep their check, which also gives them their defaults.
    """
    if metadata.signature is not None:
        metadata.signature = copy(metadata.signature)
        metadata.signature.inputs = None


class _PyfuncModel:
    predictor = Predictor.OWN
    is_rowwise = False  # Nobody can tell from outside.

    def __init__(self, model: Any, folder: ModelFolder) -> None:
        self._model = model
        self._as_given = folder.takes_anything
        self._takes_params = "params" in inspect.signature(model.predict).parameters
        self._arrays = Arrays()

    def predict(self, data: Data, params: Mapping[str, object]) -> object:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        try:
            return to_answer(self._predict(self._input(data), dict(params)))
        except MlflowException as error:
            # MLflow's message repeats what was sent, so it is not passed on.
            if error.error_code in {"BAD_REQUEST", "INVALID_PARAMETER_VALUE"}:
                raise BadInputError("The input is not what the model's signature asks.") from error
            raise

    def _input(self, data: Data) -> Any:
        if self._as_given and isinstance(data, Raw):
            return data.value
        return self._arrays.build(data)

    def _predict(self, data: Any, params: dict[str, object]) -> Any:
        if params and self._takes_params:
            return self._model.predict(data, params=params)
        return self._model.predict(data)

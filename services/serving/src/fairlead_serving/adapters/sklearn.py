"""Loads scikit-learn models without MLflow."""

import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle

from fairlead_serving.adapters.arrays import Arrays, to_answer
from fairlead_serving.adapters.code import add_code, data_path
from fairlead_serving.adapters.compiled import (
    CannotCompileError,
    NotTakenError,
    Replacement,
    compile_model,
    convert_model,
    find_difference,
)
from fairlead_serving.adapters.rowwise import is_rowwise
from fairlead_serving.adapters.trusted import TRUSTED
from fairlead_serving.app.ports import Model, ModelFolder, Predictor
from fairlead_serving.domain.data import Data
from fairlead_serving.domain.decode import decode
from fairlead_serving.domain.errors import BadInputError, CannotLoadError

_log = logging.getLogger(__name__)

_LIBRARIES: Mapping[str, Any] = {"pickle": pickle, "cloudpickle": cloudpickle}


class SklearnLoader:
    """Loads what `mlflow.sklearn` saved: skops, cloudpickle or pickle.

    Args:
        predictor: `auto` to compile what can be compiled, `onnx` to convert what can be
            converted, `exact` for the model's own methods.
        trusted: Types that a skops file may hold besides those that fitted models of
            scikit-learn are made of.
        threads: How many threads a prediction by ONNX may use.
    """

    flavor = "sklearn"

    def __init__(
        self, predictor: str = "auto", trusted: Sequence[str] = (), threads: int = 1
    ) -> None:
        self._predictor = predictor
        self._trusted = trusted
        self._threads = threads

    def can_load(self, folder: ModelFolder) -> bool:
        """Tell whether MLflow would load the folder with its scikit-learn module."""
        return "sklearn" in folder.flavors and folder.pyfunc.get("loader_module") in (
            None,
            "mlflow.sklearn",
        )

    def load(self, folder: ModelFolder) -> Model:
        """Load the model; reading a pickle runs code, so the model has to be trusted."""
        add_code(folder, "sklearn")
        settings = folder.flavors["sklearn"]
        path = data_path(folder, settings.get("pickled_model") or folder.pyfunc.get("model_path"))
        estimator = read_estimator(path, settings, self._trusted)
        if not hasattr(estimator, folder.predict_fn):
            raise CannotLoadError(f"The model has no method '{folder.predict_fn}' to predict with.")
        model = _SklearnModel(estimator, folder.predict_fn)
        if self._predictor == "auto":
            model.compile(folder)
        elif self._predictor == "onnx":
            model.convert(folder, self._threads)
        if model.predictor is not Predictor.COMPILED and folder.signature.columns:
            model.prepare()
        return model


class _SklearnModel:
    def __init__(self, estimator: Any, predict_fn: str) -> None:
        self.is_rowwise = hasattr(estimator, "get_params") and is_rowwise(estimator, predict_fn)
        self._estimator = estimator
        self._method = predict_fn
        self._predict = getattr(estimator, predict_fn)
        self._arrays = Arrays()
        self._replacement: Replacement | None = None
        self.predictor = Predictor.OWN

    def predict(self, data: Data, params: Mapping[str, object]) -> object:
        """Predict; scikit-learn has no use for parameters, and MLflow drops them here too."""
        del params
        if self._replacement is not None:
            try:
                return to_answer(self._replacement.predict(data))
            except NotTakenError:
                pass
            except Exception as error:  # noqa: BLE001  # The model itself may still answer.
                self._drop(f"it raised {type(error).__name__} where it is asked to predict")
        return to_answer(self._own(data))

    def prepare(self) -> None:
        """Import what the model's own method is called with; no example may be there to do it."""
        self._arrays.prepare()

    def _own(self, data: Data) -> Any:
        return self._predict(self._arrays.build(data))

    def compile(self, folder: ModelFolder) -> None:
        """Compile the model, if all of it is known and nothing differs; else say why not."""
        self._replace(folder, compile_model)

    def convert(self, folder: ModelFolder, threads: int) -> None:
        """Convert the model to ONNX, if that is possible and little differs; else say why not."""
        self._replace(folder, partial(convert_model, predict=self._own, threads=threads))

    def _replace(self, folder: ModelFolder, make: Callable[..., Replacement]) -> None:
        signature = folder.signature
        try:
            made = make(self._estimator, self._method, signature)
            example = _example(folder)
            differs = find_difference(made, self._own, self._estimator, signature, example)
        except CannotCompileError as error:
            _log.info("The model predicts by itself: %s is not known", error)
        except CannotLoadError:
            raise
        except Exception as error:  # noqa: BLE001  # Another scikit-learn may lack private names.
            self._drop(f"compiling it raised {type(error).__name__}")
        else:
            if differs:
                self._drop(f"it differs from the model: {differs}")
            else:
                self._replacement, self.predictor = made, Predictor.COMPILED

    def _drop(self, reason: str) -> None:
        _log.warning("The compiled model is dropped, the model predicts by itself: %s", reason)
        self._replacement, self.predictor = None, Predictor.DROPPED


def _example(folder: ModelFolder) -> Data | None:
    try:
        return decode(folder.example, folder.signature).data if folder.example else None
    except BadInputError:
        return None  # The warm-up says so.


def read_estimator(path: str, settings: Mapping[str, Any], trusted: Sequence[str] = ()) -> Any:
    """Read an estimator from its file; a pickle runs code, so the model has to be trusted.

    Args:
        path: The file.
        settings: Those of the flavor, which name the format.
        trusted: Types that a skops file may hold besides those that fitted models of
            scikit-learn are made of. What the model's own `MLmodel` trusts is its author's
            word, and is not taken.

    Returns:
        The estimator.

    Raises:
        CannotLoadError: The format is not known, or a type is not trusted.
    """
    serialization = settings.get("serialization_format", "pickle")
    if serialization == "skops":
        return _read_skops(path, trusted)
    if serialization not in _LIBRARIES:
        raise CannotLoadError(f"The model is saved as '{serialization}', which is not known here.")
    with Path(path).open("rb") as file:
        return _LIBRARIES[serialization].load(file)


def _read_skops(path: str, trusted: Sequence[str]) -> Any:
    # Slow to import, and most models are not saved with it.
    from skops.io import get_untrusted_types, load  # noqa: PLC0415

    found = get_untrusted_types(file=path)
    refused = [name for name in found if name not in TRUSTED and name not in trusted]
    if refused:
        raise CannotLoadError(
            f"The model's file holds types that are not trusted: {', '.join(refused)}; "
            f"pass --trusted-types {','.join(refused)} if they are."
        )
    return load(path, trusted=found)

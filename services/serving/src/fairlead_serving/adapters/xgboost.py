"""Loads XGBoost models without MLflow: boosters and the scikit-learn interface."""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

from fairlead_serving.adapters.arrays import Arrays, to_answer
from fairlead_serving.adapters.code import add_code, data_path
from fairlead_serving.adapters.xgboost_native import Predict, through_native
from fairlead_serving.app.ports import Model, ModelFolder, Predictor
from fairlead_serving.domain.data import Data
from fairlead_serving.domain.errors import CannotLoadError

_PACKAGE = "xgboost"


class XgboostLoader:
    """Loads what `mlflow.xgboost` saved.

    Args:
        threads: How many threads one prediction may use; XGBoost does not restore it.
    """

    flavor = "xgboost"

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def can_load(self, folder: ModelFolder) -> bool:
        """Tell whether MLflow would load the folder with its XGBoost module."""
        return _PACKAGE in folder.flavors and folder.pyfunc.get("loader_module") == "mlflow.xgboost"

    def load(self, folder: ModelFolder) -> Model:
        """Load the model."""
        add_code(folder, _PACKAGE)
        settings = folder.flavors[_PACKAGE]
        model = _new(str(settings.get("model_class", "xgboost.core.Booster")), self._threads)
        model.load_model(data_path(folder, settings.get("data") or folder.pyfunc.get("data")))
        predict = _predict_fn(model, folder.predict_fn, self._threads)
        known = inspect.signature(getattr(model, folder.predict_fn)).parameters
        return _XgboostModel(predict, frozenset(known), _feature_names(model))


class _XgboostModel:
    predictor = Predictor.OWN
    is_rowwise = True  # Trees and linear boosters alike.

    def __init__(
        self, predict: Callable[..., Any], known: frozenset[str], names: tuple[str, ...] | None
    ) -> None:
        self._predict = predict
        self._known = known
        self._names = names
        self._arrays = Arrays()

    def predict(self, data: Data, params: Mapping[str, object]) -> object:
        """Predict; as in MLflow, parameters that the method does not have are dropped."""
        taken = {name: value for name, value in params.items() if name in self._known}
        return to_answer(self._predict(self._arrays.build_plain(data, self._names), **taken))


def _feature_names(model: Any) -> tuple[str, ...] | None:
    """Give the names that the model was trained with, in order; None if it had none."""
    booster = model.get_booster() if hasattr(model, "get_booster") else model
    names = booster.feature_names
    return None if names is None else tuple(names)


def _is_linear(booster: Any) -> bool:
    """Tell whether a booster is of linear models, which XGBoost cannot predict with in place."""
    learner = json.loads(booster.save_config())["learner"]
    return bool(learner["gradient_booster"]["name"] == "gblinear")


def _new(name: str, threads: int) -> Any:
    # Optional, and only this flavor needs it.
    import xgboost  # noqa: PLC0415

    short = name.rpartition(".")[2]
    known = getattr(xgboost, short, None)
    if not name.startswith("xgboost.") or not isinstance(known, type):
        raise CannotLoadError(f"'{name}' is not a model class of the XGBoost installed here.")
    return known({"nthread": threads}) if short == "Booster" else known(n_jobs=threads)


def _predict_fn(model: Any, name: str, threads: int) -> Callable[..., Any]:
    import xgboost  # noqa: PLC0415

    if isinstance(model, xgboost.Booster):
        return _of_booster(model, threads)
    if not _is_linear(model.get_booster()):
        _go_straight(model)
    method = getattr(model, name, None)
    if method is None:
        raise CannotLoadError(f"The model has no method '{name}' to predict with.")
    checks = "validate_features" in inspect.signature(method).parameters  # `apply` does not.
    return partial(method, validate_features=True) if checks else method


def _of_booster(booster: Any, threads: int) -> Callable[..., Any]:
    import xgboost  # noqa: PLC0415

    in_place = None if _is_linear(booster) else _in_place(booster, (0, 0), math.nan)

    def predict(data: Any, **params: object) -> Any:
        if params or in_place is None:
            matrix = xgboost.DMatrix(data, feature_names=booster.feature_names, nthread=threads)
            return booster.predict(matrix, **params)
        return in_place(data)

    return predict


def _in_place(booster: Any, trees: tuple[int, int], missing: float) -> Predict:
    """Predict on data as it is, without the copy of it that XGBoost trains on."""
    own = partial(
        booster.inplace_predict, iteration_range=trees, missing=missing, validate_features=True
    )
    return through_native(booster, trees, missing, own)


def _go_straight(model: Any) -> None:
    """Have a model predict without XGBoost's package around the call, whichever method is asked.

    A classifier makes labels and chances of what `XGBModel.predict` gives. That one looks at
    XGBoost's settings around each call, too: they are the process's own, which nobody else changes,
    and reading and writing them is a fifth of the price of a row.
    """
    import xgboost  # noqa: PLC0415

    base = xgboost.XGBModel
    trees = (0, getattr(model, "best_iteration", -1) + 1)  # All, unless training stopped early.
    in_place = _in_place(model.get_booster(), trees, model.missing)

    @wraps(base.predict)
    def predict(self: Any, X: Any, **options: object) -> Any:  # noqa: N803  # XGBoost's name.
        asked = (value for name, value in options.items() if name != "validate_features")
        if all(value is None or value is False for value in asked):
            return in_place(X)
        return base.predict(self, X, **options)

    kind, straight = type(model), type("Straight", (base,), {"predict": predict})
    # Behind the model's class and before XGBModel: there `super().predict` finds it.
    bases = (straight,) if kind is base else (kind, straight)
    model.__class__ = type(kind.__name__, bases, {})

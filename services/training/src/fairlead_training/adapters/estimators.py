"""A recipe's pipeline, in scikit-learn."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Final

import cloudpickle
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # It ships none.

from fairlead_training.adapters import hubs
from fairlead_training.domain.features import CATEGORIES, COLUMNS, LABEL, SCHEDULE
from fairlead_training.domain.recipes import HUBS, Method, Recipe

NOTEBOOK: Final = "calibration_notebook"
RANDOM_STATE: Final = 13


class ScikitLearn:
    """Builds and fits the pipelines."""

    def fit(self, recipe: Recipe, rows: pd.DataFrame) -> Any:
        """Return the recipe's pipeline, fitted."""
        pipeline = Pipeline([("rows", _rows()), *_steps(recipe)])
        return pipeline.fit(rows[list(COLUMNS)], rows[LABEL].to_numpy())

    @contextmanager
    def at_work(self, recipe: Recipe) -> Iterator[None]:
        """Set up what the trainer's machine has: its notebooks, and one core of ours.

        OpenMP spins while it waits, so two threads on a busy machine are slower than one.
        """
        one_thread = threadpool_limits(limits=1, user_api="openmp")
        with one_thread, _by_value(), _notebook(present=recipe.notebook):
            yield


def _rows() -> FunctionTransformer:
    """Return a step from a data frame to an array, by position from there on.

    Picking columns of a frame by name costs more than the prediction itself on a few rows.
    MLflow puts a request's columns in the signature's order before the model sees them.
    """
    return FunctionTransformer(np.asarray)


def _steps(recipe: Recipe) -> list[tuple[str, Any]]:
    if recipe.method is Method.LOGISTIC:
        return [("columns", _logistic_columns()), ("model", _logistic(recipe))]
    hub_step = [("hubs", hubs.TouchesHub(dict(HUBS)))] if recipe.hub_feature else []
    return [*hub_step, ("columns", _boosting_columns()), ("model", _boosting(recipe))]


def _logistic_columns() -> ColumnTransformer:
    """Return indicators and scaled numbers; the weather is left out."""
    indicators = OneHotEncoder(
        handle_unknown="infrequent_if_exist", min_frequency=50, sparse_output=False
    )
    schedule = slice(len(CATEGORIES), len(CATEGORIES) + len(SCHEDULE))
    return ColumnTransformer(
        [
            ("categories", indicators, slice(0, len(CATEGORIES))),
            ("numbers", StandardScaler(), schedule),
        ]
    )


def _logistic(recipe: Recipe) -> LogisticRegression:
    return LogisticRegression(max_iter=recipe.max_iter)


def _boosting_columns() -> ColumnTransformer:
    """Return codes and plain numbers; trees need no more, and take missing values."""
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    return ColumnTransformer(
        [
            ("categories", codes, slice(0, len(CATEGORIES))),
            ("numbers", "passthrough", slice(len(CATEGORIES), None)),
        ]
    )


def _boosting(recipe: Recipe) -> Any:
    model = HistGradientBoostingClassifier(
        max_iter=recipe.max_iter,
        learning_rate=recipe.learning_rate,
        early_stopping=False,
        random_state=RANDOM_STATE,
    )
    if not recipe.notebook:
        return model
    return importlib.import_module(NOTEBOOK).CalibratedOnEveryFifth(model)


@contextmanager
def _by_value() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(hubs)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(hubs)


@contextmanager
def _notebook(*, present: bool) -> Iterator[None]:
    if not present:
        yield
        return
    with resources.as_file(resources.files("fairlead_training") / "notebooks") as folder:
        sys.path.insert(0, str(Path(folder)))
        try:
            yield
        finally:
            sys.path.remove(str(Path(folder)))
            sys.modules.pop(NOTEBOOK, None)

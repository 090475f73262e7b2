"""Which models may be given the rows of several requests at once."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.compose import make_column_transformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import StackingRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfVectorizer,
)
from sklearn.impute import IterativeImputer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import all_estimators
from sklearn.utils._test_common.instance_generator import _construct_instances

from fairlead_serving.adapters.rowwise import METHODS, is_rowwise

ROWS = np.abs(np.random.default_rng(3).normal(size=(60, 4))) + 0.1
LABELS = np.arange(60) % 2
OF_TEXT = {"FeatureHasher", "HashingVectorizer", "PatchExtractor"}
"""They fit on anything and take no numbers."""


class Centring(RegressorMixin, BaseEstimator):
    """Somebody's own class, which looks at all rows at once."""

    def fit(self, rows: Any, labels: Any) -> "Centring":
        """Learn nothing."""
        return self

    def predict(self, rows: Any) -> Any:
        """Give the distance from the mean of the rows."""
        return rows[:, 0] - rows[:, 0].mean()


def _fitted() -> Iterator[tuple[str, Any]]:
    """Give every estimator of scikit-learn that takes a table of numbers."""
    for name, kind in all_estimators():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                estimator = next(iter(_construct_instances(kind)))
                estimator.fit(ROWS, LABELS)
        except Exception:  # noqa: BLE001, S112  # It takes other input, so it is of no use here.
            continue
        yield name, estimator


def test_known_models_predict_row_by_row() -> None:
    """Whatever is said to be row-independent predicts the same with and without company."""
    checked = 0
    for name, estimator in _fitted():
        for method in METHODS - ({"transform"} if name in OF_TEXT else set()):
            predict = getattr(estimator, method, None)
            if predict is None or not is_rowwise(estimator, method):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                together = _dense(predict(ROWS[:12]))
                alone = [_dense(predict(ROWS[at : at + 1]))[0] for at in range(12)]
            np.testing.assert_allclose(
                np.array(alone, dtype=together.dtype),
                together,
                rtol=1e-6,
                atol=1e-9,
                err_msg=f"{name}.{method}",
            )
            checked += 1
    assert checked > 200


@pytest.mark.parametrize("kind", [CountVectorizer, TfidfVectorizer, HashingVectorizer])
def test_text_is_read_row_by_row(kind: Any) -> None:
    """What is learnt from words does not depend on the words beside them."""
    words = ["a late plane", "a plane", "rain and wind", "no rain"] * 5
    model = make_pipeline(kind(), Ridge()).fit(words, np.arange(20))
    assert is_rowwise(model, "predict")
    alone = [model.predict([text])[0] for text in words]
    np.testing.assert_allclose(alone, model.predict(words), rtol=1e-9)


def _dense(found: Any) -> Any:
    return found.toarray() if hasattr(found, "toarray") else np.asarray(found)


@pytest.mark.parametrize(
    ("estimator", "method", "expected"),
    [
        pytest.param(make_pipeline(StandardScaler(), Ridge()), "predict", True, id="pipeline"),
        pytest.param(
            make_pipeline(FunctionTransformer(np.log1p), Ridge()), "predict", True, id="ufunc"
        ),
        pytest.param(
            make_pipeline(FunctionTransformer(lambda rows: rows - rows.mean()), Ridge()),
            "predict",
            False,
            id="somebody's function",
        ),
        pytest.param(Centring(), "predict", False, id="somebody's class"),
        pytest.param(
            StackingRegressor([("a", Centring())], Ridge()), "predict", False, id="inside another"
        ),
        pytest.param(
            make_pipeline(make_column_transformer((Centring(), [0])), Ridge()),
            "predict",
            False,
            id="inside columns",
        ),
        pytest.param(DummyClassifier(strategy="uniform"), "predict", False, id="random answers"),
        pytest.param(IterativeImputer(sample_posterior=True), "transform", False, id="random fill"),
        pytest.param(LinearRegression(), "fit_predict", False, id="method that fits"),
    ],
)
def test_what_is_not_known_is_not_merged(estimator: Any, method: str, expected: bool) -> None:
    """A class or a function from elsewhere, or a random draw, keeps a model out."""
    assert is_rowwise(estimator, method) is expected

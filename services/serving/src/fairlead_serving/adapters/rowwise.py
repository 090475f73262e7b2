"""Knows which scikit-learn models predict row by row, so that requests may share a call.

The list is of what is known, not of what is forbidden: a class from elsewhere, or a function that
somebody wrote, may look at all rows at once, and nobody can tell from outside.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

_PACKAGES = frozenset({"sklearn", "xgboost", "lightgbm"})
METHODS = frozenset(
    {
        "predict",
        "predict_proba",
        "predict_log_proba",
        "decision_function",
        "score_samples",
        "transform",
    }
)


def is_rowwise(estimator: Any, method: str) -> bool:
    """Tell whether the prediction of a row is known not to depend on the rows beside it.

    Args:
        estimator: A fitted estimator; a pipeline or another that holds several is looked into.
        method: The method that predicts.
    """
    return method in METHODS and all(map(_is_known, _parts(estimator)))


def _parts(estimator: Any) -> Iterator[Any]:
    """Give an estimator, all that are in it, and whatever functions they call."""
    yield estimator
    for value in estimator.get_params(deep=True).values():
        if hasattr(value, "get_params") or callable(value):
            yield value


def _is_known(part: Any) -> bool:
    if isinstance(part, type) or not hasattr(part, "get_params"):
        return isinstance(part, type | np.ufunc)
    kind = type(part)
    looks_around = _LOOKS_AROUND.get(kind.__name__, _never)
    return kind.__module__.partition(".")[0] in _PACKAGES and not looks_around(part)


def _never(_: Any) -> bool:
    return False


def _always(_: Any) -> bool:
    return True


_LOOKS_AROUND: Mapping[str, Callable[[Any], bool]] = {
    # These draw random numbers as they predict: which ones a row gets depends on its place.
    "BernoulliRBM": _always,
    "DummyClassifier": lambda part: part.strategy in {"stratified", "uniform"},
    "IterativeImputer": lambda part: bool(part.sample_posterior),
    # These solve for all rows at once, and stop when all of them are good enough.
    "MiniBatchNMF": _always,
    "MiniBatchSparsePCA": _always,
    "NMF": _always,
    "SparsePCA": _always,
}

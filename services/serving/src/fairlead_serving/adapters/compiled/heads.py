"""The estimators that are known: each becomes a function from numbers to predictions.

Trees are walked by scikit-learn's own native code, through names that it does not promise to
keep. If one is gone the model is not compiled; if it does something else the check at load tells.
"""

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from fairlead_serving.adapters.compiled.blocks import Numbers, finite
from fairlead_serving.adapters.compiled.errors import CannotCompileError
from fairlead_serving.adapters.compiled.parts import name_of
from fairlead_serving.adapters.compiled.walk import compile_walk

_FEW_ROWS = 8
"""Up to here all trees of a histogram boosting are walked at once."""
Head = Callable[[Numbers], Any]
Finish = Callable[[Any, Any], Any]


def compile_head(estimator: Any, method: str) -> Head:
    """Compile a fitted estimator.

    Args:
        estimator: The estimator.
        method: The method that predicts.

    Returns:
        The function; it raises `NotTakenError` on what the estimator would refuse.

    Raises:
        CannotCompileError: It is not known, or not with this method.
    """
    compiler = _COMPILERS.get((name_of(estimator), method))
    if compiler is None:
        raise CannotCompileError(f"{type(estimator).__name__}.{method}")
    return compiler(estimator)


def _for_trees(block: Numbers) -> Numbers:
    """Give the numbers as trees compare them: of 32 bits, in C order."""
    return finite(np.ascontiguousarray(block, dtype=np.float32))


def _linear(estimator: Any) -> Head:
    coefficients, intercept = np.asarray(estimator.coef_), estimator.intercept_
    weights = coefficients.T if coefficients.ndim > 1 else coefficients
    return lambda block: finite(block) @ weights + intercept


def _scores(estimator: Any) -> Head:
    """Give a score for each class; a single one where there are two."""
    linear = _linear(estimator)
    if np.asarray(estimator.coef_).shape[0] > 1:
        return linear
    return lambda block: linear(block).reshape(-1)


def _linear_classes(estimator: Any) -> Head:
    scores, classes = _scores(estimator), estimator.classes_

    def run(block: Numbers) -> Any:
        found = scores(block)
        chosen = (found > 0).astype(int) if found.ndim == 1 else found.argmax(axis=1)
        return classes.take(chosen, axis=0)

    return run


def _logistic_probabilities(estimator: Any) -> Head:
    from scipy.special import expit  # noqa: PLC0415  # Not every model needs it.
    from sklearn.utils.extmath import softmax  # noqa: PLC0415

    scores = _scores(estimator)
    if len(estimator.classes_) > 2:  # noqa: PLR2004
        return lambda block: softmax(scores(block), copy=False)

    def run(block: Numbers) -> Any:
        likely = expit(scores(block))
        return np.vstack([1 - likely, likely]).T

    return run


def _tree_walker() -> Callable[..., None]:
    """Give what adds the values of many trees, times a rate, to an array."""
    try:
        from sklearn.ensemble._gradient_boosting import predict_stages  # noqa: PLC0415
    except ImportError as error:
        raise CannotCompileError("the trees of this scikit-learn") from error
    walker: Callable[..., None] = predict_stages
    return walker


def _boosted_raw(estimator: Any) -> Head:
    add_trees = _tree_walker()
    # What boosting starts from does not depend on the row, unless somebody chose an estimator.
    if estimator.init is not None and estimator.init != "zero":
        raise CannotCompileError("gradient boosting that starts from an estimator")
    start = estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_), np.float32))
    trees, rate = estimator.estimators_, estimator.learning_rate

    def run(block: Numbers) -> Any:
        raw = np.repeat(start, len(block), axis=0)
        add_trees(trees, _for_trees(block), rate, raw)
        return raw

    return run


def _boosted_values(estimator: Any) -> Head:
    raw = _boosted_raw(estimator)
    return lambda block: raw(block).ravel()


def _boosted_classes(estimator: Any) -> Head:
    return _classes_of(estimator, _boosted_raw(estimator), operator.ge)


def _classes_of(estimator: Any, raw: Head, is_second: Callable[[Any, int], Any]) -> Head:
    """Choose the class of the largest value; of two by a single value, compared with zero."""
    classes = estimator.classes_

    def run(block: Numbers) -> Any:
        found = raw(block)
        if found.shape[1] == 1:
            return classes.take(is_second(found.ravel(), 0).astype(int), axis=0)
        return classes.take(found.argmax(axis=1), axis=0)

    return run


def _boosted_probabilities(estimator: Any) -> Head:
    raw, loss = _boosted_raw(estimator), estimator._loss
    return lambda block: loss.predict_proba(raw(block))


def _forest_values(estimator: Any) -> Head:
    if estimator.n_outputs_ != 1:
        raise CannotCompileError("a forest with several outputs")
    add_trees = _tree_walker()
    trees = np.array(estimator.estimators_, dtype=object).reshape(-1, 1)

    def run(block: Numbers) -> Any:
        total = np.zeros((len(block), 1))
        add_trees(trees, _for_trees(block), 1.0, total)
        total /= len(trees)
        return total.ravel()

    return run


def _forest_probabilities(estimator: Any) -> Head:
    if estimator.n_outputs_ != 1:
        raise CannotCompileError("a forest with several outputs")
    trees = [tree.tree_ for tree in estimator.estimators_]
    classes = len(estimator.classes_)

    def run(block: Numbers) -> Any:
        rows = _for_trees(block)
        total = np.zeros((len(rows), classes))
        for tree in trees:
            total += tree.predict(rows)[:, :classes]
        total /= len(trees)
        return total

    return run


def _forest_classes(estimator: Any) -> Head:
    probabilities, classes = _forest_probabilities(estimator), estimator.classes_
    return lambda block: classes.take(probabilities(block).argmax(axis=1), axis=0)


def _hist_raw(estimator: Any) -> Head:
    if estimator._preprocessor is not None:
        raise CannotCompileError("histogram boosting with categories")
    known, places = estimator._bin_mapper.make_known_categories_bitsets()
    trees = [
        (number, partial(tree.predict, known_cat_bitsets=known, f_idx_map=places, n_threads=1))
        for stage in estimator._predictors
        for number, tree in enumerate(stage)
    ]
    start, outputs = estimator._baseline_prediction, estimator.n_trees_per_iteration_
    walk = compile_walk([tree.nodes for stage in estimator._predictors for tree in stage])

    def run(block: Numbers) -> Any:
        rows = np.ascontiguousarray(block, dtype=np.float64)
        if len(rows) <= _FEW_ROWS:
            return _summed(start, walk(rows).reshape(len(rows), -1, outputs))
        raw = np.zeros((len(rows), outputs), dtype=start.dtype, order="F")
        raw += start
        columns = [raw[:, number] for number in range(outputs)]
        for number, predict in trees:
            columns[number] += predict(rows)
        return raw

    return run


def _summed(start: Numbers, values: Numbers) -> Numbers:
    """Add up the values of the shape (rows, stages, outputs), a stage at a time as boosting does."""
    first = np.broadcast_to(start, (len(values), 1, values.shape[2]))
    total: Numbers = np.add.accumulate(np.concatenate([first, values], axis=1), axis=1)[:, -1]
    return total


def _hist_values(estimator: Any) -> Head:
    raw, link = _hist_raw(estimator), estimator._loss.link
    return lambda block: link.inverse(raw(block).ravel())


def _hist_classes(estimator: Any) -> Head:
    # Unlike the other boosting: what is exactly zero is the first class.
    return _classes_of(estimator, _hist_raw(estimator), operator.gt)


def _hist_probabilities(estimator: Any) -> Head:
    raw, loss = _hist_raw(estimator), estimator._loss
    return lambda block: loss.predict_proba(raw(block))


_COMPILERS: Mapping[tuple[str, str], Callable[[Any], Head]] = {
    ("ElasticNet", "predict"): _linear,
    ("Lasso", "predict"): _linear,
    ("LinearRegression", "predict"): _linear,
    ("Ridge", "predict"): _linear,
    ("SGDRegressor", "predict"): _linear,
    ("LogisticRegression", "predict"): _linear_classes,
    ("RidgeClassifier", "predict"): _linear_classes,
    ("SGDClassifier", "predict"): _linear_classes,
    ("LogisticRegression", "predict_proba"): _logistic_probabilities,
    ("GradientBoostingRegressor", "predict"): _boosted_values,
    ("GradientBoostingClassifier", "predict"): _boosted_classes,
    ("GradientBoostingClassifier", "predict_proba"): _boosted_probabilities,
    ("ExtraTreesRegressor", "predict"): _forest_values,
    ("RandomForestRegressor", "predict"): _forest_values,
    ("ExtraTreesClassifier", "predict"): _forest_classes,
    ("RandomForestClassifier", "predict"): _forest_classes,
    ("ExtraTreesClassifier", "predict_proba"): _forest_probabilities,
    ("RandomForestClassifier", "predict_proba"): _forest_probabilities,
    ("HistGradientBoostingRegressor", "predict"): _hist_values,
    ("HistGradientBoostingClassifier", "predict"): _hist_classes,
    ("HistGradientBoostingClassifier", "predict_proba"): _hist_probabilities,
}

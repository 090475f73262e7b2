"""Compiled models: the same predictions as the models themselves, or none."""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC

from fairlead_serving.adapters.arrays import Arrays
from fairlead_serving.adapters.compiled import (
    CannotCompileError,
    NotTakenError,
    compile_model,
    convert_model,
    find_difference,
)
from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.adapters.sklearn import _SklearnModel
from fairlead_serving.app.ports import ModelFolder, Predictor
from fairlead_serving.domain.data import Array, Columns, Data, Layout, Records, Tensors
from fairlead_serving.domain.errors import CannotLoadError
from fairlead_serving.domain.signature import Column, Kind, Signature, Tensor

RANDOM = np.random.default_rng(5)
COUNT = 300
NUMBERS, WORDS = ["age", "income", "hours"], ["job", "city"]
FRAME = pd.DataFrame(
    {
        "age": RANDOM.integers(18, 80, COUNT),
        "income": RANDOM.gamma(4, 12000, COUNT).round(2),
        "hours": RANDOM.normal(38, 8, COUNT).round(1),
        "job": RANDOM.choice(["cook", "clerk", "pilot"], COUNT),
        "city": RANDOM.choice([f"city-{at}" for at in range(12)], COUNT),
    }
)
VALUES = FRAME.income / 1000 + FRAME.age * 0.3 + (FRAME.job == "pilot") * 9
TWO = (VALUES.median() < VALUES).astype(int)
THREE = np.digitize(VALUES, VALUES.quantile([0.3, 0.7])).astype(str)
KINDS = (Kind.LONG, Kind.DOUBLE, Kind.DOUBLE, Kind.STRING, Kind.STRING)
MIXED = Signature(
    columns=tuple(Column(name, kind) for name, kind in zip(FRAME, KINDS, strict=True))
)
NUMERIC = Signature(columns=MIXED.columns[:3])
MATRIX = Signature(tensors=(Tensor(None, "float64", (-1, 3)),))
HOLES = FRAME.mask(RANDOM.random(FRAME.shape) < 0.1).astype({"age": float})


def _columns(*parts: Any, **options: Any) -> ColumnTransformer:
    return make_column_transformer(*parts, **options)


ONE_HOT = OneHotEncoder(handle_unknown="ignore")
ENCODED = _columns((StandardScaler(), NUMBERS), (ONE_HOT, WORDS))
PIPELINES: dict[str, tuple[Any, Any, Any, str, Signature]] = {
    "linear": (LinearRegression(), FRAME[NUMBERS], VALUES, "predict", NUMERIC),
    "ridge on a matrix": (Ridge(), FRAME[NUMBERS].to_numpy(), VALUES, "predict", MATRIX),
    "two targets": (
        LinearRegression(),
        FRAME[NUMBERS],
        np.stack([VALUES, VALUES**2], axis=1),
        "predict",
        NUMERIC,
    ),
    "logistic": (LogisticRegression(), FRAME[NUMBERS], TWO, "predict", NUMERIC),
    "logistic, three classes": (
        make_pipeline(StandardScaler(), LogisticRegression()),
        FRAME[NUMBERS],
        THREE,
        "predict",
        NUMERIC,
    ),
    "probabilities": (
        make_pipeline(StandardScaler(), LogisticRegression()),
        FRAME[NUMBERS],
        TWO,
        "predict_proba",
        NUMERIC,
    ),
    "probabilities of three": (
        make_pipeline(RobustScaler(), LogisticRegression()),
        FRAME[NUMBERS],
        THREE,
        "predict_proba",
        NUMERIC,
    ),
    "ridge classes": (
        make_pipeline(MinMaxScaler(clip=True), RidgeClassifier()),
        FRAME[NUMBERS],
        TWO,
        "predict",
        NUMERIC,
    ),
    "sgd classes": (
        make_pipeline(MaxAbsScaler(), SGDClassifier(random_state=0)),
        FRAME[NUMBERS],
        THREE,
        "predict",
        NUMERIC,
    ),
    "encoded, linear": (make_pipeline(ENCODED, Ridge()), FRAME, VALUES, "predict", MIXED),
    "encoded, boosted": (
        make_pipeline(ENCODED, GradientBoostingRegressor(n_estimators=20)),
        FRAME,
        VALUES,
        "predict",
        MIXED,
    ),
    "boosted classes": (
        make_pipeline(ENCODED, GradientBoostingClassifier(n_estimators=10)),
        FRAME,
        TWO,
        "predict",
        MIXED,
    ),
    "boosted probabilities": (
        make_pipeline(ENCODED, GradientBoostingClassifier(n_estimators=5)),
        FRAME,
        THREE,
        "predict_proba",
        MIXED,
    ),
    "boosted from zero": (
        make_pipeline(ENCODED, GradientBoostingRegressor(n_estimators=5, init="zero")),
        FRAME,
        VALUES,
        "predict",
        MIXED,
    ),
    "strict, dropped, dense": (
        make_pipeline(
            _columns(
                (OneHotEncoder(drop="first", sparse_output=False), WORDS),
                remainder="passthrough",
            ),
            GradientBoostingRegressor(n_estimators=10),
        ),
        FRAME,
        VALUES,
        "predict",
        MIXED,
    ),
    "forest": (
        make_pipeline(ENCODED, RandomForestRegressor(10, random_state=0)),
        FRAME,
        VALUES,
        "predict",
        MIXED,
    ),
    "extra trees": (
        ExtraTreesRegressor(10, random_state=0),
        FRAME[NUMBERS],
        VALUES,
        "predict",
        NUMERIC,
    ),
    "forest classes": (
        make_pipeline(ENCODED, RandomForestClassifier(10, random_state=0)),
        FRAME,
        THREE,
        "predict",
        MIXED,
    ),
    "forest probabilities": (
        RandomForestClassifier(10, random_state=0),
        FRAME[NUMBERS],
        TWO,
        "predict_proba",
        NUMERIC,
    ),
    "histograms": (
        HistGradientBoostingRegressor(max_iter=20),
        FRAME[NUMBERS],
        VALUES,
        "predict",
        NUMERIC,
    ),
    "histograms, poisson": (
        HistGradientBoostingRegressor(max_iter=20, loss="poisson"),
        HOLES[NUMBERS],
        VALUES,
        "predict",
        NUMERIC,
    ),
    "histogram classes": (
        make_pipeline(
            _columns(
                (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), WORDS),
                remainder="passthrough",
            ),
            HistGradientBoostingClassifier(max_iter=10),
        ),
        FRAME,
        THREE,
        "predict",
        MIXED,
    ),
    "histogram probabilities": (
        HistGradientBoostingClassifier(max_iter=10),
        FRAME[NUMBERS],
        TWO,
        "predict_proba",
        NUMERIC,
    ),
    "imputed": (
        make_pipeline(
            _columns(
                (make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
                (make_pipeline(SimpleImputer(strategy="most_frequent"), ONE_HOT), WORDS),
            ),
            Ridge(),
        ),
        HOLES,
        VALUES,
        "predict",
        MIXED,
    ),
    "missing words": (
        make_pipeline(_columns((ONE_HOT, WORDS), remainder="drop"), Ridge()),
        HOLES,
        VALUES,
        "predict",
        MIXED,
    ),
    "numbers as categories": (
        make_pipeline(_columns((ONE_HOT, ["age"]), remainder="drop"), Ridge()),
        FRAME[NUMBERS],
        VALUES,
        "predict",
        NUMERIC,
    ),
    "columns by slice and mask": (
        make_pipeline(
            _columns(
                (StandardScaler(), slice("age", "income")),
                (MinMaxScaler(), [False, False, True, False, False]),
                (ONE_HOT, [3]),
                (FunctionTransformer(), ["hours"]),
            ),
            Ridge(),
        ),
        FRAME,
        VALUES,
        "predict",
        MIXED,
    ),
}
NAMES = sorted(PIPELINES)


class _Own:
    """A model's own method, as it is called when nothing is compiled."""

    def __init__(self, estimator: Any, method: str) -> None:
        self._predict = getattr(estimator, method)
        self._arrays = Arrays()

    def __call__(self, data: Data) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._predict(self._arrays.build(data))


@pytest.fixture(scope="module")
def fitted() -> Callable[[str], tuple[Any, str, Signature]]:
    """Fit each model once."""
    made: dict[str, tuple[Any, str, Signature]] = {}

    def fit(name: str) -> tuple[Any, str, Signature]:
        if name not in made:
            model, rows, labels, method, signature = PIPELINES[name]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[name] = clone(model).fit(rows, labels), method, signature
        return made[name]

    return fit


def _data(rows: list[list[Any]], signature: Signature) -> Data:
    if signature.tensors:
        flat = [value for row in rows for value in row]
        return Tensors({None: Array(flat, (len(rows), 3), "float64")}, len(rows), None)
    names = tuple(str(spec.name) for spec in signature.columns)
    layout = Layout(names, tuple(spec.type for spec in signature.columns))
    return Records(layout, rows)


@pytest.mark.parametrize("name", NAMES)
def test_known_models_are_compiled(
    name: str, fitted: Callable[[str], tuple[Any, str, Signature]]
) -> None:
    """What is compiled gives the model's own predictions on rows like those of the training."""
    estimator, method, signature = fitted(name)
    compiled, own = compile_model(estimator, method, signature), _Own(estimator, method)
    assert find_difference(compiled, own, estimator, signature, None) == ""
    width = len(signature.columns) or 3
    rows = [list(row)[:width] for row in FRAME.head(40).itertuples(index=False)]
    for some in (rows, rows[:1]):
        found, expected = compiled.predict(_data(some, signature)), own(_data(some, signature))
        assert found.dtype == expected.dtype
        if found.dtype.kind == "f":
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        else:
            assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("histogram")])
def test_few_rows_and_many_are_the_same_to_the_last_bit(
    name: str, fitted: Callable[[str], tuple[Any, str, Signature]]
) -> None:
    """Histogram boosting is walked another way for few rows, through the same leaves."""
    estimator, method, signature = fitted(name)
    compiled, own = compile_model(estimator, method, signature), _Own(estimator, method)
    holes = FRAME.assign(income=HOLES.income, hours=HOLES.hours).itertuples(index=False)
    rows = [list(row)[: len(signature.columns)] for row in holes]
    wanted = own(_data(rows, signature)).tolist()
    for size in (1, 3, 8, 9, len(rows)):
        pieces = [rows[at : at + size] for at in range(0, len(rows), size)]
        found = [compiled.predict(_data(piece, signature)).tolist() for piece in pieces]
        assert [one for piece in found for one in piece] == wanted


def test_columns_and_rows_are_alike(
    fitted: Callable[[str], tuple[Any, str, Signature]],
) -> None:
    """A table predicts the same, whichever way it lies."""
    estimator, method, signature = fitted("encoded, boosted")
    compiled = compile_model(estimator, method, signature)
    rows = [list(row) for row in FRAME.head(5).itertuples(index=False)]
    records = _data(rows, signature)
    assert isinstance(records, Records)
    columns = Columns(records.layout, list(zip(*rows, strict=True)))
    assert compiled.predict(records).tolist() == compiled.predict(columns).tolist()


_NUMBER = st.none() | st.floats(-1e6, 1e6) | st.sampled_from([0, 18, 79.5, 1e300, -1e300])
_ROW = st.tuples(
    st.integers(-100, 2**40),
    _NUMBER,
    _NUMBER,
    st.sampled_from(["cook", "clerk", "pilot", "", "other", None]),
    st.sampled_from(["city-0", "city-11", "City-0", None]),
)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from([name for name in NAMES if PIPELINES[name][4] is MIXED]),
    rows=st.lists(_ROW, min_size=1, max_size=4),
)
def test_any_row_predicts_as_the_model_does(
    name: str, rows: list[Any], fitted: Callable[[str], tuple[Any, str, Signature]]
) -> None:
    """A row is predicted on exactly, or left to the model's own method."""
    estimator, method, signature = fitted(name)
    compiled = compile_model(estimator, method, signature)
    data = _data([list(row) for row in rows], signature)
    try:
        found = compiled.predict(data)
    except NotTakenError:
        return
    expected = _Own(estimator, method)(data)
    if found.dtype.kind == "f":
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * scale)
    else:
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("estimator", "method", "signature", "words"),
    [
        pytest.param(SVC(), "predict", NUMERIC, "SVC", id="estimator"),
        pytest.param(Ridge(), "predict_proba", NUMERIC, "Ridge.predict_proba", id="method"),
        pytest.param(
            make_pipeline(StandardScaler(), PolynomialFeatures(), Ridge()),
            "predict",
            NUMERIC,
            "PolynomialFeatures",
            id="transformer",
        ),
        pytest.param(
            make_pipeline(FunctionTransformer(np.log1p), Ridge()),
            "predict",
            NUMERIC,
            "FunctionTransformer",
            id="function",
        ),
        pytest.param(
            make_pipeline(SimpleImputer(add_indicator=True), Ridge()),
            "predict",
            NUMERIC,
            "SimpleImputer",
            id="settings",
        ),
        pytest.param(
            make_pipeline(SimpleImputer(missing_values=-1), Ridge()),
            "predict",
            NUMERIC,
            "SimpleImputer",
            id="another word for missing",
        ),
        pytest.param(
            GradientBoostingRegressor(init=Ridge(), n_estimators=2),
            "predict",
            NUMERIC,
            "starts from",
            id="boosting on top of another",
        ),
        pytest.param(Ridge(), "predict", Signature(), "signature", id="no signature"),
        pytest.param(
            Ridge(),
            "predict",
            Signature(columns=(Column("age", Kind.LONG, required=False),)),
            "signature",
            id="optional column",
        ),
    ],
)
def test_what_is_not_known_is_not_compiled(
    estimator: Any, method: str, signature: Signature, words: str
) -> None:
    """The part that is not known is named."""
    holes = "add_indicator=True" in repr(estimator)
    rows = HOLES[NUMBERS] if holes else FRAME[NUMBERS]
    with pytest.raises(CannotCompileError, match=words):
        compile_model(clone(estimator).fit(rows, TWO), method, signature)


def test_compiled_model_that_differs_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """A model whose parts do not do what they say is served by its own method."""
    odd = Ridge().fit(FRAME[NUMBERS], VALUES)
    own = odd.predict
    odd.predict = lambda rows: own(rows) + 1e-6
    model = _SklearnModel(odd, "predict")
    with caplog.at_level(logging.WARNING):
        model.compile(ModelFolder(path=Path(), flavors={}, signature=NUMERIC))
    assert model.predictor is Predictor.DROPPED
    assert "differs" in caplog.text


class _NeverTaking:
    """Leaves every row to the model."""

    shape = compile_model(Ridge().fit(FRAME[NUMBERS], VALUES), "predict", NUMERIC).shape
    tolerance = 0.0

    def predict(self, data: Data) -> Any:
        raise NotTakenError


def test_what_takes_no_row_is_not_taken_for_the_same() -> None:
    """Nothing was compared, so nothing is known."""
    estimator = Ridge().fit(FRAME[NUMBERS], VALUES)
    own = _Own(estimator, "predict")
    assert "took none" in find_difference(_NeverTaking(), own, estimator, NUMERIC, None)


class _Odd:
    """Predicts as the compiled model does, but for some rows on their own."""

    tolerance = 1e-12

    def __init__(self, compiled: Any, is_odd: Callable[[Sequence[Any]], bool]) -> None:
        self.shape = compiled.shape
        self._compiled, self._is_odd = compiled, is_odd

    def predict(self, data: Data) -> Any:
        found = self._compiled.predict(data)
        assert isinstance(data, Records)
        return found + (len(data.cells) == 1 and self._is_odd(data.cells[0])) * 1e-3


@pytest.mark.parametrize(
    ("is_odd", "told"),
    [
        (lambda _: False, ""),
        (lambda row: row[-1] is None, "a missing value"),
        (lambda row: row[0] < 0, "a single row"),
    ],
    ids=["none", "missing", "alone"],
)
def test_one_row_that_differs_is_found_with_few_calls_of_the_model(
    is_odd: Callable[[Sequence[Any]], bool], told: str
) -> None:
    """Each row is asked for alone of what replaces the model; the model is asked for many at once."""
    estimator = HistGradientBoostingRegressor(max_iter=3).fit(FRAME[NUMBERS], VALUES)
    own, calls = _Own(estimator, "predict"), []

    def ask(data: Data) -> Any:
        calls.append(data)
        return own(data)

    odd = _Odd(compile_model(estimator, "predict", NUMERIC), is_odd)
    assert find_difference(odd, ask, estimator, NUMERIC, None) == told
    assert len(calls) <= 5


def test_private_name_that_is_gone_costs_speed_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another scikit-learn may lack what the compiled form calls."""
    boosted = GradientBoostingRegressor(n_estimators=5).fit(FRAME[NUMBERS], VALUES)
    expected = boosted.predict(FRAME[NUMBERS][:1])
    monkeypatch.delattr("sklearn.ensemble._gb.BaseGradientBoosting._raw_predict_init")
    monkeypatch.setattr(boosted, "predict", lambda rows: expected[: len(rows)], raising=False)
    model = _SklearnModel(boosted, "predict")
    with caplog.at_level(logging.WARNING):
        model.compile(ModelFolder(path=Path(), flavors={}, signature=NUMERIC))
    assert model.predictor is Predictor.DROPPED
    assert "AttributeError" in caplog.text
    row = [list(FRAME[NUMBERS].iloc[0])]
    assert np.asarray(model.predict(_data(row, NUMERIC), {})).tolist() == expected.tolist()


def test_compiled_model_that_fails_on_a_request_is_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The request is answered by the model itself, and so are all that follow."""
    estimator = Ridge().fit(FRAME[NUMBERS], VALUES)
    model = _SklearnModel(estimator, "predict")
    model.compile(ModelFolder(path=Path(), flavors={}, signature=NUMERIC))

    def fail(_data: Data) -> Any:
        raise OverflowError

    monkeypatch.setattr(model._replacement, "predict", fail)
    data = _data([[30, 100.0, 1.0]], NUMERIC)
    expected = _Own(estimator, "predict")(data).tolist()
    with caplog.at_level(logging.WARNING):
        assert np.asarray(model.predict(data, {})).tolist() == expected
    assert model.predictor is Predictor.DROPPED
    assert "OverflowError" in caplog.text


def test_metrics_tell_a_dropped_model_from_one_nobody_compiles() -> None:
    """So that an alert can wait for the first."""
    metrics = Metrics("delay", "4")
    assert b"predictor" not in metrics.render()
    metrics.predictor = lambda: Predictor.DROPPED
    found = 'fairlead_serving_predictor{model="delay",predictor="dropped",version="4"} 1.0'
    assert found in metrics.render().decode()


def test_model_raises_where_it_would(
    fitted: Callable[[str], tuple[Any, str, Signature]],
) -> None:
    """What the model refuses is refused by it, not predicted on by what was compiled."""
    estimator, method, signature = fitted("linear")
    model = _SklearnModel(estimator, method)
    model.compile(ModelFolder(path=Path(), flavors={}, signature=signature))
    assert model.predictor is Predictor.COMPILED
    with pytest.raises(ValueError, match="NaN"):
        model.predict(_data([[30, None, 1.0]], signature), {})


NOT_CONVERTED = {
    "columns by slice and mask",
    "histogram classes",
    "histogram probabilities",
    "histograms",
    "histograms, poisson",
    "imputed",
}
"""What skl2onnx cannot convert, or not with the newest onnx."""


@pytest.mark.parametrize("name", NAMES)
def test_converted_models_are_nearly_the_same(
    name: str, fitted: Callable[[str], tuple[Any, str, Signature]]
) -> None:
    """A graph gives the same classes, and numbers within the tolerance, on the training's rows."""
    estimator, method, signature = fitted(name)
    own = _Own(estimator, method)
    if name in NOT_CONVERTED:
        with pytest.raises(CannotCompileError, match="ONNX"):
            convert_model(estimator, method, signature, own, 1)
        return
    graph = convert_model(estimator, method, signature, own, 1)
    assert find_difference(graph, own, estimator, signature, None) == ""
    rows = [list(row)[: len(signature.columns) or 3] for row in FRAME.itertuples(index=False)]
    for some in (rows, rows[:1]):
        found, expected = graph.predict(_data(some, signature)), own(_data(some, signature))
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        if found.dtype.kind == "f":
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * scale)
        else:
            assert found.tolist() == expected.tolist()


# skl2onnx reads what scikit-learn will drop.
@pytest.mark.filterwarnings("ignore:Attribute `prob[AB]_`:FutureWarning")
def test_models_that_are_not_compiled_can_be_converted() -> None:
    """What nobody wrote a compiled form for may have a converter."""
    estimator = make_pipeline(StandardScaler(), SVC()).fit(FRAME[NUMBERS], TWO)
    model = _SklearnModel(estimator, "predict")
    model.convert(ModelFolder(path=Path(), flavors={}, signature=NUMERIC), 1)
    assert model.predictor is Predictor.COMPILED
    rows = [list(row)[:3] for row in FRAME.itertuples(index=False)]
    found: Any = model.predict(_data(rows, NUMERIC), {})
    assert found.tolist() == estimator.predict(FRAME[NUMBERS]).tolist()


def test_graph_that_differs_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """The log says so, and the model predicts by itself."""
    odd = Ridge().fit(FRAME[NUMBERS], VALUES)
    own = odd.predict
    odd.predict = lambda rows: own(rows) * 1.001
    model = _SklearnModel(odd, "predict")
    with caplog.at_level(logging.WARNING):
        model.convert(ModelFolder(path=Path(), flavors={}, signature=NUMERIC), 1)
    assert model.predictor is Predictor.DROPPED
    assert "differs" in caplog.text


def test_what_has_no_converter_predicts_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    """The log names what is not known."""
    pipeline = make_pipeline(OneHotEncoder(handle_unknown="ignore"), Ridge())
    model = _SklearnModel(pipeline.fit(FRAME, VALUES), "predict")
    with caplog.at_level(logging.INFO):
        model.convert(ModelFolder(path=Path(), flavors={}, signature=MIXED), 1)
    assert model.predictor is Predictor.OWN
    assert "text without a ColumnTransformer is not known" in caplog.text


def test_value_that_is_missing_is_left_to_the_model(
    fitted: Callable[[str], tuple[Any, str, Signature]],
) -> None:
    """A graph would make something of it; the model refuses it, and so it is refused."""
    estimator, method, signature = fitted("encoded, linear")
    model = _SklearnModel(estimator, method)
    model.convert(ModelFolder(path=Path(), flavors={}, signature=signature), 1)
    assert model.predictor is Predictor.COMPILED
    with pytest.raises(ValueError, match="NaN"):
        model.predict(_data([[30, None, 1.0, "cook", "city-0"]], signature), {})


def test_conversion_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for ONNX is told what to install."""
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    model = _SklearnModel(Ridge().fit(FRAME[NUMBERS], VALUES), "predict")
    with pytest.raises(CannotLoadError, match="extra 'onnx'"):
        model.convert(ModelFolder(path=Path(), flavors={}, signature=NUMERIC), 1)

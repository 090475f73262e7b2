"""Boosters of XGBoost and LightGBM: the rows of several requests give what each alone does."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost

from fairlead_serving.adapters import xgboost_native
from fairlead_serving.adapters.lightgbm import LightgbmLoader
from fairlead_serving.adapters.xgboost import XgboostLoader
from fairlead_serving.adapters.xgboost_native import Predict, through_native
from fairlead_serving.app.ports import FlavorLoader, Model, ModelFolder
from fairlead_serving.domain.data import Layout, Records
from fairlead_serving.domain.signature import Kind

CHANCE = np.random.default_rng(11)
ROWS = np.where(CHANCE.random((120, 4)) < 0.1, np.nan, CHANCE.normal(size=(120, 4)))
FILLED = np.nan_to_num(ROWS)
NUMBER = 2 * FILLED[:, 0] - FILLED[:, 1] + CHANCE.normal(size=120)
POSITIVE = np.exp(NUMBER / 4)
BINARY = (NUMBER > 0).astype(int)
CLASSES = np.digitize(NUMBER, [-1, 1])
SHARE = 1 / (1 + np.exp(-NUMBER))
GROUPS = [12] * 10
LAYOUT = Layout(tuple("abcd"), (Kind.DOUBLE,) * 4)
TOGETHER = 23  # LightGBM uses more threads above sixteen rows.


def _load(loader: FlavorLoader, path: Path, kind: str, method: str = "predict") -> Model:
    settings = {"loader_module": f"mlflow.{loader.flavor}", "data": path.name, "predict_fn": method}
    flavors = {
        "python_function": settings,
        loader.flavor: {"data": path.name, "model_class": kind},
    }
    folder = ModelFolder(path=path.parent, flavors=flavors)
    assert loader.can_load(folder)
    return loader.load(folder)


def _assert_rowwise(model: Model, params: Mapping[str, object] | None = None) -> None:
    """Compare rows alone, in a few calls and in one."""
    assert model.is_rowwise
    wanted = params or {}
    rows: Sequence[tuple[float, ...]] = [tuple(row) for row in ROWS[:TOGETHER].tolist()]
    together = np.asarray(model.predict(Records(LAYOUT, rows), wanted))
    assert len(together) == TOGETHER
    for size in (1, 3):
        for start in range(0, TOGETHER, size):
            few = model.predict(Records(LAYOUT, rows[start : start + size]), wanted)
            np.testing.assert_array_equal(np.asarray(few), together[start : start + size])
    assert len(np.unique(together, axis=0)) > 1, "a constant proves nothing"


XGBOOST: Mapping[str, tuple[dict[str, Any], Any]] = {
    "squared error": ({}, NUMBER),
    "absolute error": ({"objective": "reg:absoluteerror"}, NUMBER),
    "quantiles": ({"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.9]}, NUMBER),
    "several targets": ({"multi_strategy": "multi_output_tree"}, np.c_[NUMBER, POSITIVE]),
    "gamma": ({"objective": "reg:gamma"}, POSITIVE),
    "tweedie": ({"objective": "reg:tweedie"}, POSITIVE),
    "counts": ({"objective": "count:poisson"}, np.round(POSITIVE)),
    "logistic": ({"objective": "binary:logistic"}, BINARY),
    "margin": ({"objective": "binary:logitraw"}, BINARY),
    "hinge": ({"objective": "binary:hinge"}, BINARY),
    "classes": ({"objective": "multi:softmax", "num_class": 3}, CLASSES),
    "chances": ({"objective": "multi:softprob", "num_class": 3}, CLASSES),
    "survival": ({"objective": "survival:cox"}, np.where(BINARY, POSITIVE, -POSITIVE)),
    "dart": ({"booster": "dart", "rate_drop": 0.5, "objective": "binary:logistic"}, BINARY),
    "dart, classes": (
        {"booster": "dart", "rate_drop": 0.5, "objective": "multi:softprob", "num_class": 3},
        CLASSES,
    ),
    "linear": ({"booster": "gblinear"}, NUMBER),
    "linear, classes": (
        {"booster": "gblinear", "objective": "multi:softprob", "num_class": 3},
        CLASSES,
    ),
    "random forest": ({"num_parallel_tree": 5, "subsample": 0.5, "learning_rate": 1}, NUMBER),
    "ranking": ({"objective": "rank:ndcg"}, CLASSES),
    "ranking by pairs": ({"objective": "rank:pairwise"}, CLASSES),
    "ranking by precision": ({"objective": "rank:map"}, BINARY),
}


def _size(case: str) -> Mapping[str, int]:
    return {} if "linear" in case else {"max_depth": 3}


@pytest.mark.parametrize("named", [True, False], ids=["columns", "no names"])
@pytest.mark.parametrize("case", XGBOOST)
def test_xgboost_boosters_predict_row_by_row(case: str, named: bool, tmp_path: Path) -> None:
    """Whatever the booster and the objective, company changes no bit of an answer."""
    params, labels = XGBOOST[case]
    names = list("abcd") if named else None
    matrix = xgboost.DMatrix(FILLED, labels, feature_names=names)
    if "ranking" in case:
        matrix.set_group(GROUPS)
    booster = xgboost.train({"nthread": 1, **_size(case), **params}, matrix, 8)
    booster.save_model(tmp_path / "model.ubj")
    _assert_rowwise(_load(XgboostLoader(1), tmp_path / "model.ubj", "xgboost.core.Booster"))


@pytest.mark.parametrize(
    "params",
    [
        {"output_margin": True},
        {"pred_leaf": True},
        {"pred_contribs": True},
        {"pred_interactions": True},
        {"iteration_range": (0, 3)},
    ],
    ids=lambda params: next(iter(params)),
)
@pytest.mark.parametrize("booster", ["gbtree", "dart"])
def test_xgboost_parameters_predict_row_by_row(
    booster: str, params: Mapping[str, object], tmp_path: Path
) -> None:
    """Nor does it with a parameter that a request may give."""
    trained = xgboost.train(
        {"booster": booster, "nthread": 1, "objective": "binary:logistic"},
        xgboost.DMatrix(ROWS, BINARY),
        4,
    )
    trained.save_model(tmp_path / "model.ubj")
    model = _load(XgboostLoader(1), tmp_path / "model.ubj", "xgboost.core.Booster")
    _assert_rowwise(model, params)


XGBOOST_MODELS: Mapping[str, tuple[Any, Any, str]] = {
    "regressor": (xgboost.XGBRegressor, NUMBER, "predict"),
    "linear regressor": (partial(xgboost.XGBRegressor, booster="gblinear"), NUMBER, "predict"),
    "dart regressor": (partial(xgboost.XGBRegressor, booster="dart"), NUMBER, "predict"),
    "classifier": (xgboost.XGBClassifier, CLASSES, "predict"),
    "chances": (xgboost.XGBClassifier, CLASSES, "predict_proba"),
    "two classes": (xgboost.XGBClassifier, BINARY, "predict"),
    "chances of two": (xgboost.XGBClassifier, BINARY, "predict_proba"),
    "chances of the likeliest": (
        partial(xgboost.XGBClassifier, objective="multi:softmax"),
        CLASSES,
        "predict_proba",
    ),
    "any": (xgboost.XGBModel, NUMBER, "predict"),
    "leaves": (xgboost.XGBClassifier, CLASSES, "apply"),
    "forest": (partial(xgboost.XGBRFRegressor, colsample_bynode=0.5), NUMBER, "predict"),
    "forest of classes": (xgboost.XGBRFClassifier, BINARY, "predict_proba"),
    "ranker": (xgboost.XGBRanker, CLASSES, "predict"),
}


def _fitted(case: str) -> tuple[Any, str]:
    """Train one of `XGBOOST_MODELS`; give it and the method that predicts."""
    make, labels, method = XGBOOST_MODELS[case]
    options = {"group": GROUPS} if case == "ranker" else {}
    return make(n_estimators=8, n_jobs=1, **_size(case)).fit(FILLED, labels, **options), method


def _saved(model: Any, method: str, folder: Path) -> Model:
    """Save a model of the scikit-learn interface and load it as it is served."""
    model.save_model(folder / "model.ubj")
    kind = f"xgboost.sklearn.{type(model).__name__}"
    return _load(XgboostLoader(1), folder / "model.ubj", kind, method)


@pytest.mark.parametrize("case", XGBOOST_MODELS)
def test_xgboost_models_predict_row_by_row(case: str, tmp_path: Path) -> None:
    """The scikit-learn interface is row by row too, with each method that predicts."""
    model, method = _fitted(case)
    _assert_rowwise(_saved(model, method, tmp_path))


@pytest.mark.parametrize("case", [*XGBOOST_MODELS, "stopped early"])
def test_xgboost_models_answer_as_the_library_does(case: str, tmp_path: Path) -> None:
    """To the bit what the class itself predicts after loading, also with the best trees only."""
    make, labels, method = XGBOOST_MODELS.get(case, XGBOOST_MODELS["regressor"])
    options: dict[str, Any] = {"group": GROUPS} if case == "ranker" else {}
    model = make(n_estimators=8, n_jobs=1, **_size(case))
    if case == "stopped early":
        model.set_params(n_estimators=60, early_stopping_rounds=2, learning_rate=1)
        options = {"eval_set": [(FILLED, NUMBER[::-1])], "verbose": False}
    model.fit(FILLED, labels, **options)
    assert (
        case != "stopped early"
        or model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    )
    model.save_model(tmp_path / "model.ubj")
    again = type(model)(n_jobs=1)
    again.load_model(tmp_path / "model.ubj")
    served = _saved(model, method, tmp_path)
    found = served.predict(Records(LAYOUT, [tuple(row) for row in FILLED.tolist()]), {})
    np.testing.assert_array_equal(found, getattr(again, method)(FILLED))


STRAIGHT = sorted(
    XGBOOST_MODELS.keys() - {"linear regressor", "leaves", "chances of the likeliest"}
)


@pytest.mark.parametrize("case", STRAIGHT)
def test_xgboost_models_go_past_the_package(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever method predicts, the trees are walked by the native library, called straight."""
    model, method = _fitted(case)
    asked, own = [], xgboost.Booster.inplace_predict

    def ask(self: xgboost.Booster, *args: Any, **options: Any) -> Any:
        asked.append(options)
        return own(self, *args, **options)

    monkeypatch.setattr(xgboost.Booster, "inplace_predict", ask)
    served = _saved(model, method, tmp_path)
    asked.clear()
    served.predict(Records(LAYOUT, [tuple(row) for row in FILLED.tolist()]), {})
    assert asked == []


@pytest.mark.parametrize("case", ["regressor", "classifier"])
@pytest.mark.parametrize(
    "params",
    [{"output_margin": True}, {"iteration_range": (0, 2)}, {"validate_features": False}],
    ids=lambda params: next(iter(params)),
)
def test_parameters_of_a_caller_reach_xgboost(
    params: dict[str, Any], case: str, tmp_path: Path
) -> None:
    """What a caller asks for beside the rows is the package's to do."""
    model, method = _fitted(case)
    served = _saved(model, method, tmp_path)
    found = served.predict(Records(LAYOUT, [tuple(row) for row in FILLED.tolist()]), params)
    np.testing.assert_array_equal(found, model.predict(FILLED, **params))


@pytest.fixture
def booster() -> xgboost.Booster:
    """A booster that has seen missing values."""
    return xgboost.train({"nthread": 1}, xgboost.DMatrix(ROWS, NUMBER), 8)


def _through_native(booster: xgboost.Booster) -> tuple[Predict, list[object]]:
    """What predicts through the native library, and what it has left to the package since."""
    left: list[object] = []

    def own(data: Any) -> Any:
        left.append(data)
        return booster.inplace_predict(data)

    predict = through_native(booster, (0, 0), math.nan, own)
    left.clear()
    return predict, left


NATIVE = {
    "doubles": ROWS,
    "floats": ROWS.astype(np.float32),
    "one row": ROWS[:1],
}
LEFT = {
    "columns after columns": np.asfortranarray(ROWS),
    "a part": ROWS[:, ::-1],
    "no rows": ROWS[:0],
    "whole numbers": FILLED.astype(int),
    "a frame": pd.DataFrame(ROWS),
}


@pytest.mark.parametrize("case", NATIVE | LEFT)
def test_native_calls_are_for_rows_of_floats(case: str, booster: xgboost.Booster) -> None:
    """They give what the package does; what else there is, the package predicts on."""
    predict, left = _through_native(booster)
    data = (NATIVE | LEFT)[case]
    found = predict(data)
    expected = booster.inplace_predict(data)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert len(left) == (case in LEFT)


@pytest.mark.parametrize("width", [3, 5])
def test_native_calls_leave_the_wrong_width_to_the_package(
    width: int, booster: xgboost.Booster
) -> None:
    """It refuses in its own words, where the library would read beside the array."""
    predict, _ = _through_native(booster)
    with pytest.raises(ValueError, match="Feature shape mismatch"):
        predict(np.zeros((2, width)))


@pytest.mark.parametrize("fault", ["missing", "refuses", "differs", "refuses later"])
def test_package_predicts_where_the_native_library_does_not(
    fault: str, booster: xgboost.Booster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another XGBoost may lack the function, change it, or fail in it: only speed is lost."""
    native = xgboost_native._Native

    def refuse(*_: object) -> None:
        raise xgboost_native.NativeError

    if fault == "missing":
        monkeypatch.setattr(xgboost_native, "_FUNCTION", "XGBoosterPredictFromNowhere")
    elif fault == "refuses":
        monkeypatch.setattr(xgboost_native, "_ARRAY", b"%d %d %d %s")
    elif fault == "differs":
        monkeypatch.setattr(native, "predict", lambda _, data: np.zeros(len(data), np.float32))
    predict, left = _through_native(booster)
    if fault == "refuses later":
        monkeypatch.setattr(native, "predict", refuse)
    np.testing.assert_array_equal(predict(ROWS), booster.inplace_predict(ROWS))
    assert len(left) == 1


def test_threads_change_no_answer_of_xgboost(tmp_path: Path) -> None:
    """How the rows of a call are shared out among threads is not to be seen."""
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(ROWS, NUMBER), 8)
    booster.save_model(tmp_path / "model.ubj")
    found = []
    for threads in (1, 3):
        model = _load(XgboostLoader(threads), tmp_path / "model.ubj", "xgboost.core.Booster")
        found.append(model.predict(Records(LAYOUT, [tuple(row) for row in ROWS.tolist()]), {}))
    np.testing.assert_array_equal(*found)


LIGHTGBM: Mapping[str, tuple[dict[str, Any], Any]] = {
    "squared error": ({}, NUMBER),
    "absolute error": ({"objective": "regression_l1"}, NUMBER),
    "quantile": ({"objective": "quantile", "alpha": 0.9}, NUMBER),
    "huber": ({"objective": "huber"}, NUMBER),
    "counts": ({"objective": "poisson"}, np.round(POSITIVE)),
    "gamma": ({"objective": "gamma"}, POSITIVE),
    "tweedie": ({"objective": "tweedie"}, POSITIVE),
    "logistic": ({"objective": "binary"}, BINARY),
    "shares": ({"objective": "cross_entropy"}, SHARE),
    "intensities": ({"objective": "cross_entropy_lambda"}, SHARE),
    "chances": ({"objective": "multiclass", "num_class": 3}, CLASSES),
    "one against all": ({"objective": "multiclassova", "num_class": 3}, CLASSES),
    "dart": ({"boosting": "dart", "drop_rate": 0.5, "objective": "binary"}, BINARY),
    "random forest": (
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5, "objective": "binary"},
        BINARY,
    ),
    "sampled": ({"data_sample_strategy": "goss"}, NUMBER),
    "linear leaves": ({"linear_tree": True}, NUMBER),
    "extra trees": ({"extra_trees": True}, NUMBER),
    "ranking": ({"objective": "lambdarank"}, CLASSES),
    "ranking by cross entropy": ({"objective": "rank_xendcg"}, CLASSES),
    "stops early": ({"objective": "binary", "pred_early_stop": True}, BINARY),
}
SMALL: Mapping[str, Any] = {"num_leaves": 7, "min_data_in_leaf": 3, "verbose": -1, "num_threads": 1}


@pytest.mark.parametrize("case", LIGHTGBM)
def test_lightgbm_boosters_predict_row_by_row(case: str, tmp_path: Path) -> None:
    """Whatever the booster and the objective, company and more threads change no bit."""
    params, labels = LIGHTGBM[case]
    group = GROUPS if "ranking" in case else None
    data = lightgbm.Dataset(ROWS, labels, group=group, feature_name=list("abcd"))
    booster = lightgbm.train({**SMALL, **params}, data, 8)
    booster.save_model(tmp_path / "model.lgb")
    _assert_rowwise(_load(LightgbmLoader(2), tmp_path / "model.lgb", "lightgbm.basic.Booster"))


LIGHTGBM_MODELS: Mapping[str, tuple[Any, Any]] = {
    "regressor": (lightgbm.LGBMRegressor, NUMBER),
    "dart regressor": (partial(lightgbm.LGBMRegressor, boosting_type="dart"), NUMBER),
    "classifier": (lightgbm.LGBMClassifier, CLASSES),
    "ranker": (lightgbm.LGBMRanker, CLASSES),
}


@pytest.mark.parametrize("case", LIGHTGBM_MODELS)
def test_lightgbm_models_predict_row_by_row(case: str, tmp_path: Path) -> None:
    """The scikit-learn interface is row by row too."""
    make, labels = LIGHTGBM_MODELS[case]
    model = make(n_estimators=8, min_child_samples=3, verbose=-1, n_jobs=1)
    frame = pd.DataFrame(ROWS, columns=list("abcd"))
    model.fit(frame, labels, **({"group": GROUPS} if case == "ranker" else {}))
    (tmp_path / "model.pkl").write_bytes(cloudpickle.dumps(model))
    kind = f"lightgbm.sklearn.{type(model).__name__}"
    _assert_rowwise(_load(LightgbmLoader(2), tmp_path / "model.pkl", kind))


def test_lightgbm_uses_the_threads_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many rows take as many threads as are allowed; for a few, one is quickest."""
    booster = lightgbm.train(dict(SMALL), lightgbm.Dataset(ROWS, NUMBER), 2)
    booster.save_model(tmp_path / "model.lgb")
    given: list[int] = []
    predict = lightgbm.Booster.predict

    def spy(self: Any, data: Any, **options: Any) -> Any:
        given.append(options["num_threads"])
        return predict(self, data, **options)

    monkeypatch.setattr(lightgbm.Booster, "predict", spy)
    model = _load(LightgbmLoader(3), tmp_path / "model.lgb", "lightgbm.basic.Booster")
    for count in (1, 16, 17, 100):
        model.predict(Records(LAYOUT, [tuple(row) for row in ROWS[:count].tolist()]), {})
    assert given == [1, 1, 3, 3]

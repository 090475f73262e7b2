"""Each flavor and way to save a model, loaded in this process."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from importing import imported_by
from jsonschema import Draft202012Validator, ValidationError
from numpy.testing._private.utils import runstring
from serving_asgi import Client
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, SplineTransformer
from skops.io import dumps

from fairlead_serving.adapters.sklearn import read_estimator
from fairlead_serving.adapters.trusted import TRUSTED
from fairlead_serving.app.serving import Served
from fairlead_serving.domain.decode import decode, decode_columns
from fairlead_serving.domain.errors import CannotLoadError, ModelRaisedError
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.wiring import fetch_and_load


def _predict(served: Served, payload: object) -> Any:
    return served.predict(decode(payload, served.signature))


ROW = {"dataframe_records": [{"hour": 1.5, "day": 2, "late": 0}]}
SKOPS = {"serialization_format": "skops"}
POINTS = np.random.default_rng(3).normal(size=(40, 3))
CLASSES = (POINTS[:, 0] > 0).astype(int)
FITTED = (
    RandomForestClassifier(3),
    HistGradientBoostingClassifier(max_iter=3),
    KNeighborsClassifier(3),
    GaussianProcessClassifier(1.0 * RBF()),
    MLPClassifier((3,), max_iter=3000, tol=0.1),
    SGDClassifier(),
    CalibratedClassifierCV(LogisticRegression(), cv=2),
    GridSearchCV(LogisticRegression(), {"C": [1, 2]}, cv=2),
    VotingClassifier([("one", LogisticRegression())]),
    make_pipeline(SplineTransformer(), SelectKBest(k=2), LogisticRegression(max_iter=500)),
)
NATIVE = (
    "cloudpickle",
    "skops",
    "proba",
    "unsigned",
    "mixed",
    "booster",
    "tensor",
    "light",
    "light_booster",
    "light_words",
)


def _load(folder: Path) -> Served:
    return fetch_and_load(Settings(model=str(folder)))


@pytest.mark.parametrize("name", NATIVE)
def test_native_flavors_predict_what_mlflow_predicts(
    name: str, models: Path, expected: Mapping[str, Any]
) -> None:
    """A model loaded without MLflow predicts what it predicts with it."""
    served = _load(models / name)
    body = json.dumps(expected[name]["payload"]).encode()
    for request in (
        decode(expected[name]["payload"], served.signature),
        served.reader.read_json(body),
    ):
        predictions = np.array(served.predict(request))
        wanted = np.array(expected[name]["predictions"])
        if wanted.dtype.kind == "U":
            assert predictions.tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(predictions, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["proba", "decision", "decisions", "log_proba", "transform"])
def test_other_methods_answer_as_mlflow_or_the_model_does(
    name: str, models: Path, expected: Mapping[str, Any]
) -> None:
    """What `pyfunc_predict_fn` names is called, though MLflow knows few; the document describes it."""
    served = _load(models / name)
    client = Client(signature=served.signature, state={"served": served})
    answer = client.post(expected[name]["payload"]).json()
    wanted = expected[name]["predictions"]
    np.testing.assert_allclose(answer["predictions"], wanted, rtol=1e-12, atol=0)
    document = client.send("GET", "/openapi.json").json()
    described = document["components"]["schemas"]["Predictions"]
    Draft202012Validator({**described, "components": document["components"]}).validate(answer)
    is_table = np.ndim(wanted) == 2
    for wrong in ([["x"]], ["x"], [1.0] if is_table else [[1.0]]):
        with pytest.raises(ValidationError):
            Draft202012Validator({**described, "components": document["components"]}).validate(
                {"predictions": wrong}
            )


def test_types_of_a_skops_file_are_not_trusted_on_its_own_word(models: Path) -> None:
    """What the MLmodel trusts is its author's word; the refusal names what a setting may allow."""
    with pytest.raises(CannotLoadError) as caught:
        _load(models / "foreign")
    words = str(caught.value)
    assert "xgboost.sklearn.XGBRegressor" in words
    trusted = words.partition("--trusted-types ")[2].partition(" ")[0].split(",")
    served = fetch_and_load(Settings(model=str(models / "foreign"), trusted_types=tuple(trusted)))
    assert served.model.predict(decode(ROW, served.signature).data, {})


def _skops(path: Path, estimator: Any) -> Path:
    """Save an estimator as MLflow does, and answer its file."""
    path.write_bytes(dumps(estimator))
    return path


def test_functions_of_known_packages_are_not_trusted_for_their_package(tmp_path: Path) -> None:
    """numpy, too, has a function that runs any text as a program."""
    estimator = FunctionTransformer(runstring)
    with pytest.raises(CannotLoadError, match=r"numpy\.testing\._private\.utils\.runstring"):
        read_estimator(str(_skops(tmp_path / "model.skops", estimator)), SKOPS)


@pytest.mark.parametrize("estimator", FITTED, ids=lambda estimator: type(estimator).__name__)
def test_fitted_models_of_scikit_learn_need_no_trust(estimator: Any, tmp_path: Path) -> None:
    """Trees, distances, kernels and losses are known one by one."""
    path = _skops(tmp_path / "model.skops", estimator.fit(POINTS, CLASSES))
    read = read_estimator(str(path), SKOPS)
    assert read.predict(POINTS).tolist() == estimator.predict(POINTS).tolist()


def test_trusted_types_are_there() -> None:
    """A name that moved with another scikit-learn is noticed here, not by a user."""
    for name in TRUSTED:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_every_form_gives_the_same_predictions(models: Path) -> None:
    """The same rows predict the same, whichever of MLflow's forms they come in."""
    served = _load(models / "cloudpickle")
    records = [{"hour": 1.5, "day": 2, "late": 0}, {"hour": 2.0, "day": 3, "late": 1}]
    columns = {name: [record[name] for record in records] for name in records[0]}
    split = {"columns": list(columns), "data": [list(record.values()) for record in records]}
    forms = [
        {"dataframe_records": records},
        {"dataframe_split": split},
        {"instances": records},
        {"inputs": records},
        {"inputs": columns},
    ]
    answers = [list(_predict(served, form)) for form in forms]
    answers.append(list(served.predict(decode_columns(columns, served.signature))))
    assert answers == [answers[0]] * len(answers)


def test_float_that_is_missing_reaches_the_model_as_nan(models: Path) -> None:
    """A null in a double column is NaN, which some models take as missing."""
    record = {"hour": None, "day": 2, "late": 0}
    predictions = _predict(_load(models / "proba"), {"dataframe_records": [record]})
    assert np.isfinite(np.array(predictions)).all()


def test_model_that_raises_keeps_its_text_to_itself(models: Path) -> None:
    """The class of the model's exception is named; its text, which holds the input, is not."""
    record = {"hour": 1.5, "day": 2, "late": 0}
    with pytest.raises(ModelRaisedError) as caught:
        _predict(_load(models / "raising"), {"dataframe_records": [record]})
    assert str(caught.value) == "The model raised RuntimeError."


def test_first_caller_waits_for_no_import(models: Path) -> None:
    """A model without an input example is ready with all that its own method is called with."""
    assert "pandas" in imported_by(models / "mixed", "", predictor="exact")


def test_scikit_learn_model_brings_nothing_of_others(models: Path) -> None:
    """Neither loading nor predicting imports what only other models need."""
    imported = imported_by(models / "unsigned", '{"inputs": [[1.0, 2.0, 3.0]]}')
    assert "sklearn" in imported
    assert not imported & {"mlflow", "httpx", "grpc", "torch", "onnxruntime", "skops", "xgboost"}

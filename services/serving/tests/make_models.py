"""Saves the models that the tests serve, with MLflow itself, and what MLflow predicts.

Run as a process: importing MLflow is slow, warns, and must not happen where the tests look
whether it was imported.
"""

import json
import sys
import time
from pathlib import Path

import lightgbm
import mlflow
import numpy as np
import pandas as pd
import xgboost
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array, Object, Property
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

NUMBERS = pd.DataFrame({"hour": np.arange(60.0), "day": np.arange(60), "late": np.arange(60) % 3})
LABELS = np.arange(60) % 2
MIXED = pd.DataFrame(
    {
        "carrier": ["AA", "UA", "DL"] * 20,
        "distance": np.arange(60.0),
        "holiday": np.arange(60) % 2 == 0,
        "when": pd.date_range("2013-01-01", periods=60),
    }
)
ROWS = NUMBERS.head(5)
SPLIT = {"dataframe_split": ROWS.to_dict(orient="split")}
SIGNATURE = infer_signature(NUMBERS, LABELS * 1.0)
RIDGE = Ridge().fit(NUMBERS, LABELS)
PICKLED = {"serialization_format": "cloudpickle"}


class Raising:
    """Fails like a model with a mistake in it: the text of its error holds the input."""

    def predict(self, data):
        """Raise."""
        raise RuntimeError(f"cannot handle {data.to_dict()}")


class Importing:
    """Needs a module that nobody has, but only when it predicts."""

    def predict(self, data):
        """Import what is not there."""
        import no_such_module  # noqa: PLC0415

        return no_such_module.predict(data)


class Plain:
    """Needs no library to load, so its server starts soonest."""

    def predict(self, data):
        """Predict nothing much."""
        return np.zeros(len(data))


class Slow:
    """Takes its time over each request."""

    def predict(self, data):
        """Predict nothing much, slowly."""
        time.sleep(0.05)
        return np.zeros(len(data))


class Calling:
    """Calls another service, as far as the headers that it would send."""

    def predict(self, data):
        """Give the trace that the call would be in."""
        from opentelemetry.propagate import inject  # noqa: PLC0415

        headers = {}
        inject(headers)
        return np.array([headers.get("traceparent", "")] * len(data))


class Pools:
    """Says how wide the pools of threads are in the process that it predicts in."""

    def predict(self, data):
        """Give each pool's library and width."""
        import sklearn.ensemble._hist_gradient_boosting._gradient_boosting  # noqa: F401, PLC0415
        import threadpoolctl  # noqa: PLC0415

        pools = [
            (one["internal_api"], one["num_threads"]) for one in threadpoolctl.threadpool_info()
        ]
        return np.array([json.dumps(pools)] * len(data))


class Scaling(mlflow.pyfunc.PythonModel):
    """A model of no particular library, with a parameter."""

    def predict(self, context, model_input, params=None):
        """Scale a column."""
        return (model_input["hour"] * (params or {}).get("factor", 1.0)).to_numpy()


class Company(mlflow.pyfunc.PythonModel):
    """Looks at all rows at once, as nobody can tell from outside."""

    def predict(self, context, model_input):
        """Say to each row how many it came with."""
        time.sleep(0.02)
        return np.full(len(model_input), float(len(model_input)))


class Nested(mlflow.pyfunc.PythonModel):
    """Says what is in its columns of lists and objects."""

    def predict(self, context, model_input):
        """Write each row down."""
        return [repr(row) for row in model_input.to_dict(orient="records")]


class Models:
    """A folder of models, and what MLflow predicts with them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.expected = {}

    def keep(self, name: str, data=ROWS, payload=SPLIT) -> None:
        """Write down what MLflow predicts."""
        predictions = mlflow.pyfunc.load_model(self.path(name)).predict(data)
        listed = np.asarray(predictions).tolist()
        self.expected[name] = {"payload": payload, "predictions": listed}

    def path(self, name: str) -> str:
        """Name the folder of a model."""
        return str(self.root / name)

    def sklearn(self, name: str, model, signature=SIGNATURE, **options) -> None:
        """Save a model as scikit-learn's."""
        options = {"pip_requirements": ["scikit-learn", "mlflow"], **PICKLED, **options}
        mlflow.sklearn.save_model(model, self.path(name), signature=signature, **options)


def save_formats(models: Models) -> None:
    """Save a scikit-learn model in each format."""
    models.sklearn("cloudpickle", RIDGE, input_example=ROWS.head(2))
    models.keep("cloudpickle")
    models.sklearn("skops", RIDGE, serialization_format="skops")
    models.keep("skops")
    boosted = xgboost.XGBRegressor(n_estimators=2)
    models.sklearn(
        "foreign",
        make_pipeline(StandardScaler(), boosted).fit(NUMBERS, LABELS),
        serialization_format="skops",
        skops_trusted_types=["xgboost.core.Booster", "xgboost.sklearn.XGBRegressor"],
    )


def save_sklearn(models: Models) -> None:
    """Save scikit-learn models of several signatures."""
    boosted = HistGradientBoostingClassifier(max_iter=5).fit(NUMBERS, LABELS)
    models.sklearn(
        "proba",
        boosted,
        infer_signature(NUMBERS, boosted.predict_proba(NUMBERS)),
        pyfunc_predict_fn="predict_proba",
        serialization_format="pickle",
    )
    models.keep("proba")
    three = LogisticRegression().fit(NUMBERS, np.arange(60) % 3)
    scaler = StandardScaler().fit(NUMBERS)
    for name, estimator, method in (
        ("decision", LogisticRegression().fit(NUMBERS, LABELS), "decision_function"),
        ("decisions", three, "decision_function"),
        ("log_proba", three, "predict_log_proba"),
        ("transform", scaler, "transform"),
    ):
        signature = infer_signature(NUMBERS, getattr(estimator, method)(NUMBERS))
        models.sklearn(name, estimator, signature, pyfunc_predict_fn=method)
        if method.startswith("predict"):
            models.keep(name)
        else:  # MLflow saves it, and then cannot load it.
            predictions = getattr(estimator, method)(ROWS).tolist()
            models.expected[name] = {"payload": SPLIT, "predictions": predictions}
    models.sklearn("echo", FunctionTransformer(), None, pyfunc_predict_fn="transform")
    models.sklearn("unsigned", Ridge().fit(NUMBERS.to_numpy(), LABELS), None)
    models.keep("unsigned", ROWS.to_numpy(), {"inputs": ROWS.to_numpy().tolist()})
    encoder = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["carrier"]),
        ("passthrough", ["distance", "holiday"]),
    )
    pipeline = make_pipeline(encoder, Ridge()).fit(MIXED, LABELS)
    models.sklearn("mixed", pipeline, infer_signature(MIXED, LABELS * 1.0))
    records = json.loads(MIXED.head(4).to_json(orient="records", date_format="iso"))
    for record in records:
        record["when"] = record["when"].removesuffix("Z")
    models.keep("mixed", MIXED.head(4), {"dataframe_records": records})


def save_xgboost(models: Models) -> None:
    """Save a booster and a classifier."""
    booster = xgboost.train({"max_depth": 2}, xgboost.DMatrix(NUMBERS, LABELS), 3)
    mlflow.xgboost.save_model(
        booster,
        models.path("booster"),
        signature=infer_signature(NUMBERS, booster.predict(xgboost.DMatrix(NUMBERS))),
        input_example=ROWS.head(1),
        pip_requirements=["xgboost"],
    )
    models.keep("booster")
    mlflow.xgboost.save_model(
        xgboost.XGBClassifier(n_estimators=3).fit(NUMBERS.to_numpy(), LABELS),
        models.path("tensor"),
        signature=infer_signature(NUMBERS.to_numpy(), LABELS),
        pip_requirements=["xgboost"],
    )
    models.keep("tensor", ROWS.to_numpy(), {"inputs": ROWS.to_numpy().tolist()})


def save_lightgbm(models: Models) -> None:
    """Save a regressor, its booster and a classifier of words."""
    trees = {"n_estimators": 3, "min_child_samples": 2, "verbose": -1}
    regressor = lightgbm.LGBMRegressor(**trees).fit(NUMBERS, LABELS)
    words = lightgbm.LGBMClassifier(**trees).fit(NUMBERS, np.where(LABELS, "late", "on time"))
    for name, model, signature in (
        ("light", regressor, SIGNATURE),
        ("light_booster", regressor.booster_, SIGNATURE),
        ("light_words", words, infer_signature(NUMBERS, np.array(["late"]))),
    ):
        mlflow.lightgbm.save_model(
            model, models.path(name), signature=signature, pip_requirements=["lightgbm"]
        )
        models.keep(name)


def save_pyfunc(models: Models) -> None:
    """Save models of no library, of which one has columns of lists and objects."""
    mlflow.pyfunc.save_model(
        models.path("pyfunc"),
        python_model=Scaling(),
        signature=infer_signature(NUMBERS, LABELS * 1.0, params={"factor": 2.0}),
        pip_requirements=["mlflow"],
    )
    models.keep("pyfunc")
    mlflow.pyfunc.save_model(
        models.path("company"),
        python_model=Company(),
        signature=SIGNATURE,
        pip_requirements=["mlflow"],
    )
    moment = Object([Property("n", DataType.integer), Property("when", DataType.datetime)])
    columns = [ColSpec(Array(DataType.float), "list"), ColSpec(moment, "moment")]
    mlflow.pyfunc.save_model(
        models.path("nested"),
        python_model=Nested(),
        signature=ModelSignature(inputs=Schema(columns)),
        pip_requirements=["mlflow"],
    )


def save_odd(models: Models) -> None:
    """Save models that fail, are slow, call others or lack something."""
    for model in (Raising(), Slow(), Plain(), Calling(), Pools(), Importing()):
        models.sklearn(type(model).__name__.lower(), model)
    (models.root / "importing" / "serving_input_example.json").write_text(json.dumps(SPLIT))
    models.sklearn("unmet", RIDGE, pip_requirements=["scikit-learn==0.1", "nobody-has-this"])


def save(root: Path) -> None:
    """Save every model, and write down what MLflow predicts with it."""
    models = Models(root)
    for part in (save_formats, save_sklearn, save_xgboost, save_lightgbm, save_pyfunc, save_odd):
        part(models)
    (root / "expected.json").write_text(json.dumps(models.expected))


save(Path(sys.argv[1]))

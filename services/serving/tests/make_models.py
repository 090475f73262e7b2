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
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

PINS = ["scikit-learn", "mlflow"]
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


class Scaling(mlflow.pyfunc.PythonModel):
    """A model of no particular library, with a parameter."""

    def predict(self, context, model_input, params=None):
        """Scale a column."""
        return (model_input["hour"] * (params or {}).get("factor", 1.0)).to_numpy()


class Nested(mlflow.pyfunc.PythonModel):
    """Says what is in its columns of lists and objects."""

    def predict(self, context, model_input):
        """Write each row down."""
        return [repr(row) for row in model_input.to_dict(orient="records")]


def save_nested(root: Path) -> None:
    """Save a model whose columns hold lists and objects."""
    moment = Object([Property("n", DataType.integer), Property("when", DataType.datetime)])
    columns = [ColSpec(Array(DataType.float), "list"), ColSpec(moment, "moment")]
    mlflow.pyfunc.save_model(
        str(root / "nested"),
        python_model=Nested(),
        signature=ModelSignature(inputs=Schema(columns)),
        pip_requirements=["mlflow"],
    )


def save(root: Path) -> None:
    """Save every model, and write down what MLflow predicts with it."""
    expected = {}

    def keep(name: str, data, payload) -> None:
        predictions = mlflow.pyfunc.load_model(str(root / name)).predict(data)
        expected[name] = {"payload": payload, "predictions": np.asarray(predictions).tolist()}

    def sklearn(name: str, model, data, signature, **options) -> None:
        options.setdefault("pip_requirements", PINS)
        mlflow.sklearn.save_model(model, str(root / name), signature=signature, **options)

    rows = NUMBERS.head(5)
    split = {"dataframe_split": rows.to_dict(orient="split")}
    numbers = infer_signature(NUMBERS, LABELS * 1.0)
    ridge = Ridge().fit(NUMBERS, LABELS)
    pickled = {"serialization_format": "cloudpickle"}

    sklearn("cloudpickle", ridge, NUMBERS, numbers, input_example=rows.head(2), **pickled)
    keep("cloudpickle", rows, split)
    sklearn("skops", ridge, NUMBERS, numbers, serialization_format="skops")
    keep("skops", rows, split)
    foreign = ["xgboost.core.Booster", "xgboost.sklearn.XGBRegressor"]
    sklearn(
        "foreign",
        make_pipeline(StandardScaler(), xgboost.XGBRegressor(n_estimators=2)).fit(NUMBERS, LABELS),
        NUMBERS,
        numbers,
        serialization_format="skops",
        skops_trusted_types=foreign,
    )
    boosted = HistGradientBoostingClassifier(max_iter=5).fit(NUMBERS, LABELS)
    sklearn(
        "proba",
        boosted,
        NUMBERS,
        infer_signature(NUMBERS, boosted.predict_proba(NUMBERS)),
        pyfunc_predict_fn="predict_proba",
        serialization_format="pickle",
    )
    keep("proba", rows, split)
    sklearn("unsigned", Ridge().fit(NUMBERS.to_numpy(), LABELS), NUMBERS, None, **pickled)
    keep("unsigned", rows.to_numpy(), {"inputs": rows.to_numpy().tolist()})

    pipeline = make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), ["carrier"]),
            ("passthrough", ["distance", "holiday"]),
        ),
        Ridge(),
    ).fit(MIXED, LABELS)
    sklearn("mixed", pipeline, MIXED, infer_signature(MIXED, LABELS * 1.0), **pickled)
    records = json.loads(MIXED.head(4).to_json(orient="records", date_format="iso"))
    for record in records:
        record["when"] = record["when"].removesuffix("Z")
    keep("mixed", MIXED.head(4), {"dataframe_records": records})

    booster = xgboost.train({"max_depth": 2}, xgboost.DMatrix(NUMBERS, LABELS), 3)
    output = booster.predict(xgboost.DMatrix(NUMBERS))
    mlflow.xgboost.save_model(
        booster,
        str(root / "booster"),
        signature=infer_signature(NUMBERS, output),
        input_example=rows.head(1),
        pip_requirements=["xgboost"],
    )
    keep("booster", rows, split)
    classifier = xgboost.XGBClassifier(n_estimators=3).fit(NUMBERS.to_numpy(), LABELS)
    mlflow.xgboost.save_model(
        classifier,
        str(root / "tensor"),
        signature=infer_signature(NUMBERS.to_numpy(), LABELS),
        pip_requirements=["xgboost"],
    )
    keep("tensor", rows.to_numpy(), {"inputs": rows.to_numpy().tolist()})

    trees = {"n_estimators": 3, "min_child_samples": 2, "verbose": -1}
    boosted_light = lightgbm.LGBMRegressor(**trees).fit(NUMBERS, LABELS)
    for name, model in (("light", boosted_light), ("light_booster", boosted_light.booster_)):
        mlflow.lightgbm.save_model(
            model, str(root / name), signature=numbers, pip_requirements=["lightgbm"]
        )
        keep(name, rows, split)
    mlflow.lightgbm.save_model(
        lightgbm.LGBMClassifier(**trees).fit(NUMBERS, np.where(LABELS, "late", "on time")),
        str(root / "light_words"),
        signature=infer_signature(NUMBERS, np.array(["late"])),
        pip_requirements=["lightgbm"],
    )
    keep("light_words", rows, split)
    mlflow.pyfunc.save_model(
        str(root / "pyfunc"),
        python_model=Scaling(),
        signature=infer_signature(NUMBERS, LABELS * 1.0, params={"factor": 2.0}),
        pip_requirements=["mlflow"],
    )
    keep("pyfunc", rows, split)

    for name, model in (
        ("raising", Raising()),
        ("slow", Slow()),
        ("plain", Plain()),
        ("calling", Calling()),
    ):
        sklearn(name, model, NUMBERS, numbers, **pickled)
    sklearn("importing", Importing(), NUMBERS, numbers, **pickled)
    example = {"dataframe_split": rows.to_dict(orient="split")}
    (root / "importing" / "serving_input_example.json").write_text(json.dumps(example))
    sklearn(
        "unmet", ridge, NUMBERS, numbers, pip_requirements=["scikit-learn==0.1", "nobody-has-this"]
    )
    (root / "expected.json").write_text(json.dumps(expected))


save(Path(sys.argv[1]))
save_nested(Path(sys.argv[1]))

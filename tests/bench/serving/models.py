"""The models of the serving bench, saved with MLflow, and the bodies that are sent to them.

Run as `python models.py FOLDER`: importing MLflow is slow and warns, so it has a process of its own.

m0  answers a constant: what is left is the price of serving
m1  scaler and logistic regression on 30 numbers, as a tensor
m2  one-hot encoding and scaling of 8 mixed columns, gradient boosting
m3  XGBoost, 300 trees, 20 named numbers
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import mlflow
import numpy as np
import pandas as pd
import xgboost
from mlflow.models import infer_signature
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

SINGLES = 40
MANY = 100
NUMBERS = ["age", "income", "hours", "tenure"]
WORDS = ["job", "city", "plan", "region"]
DATATYPES = {"age": "INT64"} | dict.fromkeys(NUMBERS[1:], "FP64") | dict.fromkeys(WORDS, "BYTES")
Rows = Sequence[Sequence[Any]]


def constant() -> tuple[Any, Any]:
    """Make m0."""
    rows, _ = load_breast_cancer(return_X_y=True)
    return DummyRegressor(strategy="constant", constant=0.5).fit(rows, rows[:, 0]), rows


def linear() -> tuple[Any, Any]:
    """Make m1."""
    rows, labels = load_breast_cancer(return_X_y=True)
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(rows, labels), rows


def mixed() -> tuple[Any, Any]:
    """Make m2."""
    random, count = np.random.default_rng(7), 5000
    plans = {"free": 0, "basic": 3, "pro": 9, "enterprise": 20}
    frame = pd.DataFrame(
        {
            "age": random.integers(18, 80, count),
            "income": random.gamma(4, 12000, count).round(2),
            "hours": random.normal(38, 8, count).round(1),
            "tenure": random.exponential(5, count).round(2),
            "job": random.choice([f"job-{number:02d}" for number in range(12)], count),
            "city": random.choice([f"city-{number:02d}" for number in range(30)], count),
            "plan": random.choice(list(plans), count),
            "region": random.choice(["n", "s", "e", "w", "nw", "se"], count),
        }
    )
    target = frame.income / 1000 + frame.age * 0.3 + frame.plan.map(plans).astype(float)
    target += frame.job.str[-2:].astype(int) * 0.7 + random.normal(0, 2, count)
    columns = make_column_transformer(
        (StandardScaler(), NUMBERS), (OneHotEncoder(handle_unknown="ignore"), WORDS)
    )
    boosting = GradientBoostingRegressor(n_estimators=100, random_state=0)
    return make_pipeline(columns, boosting).fit(frame, target), frame


def boosted() -> tuple[Any, Any]:
    """Make m3."""
    random, count = np.random.default_rng(11), 5000
    names = [f"x{number}" for number in range(20)]
    frame = pd.DataFrame(random.normal(size=(count, 20)).round(4), columns=names)
    target = frame.x0 * 3 + np.sin(frame.x1 * 2) * 4 + frame.x2 * frame.x3
    target += random.normal(0, 0.3, count)
    model = xgboost.XGBRegressor(
        n_estimators=300, max_depth=6, learning_rate=0.1, n_jobs=1, random_state=0
    )
    return model.fit(frame, target), frame


def mlflow_body(names: Sequence[str] | None, rows: Rows) -> Any:
    """Write rows in MLflow's form."""
    if names is None:
        return {"inputs": rows}
    return {"dataframe_split": {"columns": names, "data": rows}}


def plain_body(names: Sequence[str] | None, rows: Rows) -> Any:
    """Write rows as a hand-written application takes them: records where columns have types."""
    if names is None or names[0] not in NUMBERS:
        return {"instances": rows}
    return {"instances": [dict(zip(names, row, strict=True)) for row in rows]}


def v2_body(names: Sequence[str] | None, rows: Rows) -> Any:
    """Write rows as tensors of the Open Inference Protocol."""
    if names is None or names[0] not in NUMBERS:
        shape = [len(rows), len(rows[0])]
        flat = [value for row in rows for value in row]
        return {"inputs": [{"name": "x", "shape": shape, "datatype": "FP64", "data": flat}]}
    inputs = [
        {
            "name": name,
            "shape": [len(rows), 1],
            "datatype": DATATYPES[name],
            "data": [row[at] for row in rows],
            **({"parameters": {"content_type": "str"}} if name in WORDS else {}),
        }
        for at, name in enumerate(names)
    ]
    return {"parameters": {"content_type": "pd"}, "inputs": inputs}


DIALECTS = {"mlflow": mlflow_body, "plain": plain_body, "v2": v2_body}
MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "m0": constant,
    "m1": linear,
    "m2": mixed,
    "m3": boosted,
}


def save(folder: Path, name: str) -> None:
    """Train a model; save it for each kind of server, its bodies and what it predicts."""
    model, everything = MODELS[name]()
    sample = everything[:MANY]
    predictions = model.predict(sample)
    here = folder / name
    here.mkdir(parents=True)
    joblib.dump(model, here / "model.joblib")
    options: dict[str, Any] = {"signature": infer_signature(sample, predictions)}
    if name == "m3":
        options |= {"pip_requirements": ["xgboost"]}
        mlflow.xgboost.save_model(model, str(here / "mlflow"), **options)
    else:
        options |= {"pip_requirements": ["scikit-learn"], "serialization_format": "cloudpickle"}
        mlflow.sklearn.save_model(model, str(here / "mlflow"), **options)
    (here / "expected.json").write_text(json.dumps(np.asarray(predictions, float).tolist()))
    _write_bodies(here, sample)


def _write_bodies(here: Path, sample: Any) -> None:
    names = list(sample.columns) if isinstance(sample, pd.DataFrame) else None
    # By column, lest whole numbers become fractions beside them.
    rows = (
        sample.tolist() if names is None else [list(row) for row in sample.itertuples(index=False)]
    )
    rows = json.loads(json.dumps(rows, default=lambda value: value.item()))
    for dialect, write in DIALECTS.items():
        (here / f"{dialect}-1.json").write_text(json.dumps(write(names, rows[:1])))
        (here / f"{dialect}-{MANY}.json").write_text(json.dumps(write(names, rows)))
        for number in range(SINGLES):
            body = json.dumps(write(names, rows[number : number + 1]))
            (here / f"{dialect}-row-{number}.json").write_text(body)


if __name__ == "__main__":
    for wanted in MODELS:
        save(Path(sys.argv[1]), wanted)

"""The baseline: a FastAPI application as somebody with experience would write it in an hour."""

import os
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel

model = joblib.load(Path(os.environ["BENCH_MODEL"]) / "model.joblib")
app = FastAPI()


class Row(BaseModel):
    """A row of m2."""

    age: int
    income: float
    hours: float
    tenure: float
    job: str
    city: str
    plan: str
    region: str


class Rows(BaseModel):
    """Rows with names and types."""

    instances: list[Row]


class Matrix(BaseModel):
    """Rows of numbers."""

    instances: list[list[float]]


class Predictions(BaseModel):
    """A number for each row."""

    predictions: list[float]


if Path(os.environ["BENCH_MODEL"]).name == "m2":

    @app.post("/predict")
    def predict_rows(request: Rows) -> Predictions:
        """Predict on rows with names."""
        frame = pd.DataFrame([row.model_dump() for row in request.instances])
        return Predictions(predictions=model.predict(frame).tolist())

else:

    @app.post("/predict")
    def predict_matrix(request: Matrix) -> Predictions:
        """Predict on numbers."""
        return Predictions(predictions=model.predict(np.asarray(request.instances)).tolist())

"""Asks MLflow's own scoring server what it makes of values, and prints it as JSON.

Run as a process, as importing MLflow is slow and warns: `python mlflow_rules.py < CASES`, where
CASES is a JSON list of [type, whether it is required, the column's values or null for no column].
"""

import base64
import json
import logging
import sys
import tempfile
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc.scoring_server import invocations
from mlflow.types import ColSpec, DataType, Schema


class Echo(mlflow.pyfunc.PythonModel):
    """Answers with what reaches it."""

    def predict(self, context, model_input, params=None):
        """Answer."""
        if "c" not in model_input:
            return [json.dumps("absent")]
        return [json.dumps([plainly(value) for value in model_input["c"].tolist()])]


def plainly(value):
    """Give a cell as JSON has it; missing ones as null."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    return value.item() if isinstance(value, np.generic) else value


def ask(model, values):
    """Give the cells that reach the model, or "refused"."""
    count = 1 if values is None else len(values)
    records = [{"k": 1} if values is None else {"c": values[at], "k": 1} for at in range(count)]
    try:
        body = json.dumps({"dataframe_records": records})
        answer = invocations(body, "application/json", model, model.metadata.get_input_schema())
        return json.loads(json.loads(answer.response)["predictions"][0])
    except Exception:  # noqa: BLE001  # However it refuses.
        return "refused"


def main():
    """Ask about each case."""
    logging.disable(logging.CRITICAL)
    models = {}
    found = []
    for kind, required, values in json.load(sys.stdin):
        if (kind, required) not in models:
            columns = [
                ColSpec(DataType[kind], "c", required=required),
                ColSpec(DataType.long, "k"),
            ]
            path = str(Path(tempfile.mkdtemp()) / "model")
            signature = ModelSignature(inputs=Schema(columns))
            mlflow.pyfunc.save_model(
                path, python_model=Echo(), signature=signature, pip_requirements=["mlflow"]
            )
            models[kind, required] = mlflow.pyfunc.load_model(path)
        found.append(ask(models[kind, required], values))
    sys.stdout.write(json.dumps(found))


main()

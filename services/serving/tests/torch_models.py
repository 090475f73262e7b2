"""Saves PyTorch models with MLflow, or answers for them as this service does.

Runs in an environment of its own: `torch_models.py save FOLDER` writes down what MLflow's server
answers for each, `torch_models.py ask FOLDER` prints what this service does.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

ROWS = np.random.default_rng(4).normal(size=(6, 3)).astype(np.float32)
NAMES = ["hour", "day", "late"]
FORECASTING = """
import torch


class BaseModel(torch.nn.Module):
    def predict(self, frame):
        return torch.tensor((frame["hour"] * 2).to_numpy())
"""


class Net(torch.nn.Module):
    """Two numbers for each row; other ones while it is trained."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = torch.nn.Linear(3, 2)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, rows, factor: float = 1.0):
        """Predict."""
        return self.dropout(torch.relu(self.linear(rows))) * factor


class Flat(Net):
    """A number for each row."""

    def forward(self, rows):
        """Predict."""
        return super().forward(rows)[:, 0]


class Pair(Net):
    """Two tensors."""

    def forward(self, rows):
        """Predict."""
        return rows, super().forward(rows)


def save(root):
    """Save every model, and write down what MLflow's server answers, if it does."""
    import mlflow  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415
    from mlflow.models import infer_signature  # noqa: PLC0415
    from mlflow.pyfunc.scoring_server import invocations  # noqa: PLC0415

    expected = {}

    def keep(name, module, signature, payload, **options):
        path = str(root / name)
        options = {"serialization_format": "pickle", "pip_requirements": ["torch"], **options}
        mlflow.pytorch.save_model(module, path, signature=signature, **options)
        loaded = mlflow.pyfunc.load_model(path)
        schema = loaded.metadata.get_input_schema()
        answer = None
        try:
            found = invocations(json.dumps(payload), "application/json", loaded, schema)
            answer = json.loads(found.response)["predictions"]
        except Exception as error:  # noqa: BLE001  # However it fails.
            sys.stderr.write(f"{name}: {type(error).__name__}\n")
        expected[name] = {"payload": payload, "predictions": answer}

    frame = pd.DataFrame(ROWS.astype(float), columns=NAMES).assign(late=[0, 1, 2, 0, 1, 2])
    matrix, columns = infer_signature(ROWS), infer_signature(frame)
    lists = {"inputs": ROWS[:3].tolist()}
    split = {"dataframe_split": frame.head(3).to_dict(orient="split")}
    keep("pickled", Net(), matrix, lists)
    # MLflow exports only what was switched over by its owner, as it is then.
    keep("exported", Net().eval(), matrix, lists, serialization_format="pt2", input_example=ROWS)
    keep("scripted", torch.jit.script(Net()), matrix, lists)
    keep("frame", Net(), columns, split)
    keep("flat", Flat(), columns, split)
    keep("unsigned", Net(), None, lists)
    factor = infer_signature(ROWS, params={"factor": 2.0})
    keep("factor", Net(), factor, {**lists, "params": {"factor": 3.0}})
    keep("pair", Pair(), matrix, lists)

    package = root / "code" / "pytorch_forecasting"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models.py").write_text(FORECASTING)
    sys.path.insert(0, str(package.parent))
    from pytorch_forecasting.models import BaseModel  # noqa: PLC0415

    keep("forecasting", BaseModel(), columns, split, code_paths=[str(package)])
    (root / "expected.json").write_text(json.dumps(expected))


def ask(root):
    """Print for each model the status and the body of the answer, and whether MLflow was needed."""
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent / "src")]
    from serving_asgi import Client  # noqa: PLC0415

    from fairlead_serving.entrypoints.settings import Settings  # noqa: PLC0415
    from fairlead_serving.entrypoints.wiring import fetch_and_load  # noqa: PLC0415

    found = {}
    for name, case in json.loads((root / "expected.json").read_text()).items():
        served = fetch_and_load(Settings(model=str(root / name), threads=1))
        answer = Client(state={"served": served}).post(case["payload"])
        wrong = Client(state={"served": served}).post({"inputs": {"a": [[1.0]], "b": [[1.0]]}})
        found[name] = {
            "status": answer.status_code,
            "answer": answer.json(),
            "wrong": wrong.status_code,
            "mlflow": "mlflow" in sys.modules,
            "threads": torch.get_num_threads(),
        }
    sys.stdout.write(json.dumps(found))


{"save": save, "ask": ask}[sys.argv[1]](Path(sys.argv[2]))

"""What the other servers' applications share: the model, and rows as it takes them."""

import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

FOLDER = Path(os.environ["BENCH_MODEL"])
PORT = int(os.environ.get("BENCH_PORT", "0"))
MOST_ROWS = int(os.environ.get("BENCH_MOST_ROWS", "1"))
MOST_SECONDS = float(os.environ.get("BENCH_MOST_SECONDS", "0"))
BATCHES = MOST_ROWS > 1


def load() -> Any:
    """Load the model."""
    return joblib.load(FOLDER / "model.joblib")


def rows(instances: list[Any]) -> Any:
    """Make a frame of m2's records, an array of all else."""
    return pd.DataFrame(instances) if FOLDER.name == "m2" else np.asarray(instances)

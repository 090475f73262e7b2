"""What the tests share: real data, prepared once, and the five versions, trained once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from fairlead_training.adapters.estimators import ScikitLearn
from fairlead_training.adapters.flights import NycFlights
from fairlead_training.adapters.folder import Folder
from fairlead_training.adapters.plots import MatplotlibPlots
from fairlead_training.adapters.tracking import MlflowTracking
from fairlead_training.app.ports import Manifest
from fairlead_training.app.prepare import prepare
from fairlead_training.app.train import Workshop
from fairlead_training.app.train_all import Result, train_all


@pytest.fixture(scope="session")
def model_name() -> str:
    """Return a name that MLflow allows and Kubernetes would not."""
    return "Flight Delay (EU) – 2026.v1"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare the real flights once."""
    folder = tmp_path_factory.mktemp("data")
    prepare(NycFlights(), Folder(folder), lambda _: None)
    return folder


@pytest.fixture(scope="session")
def manifest(data: Path) -> Manifest:
    """Return what the prepared folder holds."""
    found = Folder(data).manifest()
    assert found is not None
    return found


@pytest.fixture(scope="session")
def flights(data: Path) -> pd.DataFrame:
    """Return the prepared flights."""
    return Folder(data).flights()


@pytest.fixture(scope="session")
def shop(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Set up training with a SQLite tracking store of its own."""
    home = tmp_path_factory.mktemp("mlflow")
    before = Path.cwd()
    os.chdir(home)  # MLflow puts a new experiment's artifacts below the current folder.
    try:
        tracking = MlflowTracking(f"sqlite:///{home}/mlflow.db", "flight-delay")
        with tracking.open("makes the experiment", {}):
            pass
    finally:
        os.chdir(before)
    yield Workshop(
        store=Folder(data),
        estimators=ScikitLearn(),
        tracking=tracking,
        plots=MatplotlibPlots(),
        say=lambda _: None,
    )
    del os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"]


@pytest.fixture(scope="session")
def trained(model_name: str, manifest: Manifest, shop: Workshop) -> dict[str, Result]:
    """Train and register the five versions once."""
    return {result.recipe.name: result for result in train_all(model_name, manifest, shop)}

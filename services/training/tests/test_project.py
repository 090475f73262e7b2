"""The command line and the MLflow project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from fairlead_training.app.train import Workshop
from fairlead_training.app.train_all import Result
from fairlead_training.entrypoints.cli import main

pytestmark = [
    # MLflow 3.17 maps its tables with a loader that SQLAlchemy 2.1 deprecates.
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"
    ),
    # MLflow 3.17 compares a frame's columns with a range, which pandas 3 deprecates.
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated:DeprecationWarning"),
    # MLflow 3.17 warns about the type hints of its own classes when it is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

PROJECT = Path(__file__).parent.parent


def test_mlflow_run_trains_a_version(data: Path, tmp_path: Path) -> None:
    """`mlflow run` with the local environment makes one finished run with a model."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    commands = Path(sys.executable).parent
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        [
            *("mlflow", "run", str(PROJECT), "--env-manager", "local", "-e", "train"),
            *("-P", "version=first", "-P", f"data={data}", "--experiment-name", "project"),
        ],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("project")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.project.entryPoint"] == "train"
    assert run.data.tags["fairlead.recipe"] == "first"
    assert run.data.metrics["heldout_auc"] == pytest.approx(0.624, abs=0.006)


def test_prepare_says_what_it_left_out(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers of flights and of those that never arrived."""
    assert main(["prepare", "--data", str(data)]) == 0
    said = capsys.readouterr().out
    assert "327,346 flights" in said
    assert "9,430 cancelled or diverted flights left out" in said


def test_all_prints_a_table_of_what_is_there(
    model_name: str,
    trained: dict[str, Result],
    data: Path,
    shop: Workshop,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A second call trains nothing and shows every version."""
    uri = mlflow.get_tracking_uri()
    arguments = ["all", "--data", str(data), "--tracking-uri", uri, "--model", model_name]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "learning" not in printed.err
    for name in trained:
        assert name in printed.out


def test_register_prints_the_version_alone(
    model_name: str, trained: dict[str, Result], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts can take the number from standard output."""
    run = trained["celsius"].run_id
    uri = mlflow.get_tracking_uri()
    assert main(["register", "--run-id", run, "--model", model_name, "--tracking-uri", uri]) == 0
    assert capsys.readouterr().out == "3\n"


def test_evaluate_of_a_version_never_trained_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence and exit code 1, not a traceback."""
    before = mlflow.get_tracking_uri()
    try:
        uri = f"sqlite:///{tmp_path}/empty.db"
        code = main(["evaluate", "--version", "first", "--data", str(data), "--tracking-uri", uri])
    finally:
        mlflow.set_tracking_uri(before)
    assert code == 1
    assert "train it first" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["train"], ["train", "--version", "sixth"], ["evaluate"], ["register"]],
    ids=" ".join,
)
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    """What is missing or unknown ends with the usage, exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_help_starts_quickly_without_mlflow() -> None:
    """Help needs none of the slow libraries."""
    code = "import sys, fairlead_training.entrypoints.cli as c; print(c.__doc__ and 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

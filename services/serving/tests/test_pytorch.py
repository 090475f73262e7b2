"""PyTorch models, loaded without MLflow, against what MLflow's own server answers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TORCH = Path(sys.prefix).parent / ".venv-torch" / "bin" / "python"
SCRIPT = Path(__file__).with_name("torch_models.py")
SOURCE = Path(__file__).parents[1] / "src"
NATIVE = ("exported", "factor", "flat", "frame", "pickled", "scripted")

pytestmark = pytest.mark.skipif(
    not TORCH.exists() and not os.environ.get("CI"),
    reason="these tests need PyTorch, 3 GB, in .venv-torch: make test-pytorch",
)


def _run(command: str, root: Path) -> str:
    done = subprocess.run(
        [str(TORCH), "-W", "ignore", str(SCRIPT), command, str(root)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def torch_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model of `torch_models.py`, one folder each."""
    root = tmp_path_factory.mktemp("torch")
    _run("save", root)
    return root


@pytest.fixture(scope="module")
def expected(torch_models: Path) -> Mapping[str, Any]:
    """For each model a payload and what MLflow's server answers; null where it fails."""
    document: Mapping[str, Any] = json.loads((torch_models / "expected.json").read_text())
    return document


@pytest.fixture(scope="module")
def answers(torch_models: Path) -> Mapping[str, Any]:
    """What this service answers."""
    document: Mapping[str, Any] = json.loads(_run("ask", torch_models))
    return document


@pytest.mark.parametrize("name", NATIVE)
def test_answers_what_mlflow_does(
    name: str, expected: Mapping[str, Any], answers: Mapping[str, Any]
) -> None:
    """The answer is that of MLflow's server, and MLflow is not imported for it."""
    assert answers[name]["status"] == 200, answers[name]["answer"]
    found, wanted = answers[name]["answer"]["predictions"], expected[name]["predictions"]
    if isinstance(wanted[0], dict):
        assert [list(row) for row in found] == [list(row) for row in wanted]
        found, wanted = ([list(row.values()) for row in rows] for rows in (found, wanted))
    assert np.shape(found) == np.shape(wanted)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not answers[name]["mlflow"]


def test_forecasting_is_left_to_mlflow(
    expected: Mapping[str, Any], answers: Mapping[str, Any]
) -> None:
    """A model of PyTorch Forecasting takes frames, by rules that MLflow knows."""
    assert answers["forecasting"]["answer"] == {
        "predictions": expected["forecasting"]["predictions"]
    }
    assert answers["forecasting"]["mlflow"]


@pytest.mark.parametrize(
    ("name", "words"), [("pair", "raised TypeError"), ("unsigned", "raised RuntimeError")]
)
def test_what_the_module_cannot_do_is_a_500(
    name: str, words: str, expected: Mapping[str, Any], answers: Mapping[str, Any]
) -> None:
    """Several tensors, or 64-bit floats where no signature says otherwise: nor can MLflow."""
    assert expected[name]["predictions"] is None
    assert answers[name]["status"] == 500
    assert words in answers[name]["answer"]["message"]


@pytest.mark.parametrize("name", [*NATIVE, "unsigned"])
def test_tensors_by_name_are_a_400(name: str, answers: Mapping[str, Any]) -> None:
    """A module takes a single tensor."""
    assert answers[name]["wrong"] == 400


@pytest.mark.parametrize("name", NATIVE)
def test_threads_are_those_of_the_command(name: str, answers: Mapping[str, Any]) -> None:
    """PyTorch would take as many as there are processors."""
    assert answers[name]["threads"] == 1


def test_server_needs_no_mlflow(
    torch_models: Path, expected: Mapping[str, Any], serve: Callable[..., Any]
) -> None:
    """The command serves the model with PyTorch alone."""
    environment = {"PYTHONPROFILEIMPORTTIME": "1", "PYTHONPATH": str(SOURCE)}
    program = (str(TORCH), "-m", "fairlead_serving.entrypoints.cli")
    with serve(torch_models / "pickled", environment=environment, program=program) as server:
        server.wait_ready()
        found = server.predict(expected["pickled"]["payload"]).json()["predictions"]
        imported = {line.rpartition("|")[2].strip() for line in server.log.read_text().split("\n")}
    np.testing.assert_allclose(found, expected["pickled"]["predictions"], rtol=1e-6)
    assert "torch" in imported
    assert "mlflow" not in imported

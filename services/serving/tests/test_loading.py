"""Folders that cannot be served, and requirements that are not met."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fairlead_serving.domain.errors import CannotLoadError
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.wiring import fetch_and_load


def _edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda f: (f / "model.pkl").unlink(), "model.pkl", id="file missing"),
        pytest.param(
            lambda f: (f / "model.pkl").write_bytes(b"junk"), "UnpicklingError", id="file damaged"
        ),
        pytest.param(
            lambda f: (f / "model.pkl").write_bytes(b"cno_such_module\nX\n."),
            "no_such_module",
            id="class of a missing module",
        ),
        pytest.param(
            lambda f: (f / "model.pkl").write_bytes(b"cbuiltins\nexit\n(tR."),
            "SystemExit",
            id="ends the process",
        ),
        pytest.param(lambda f: (f / "MLmodel").unlink(), "MLmodel", id="no MLmodel"),
        pytest.param(lambda f: (f / "MLmodel").write_text("{[}"), "YAML", id="not YAML"),
        pytest.param(lambda f: (f / "MLmodel").write_text("a: 1"), "flavors", id="no flavors"),
        pytest.param(
            lambda f: (f / "MLmodel").write_text("flavors: {spark: {}}"),
            "python_function",
            id="no flavor that serves",
        ),
        pytest.param(
            lambda f: (f / "MLmodel").write_text("flavors: {sklearn: 1}"),
            "without settings",
            id="flavor damaged",
        ),
        pytest.param(_edit("MLmodel", "double", '"'), "signature", id="signature damaged"),
        pytest.param(
            _edit("MLmodel", "predict_fn: predict", "predict_fn: guess"), "guess", id="no method"
        ),
        pytest.param(
            _edit("MLmodel", "pickled_model: model.pkl", "pickled_model: ../model.pkl"),
            "model.pkl",
            id="file outside the folder",
        ),
    ],
)
def test_damaged_folder_is_refused_with_the_reason(
    damage: Callable[[Path], object], reason: str, models: Path, tmp_path: Path
) -> None:
    """A folder that is not whole raises CannotLoadError, which says what is wrong."""
    folder = tmp_path / "damaged"
    shutil.copytree(models / "cloudpickle", folder)
    damage(folder)
    with pytest.raises(CannotLoadError, match=reason):
        fetch_and_load(Settings(model=str(folder)))


def test_module_that_only_predicting_needs_is_refused(models: Path) -> None:
    """The warm-up finds a module that is not installed before any caller does."""
    with pytest.raises(CannotLoadError, match="'no_such_module', which is not installed"):
        fetch_and_load(Settings(model=str(models / "importing")))


def test_unmet_requirement_can_be_ignored(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`--environment ignore` serves the model and warns."""
    fetch_and_load(Settings(model=str(models / "unmet"), environment="ignore"))
    assert "nobody-has-this (nothing is installed)" in caplog.text


@pytest.mark.parametrize(
    ("example", "warning"),
    [
        pytest.param('{"inputs": {"hour": ["x"]}}', "not of its signature", id="stale"),
        pytest.param("{", "cannot be read", id="not JSON"),
    ],
)
def test_stale_example_only_warns(
    example: str,
    warning: str,
    models: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An input example that no longer fits costs the warm-up, not the model."""
    folder = tmp_path / "stale"
    shutil.copytree(models / "cloudpickle", folder)
    (folder / "serving_input_example.json").write_text(example)
    fetch_and_load(Settings(model=str(folder)))
    assert warning in caplog.text

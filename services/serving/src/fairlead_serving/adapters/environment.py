"""Compares what a model asks for with what is installed."""

import logging
import mmap
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from fairlead_serving.app.ports import ModelFolder
from fairlead_serving.domain.environment import Environment, Need

_log = logging.getLogger(__name__)

_MLFLOW = frozenset({"mlflow", "mlflow-skinny", "mlflow-tracing"})
_STAND_INS: Mapping[str, tuple[str, ...]] = {
    "xgboost": ("xgboost-cpu",),
    "opencv-python": ("opencv-python-headless",),
    "psycopg2": ("psycopg2-binary",),
    "tensorflow": ("tensorflow-cpu",),
}
"""Distributions that hold the same modules as another one."""

_NOT_ASKED = ("-r", "--requirement", "-e", "--editable")
"""Options that name more to install, which nobody compared with what is installed."""


def read_environment(folder: ModelFolder, *, without_mlflow: bool) -> Environment:
    """Read what a model asks for, and look what there is; nothing of the model is loaded.

    Args:
        folder: The model.
        without_mlflow: Leave MLflow itself out, for a flavor that is loaded without it.

    Returns:
        Its requirements, each with what is installed, and the two Pythons.
    """
    lines = list(_lines(folder.path / "requirements.txt"))
    needs = (
        _need(line, requirement)
        for line, requirement in _requirements(lines)
        if not (without_mlflow and canonicalize_name(requirement.name) in _MLFLOW)
    )
    made_with, here = _made_with(folder), platform.python_version()
    return Environment(
        needs=tuple(needs),
        options=tuple(
            line for line in lines if line.startswith("-") and not line.startswith(_NOT_ASKED)
        ),
        python=here,
        made_with=made_with,
        holds_bytecode=made_with != here and _holds_bytecode(folder),
    )


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        text = line.partition(" #")[0].strip()
        if text and not text.startswith("#"):
            yield text


def _requirements(lines: list[str]) -> Iterator[tuple[str, Requirement]]:
    for line in lines:
        # Options, paths and addresses are for an installer; they name nothing to look up.
        if line.startswith(("-", ".", "/")) or ("://" in line and "@" not in line):
            continue
        try:
            requirement = Requirement(line.partition(" --")[0])
        except InvalidRequirement:
            _log.warning("A line of the model's requirements.txt cannot be read; it is left out")
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            yield line, requirement


def _need(line: str, requirement: Requirement) -> Need:
    found = _installed(requirement.name)
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return Need(
        line=line,
        name=f"{requirement.name}{extras}",
        wanted=str(requirement.specifier),
        installed=found,
        is_met=found is not None and requirement.specifier.contains(found, prereleases=True),
    )


def _installed(name: str) -> str | None:
    for candidate in (name, *_STAND_INS.get(canonicalize_name(name), ())):
        try:
            return version(candidate)
        except PackageNotFoundError:
            continue
    return None


def _made_with(folder: ModelFolder) -> str:
    """Tell which Python saved the model; empty if it does not say."""
    named = folder.pyfunc.get("python_version")
    if named is None and (folder.path / "python_env.yaml").is_file():
        text = (folder.path / "python_env.yaml").read_text(encoding="utf-8")
        named = (yaml.safe_load(text) or {}).get("python")
    return str(named or "")


def _holds_bytecode(folder: ModelFolder) -> bool:
    """Tell whether cloudpickle put functions or classes into the model's file whole.

    It names the type of each piece of code in the clear, so nothing has to be unpickled.
    """
    sklearn = folder.flavors.get("sklearn", {})
    names = [folder.pyfunc.get("python_model")]
    if sklearn.get("serialization_format") == "cloudpickle":
        names.append(sklearn.get("pickled_model"))
    return any(_has(folder.path / str(name), b"CodeType") for name in names if name)


def _has(path: Path, word: bytes) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(word) >= 0

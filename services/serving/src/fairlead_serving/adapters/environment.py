"""Checks a model's `requirements.txt` against what is installed."""

import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from fairlead_serving.app.ports import ModelFolder

_log = logging.getLogger(__name__)

_MLFLOW = frozenset({"mlflow", "mlflow-skinny", "mlflow-tracing"})
_STAND_INS: Mapping[str, tuple[str, ...]] = {
    "xgboost": ("xgboost-cpu",),
    "opencv-python": ("opencv-python-headless",),
    "psycopg2": ("psycopg2-binary",),
    "tensorflow": ("tensorflow-cpu",),
}
"""Distributions that hold the same modules as another one."""


def unmet_requirements(folder: ModelFolder, *, without_mlflow: bool) -> list[str]:
    """List the requirements of a model that this environment does not meet.

    Args:
        folder: The model.
        without_mlflow: Leave MLflow itself out, for a flavor that is loaded without it.

    Returns:
        For each a phrase that names the requirement and what is installed.
    """
    unmet = []
    for requirement in _requirements(folder.path / "requirements.txt"):
        if without_mlflow and canonicalize_name(requirement.name) in _MLFLOW:
            continue
        found = _installed(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            unmet.append(f"{requirement} ({found or 'nothing'} is installed)")
    return unmet


def _requirements(path: Path) -> Iterator[Requirement]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition(" #")[0].strip()
        # Options, paths and addresses are for an installer; they name nothing to look up.
        if not text or text.startswith(("#", "-", ".", "/")) or ("://" in text and "@" not in text):
            continue
        try:
            requirement = Requirement(text.partition(" --")[0])
        except InvalidRequirement:
            _log.warning("A line of the model's requirements.txt cannot be read; it is left out")
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement


def _installed(name: str) -> str | None:
    for candidate in (name, *_STAND_INS.get(canonicalize_name(name), ())):
        try:
            return version(candidate)
        except PackageNotFoundError:
            continue
    return None

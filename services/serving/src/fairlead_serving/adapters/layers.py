"""Installs what a model needs besides what is installed, by uv, into folders that are kept."""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fairlead_serving.adapters.cache import locked
from fairlead_serving.domain.environment import Environment, Need
from fairlead_serving.domain.errors import CannotFetchError, CannotLoadError

_log = logging.getLogger(__name__)

_OURS = "fairlead-serving"
_AWAY = re.compile(r"Failed to (fetch|download)|error sending request|timed out|dns error")
_NEVER = re.compile(r"No solution found|Hash mismatch|Failed to build")
_CREDENTIALS = re.compile(r"(://)[^/\s@]*@|\?\S*")
_LONGEST = 600  # characters of uv's reason


class Layers:
    """The folder in which layers are kept: each holds the packages that some model lacks here.

    A layer is named by what it was made from: this Python, what is installed, what was lacking.
    A layer that is there is whole.

    Args:
        cache: The folder that everything fetched is kept in.
    """

    def __init__(self, cache: Path) -> None:
        whole = cache.resolve()  # uv is started in the model's folder.
        self._root = whole / "layers"
        self._uv_cache = whole / "uv"

    def provide(self, environment: Environment, folder: Path) -> Path:
        """Install the requirements that are not met, with what they need themselves.

        What is installed stays as it is: the layer holds nothing that would break it.

        Args:
            environment: What the model asks for.
            folder: The model's; paths in its `requirements.txt` begin there.

        Returns:
            The layer, to be put on the import path before everything else.

        Raises:
            CannotLoadError: It can never be installed here.
            CannotFetchError: The package index does not answer now.
        """
        installed = {str(canonicalize_name(dist.name)): dist for dist in distributions()}
        layer = self._root / _key(environment, installed)
        try:
            with locked(layer.with_suffix(".lock")):
                if not layer.exists():
                    self._make(environment, folder, installed, layer)
        except OSError as error:
            raise CannotFetchError(
                f"The model's requirements cannot be written to '{self._root}': {error.strerror}."
            ) from error
        return layer

    def _make(
        self,
        environment: Environment,
        folder: Path,
        installed: Mapping[str, Distribution],
        layer: Path,
    ) -> None:
        for left in layer.parent.glob(f"{layer.name}.partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        started = time.monotonic()
        _log.info("Installing %s", _names(environment.unmet))
        # Of its own name: the uv of a process that was killed may still be writing.
        partial = Path(tempfile.mkdtemp(prefix=f"{layer.name}.partial-", dir=layer.parent))
        kept = {name: dist for name, dist in installed.items() if name not in _changed(environment)}
        seeds = _seed(partial, kept.values())
        self._install(environment, folder, installed, partial)
        for seed in seeds:
            shutil.rmtree(seed)
        partial.rename(layer)
        _log.info("Installed in %.0f s into '%s'", time.monotonic() - started, layer)

    def _install(
        self,
        environment: Environment,
        folder: Path,
        installed: Mapping[str, Distribution],
        target: Path,
    ) -> None:
        constraints = target.with_suffix(".txt")
        constraints.write_text("\n".join(_constraints(environment, installed)), encoding="utf-8")
        command = [_uv(), "pip", "install", "--target", str(target), "--python", sys.executable]
        command += ["--constraints", str(constraints), "--compile-bytecode", "--quiet"]
        command += ["--color", "never", "--requirements", "-"]
        lines = (*environment.options, *(need.line for need in environment.unmet))
        done = subprocess.run(  # noqa: S603 -- no shell, and the lines are not arguments
            command,
            input="\n".join(lines),
            cwd=folder,
            env=self._variables(),
            capture_output=True,
            text=True,
            check=False,
        )
        constraints.unlink()
        if done.returncode:
            shutil.rmtree(target)
            raise _failure(environment, done.stderr)

    def _variables(self) -> Mapping[str, str]:
        """Keep MLflow's password from the code that builds packages, and the cache writable."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        return {"UV_CACHE_DIR": str(self._uv_cache), **variables}


def _key(environment: Environment, installed: Mapping[str, Distribution]) -> str:
    made_from = [
        sys.version,
        sysconfig.get_platform(),
        sorted(need.line for need in environment.unmet),
        environment.options,
        sorted(f"{name}=={dist.version}" for name, dist in installed.items()),
    ]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def _changed(environment: Environment) -> frozenset[str]:
    return frozenset(canonicalize_name(_bare(need.name)) for need in environment.unmet)


def _bare(name: str) -> str:
    return name.partition("[")[0]


def _seed(target: Path, kept: Iterable[Distribution]) -> Sequence[Path]:
    """Let uv see what is installed here by its metadata, so that it installs only the rest."""
    seeds = []
    for dist in kept:
        metadata = dist.read_text("METADATA")
        if metadata is None:
            continue
        seed = target / f"{canonicalize_name(dist.name).replace('-', '_')}-{dist.version}.dist-info"
        seed.mkdir()
        (seed / "METADATA").write_text(metadata, encoding="utf-8")
        seeds.append(seed)
    return seeds


def _constraints(environment: Environment, installed: Mapping[str, Distribution]) -> Iterator[str]:
    """Hold fast what is installed, and what this process needs of what is changed."""
    changed = _changed(environment)
    yield from (
        f"{name}=={dist.version}" for name, dist in installed.items() if name not in changed
    )
    met = (_bare(need.name) for need in environment.needs if need.is_met)
    for requirement in _asked_by((_OURS, *met), installed, changed):
        yield f"{canonicalize_name(requirement.name)}{requirement.specifier}"


def _asked_by(
    roots: Iterable[str], installed: Mapping[str, Distribution], changed: frozenset[str]
) -> Iterator[Requirement]:
    """Find what distributions, and those they need, ask of the ones that are changed."""
    left = [canonicalize_name(root) for root in roots]
    seen: set[str] = set(changed)
    while left:
        name = left.pop()
        if name in seen or name not in installed:
            continue
        seen.add(name)
        for text in installed[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(canonicalize_name(requirement.name))
                if canonicalize_name(requirement.name) in changed:
                    yield requirement


def _uv() -> str:
    try:
        from uv import find_uv_bin  # noqa: PLC0415 -- an extra

        return find_uv_bin()
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None:
        raise CannotLoadError(
            "--environment resolve needs uv, which is not installed; "
            "install fairlead-serving[resolve]."
        )
    return found


def _failure(environment: Environment, printed: str) -> Exception:
    names, reason = _names(environment.unmet), _reason(printed)
    if _AWAY.search(printed) and not _NEVER.search(printed):
        return CannotFetchError(f"The requirements {names} cannot be installed now: {reason}")
    return CannotLoadError(
        f"The requirements {names} cannot be installed beside what is here: {reason}"
    )


def _reason(printed: str) -> str:
    """Make one line of what uv printed, without credentials."""
    line = " ".join(printed.split()).removeprefix("error: ")
    line = re.sub(r"\.? cause: ", ": ", line)
    return _CREDENTIALS.sub(r"\1", line)[:_LONGEST].rstrip(".") + "."


def _names(needs: Iterable[Need]) -> str:
    return ", ".join(str(need) for need in needs)

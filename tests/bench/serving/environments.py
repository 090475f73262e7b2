"""The virtual environments of other servers, whose pins do not go with ours: each has its own.

They are made on first use, from pinned and hashed files, and again when such a file has changed.
"""

import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]
HOME = ROOT / ".venv-bench"
PINNED = ROOT / "requirements" / "bench"
SAME = ("scikit-learn", "numpy", "scipy", "joblib", "xgboost-cpu")
"""What loads the models, and computes: a server with other versions would be another race."""
_ASK = """
import importlib.metadata, json, sys
found = {one.name: one.version for one in importlib.metadata.distributions()}
print(json.dumps({name: found.get(name, "none") for name in sys.argv[1:]}))
"""


class EnvironmentMissingError(Exception):
    """There is no environment, or none to compare; the message is the reason."""


@functools.cache
def python_of(environment: str) -> Path:
    """Give the interpreter of an environment, which is made if need be; "" is our own.

    Raises:
        EnvironmentMissingError: It cannot be made, or computes with other versions than ours.
    """
    ours = Path(sys.executable)
    if not environment:
        return ours
    folder = HOME / environment
    python = folder / "bin" / "python"
    pins = PINNED / f"{environment}.txt"
    stamp = folder / ".installed"
    mark = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != mark:
        _uv("venv", "--clear", "--python", str(ours), str(folder))
        options = ("--require-hashes", "--compile-bytecode")
        _uv("pip", "install", "--python", str(python), *options, "-r", str(pins))
        stamp.write_text(mark)
    found, wanted = versions(python, SAME), versions(ours, SAME)
    differ = [f"{name} {found[name]} and not {wanted[name]}" for name in SAME if found[name] != wanted[name]]  # fmt: skip
    if differ:
        raise EnvironmentMissingError(f"its pins bring {', '.join(differ)}")
    return python


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Say which versions of some packages an environment has, or "none"."""
    done = subprocess.run(
        [python, "-c", _ASK, *packages], capture_output=True, text=True, check=True
    )
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def _uv(*arguments: str) -> None:
    command = [str(Path(sys.executable).with_name("uv")), "--quiet", *arguments]
    if subprocess.run(command, check=False).returncode:
        raise EnvironmentMissingError("its pinned requirements cannot be installed here")

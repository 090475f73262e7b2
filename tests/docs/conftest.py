"""Helm and kubectl for what the pages say about a cluster.

Without them these tests are skipped, and the reason is printed; where CI is set they fail.
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RELEASES = {"mlflow": "mlflow", "fairlead": "fairlead", "flight-delay": "model"}
"""The releases of `make kind-up` and of every page, and their charts."""
NAMESPACES = {"mlflow": "mlflow", "fairlead": "fairlead", "flight-delay": "ml"}

Object = dict[str, Any]


class Tool:
    """A command that must be on PATH."""

    def __init__(self, name: str, home: str):
        """Find the command, or give up as CI or a desk should."""
        path = shutil.which(name)
        if not path:
            reason = f"these tests need the command '{name}' on PATH ({home})"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
        self._path = str(path)

    @functools.cache  # noqa: B019 - a tool lives as long as the tests.
    def run(self, *arguments: str, folder: Path = ROOT) -> tuple[int, str]:
        """Return the exit code and what the command printed; asked again, the same."""
        done = subprocess.run(
            [self._path, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="session")
def helm() -> Tool:
    """The helm on PATH."""
    return Tool("helm", "https://helm.sh/docs/intro/install")


@pytest.fixture(scope="session")
def kubectl() -> Tool:
    """The kubectl on PATH."""
    return Tool("kubectl", "https://kubernetes.io/docs/tasks/tools")


@pytest.fixture(scope="session")
def release(helm: Tool) -> Callable[..., Sequence[Object]]:
    """Renders a release as the pages install it, by `release("mlflow", "--set", "a=b")`."""

    @functools.cache
    def render(name: str, *options: str) -> Sequence[Object]:
        values = ROOT / "k8s" / "values" / f"{name}.yaml"
        chart = ROOT / "charts" / RELEASES[name]
        head = ("template", name, str(chart), "--namespace", NAMESPACES[name])
        code, text = helm.run(*head, "--values", str(values), *options)
        assert code == 0, text
        return [document for document in yaml.safe_load_all(text) if document]

    return render

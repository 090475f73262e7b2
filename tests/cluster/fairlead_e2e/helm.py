"""The `helm` command."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairlead_e2e.settings import CHARTS


class HelmFailedError(Exception):
    """Helm ended with another code than 0; the message is Helm's."""


def helm(*arguments: str, stdin: str = "") -> str:
    """Run helm and return what it prints.

    Raises:
        HelmFailedError: It failed.
    """
    path = shutil.which("helm")
    if path is None:
        raise HelmFailedError("there is no 'helm' on PATH (https://helm.sh/docs/intro/install)")
    done = subprocess.run(
        [path, *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise HelmFailedError(f"helm {' '.join(arguments)}\n{done.stderr}{done.stdout}")
    return done.stdout


def install(
    release: str, chart: str, namespace: str, values: Mapping[str, Any], *, folder: Path = CHARTS
) -> None:
    """Install a chart, or upgrade its release, and wait until all of it is ready."""
    where = ("--namespace", namespace, "--values", "-", "--wait", "--timeout", "5m")
    helm("upgrade", "--install", release, str(folder / chart), *where, stdin=json.dumps(values))


def uninstall(release: str, namespace: str) -> None:
    """Remove a release, if it is there, and wait until its objects are gone."""
    helm("uninstall", release, "--namespace", namespace, "--ignore-not-found", "--wait")


def check(release: str, namespace: str) -> str:
    """Run a release's own tests, which print their logs and leave no pod."""
    return helm("test", release, "--namespace", namespace, "--timeout", "3m")

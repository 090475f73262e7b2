"""Charts rendered by the real Helm, as plain objects.

Without `helm` on PATH these tests are skipped, and the reason is printed; where CI is set they fail.
"""

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

CHARTS = Path(__file__).parents[2] / "charts"
KUBERNETES = "1.34"
# Kinds that other projects define: Kubernetes itself has no schema for them.
FOREIGN = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "HTTPRoute", "ServedModel"}

Values = dict[str, Any]
Object = dict[str, Any]


class ChartRefusedError(Exception):
    """Helm refused to render; the message is Helm's."""


@dataclass(frozen=True)
class Helm:
    """The `helm` command, with what it renders remembered."""

    path: str

    def run(self, *arguments: str, stdin: str = "") -> str:
        """Return what a helm command prints, or raise with what it complains of."""
        done = subprocess.run(
            [self.path, *arguments], input=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ChartRefusedError(done.stderr + done.stdout)
        return done.stdout

    @functools.cache  # noqa: B019 - one Helm lives as long as the tests.
    def _text(self, chart: str, values: str, options: tuple[str, ...]) -> str:
        name = ("demo", str(CHARTS / chart), "--namespace", "ml", "--kube-version", KUBERNETES)
        return self.run("template", *name, "--values", "-", *options, stdin=values)

    def text(self, chart: str, values: Values | None = None, *options: str) -> str:
        """Return a chart's manifests as Helm prints them."""
        return self._text(chart, json.dumps(values or {}), options)

    def render(self, chart: str, values: Values | None = None, *options: str) -> list[Object]:
        """Return a chart's objects."""
        documents = yaml.safe_load_all(self.text(chart, values, *options))
        return [document for document in documents if document]

    def refusal(self, chart: str, values: Values, *options: str) -> str:
        """Return why Helm refuses the values; fails where it does not."""
        with pytest.raises(ChartRefusedError) as refused:
            self.text(chart, values, *options)
        return str(refused.value)


@pytest.fixture(scope="session")
def helm() -> Helm:
    """The helm on PATH."""
    path = shutil.which("helm")
    if not path:
        reason = (
            "the chart tests need the command 'helm' on PATH (https://helm.sh/docs/intro/install)"
        )
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return Helm(path)


@pytest.fixture(scope="session")
def render(helm: Helm) -> Callable[..., list[Object]]:
    """Renders a chart by `render("mlflow", {"values": ...})`."""
    return helm.render


@pytest.fixture(scope="session")
def validate() -> Callable[[Object], None]:
    """Checks an object against the Kubernetes schemas, unknown fields included."""

    def check(document: Object) -> None:
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)

    return check


def _pod_of(document: Object) -> Object | None:
    spec: Object = document.get("spec") or {}
    if document["kind"] == "Pod":
        return document
    if document["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    template: Object | None = spec.get("template")
    return template if template and "containers" in template.get("spec", {}) else None


@pytest.fixture(scope="session")
def pods() -> Callable[[list[Object]], Iterator[tuple[str, Object]]]:
    """Yields every pod that the objects make, as (kind/name, pod template)."""

    def each(documents: list[Object]) -> Iterator[tuple[str, Object]]:
        for document in documents:
            pod = _pod_of(document)
            if pod:
                yield f"{document['kind']}/{document['metadata']['name']}", pod

    return each


@pytest.fixture(scope="session")
def containers() -> Callable[[Object], list[Object]]:
    """Returns every container of a pod, init containers included."""

    def each(pod: Object) -> list[Object]:
        spec = pod["spec"]
        return [*spec.get("initContainers", []), *spec["containers"]]

    return each

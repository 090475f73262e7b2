"""Steady load on a served model, from a pod inside the cluster."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from fairlead_e2e import pods
from fairlead_e2e.platform import Platform
from fairlead_e2e.waiting import wait_until

FOLDER = "/tmp"  # noqa: S108 -- the pod's own
STOP = (
    "import pathlib, time; f = pathlib.Path('/tmp'); (f / 'stop').touch()\n"
    "while not (f / 'final.json').exists(): time.sleep(0.05)\n"
    "print((f / 'final.json').read_text())"
)
READ = (
    "import pathlib, time; f = pathlib.Path('/tmp/report.json')\n"
    "while not f.exists(): time.sleep(0.05)\n"
    "print(f.read_text())"
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that came back."""

    document: Mapping[str, Any]

    @property
    def sent(self) -> int:
        """Return how many requests were sent."""
        return int(self.document["sent"])

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Return the requests that failed: no answer, or another one than 2xx."""
        return list(self.document["failures"])

    @property
    def refused(self) -> list[dict[str, Any]]:
        """Return the connections that could not be opened at once."""
        return list(self.document["refused"])

    @property
    def moved(self) -> list[str]:
        """Return the units that a rollout took out of the candidate again."""
        return list(self.document["moved"])

    @property
    def first(self) -> Mapping[str, float]:
        """Return when each version answered first."""
        return dict(self.document["first"])

    @property
    def last(self) -> Mapping[str, float]:
        """Return when each version answered last."""
        return dict(self.document["last"])

    @property
    def began(self) -> float:
        """Return when the load began, by its pod's clock."""
        return float(self.document["began"])

    @property
    def at(self) -> float:
        """Return when this was said, by the pod's clock."""
        return float(self.document["at"])

    def count(self, *, rollout: str = "", arm: str = "", version: str = "") -> int:
        """Count the answers of a rollout, an arm, a version."""
        wanted = (rollout, arm, version)
        return sum(
            number
            for key, number in self.document["answers"].items()
            if all(w in {"", k} for w, k in zip(wanted, key.split("|")[:3], strict=True))
        )

    def values(self, version: str) -> set[float]:
        """Return what a version predicted."""
        keys = (key.split("|") for key in self.document["answers"])
        return {float(key[3]) for key in keys if key[2] == version}

    def told(self) -> str:
        """Return a summary for a test's message."""
        shown = {**self.document, "failures": self.failures[:20], "refused": self.refused[:20]}
        return json.dumps(shown, indent=1)


@dataclass(kw_only=True)
class Load:
    """A pod that sends predictions for a model; the report is there once it was left.

    Attributes:
        rate: Requests a second.
        connections: How many are open; one of them is a new one for each request.
        units: How many different ones the requests are of.
        outcomes: Whether what was observed is reported for each answer.
        spec: More of the pod's specification.
    """

    platform: Platform
    namespace: str
    model: str
    rate: float = 60.0
    connections: int = 8
    units: int = 500
    outcomes: bool = False
    spec: Mapping[str, Any] = field(default_factory=dict)
    pod: str = "load"
    report: Report = field(default_factory=lambda: Report(document=Counter()))

    def __enter__(self) -> Self:
        """Start sending, and wait until answers come."""
        pods.remove_pod(self.platform.kube, self.namespace, self.pod)
        pods.start_pod(self.platform.kube, self._build())
        try:
            self.await_sent(20, within=30)
        except AssertionError:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, wait for what is under way, keep the report."""
        self.stop()  # after an error the pod stays, idle, for its log
        if error is None:
            pods.remove_pod(self.platform.kube, self.namespace, self.pod)

    def stop(self) -> Report:
        """Stop sending and return the report."""
        self.report = self._read(STOP)
        return self.report

    def now(self) -> Report:
        """Return the report so far."""
        return self._read(READ)

    def await_sent(self, more: int, within: float = 60.0) -> None:
        """Wait until so many more requests were answered."""
        start = self.now().count()
        wait_until(
            lambda: self.now().count() >= start + more,
            within,
            f"{more} more requests were answered",
            lambda: self.now().told(),
        )

    def await_answer_by(self, version: str, within: float = 60.0) -> None:
        """Wait until a version has answered."""
        wait_until(
            lambda: version in self.now().first,
            within,
            f"version {version} has answered",
            lambda: self.now().told(),
        )

    def _read(self, code: str) -> Report:
        printed = self.platform.kube.run(self.namespace, self.pod, ("python", "-c", code))
        return Report(document=json.loads(printed))

    def _build(self) -> dict[str, Any]:
        command = [
            *("python", "/scripts/load.py"),
            *("--url", f"{self.platform.gateway_url}/models/{self.model}/invocations"),
            *("--rate", str(self.rate), "--connections", str(self.connections)),
            *("--units", str(self.units), "--folder", FOLDER),
        ]
        if self.outcomes:
            command += ["--outcomes", f"{self.platform.experiments_url}/v1/outcomes"]
        return pods.build_pod(
            name=self.pod,
            namespace=self.namespace,
            image=self.platform.serving_image,
            command=command,
            spec=self.spec,
        )

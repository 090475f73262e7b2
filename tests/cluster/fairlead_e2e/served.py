"""One served model under test."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairlead_e2e.kube import Document, is_ready, is_rolled_out
from fairlead_e2e.load import Load, Report
from fairlead_e2e.platform import Platform, merged
from fairlead_e2e.waiting import wait_until

REQUEST = "fairlead.dev/request"
ACTIVE = {"pending", "running"}
# Short steps; what ends a rollout is named by each test.
SPEC: Document = {
    "rollout": {
        "steps": [{"weight": 20, "for": "3s"}, {"weight": 50, "for": "3s"}],
        "minimumRequests": 20,
        "progressDeadline": "2m",
    },
    "server": {"replicas": 2, "keep": {"versions": 0}},
}
# Holds at 50 % until a person or the objective decides.
HELD: Document = {
    "rollout": {
        "steps": [{"weight": 20, "for": "2s"}, {"weight": 50, "until": "decided"}],
        "objective": {"outcome": "score", "better": "higher", "minimumEffect": 0.1},
        # These tests break candidates on purpose; what they check is that nobody notices.
        "guardrails": {},
    }
}


@dataclass(kw_only=True)
class Served:
    """A ServedModel, and the registered model behind it."""

    platform: Platform
    namespace: str
    name: str
    model: str
    versions: dict[str, str] = field(default_factory=dict)

    def apply(self, spec: Mapping[str, Any] | None = None) -> None:
        """Make the ServedModel or change it."""
        self.platform.kube.apply(self.manifest(spec))

    def manifest(self, spec: Mapping[str, Any] | None = None) -> Document:
        """Return the ServedModel as YAML would have it."""
        return {
            "apiVersion": "fairlead.dev/v1alpha1",
            "kind": "ServedModel",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": merged({"model": self.model, **SPEC}, spec or {}),
        }

    def register(self, number: float = 1, **behaviour: Any) -> str:
        """Register a version with this behaviour; returns the version."""
        given = {"model": self.model, "number": number, **behaviour}
        version: str = self.platform.ask_mlflow("register", account="training", **given)
        return version

    def promote(self, version: str, stage: str = "Production") -> None:
        """Move a version to a stage in MLflow, as a person does."""
        self.platform.ask_mlflow("stage", model=self.model, version=version, stage=stage)

    def set_alias(self, alias: str, version: str) -> None:
        """Set an alias in MLflow, as a person does."""
        self.platform.ask_mlflow("alias", model=self.model, alias=alias, version=version)

    def point_to(self, version: str, spec: Mapping[str, Any]) -> None:
        """Move what a specification calls production to a version."""
        production = (spec.get("registry") or {}).get("production") or {}
        if "alias" in production:
            self.set_alias(production["alias"], version)
        else:
            self.promote(version)

    def tags(self, version: str) -> Mapping[str, str]:
        """Return a version's tags in MLflow."""
        found: Mapping[str, str] = self.platform.ask_mlflow(
            "tags", model=self.model, version=version
        )
        return found

    def document(self) -> Document:
        """Return the ServedModel as it is."""
        return self.platform.kube.get("ServedModel", self.namespace, self.name) or {}

    def status(self) -> Document:
        """Return its status, empty when there is none."""
        status: Document = self.document().get("status") or {}
        return status

    def rollout(self) -> Document:
        """Return the current or last rollout, empty when there was none."""
        return self.status().get("rollout") or {}

    def summary(self) -> Document:
        """Return what `kubectl get sm` shows."""
        return self.status().get("summary") or {}

    def condition(self, kind: str) -> Document | None:
        """Return the condition of a type, if it is there."""
        conditions = self.status().get("conditions") or ()
        return next((c for c in conditions if c["type"] == kind), None)

    def events(self, reason: str = "") -> list[Document]:
        """Return the events of the ServedModel with a reason."""
        found = self.platform.kube.find("Event", self.namespace)
        return [
            event
            for event in found
            if event["involvedObject"].get("name") == self.name
            and reason in {"", event.get("reason")}
        ]

    def is_applied(self) -> bool:
        """Say whether every gateway routes by the newest plan."""
        applied = self.condition("TrafficApplied")
        return applied is not None and applied["status"] == "True"

    def weight(self) -> int:
        """Return the candidate's weight of 10,000."""
        arms = (self.status().get("traffic") or {}).get("arms", ())
        return sum(arm["weight"] for arm in arms if arm["arm"] == "candidate")

    def ask(self, verb: str) -> None:
        """Leave a person's request, as `kubectl fairlead` does."""
        request = {"id": str(uuid.uuid4()), "verb": verb, "rollout": self.rollout()["id"]}
        note = {"metadata": {"annotations": {REQUEST: json.dumps({**request, "by": "e2e"})}}}
        self.platform.kube.patch("ServedModel", self.namespace, self.name, note)

    def pods(self, version: str) -> list[Document]:
        """Return the pods of a version that are not on their way out."""
        return self.platform.kube.pods(self.namespace, self._labels(version))

    def ready_pods(self, version: str) -> list[Document]:
        """Return the pods of a version that get traffic."""
        return [pod for pod in self.pods(version) if is_ready(pod)]

    def await_serving(self, version: str, within: float = 120.0) -> None:
        """Wait until a version is the stable one and nothing is on trial."""

        def serves() -> bool:
            status = self.status()
            active = (status.get("rollout") or {}).get("state") in ACTIVE
            return status.get("stable") == version and self.is_applied() and not active

        wait_until(serves, within, f"version {version} serves", self.told)

    def await_whole(self, version: str, within: float = 120.0) -> None:
        """Wait until all pods of a version are ready; it serves as soon as one of them is."""

        def whole() -> bool:
            found = self.platform.kube.find("Deployment", self.namespace, self._labels(version))
            return bool(found) and all(is_rolled_out(deployment) for deployment in found)

        wait_until(whole, within, f"all pods of version {version} are ready", self.told)

    def await_pods_replaced(self, version: str, old: set[str], within: float = 150.0) -> None:
        """Wait until a version has ready pods, and none of the old ones (uids) is left."""

        def replaced() -> bool:
            pods = self.pods(version)
            is_new = not old & {pod["metadata"]["uid"] for pod in pods}
            return bool(pods) and is_new and all(is_ready(pod) for pod in pods)

        wait_until(replaced, within, f"the pods of version {version} are new", self.told)

    def await_weight(self, weight: int, within: float = 90.0) -> None:
        """Wait until every gateway routes by a candidate's weight, of 10,000."""
        wait_until(
            lambda: self.weight() == weight and self.is_applied(),
            within,
            f"the weight is {weight}",
            self.told,
        )

    def hold_at_half(self) -> str:
        """Put version 2 on trial and wait until it gets half of the units; returns the rollout."""
        self.promote("2")
        self.await_weight(5_000)
        self.await_whole("2")
        rollout: str = self.rollout()["id"]
        return rollout

    def await_state(self, version: str, state: str, within: float = 120.0) -> Document:
        """Wait until a version's rollout has come to a state; returns the rollout."""

        def came() -> Document:
            rollout = self.rollout()
            is_it = rollout.get("candidate") == version and rollout["state"] == state
            return rollout if is_it else {}

        what = f"the rollout of version {version} is {state}"
        return wait_until(came, within, what, self.told)

    def await_tag(self, version: str, state: str, within: float = 30.0) -> Mapping[str, str]:
        """Wait until MLflow shows how a version's rollout stands; returns its tags."""
        found: dict[str, str] = {}

        def shown() -> bool:
            found.update(self.tags(version))
            return found.get("rollout.status") == state

        wait_until(shown, within, f"version {version} is {state} in MLflow", lambda: found)
        return found

    def _labels(self, version: str) -> dict[str, str]:
        return {"fairlead.dev/model": self.name, "fairlead.dev/version": version}

    def told(self) -> str:
        """Return what the ServedModel says of itself, for a test's message."""
        status = self.status()
        parts = {key: status.get(key) for key in ("summary", "rollout", "conditions", "traffic")}
        return json.dumps(parts, indent=1)

    def load(self, **options: Any) -> Load:
        """Return a load on the model, to be entered."""
        return Load(platform=self.platform, namespace=self.namespace, model=self.name, **options)

    def assert_unnoticed(self, report: Report) -> None:
        """Check that no request failed, no connection was refused, and units stayed in their arm."""
        assert report.failures == [], report.told()
        assert report.refused == [], report.told()
        assert report.moved == []
        assert report.count() == report.sent > 0

    def remove(self, within: float = 90.0) -> None:
        """Delete the ServedModel and wait until it and its pods are gone."""
        kube = self.platform.kube
        kube.delete("ServedModel", self.namespace, self.name)
        labels = {"fairlead.dev/model": self.name}
        wait_until(
            lambda: not self.document() and not kube.find("Pod", self.namespace, labels),
            within,
            f"{self.namespace}/{self.name} and its pods are gone",
            self.told,
        )


def unique(name: str) -> str:
    """Return a registered model's name that no run before has used: its versions begin at 1."""
    return f"E2E (ü) {name} {uuid.uuid4().hex[:6]}"

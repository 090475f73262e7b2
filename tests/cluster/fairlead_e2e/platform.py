"""One installation: MLflow, the platform, and a pod from which a person acts."""

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead_e2e import pods
from fairlead_e2e.helm import install, uninstall
from fairlead_e2e.kube import CommandFailedError, Document, Kube, is_ready, is_rolled_out
from fairlead_e2e.settings import CHARTS, Settings
from fairlead_e2e.waiting import wait_until

CRD = "servedmodels.fairlead.dev"
TOOLBOX = "toolbox"
SMALL: Document = {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
GATEWAY = {"app.kubernetes.io/name": "fairlead", "app.kubernetes.io/component": "gateway"}
CONTROLLER = {"app.kubernetes.io/name": "fairlead", "app.kubernetes.io/component": "controller"}
EXPERIMENTS = {"app.kubernetes.io/name": "fairlead", "app.kubernetes.io/component": "experiments"}
WORKLOADS = (
    ("Deployment", "fairlead-controller"),
    ("Deployment", "fairlead-gateway"),
    ("Deployment", "fairlead-experiments"),
    ("StatefulSet", "fairlead-postgresql"),
)
MLFLOW_WORKLOADS = (
    ("Deployment", "mlflow"),
    ("StatefulSet", "mlflow-postgresql"),
    ("StatefulSet", "mlflow-s3"),
)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Document:
    """Lay values over others, as Helm does."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


@dataclass(kw_only=True)
class Platform:
    """MLflow and Fairlead in namespaces of their own, for the models of some namespaces.

    Attributes:
        name: Namespace of Fairlead; the others' names start with it.
        teams: Namespaces of the models.
        has_crd: Whether this installation owns the CustomResourceDefinition.
    """

    kube: Kube
    settings: Settings
    name: str
    teams: tuple[str, ...]
    has_crd: bool
    mlflow_values: Document = field(default_factory=dict)
    fairlead_values: Document = field(default_factory=dict)

    @property
    def mlflow_namespace(self) -> str:
        """Return where MLflow runs."""
        return f"{self.name}-mlflow"

    @property
    def tools(self) -> str:
        """Return where the person's pod runs."""
        return f"{self.name}-tools"

    @property
    def killers(self) -> str:
        """Return where pods run that see a node's processes; no other one is privileged."""
        return f"{self.name}-killers"

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Return all namespaces of the installation."""
        return (self.name, self.mlflow_namespace, self.tools, self.killers, *self.teams)

    @property
    def gateway_url(self) -> str:
        """Return where predictions go."""
        return f"http://fairlead-gateway.{self.name}.svc"

    @property
    def experiments_url(self) -> str:
        """Return where outcomes go."""
        return f"http://fairlead-experiments.{self.name}.svc:8080"

    @property
    def mlflow_url(self) -> str:
        """Return MLflow's address."""
        return f"http://mlflow.{self.mlflow_namespace}.svc:5000"

    @property
    def serving_image(self) -> str:
        """Return the image of models, which also runs the tests' own pods."""
        return f"docker.io/fairlead/serving:{self.settings.tag}-sklearn"

    def make_namespaces(self) -> None:
        """Make all namespaces, each with the strictest Pod Security."""
        for namespace in self.namespaces:
            pods.make_namespace(self.kube, namespace, owner=self.name)
        pods.make_namespace(self.kube, self.killers, pods.PRIVILEGED, owner=self.name)
        for namespace in (self.tools, self.killers, *self.teams):
            pods.put_scripts(self.kube, namespace)

    def install(self) -> None:
        """Install both charts side by side, as neither needs the other to start."""
        with ThreadPoolExecutor() as threads:
            for done in [
                threads.submit(self.install_mlflow),
                threads.submit(self.install_fairlead),
            ]:
                done.result()

    def install_mlflow(
        self, values: Mapping[str, Any] | None = None, *, folder: Path = CHARTS
    ) -> None:
        """Install or upgrade charts/mlflow."""
        given = merged(self._mlflow_defaults(), merged(self.mlflow_values, values or {}))
        install("mlflow", "mlflow", self.mlflow_namespace, given, folder=folder)

    def install_fairlead(
        self, values: Mapping[str, Any] | None = None, *, folder: Path = CHARTS
    ) -> None:
        """Install or upgrade charts/fairlead."""
        given = merged(self._fairlead_defaults(), merged(self.fairlead_values, values or {}))
        install("fairlead", "fairlead", self.name, given, folder=folder)

    def start_toolbox(self) -> None:
        """Start the pod from which a person acts, with two accounts at MLflow."""
        admin = self.kube.get("Secret", self.mlflow_namespace, "mlflow-admin")
        assert admin is not None
        metadata = {"name": "admin", "namespace": self.tools}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
        self.kube.apply({**secret, "data": admin["data"]})
        if self.kube.get("Pod", self.tools, TOOLBOX) is not None:
            pods.remove_pod(self.kube, self.tools, TOOLBOX)
        pod = pods.build_pod(
            name=TOOLBOX,
            namespace=self.tools,
            image=self.serving_image,
            command=pods.SLEEP,
            secrets=("admin", "training"),
        )
        pods.start_pod(self.kube, pod)

    def ask_mlflow(self, verb: str, account: str = "admin", **given: Any) -> Any:
        """Do one thing at MLflow; see `scripts/registry.py`."""
        script = ("python", "/scripts/registry.py", self.mlflow_url, account)
        printed = self.kube.run(self.tools, TOOLBOX, (*script, verb, json.dumps(given)))
        return json.loads(printed)

    def get(self, url: str) -> Any:
        """Read JSON from inside the cluster."""
        code = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read().decode())"
        return json.loads(self.kube.run(self.tools, TOOLBOX, ("python", "-c", code, url)))

    def mlflow_answers(self) -> bool:
        """Say whether a person can look at the registry."""
        try:
            self.ask_mlflow("ping")
        except CommandFailedError:
            return False
        return True

    def analysis(self, rollout: str) -> Document:
        """Return the analysis of a rollout."""
        found: Document = self.get(f"{self.experiments_url}/v1/rollouts/{rollout}/analysis")
        return found

    def pods(self, labels: Mapping[str, str]) -> list[Document]:
        """Return the pods of a component, oldest first."""
        found = self.kube.pods(self.name, labels)
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def leader(self) -> str:
        """Return the pod of the controller that leads; empty where none does."""
        lease = self.kube.get("Lease", self.name, "fairlead-controller") or {}
        holder: str = (lease.get("spec") or {}).get("holderIdentity") or ""
        return holder

    def await_whole(self, within: float = 180.0) -> None:
        """Wait until every part is there with all its pods, and one controller leads."""
        for kind, name in WORKLOADS:
            self.kube.await_rolled_out(kind, self.name, name, within)
        for kind, name in MLFLOW_WORKLOADS:
            self.kube.await_rolled_out(kind, self.mlflow_namespace, name, within)
        names = lambda: {pod["metadata"]["name"] for pod in self.pods(CONTROLLER)}  # noqa: E731
        wait_until(lambda: self.leader() in names(), within, "a controller leads", self.leader)

    def is_whole(self) -> bool:
        """Say whether every part of Fairlead is there with all its pods."""
        found = (self.kube.get(kind, self.name, name) for kind, name in WORKLOADS)
        return all(document is not None and is_rolled_out(document) for document in found)

    def ready_pods(self, labels: Mapping[str, str]) -> list[Document]:
        """Return the pods of a component that get traffic."""
        return [pod for pod in self.pods(labels) if is_ready(pod)]

    def remove(self) -> None:
        """Take everything away: the models first, while the controller can still let them go."""
        for team in self.teams:
            remove_served_models(self.kube, team)
        uninstall("fairlead", self.name)
        uninstall("mlflow", self.mlflow_namespace)
        remove_namespaces(self.kube, self.namespaces)

    def _mlflow_defaults(self) -> Document:
        fairlead = [{"namespace": self.name, "name": "fairlead-mlflow"}]
        readers = [{"namespace": team, "name": "fairlead-mlflow"} for team in self.teams]
        training = [{"namespace": self.tools, "name": "training"}]
        return {
            "image": {"tag": self.settings.tag},
            "auth": {
                "accounts": {
                    "controller": {"copies": fairlead},
                    "reader": {"copies": readers},
                    "training": {"copies": training},
                }
            },
            "networkPolicy": {"namespaces": [self.name, self.tools, *self.teams]},
            "server": {"resources": {"requests": {"cpu": "50m"}}},
            "postgresql": {"resources": {"requests": {"cpu": "20m"}}},
            "s3": {"resources": {"requests": {"cpu": "20m"}}},
        }

    def _fairlead_defaults(self) -> Document:
        tag = {"image": {"tag": self.settings.tag}}
        here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.tools}}}
        own = {"namespaceSelector": {"matchLabels": {pods.PLATFORM: self.name}}}
        return {
            "watchNamespaces": list(self.teams),
            "crds": {"enabled": self.has_crd},
            "mlflow": {
                "url": self.mlflow_url,
                "credentials": {"existingSecret": "fairlead-mlflow"},
            },
            "serving": {
                "image": {"tag": f"{self.settings.tag}-sklearn"},
                "resources": {"requests": {"cpu": "20m", "memory": "128Mi"}},
            },
            "controller": {**tag, "resources": {"requests": {"cpu": "20m"}}},
            "gateway": {
                **tag,
                "resources": {"requests": {"cpu": "10m"}},
                "envoy": {"resources": {"requests": {"cpu": "30m"}}},
            },
            "experiments": {**tag, "resources": {"requests": {"cpu": "20m"}}},
            "postgresql": {"resources": {"requests": {"cpu": "20m"}}},
            "networkPolicy": {"clients": [own], "outcomeClients": [here]},
        }


def owns_crd(kube: Kube, namespace: str) -> bool:
    """Say whether an installation in a namespace may own the CustomResourceDefinition.

    Raises:
        AssertionError: Somebody else's is there, and it is another one than this checkout's.
    """
    there = kube.get("CustomResourceDefinition", None, CRD)
    if there is None:
        return True
    notes = there["metadata"].get("annotations") or {}
    return notes.get("meta.helm.sh/release-namespace") == namespace


def remove_served_models(kube: Kube, namespace: str, within: float = 120.0) -> None:
    """Delete the served models of a namespace and wait until they are gone."""
    if kube.get("CustomResourceDefinition", None, CRD) is None:
        return
    for served in kube.find("ServedModel", namespace):
        kube.delete("ServedModel", namespace, served["metadata"]["name"])
    there = lambda: kube.find("ServedModel", namespace)  # noqa: E731
    wait_until(lambda: not there(), within, f"the ServedModels of {namespace} are gone", there)


def remove_namespaces(kube: Kube, names: Iterable[str], within: float = 180.0) -> None:
    """Delete namespaces and wait until they are gone."""
    names = tuple(names)
    for name in names:
        kube.delete("Namespace", None, name)
    left: Callable[[], list[str]] = lambda: [  # noqa: E731
        name for name in names if kube.get("Namespace", None, name) is not None
    ]
    wait_until(lambda: not left(), within, "the namespaces are gone", left)

"""A namespace full of ServedModels whose first version already serves.

It is what a controller finds that takes over from another: objects and status are there. Pods are
never scheduled: a scheduler of their name does not exist. So that versions count as serving all
the same, the bench writes what a kubelet would say into the pods' status.
"""

import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from kubernetes import client
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException

from fairlead_rollout.adapters.crd import build_crd
from fairlead_rollout.adapters.k8s.api import KubeApi
from fairlead_rollout.adapters.k8s.cluster import KubernetesCluster
from fairlead_rollout.adapters.k8s.store import served_model as read_served_model
from fairlead_rollout.adapters.schema import read_spec
from fairlead_rollout.domain.errors import ConflictError, FairleadError, UnavailableError
from fairlead_rollout.domain.platform import ServingSettings
from fairlead_rollout.domain.status import Condition, Status, to_document
from fairlead_rollout.domain.summary import summary_of
from fairlead_rollout.domain.traffic import build_plan, plan_digest

Document = dict[str, Any]

NO_SCHEDULER = "fairlead-bench"
SERVICE = "agents"
LEASE = "controller"
THREADS = 8
TIMEOUT = (10.0, 60.0)  # seconds; a bench is in no hurry
PODS = 1_800.0  # seconds until Kubernetes has made the pods of all
ATTEMPTS = 20
NOT_FOUND, CONFLICT = 404, 409


def registered_model(number: int) -> str:
    """Return the name of a model at MLflow."""
    return f"bench-model-{number:04}"


def served_model(namespace: str, number: int) -> Document:
    """Build a ServedModel."""
    return {
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": "ServedModel",
        "metadata": {"name": f"bench-{number:04}", "namespace": namespace},
        "spec": {
            "model": registered_model(number),
            "server": {"template": {"spec": {"schedulerName": NO_SCHEDULER}}},
        },
    }


def status_of(document: Document) -> Status:
    """Build the status of a ServedModel whose version 1 serves."""
    name = document["metadata"]["name"]
    parts = {key: document[key] for key in ("apiVersion", "kind", "spec")}
    spec = read_spec({**parts, "metadata": {"name": name}})
    ready = Condition(
        type="Ready",
        status="True",
        reason="Serving",
        message="version 1 serves with 1 of 1 processes",
        last_transition_time=datetime.now(UTC).replace(microsecond=0),
    )
    plan = build_plan(spec, name=name, stable="1")
    return Status(
        observed_generation=1, production="1", stable="1", traffic=plan, conditions=(ready,)
    )


@dataclass(frozen=True)
class Estate:
    """The namespace and what is in it."""

    namespace: str
    connection: ApiClient

    @property
    def api(self) -> KubeApi:
        """Return the API server as documents."""
        return KubeApi(self.connection, TIMEOUT)

    def build(self, count: int, agent_port: int, serving: ServingSettings) -> None:
        """Make the namespace, the CRD where there is none, the agents' address, the models."""
        self._install_crd()
        client.CoreV1Api(self.connection).create_namespace(
            {"metadata": {"name": self.namespace, "labels": {"fairlead.dev/bench": "true"}}}
        )
        self._name_agents(agent_port)
        versions = KubernetesCluster(self.api, serving)
        _each(lambda number: self._make(number, versions), range(count))
        wait_for(lambda: self.wake_pods() == count, PODS, f"{count} pods to be made", every=10)
        wait_for(self._all_available, PODS, "Kubernetes to see the pods ready", every=10)

    def digests(self) -> dict[str, str]:
        """Return the digest of every model's plan, as an agent would read it."""
        made = self.api.list("ServedModel", self.namespace, {})
        return {d["metadata"]["name"]: plan_digest(d["status"]["traffic"]) for d in made}

    def _make(self, number: int, versions: KubernetesCluster) -> None:
        document = served_model(self.namespace, number)
        _insist(lambda: self.api.create(document))
        name = document["metadata"]["name"]
        made = _insist(lambda: self.api.get("ServedModel", self.namespace, name))
        _insist(lambda: versions.ensure(read_served_model(made), "1", 1))
        status = status_of(made)
        written = {**to_document(status), "summary": to_document(summary_of(status))}
        _insist(lambda: self.api.replace({**made, "status": written}, "status"))

    def _all_available(self) -> bool:
        found = self.api.list("Deployment", self.namespace, {})
        return all(d.get("status", {}).get("readyReplicas") == 1 for d in found)

    def _install_crd(self) -> None:
        extensions = client.ApiextensionsV1Api(self.connection)
        try:
            extensions.create_custom_resource_definition(build_crd())
        except ApiException as error:
            if error.status != CONFLICT:
                raise
        wait_for(self._has_crd, 30, "the API server to know ServedModels")

    def _has_crd(self) -> bool:
        try:
            self.api.list("ServedModel", "default", {})
        except FairleadError:
            return False
        return True

    def _name_agents(self, port: int) -> None:
        """Say where the gateway's agent is, as Kubernetes does for a Service."""
        endpoint = {
            "addresses": [own_address(self.connection)],
            "conditions": {"ready": True},
        }
        self.api.create(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": SERVICE,
                    "namespace": self.namespace,
                    "labels": {"kubernetes.io/service-name": SERVICE},
                },
                "addressType": "IPv4",
                "endpoints": [endpoint],
                "ports": [{"name": "agent", "port": port, "protocol": "TCP"}],
            }
        )

    def wake_pods(self) -> int:
        """Turn every pod ready that is not; return how many are so at last."""
        pods = self.api.list("Pod", self.namespace, {"fairlead.dev/version": "1"})
        _each(self._wake, [pod for pod in pods if pod["status"].get("phase") != "Running"])
        return len(pods)

    def _wake(self, pod: Document) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        server = {
            "name": "server",
            "image": pod["spec"]["containers"][0]["image"],
            "imageID": "bench",
            "ready": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": now}},
        }
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": now}
        status = {"phase": "Running", "conditions": [ready], "containerStatuses": [server]}
        self.api.replace({**pod, "apiVersion": "v1", "kind": "Pod", "status": status}, "status")

    def candidate(self, number: int) -> str | None:
        """Return the version of a ServedModel that is on trial."""
        name = served_model(self.namespace, number)["metadata"]["name"]
        rollout = self.api.get("ServedModel", self.namespace, name)["status"].get("rollout")
        return rollout["candidate"] if rollout else None

    def remove(self) -> None:
        """Delete all of it, also what waits for a controller that has ended."""
        core = client.CoreV1Api(self.connection)
        try:
            core.delete_namespace(self.namespace)
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise
            return
        _each(self._release, self.api.list("ServedModel", self.namespace, {}))
        wait_for(lambda: self._is_gone(core), 900, f"namespace {self.namespace} to go")

    def _release(self, document: Document) -> None:
        if document["metadata"].get("finalizers"):
            name, none = document["metadata"]["name"], {"metadata": {"finalizers": None}}
            self.api.patch("ServedModel", self.namespace, name, none)

    def _is_gone(self, core: client.CoreV1Api) -> bool:
        try:
            core.read_namespace(self.namespace)
        except ApiException as error:
            return bool(error.status == NOT_FOUND)
        return False


def own_address(connection: ApiClient) -> str:
    """Return this machine's address as the API server's network sees it; no loopback one."""
    target = urlsplit(connection.configuration.host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((target.hostname, target.port or 443))
        address: str = probe.getsockname()[0]
    if not address.startswith("127."):
        return address
    raise SystemExit(
        f"the kubeconfig reaches the API server by {address}, and an EndpointSlice takes no "
        "loopback address; use a kubeconfig with another address of the API server"
    )


def wait_for(condition: Callable[[], Any], seconds: float, what: str, every: float = 0.5) -> None:
    """Wait until something is so.

    Raises:
        SystemExit: It is not so in time.
    """
    deadline = time.monotonic() + seconds
    while not _is_so(condition):
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {seconds:g} s for {what}")
        time.sleep(every)


def _insist(call: Callable[[], Any]) -> Any:
    """Call until a busy API server answers; what is there already was made by an earlier try."""
    for _ in range(ATTEMPTS):
        try:
            return call()
        except ConflictError:
            return None
        except UnavailableError:
            time.sleep(1)
    raise SystemExit(f"the API server did not answer {ATTEMPTS} times in a row")


def _is_so(condition: Callable[[], Any]) -> bool:
    try:
        return bool(condition())
    except (ConflictError, UnavailableError):  # a busy API server is asked again
        return False


def _each(work: Callable[[Any], Any], items: Iterable[Any]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, items))

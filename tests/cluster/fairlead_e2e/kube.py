"""The cluster's API, as plain documents."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ConflictError, DynamicApiError, NotFoundError
from kubernetes.stream import stream

from fairlead_e2e.waiting import wait_until

Document = dict[str, Any]
MANAGER = "fairlead-e2e"
KINDS = {
    "Namespace": "v1",
    "Node": "v1",
    "Pod": "v1",
    "Service": "v1",
    "ConfigMap": "v1",
    "Secret": "v1",
    "ServiceAccount": "v1",
    "Event": "v1",
    "PersistentVolumeClaim": "v1",
    "Deployment": "apps/v1",
    "ReplicaSet": "apps/v1",
    "StatefulSet": "apps/v1",
    "Job": "batch/v1",
    "CronJob": "batch/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "PodDisruptionBudget": "policy/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "Lease": "coordination.k8s.io/v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "ClusterRole": "rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    "ServedModel": "fairlead.dev/v1alpha1",
}
AWAY = 503


class CommandFailedError(Exception):
    """A command in a pod ended with another code than 0; the message is what it printed."""


class Kube:
    """Reads and writes objects, and runs commands in pods."""

    def __init__(self) -> None:
        api = config.new_client_from_config()
        self._client = DynamicClient(api)
        # `stream` changes the client it is given, so commands get one of their own.
        self._pods = client.CoreV1Api(config.new_client_from_config())
        self._core = client.CoreV1Api(api)

    def get(self, kind: str, namespace: str | None, name: str) -> Document | None:
        """Return an object, or None where there is none."""
        try:
            found: Document = self._resource(kind).get(name=name, namespace=namespace).to_dict()
        except NotFoundError:
            return None
        return found

    def find(
        self, kind: str, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> list[Document]:
        """Return the objects of a kind with these labels."""
        selector = ",".join(f"{key}={value}" for key, value in (labels or {}).items())
        found = self._resource(kind).get(namespace=namespace, label_selector=selector).to_dict()
        items: list[Document] = found["items"]
        return items

    def apply(self, document: Document) -> Document:
        """Make an object or change it, by server-side apply."""
        metadata = document["metadata"]
        applied: Document = (
            self._resource(document["kind"])
            .server_side_apply(
                body=document,
                name=metadata["name"],
                namespace=metadata.get("namespace"),
                field_manager=MANAGER,
                force_conflicts=True,
            )
            .to_dict()
        )
        return applied

    def refusal(self, document: Document) -> str:
        """Return why the API server refuses an object; fails where it takes it."""
        try:
            self.apply(document)
        except DynamicApiError as error:
            message: str = json.loads(error.body)["message"]
            return message
        raise AssertionError(f"{document['metadata']['name']} was taken")

    def patch(
        self, kind: str, namespace: str | None, name: str, body: Document, subresource: str = ""
    ) -> None:
        """Change some fields of an object (a merge patch)."""
        resource = self._resource(kind)
        target = resource.subresources[subresource] if subresource else resource
        target.patch(
            body=body,
            name=name,
            namespace=namespace,
            content_type="application/merge-patch+json",
        )

    def delete(
        self, kind: str, namespace: str | None, name: str, *, grace: int | None = None
    ) -> None:
        """Delete an object, if it is there.

        Args:
            kind: Its kind.
            namespace: Where it is.
            name: Its name.
            grace: Seconds it has to end, if not its own; 0 is a deletion by force.
        """
        options: Document = {"propagationPolicy": "Background"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            self._resource(kind).delete(name=name, namespace=namespace, body=options)
        except NotFoundError:
            return

    def evict(self, namespace: str, name: str) -> bool:
        """Ask for an eviction as a drain does; False where a disruption budget forbids it now."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
        }
        try:
            self._core.create_namespaced_pod_eviction(name=name, namespace=namespace, body=body)
        except ApiException as error:
            if error.status == 404:
                return True
            if error.status == 429:
                return False
            raise
        return True

    def pods(self, namespace: str, labels: Mapping[str, str]) -> list[Document]:
        """Return the pods that are not on their way out."""
        found = self.find("Pod", namespace, labels)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def scale(self, kind: str, namespace: str, name: str, replicas: int) -> None:
        """Set the number of pods."""
        self.patch(kind, namespace, name, {"spec": {"replicas": replicas}})

    def await_rolled_out(
        self, kind: str, namespace: str, name: str, within: float = 120.0
    ) -> Document:
        """Wait until all pods of a Deployment or StatefulSet are new and ready."""
        found: Document = {}

        def rolled_out() -> bool:
            found.update(self.get(kind, namespace, name) or {})
            return bool(found) and is_rolled_out(found)

        what = f"{kind.lower()} {namespace}/{name} is rolled out"
        wait_until(rolled_out, within, what, lambda: found.get("status"))
        return found

    def run(self, namespace: str, pod: str, command: Sequence[str], *, within: float = 60.0) -> str:
        """Run a command in a pod and return what it prints.

        Raises:
            CommandFailedError: It ended with another code than 0.
        """
        answer = stream(
            self._pods.connect_get_namespaced_pod_exec,
            pod,
            namespace,
            command=list(command),
            stdout=True,
            stderr=True,
            stdin=False,
            tty=False,
            _preload_content=False,
        )
        printed, complained, deadline = "", "", time.monotonic() + within
        while answer.is_open() and time.monotonic() < deadline:
            answer.update(timeout=1)
            printed += answer.read_stdout(timeout=0)
            complained += answer.read_stderr(timeout=0)
        try:
            if answer.is_open():
                raise CommandFailedError(f"no end within {within:g} s: {printed}{complained}")
            printed += answer.read_stdout(timeout=0)
            complained += answer.read_stderr(timeout=0)
            if answer.returncode:
                raise CommandFailedError(f"{complained}{printed}")
        finally:
            answer.close()
            answer.sock.shutdown()  # `close` leaves the socket open where the server closed first
        return printed

    def log(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> str:
        """Return the end of a container's log; why there is none, where that is so."""
        try:
            text: str = self._core.read_namespaced_pod_log(
                pod, namespace, container=container, previous=previous, tail_lines=5000
            )
        except ApiException as error:
            return "" if previous else f"no log: {error.reason}"
        return text

    def allowed(self, account: str, verb: str, resource: str, namespace: str) -> bool:
        """Ask whether a service account (`namespace:name`) may do something."""
        group, _, plural = resource.rpartition("/")
        attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": plural}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{account}",
                "resourceAttributes": attributes,
            },
        }
        reviews = self._client.resources.get(
            api_version="authorization.k8s.io/v1", kind="SubjectAccessReview"
        )
        answer: bool = reviews.create(body=review).to_dict()["status"]["allowed"]
        return answer

    def _resource(self, kind: str) -> Any:
        return self._client.resources.get(api_version=KINDS[kind], kind=kind)


def is_rolled_out(document: Document) -> bool:
    """Say whether a Deployment or StatefulSet is as its specification says."""
    spec, status = document["spec"], document.get("status") or {}
    wanted = spec.get("replicas", 1)
    is_observed = status.get("observedGeneration", 0) >= document["metadata"]["generation"]
    counts = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "readyReplicas")]
    return is_observed and all(count == wanted for count in counts)


def is_ready(pod: Document) -> bool:
    """Say whether a pod gets traffic."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


__all__ = [
    "CommandFailedError",
    "ConflictError",
    "Document",
    "DynamicApiError",
    "Kube",
    "is_ready",
    "is_rolled_out",
]

"""Versions as Deployments."""

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from fairlead_rollout.adapters.k8s.api import MANAGER, Document, KubeApi
from fairlead_rollout.adapters.k8s.store import split_key
from fairlead_rollout.app.ports import ServedModel
from fairlead_rollout.domain.errors import NotFoundError, RefusedError, UnavailableError
from fairlead_rollout.domain.manifests import (
    CONTAINER,
    DIGEST,
    MANAGED_BY,
    MODEL_LABEL,
    VERSION_LABEL,
    Owner,
    build_manifests,
)
from fairlead_rollout.domain.platform import ServingSettings
from fairlead_rollout.domain.snapshot import Failure, Workload

APPLY_AGAIN_AFTER = 600.0  # seconds; what somebody has changed by hand is put right then
NUMBER_MANAGER = f"{MANAGER}-replicas"
KINDS = (
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
    "Service",
    "NetworkPolicy",
    "Deployment",  # last: by it a version is found again when its removal was cut short
)
_CANNOT_START = frozenset(
    {
        *("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"),
        *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
    }
)
_BACK_OFF = "CrashLoopBackOff"


class KubernetesCluster:
    """Writes the objects of versions and reads how their pods are."""

    def __init__(self, api: KubeApi, settings: ServingSettings):
        self._api = api
        self._settings = settings
        self._seen: dict[tuple[str, str], Document] = {}  # of the model that was looked at last
        self._applied_at: dict[tuple[str, str], float] = {}  # only saves writes

    def workloads(self, served: ServedModel) -> tuple[Workload, ...]:
        """Return the observed workloads of a served model."""
        namespace, name = split_key(served.key)
        labels = {MANAGED_BY: "fairlead", MODEL_LABEL: name}
        deployments = self._api.list("Deployment", namespace, labels)
        pods = self._api.list("Pod", namespace, labels)
        ours = [d for d in deployments if _is_owned(d, served.uid)]
        self._seen = {(served.key, _version(d)): d for d in ours}
        return tuple(_observe(deployment, pods) for deployment in ours)

    def ensure(self, served: ServedModel, version: str, replicas: int) -> None:
        """Have this many pods of a version, at least."""
        assert served.spec is not None
        namespace, name = split_key(served.key)
        owner = Owner(namespace=namespace, name=name, uid=served.uid)
        there = self._seen.get((served.key, version))
        documents = build_manifests(owner, served.spec, version, replicas, self._settings)
        deployment = documents[-1]
        if self._is_as_wanted(served.key, version, there, deployment):
            return
        found = self._found(namespace, deployment["metadata"]["name"])
        for document in documents:
            _check_is_ours(found.get(document["kind"]), served)
        for kind in set(found) - {document["kind"] for document in documents}:
            self._delete(found[kind], served)
        if served.spec.autoscaling is not None:
            fewest = min(replicas, served.spec.autoscaling.max_replicas)
            self._leave_number(deployment, found.get("Deployment"), fewest)
        for document in documents:
            self._apply(document, found.get(document["kind"]))
        self._applied_at[(served.key, version)] = time.monotonic()

    def remove(self, served: ServedModel, version: str) -> None:
        """Delete all objects of a version."""
        namespace, _ = split_key(served.key)
        deployment = self._seen.get((served.key, version))
        if deployment is None:
            return
        for document in self._found(namespace, deployment["metadata"]["name"]).values():
            self._delete(document, served)
        self._applied_at.pop((served.key, version), None)

    def _found(self, namespace: str, name: str) -> dict[str, Document]:
        """Return what there is of a version's name, by kind: not all of it need be ours."""
        found = {}
        for kind in KINDS:
            with contextlib.suppress(NotFoundError):
                found[kind] = {**self._api.get(kind, namespace, name), "kind": kind}
        return found

    def _leave_number(self, wanted: Document, there: Document | None, fewest: int) -> None:
        """Take the number of pods out of a Deployment that an autoscaler governs.

        A number that was read a moment ago may undo what load has called for since. One that we
        alone have applied must not just be left out either: Kubernetes would take it for 1. So it
        is given to a manager that changes nothing else, which the autoscaler then takes it from.

        Raises:
            ConflictError: The autoscaler has changed the number since it was read; look again.
        """
        if there is None:
            wanted["spec"]["replicas"] = fewest
            return
        del wanted["spec"]["replicas"]
        metadata, now = there["metadata"], int(there["spec"].get("replicas", 1))
        namespace, name = metadata["namespace"], metadata["name"]
        if now < fewest:  # a promotion does not wait for the autoscaler's next look
            version = {"resourceVersion": metadata["resourceVersion"]}
            change = {"metadata": version, "spec": {"replicas": fewest}}
            self._api.patch("Deployment", namespace, name, change)
        number = {
            "apiVersion": wanted["apiVersion"],
            "kind": wanted["kind"],
            "metadata": {"namespace": namespace, "name": name, "uid": metadata["uid"]},
            "spec": {"replicas": max(now, fewest)},
        }
        self._api.apply(number, manager=NUMBER_MANAGER, force=False)

    def _apply(self, document: Document, there: Document | None) -> None:
        """Write an object; the uid keeps us from writing to one that has come in its place."""
        uid = {"uid": there["metadata"]["uid"]} if there else {}
        self._api.apply({**document, "metadata": {**document["metadata"], **uid}})

    def _delete(self, there: Document, served: ServedModel) -> None:
        """Delete an object if it is ours: a person's own may have the same name."""
        if _is_owned(there, served.uid):
            metadata = there["metadata"]
            self._api.delete(
                there["kind"], metadata["namespace"], metadata["name"], metadata["uid"]
            )

    def _is_as_wanted(
        self, key: str, version: str, there: Document | None, wanted: Document
    ) -> bool:
        if there is None or "deletionTimestamp" in there["metadata"]:
            return False
        found = (there["metadata"].get("annotations") or {}).get(DIGEST)
        age = time.monotonic() - self._applied_at.setdefault((key, version), time.monotonic())
        is_same = found == wanted["metadata"]["annotations"][DIGEST]
        return is_same and age < APPLY_AGAIN_AFTER


def _is_owned(document: Document, uid: str) -> bool:
    """Say whether an object belongs to this very ServedModel.

    One made again under the same name adopts nothing whose owner is gone: it is being deleted.
    """
    owners = document["metadata"].get("ownerReferences") or ()
    return any(owner["uid"] == uid for owner in owners)


def _check_is_ours(there: Document | None, served: ServedModel) -> None:
    """See that nobody else's object is written over.

    One without any owner that has our labels was left behind by a deletion that spared it, or by
    a backup: it is taken over.

    Raises:
        RefusedError: It is somebody else's.
        UnavailableError: It belongs to an earlier ServedModel of this name.
    """
    if there is None or _is_owned(there, served.uid):
        return
    namespace, name = split_key(served.key)
    what = f"{there['kind']} {namespace}/{there['metadata']['name']}"
    owners = there["metadata"].get("ownerReferences") or ()
    if any((owner["kind"], owner["name"]) == ("ServedModel", name) for owner in owners):
        raise UnavailableError(f"{what} is being deleted with an earlier ServedModel {name}")
    labels = there["metadata"].get("labels") or {}
    if owners or {MANAGED_BY: "fairlead", MODEL_LABEL: name}.items() - labels.items():
        raise RefusedError(
            f"{what} is in the way and does not belong to ServedModel {name}: rename or delete it"
        )


def _version(deployment: Document) -> str:
    version: str = deployment["metadata"]["labels"][VERSION_LABEL]
    return version


def _observe(deployment: Document, pods: Iterable[Document]) -> Workload:
    status = deployment.get("status") or {}
    version = _version(deployment)
    mine = [
        pod
        for pod in pods
        if pod["metadata"]["labels"].get(VERSION_LABEL) == version
        and "deletionTimestamp" not in pod["metadata"]
    ]
    ready = sum(1 for pod in mine if _is_ready(pod))
    servers = [server for pod in mine if (server := _server_of(pod)) is not None]
    return Workload(
        name=deployment["metadata"]["name"],
        version=version,
        wanted=int(deployment["spec"].get("replicas", 1)),
        ready=ready,
        restarts=max((_restarts(server) for server in servers), default=0),
        failure=None if ready else _failure(status, mine, servers),
    )


def _is_ready(pod: Document) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _server_of(pod: Document) -> Document | None:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((s for s in statuses if s["name"] == CONTAINER), None)


def _restarts(server: Document) -> int:
    """Count restarts while kubelet backs off: it forgets them after ten quiet minutes."""
    is_backing_off = _waiting(server).get("reason") == _BACK_OFF
    return int(server.get("restartCount", 0)) if is_backing_off else 0


def _waiting(server: Document) -> Mapping[str, Any]:
    return (server.get("state") or {}).get("waiting") or {}


def _failure(
    status: Document, pods: Iterable[Document], servers: Iterable[Document]
) -> Failure | None:
    """Return why a version has no ready pod, the most telling reason first."""
    found = [
        *(failure for server in servers if (failure := _ended(server)) is not None),
        *(failure for server in servers if (failure := _cannot_start(server)) is not None),
        *(failure for pod in pods if (failure := _not_scheduled(pod)) is not None),
        *_not_created(status),
    ]
    return next(iter(found), None)


def _ended(server: Document) -> Failure | None:
    states = (server.get("state") or {}, server.get("lastState") or {})
    ended = next((s["terminated"] for s in states if "terminated" in s), None)
    if ended is None or ended.get("exitCode") == 0:
        return None
    code = int(ended["exitCode"])
    if ended.get("reason") == "OOMKilled":
        return Failure(exit_code=code, reason="it takes more memory than its limit (OOMKilled)")
    lines = str(ended.get("message") or "").strip().splitlines()
    return Failure(exit_code=code, reason=lines[0] if lines else f"it ended with code {code}")


def _cannot_start(server: Document) -> Failure | None:
    waiting = _waiting(server)
    if waiting.get("reason") not in _CANNOT_START:
        return None
    message = waiting.get("message") or "no more is known"
    return Failure(exit_code=None, reason=f"{waiting['reason']}: {message}")


def _not_scheduled(pod: Document) -> Failure | None:
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Failure(exit_code=None, reason=f"no node takes it: {condition.get('message')}")
    return None


def _not_created(status: Document) -> Iterable[Failure]:
    for condition in status.get("conditions") or ():
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            message = condition.get("message")
            yield Failure(exit_code=None, reason=f"its pods cannot be made: {message}")

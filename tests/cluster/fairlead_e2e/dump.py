"""What a failed test leaves behind for its reader: objects, events and logs."""

from collections.abc import Iterable
from pathlib import Path

import yaml

from fairlead_e2e.kube import Document, DynamicApiError, Kube

KINDS = (
    "ServedModel",
    "Pod",
    "Deployment",
    "ReplicaSet",
    "StatefulSet",
    "Job",
    "Service",
    "EndpointSlice",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "ConfigMap",
    "Lease",
)


def dump(kube: Kube, folder: Path, namespaces: Iterable[str]) -> None:
    """Write down what is in these namespaces, Secrets left out."""
    for namespace in namespaces:
        if kube.get("Namespace", None, namespace) is None:
            continue
        place = folder / namespace
        place.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            _write_objects(kube, place, namespace, kind)
        _write_events(kube, place, namespace)
        for pod in kube.find("Pod", namespace):
            _write_logs(kube, place, pod)


def _write_objects(kube: Kube, place: Path, namespace: str, kind: str) -> None:
    try:
        found = kube.find(kind, namespace)
    except DynamicApiError:
        return  # the kind is not known to the cluster
    for document in found:
        document["metadata"].pop("managedFields", None)
    if found:
        (place / f"{kind}.yaml").write_text(yaml.safe_dump_all(found), "utf-8")


def _write_events(kube: Kube, place: Path, namespace: str) -> None:
    lines = sorted(_line(event) for event in kube.find("Event", namespace))
    (place / "events.txt").write_text("\n".join(lines) + "\n", "utf-8")


def _line(event: Document) -> str:
    regarding = event["involvedObject"]
    at = event.get("lastTimestamp") or event.get("eventTime") or ""
    who = f"{regarding.get('kind')}/{regarding.get('name')}"
    return f"{at} {event.get('type')} {event.get('reason')} {who}: {event.get('message')}"


def _write_logs(kube: Kube, place: Path, pod: Document) -> None:
    metadata, spec = pod["metadata"], pod["spec"]
    for container in [*spec.get("initContainers", ()), *spec["containers"]]:
        for previous in (False, True):
            text = kube.log(
                metadata["namespace"], metadata["name"], container["name"], previous=previous
            )
            if text:
                suffix = ".previous.log" if previous else ".log"
                name = f"{metadata['name']}.{container['name']}{suffix}"
                (place / name).write_text(text, "utf-8")

"""Pods of the tests' own: Python in Fairlead's serving image, as the strictest Pod Security asks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead_e2e.kube import Document, Kube, is_ready
from fairlead_e2e.waiting import wait_until

SCRIPTS = Path(__file__).parent / "scripts"
USER = 65532
CONTAINER = "main"
PLATFORM = "fairlead.dev/e2e-platform"
PRIVILEGED = {"pod-security.kubernetes.io/enforce": "privileged"}
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def make_namespace(
    kube: Kube, name: str, labels: Mapping[str, str] = RESTRICTED, *, owner: str = ""
) -> None:
    """Make a namespace, if it is not there."""
    metadata = {"name": name, "labels": {"fairlead.dev/e2e": "true", PLATFORM: owner, **labels}}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


def put_scripts(kube: Kube, namespace: str) -> None:
    """Put the scripts where pods of a namespace can mount them."""
    data = {path.name: path.read_text("utf-8") for path in sorted(SCRIPTS.glob("*.py"))}
    metadata = {"name": "e2e-scripts", "namespace": namespace}
    kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def build_pod(
    *,
    name: str,
    namespace: str,
    image: str,
    command: Sequence[str],
    secrets: Sequence[str] = (),
    spec: Mapping[str, Any] | None = None,
) -> Document:
    """Build a pod that runs a command beside the scripts.

    Args:
        name: Its name.
        namespace: Where it runs.
        image: Its image, with Python in it.
        command: What it runs.
        secrets: Secrets that are mounted at `/accounts/NAME`.
        spec: More of the pod's specification.
    """
    mounts: list[Document] = [
        {"name": "scripts", "mountPath": "/scripts", "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 -- a volume of the pod's own
    ]
    volumes: list[Document] = [
        {"name": "scripts", "configMap": {"name": "e2e-scripts"}},
        {"name": "tmp", "emptyDir": {}},
    ]
    for secret in secrets:
        mounts.append({"name": secret, "mountPath": f"/accounts/{secret}", "readOnly": True})
        volumes.append({"name": secret, "secret": {"secretName": secret, "defaultMode": 0o440}})
    container = {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "resources": {
            "requests": {"cpu": "20m", "memory": "64Mi"},
            "limits": {"memory": "512Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"fairlead.dev/e2e": name}},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 5,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": volumes,
            **(spec or {}),
        },
    }


def start_pod(kube: Kube, pod: Document, within: float = 90.0) -> None:
    """Make a pod and wait until it runs."""
    metadata = pod["metadata"]
    kube.apply(pod)

    def runs() -> bool:
        found = kube.get("Pod", metadata["namespace"], metadata["name"])
        return found is not None and is_ready(found)

    wait_until(runs, within, f"the pod {metadata['namespace']}/{metadata['name']} runs")


def remove_pod(kube: Kube, namespace: str, name: str) -> None:
    """Delete a pod and wait until it is gone."""
    kube.delete("Pod", namespace, name, grace=1)
    wait_until(
        lambda: kube.get("Pod", namespace, name) is None, 60, f"the pod {namespace}/{name} is gone"
    )


SLEEP = ("python", "-c", "import signal; signal.sigwait({signal.SIGTERM})")

"""Breaking things."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fairlead_e2e import pods
from fairlead_e2e.kube import Document, Kube, is_ready
from fairlead_e2e.platform import Platform
from fairlead_e2e.waiting import wait_until

# Ends the first process of a container, from outside: inside, its own kill -9 is ignored.
KILL = """
import os, pathlib, signal, sys
container = sys.argv[1]
found = []
for place in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        inside = (place / "status").read_text().split("NSpid:")[1].splitlines()[0].split()[-1]
        if inside == "1" and container in (place / "cgroup").read_text():
            found.append(int(place.name))
    except OSError:
        continue
if len(found) != 1:
    sys.exit(f"{len(found)} first processes of the container {container}")
os.kill(found[0], signal.SIGKILL)
"""


def kill(platform: Platform, victim: Document, container: str) -> None:
    """Kill -9 a container's process, as the kernel does: from a pod that sees its node's processes."""
    kube, namespace, name = platform.kube, platform.killers, f"killer-{uuid.uuid4().hex[:6]}"
    pod = pods.build_pod(
        name=name,
        namespace=namespace,
        image=platform.serving_image,
        command=pods.SLEEP,
        spec={
            "hostPID": True,
            "nodeName": victim["spec"]["nodeName"],
            "securityContext": {"runAsUser": 0},
        },
    )
    rights = {"drop": ["ALL"], "add": ["KILL"]}
    pod["spec"]["containers"][0]["securityContext"] = {"capabilities": rights}
    pods.start_pod(kube, pod)
    statuses = victim["status"]["containerStatuses"]
    found = next(status["containerID"] for status in statuses if status["name"] == container)
    kube.run(namespace, name, ("python", "-c", KILL, found.partition("://")[2]))
    kube.delete("Pod", namespace, name, grace=1)


def restarts(pod: Document, container: str) -> int:
    """Return how often a container of a pod was restarted."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((int(s["restartCount"]) for s in statuses if s["name"] == container), 0)


def await_restarted(kube: Kube, pod: Document, container: str, within: float = 90.0) -> None:
    """Wait until a container was started again and its pod is ready."""
    metadata, before = pod["metadata"], restarts(pod, container)

    def restarted() -> bool:
        found = kube.get("Pod", metadata["namespace"], metadata["name"]) or {}
        return restarts(found, container) > before and is_ready(found)

    wait_until(restarted, within, f"{metadata['name']} runs again")


def await_replaced(
    ready: Callable[[], list[Document]], before: list[Document], gone: Document
) -> None:
    """Wait until there are as many ready pods as before, and one of those is not among them.

    A Deployment's own status tells of a deleted pod only after a while.
    """
    uid = gone["metadata"]["uid"]

    def replaced() -> bool:
        found = [pod["metadata"]["uid"] for pod in ready()]
        return uid not in found and len(found) == len(before)

    wait_until(replaced, 90, f"{gone['metadata']['name']} is replaced")


@contextmanager
def away(kube: Kube, kind: str, namespace: str, name: str) -> Iterator[None]:
    """Take all pods of a workload away, and bring them back at the end."""
    document = kube.get(kind, namespace, name)
    assert document is not None
    labels = document["spec"]["selector"]["matchLabels"]
    kube.scale(kind, namespace, name, 0)
    try:
        wait_until(
            lambda: not kube.find("Pod", namespace, labels), 120, f"{namespace}/{name} is away"
        )
        yield
    finally:
        kube.scale(kind, namespace, name, document["spec"].get("replicas", 1))
    kube.await_rolled_out(kind, namespace, name)

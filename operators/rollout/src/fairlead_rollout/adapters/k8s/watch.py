"""What wakes the controller: ServedModels and pods that change, watched by kopf.

Nothing that is decided on comes from here: a pass reads all it needs by itself. What is kept is
which ServedModels there are, and of which registered model, so that the right ones are woken.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import kopf

from fairlead_rollout.adapters.crd import GROUP, PLURAL, VERSION
from fairlead_rollout.domain.manifests import MANAGED_BY, MODEL_LABEL

log = logging.getLogger(__name__)

AGAIN_AFTER = 5.0  # seconds
LOOK_AGAIN_AFTER = 30.0  # seconds until it is asked anew which namespaces are there
_GLANCE = 0.5  # seconds until it is looked anew whether to stop


@dataclass(frozen=True, kw_only=True, order=True)
class Known:
    """A ServedModel that is there; of one name the first in order is served."""

    created: str
    uid: str
    key: str
    registered_model: str


class Watch:
    """Which ServedModels there are, and which have changed. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Known] = {}
        self._changed: set[str] = set()

    def keys(self) -> tuple[str, ...]:
        """Return the keys of all ServedModels."""
        with self._lock:
            return tuple(self._known)

    def take_changed(self) -> frozenset[str]:
        """Return the keys that changed since this was last asked."""
        with self._lock:
            changed, self._changed = frozenset(self._changed), set()
        return changed

    def wake(self, registered_models: frozenset[str]) -> None:
        """Have the ServedModels of these registered models looked at."""
        with self._lock:
            self._changed |= {
                k.key for k in self._known.values() if k.registered_model in registered_models
            }

    def rivals(self, key: str) -> tuple[str, ...]:
        """Return the older ServedModels of the same name in other namespaces, the oldest first.

        One that went while the watch was broken off is among them.
        """
        name = key.partition("/")[2]
        with self._lock:
            same = sorted(k for k in self._known.values() if k.key.partition("/")[2] == name)
        keys = [known.key for known in same]
        return tuple(keys[: keys.index(key)]) if key in keys else tuple(keys)

    def see(self, body: Mapping[str, Any], *, is_gone: bool) -> None:
        """Take in a ServedModel that appeared, changed or went."""
        metadata = body["metadata"]
        key = f"{metadata['namespace']}/{metadata['name']}"
        known = Known(
            created=metadata["creationTimestamp"],
            uid=metadata["uid"],
            key=key,
            registered_model=str(body.get("spec", {}).get("model")),
        )
        with self._lock:
            if is_gone:
                self._known.pop(key, None)
            else:
                self._known[key] = known
            name = metadata["name"]
            self._changed |= {k for k in self._known if k.partition("/")[2] == name}

    def forget(self, namespace: str) -> None:
        """Take in that a namespace is gone, with all that was in it."""
        with self._lock:
            gone = {key for key in self._known if key.partition("/")[0] == namespace}
            names = {key.partition("/")[2] for key in gone}
            self._known = {key: known for key, known in self._known.items() if key not in gone}
            self._changed |= {key for key in self._known if key.partition("/")[2] in names}

    def see_pod(self, namespace: str, labels: Mapping[str, str]) -> None:
        """Take in a pod of a version that changed."""
        with self._lock:
            self._changed.add(f"{namespace}/{labels.get(MODEL_LABEL, '')}")


def run_watch(
    watch: Watch, namespaces: tuple[str, ...], stop: threading.Event, exists: Callable[[str], bool]
) -> None:
    """Watch until told to stop; for a thread of its own.

    kopf gives up for good when a kind is not there, or may not be watched for a minute: a namespace
    that is gone took the right to watch it along. Such a one is left out, for it would stop the
    watch of all others.

    Args:
        watch: Told of what changes.
        namespaces: Where to look.
        stop: Ends it.
        exists: Whether there is such a namespace.
    """

    def existing() -> tuple[str, ...]:
        return tuple(name for name in namespaces if stop.is_set() or exists(name))

    registry = _registry(watch)
    before = namespaces
    while not stop.is_set():
        there = existing()
        for gone in sorted(set(before) - set(there)):
            log.warning("namespace %s does not exist; it is looked for again", gone)
            watch.forget(gone)
        before = there
        if not there:  # kopf would take it for all of the cluster
            stop.wait(LOOK_AGAIN_AFTER)
            continue
        try:
            if asyncio.run(_watch(registry, there, stop, existing)):
                continue
        except Exception:  # whatever it was: what changes meanwhile is seen by the next listing
            log.exception("the watch has ended; it is begun again")
        stop.wait(AGAIN_AFTER)


async def _watch(
    registry: kopf.OperatorRegistry,
    namespaces: tuple[str, ...],
    stop: threading.Event,
    existing: Callable[[], tuple[str, ...]],
) -> bool:
    """Watch until told to stop, or until other namespaces are there; tell whether that was it."""
    ended = asyncio.Event()
    looking = asyncio.create_task(
        _look(stop, lambda: existing() != namespaces, ended), name="namespaces"
    )
    try:
        await kopf.operator(
            registry=registry,
            settings=_settings(),
            namespaces=namespaces,
            standalone=True,
            stop_flag=ended,
        )
    finally:
        looking.cancel()
    return ended.is_set()


async def _look(stop: threading.Event, changed: Callable[[], bool], ended: asyncio.Event) -> None:
    """Set the flag when told to stop, or when other namespaces are there."""
    clock = asyncio.get_running_loop().time
    due = clock() + LOOK_AGAIN_AFTER
    try:
        while not await asyncio.to_thread(stop.wait, min(_GLANCE, LOOK_AGAIN_AFTER)):
            if clock() >= due:
                if await asyncio.to_thread(changed):
                    break
                due = clock() + LOOK_AGAIN_AFTER
    finally:
        ended.set()  # whatever happened: a watch that nobody can end any more is none


def _registry(watch: Watch) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def log_in(**options: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**options) or kopf.login_with_kubeconfig(**options)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def on_served_model(body: kopf.Body, type: str | None, **_: Any) -> None:  # noqa: A002 -- kopf's name
        watch.see(body, is_gone=type == "DELETED")

    @kopf.on.event("v1", "pods", labels={MANAGED_BY: "fairlead"}, registry=registry)
    async def on_pod(namespace: str | None, labels: kopf.Labels, **_: Any) -> None:
        watch.see_pod(namespace or "", labels)

    return registry


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # our own events tell more
    settings.scanning.disabled = True  # the kinds are known, and it would need cluster-wide rights
    settings.watching.label_selectors["pods"] = f"{MANAGED_BY}=fairlead"
    return settings

"""ServedModels in the Kubernetes API."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from fairlead_rollout.adapters.k8s.api import MANAGER, Document, KubeApi
from fairlead_rollout.adapters.metrics import ControllerMetrics
from fairlead_rollout.adapters.schema import read_stored_spec
from fairlead_rollout.app.ports import ServedModel
from fairlead_rollout.domain.actions import EmitEvent
from fairlead_rollout.domain.errors import (
    ConflictError,
    FairleadError,
    InvalidSpecError,
    NotFoundError,
    UnavailableError,
)
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.snapshot import Request, Verb
from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import Status, from_document, parse_time, to_document
from fairlead_rollout.domain.summary import summary_of

log = logging.getLogger(__name__)

HEAD = {"apiVersion": "fairlead.dev/v1alpha1", "kind": "ServedModel"}
REQUEST = "fairlead.dev/request"
FINALIZER = "fairlead.dev/rollout"  # others are told of its end before the ServedModel goes
MAX_NOTE = 1024  # bytes of an Event's note
Key = str
"""`namespace/name`."""


def split_key(key: Key) -> tuple[str, str]:
    """Return the namespace and the name in a key."""
    namespace, _, name = key.partition("/")
    return namespace, name


class KubernetesStore:
    """Reads ServedModels and writes their status.

    What was read is written back only if nobody has changed it since: a controller that has lost
    the lead without noticing cannot overwrite its successor's word.
    """

    def __init__(
        self,
        api: KubeApi,
        rivals: Callable[[Key], tuple[Key, ...]] = lambda _: (),
        metrics: ControllerMetrics | None = None,
        namespace: str = "",
    ):
        """Build a store.

        Args:
            api: The API server.
            rivals: Tells the older ServedModels of other namespaces that have the same name.
            metrics: Where the statuses are shown.
            namespace: Where a person looks.
        """
        self._namespace = namespace
        self._api = api
        self._rivals = rivals
        self._metrics = metrics or ControllerMetrics()
        self._read: dict[Key, Document] = {}
        self._told: dict[Key, str] = {}  # the last event's id; only saves writes

    def read(self, key: Key) -> ServedModel | None:
        """Return a ServedModel as it is now, or None when it is gone."""
        namespace, name = split_key(key)
        try:
            document = self._api.get("ServedModel", namespace, name)
        except NotFoundError:
            self._read.pop(key, None)
            self._told.pop(key, None)
            self._metrics.forget(key)
            return None
        self._read[key] = document
        served = served_model(document)
        self._metrics.saw(key, name, served.status or Status())
        rival = next((r for r in self._rivals(key) if self._is_there(r)), None)
        return served if rival is None else _in_conflict(served, rival)

    def _is_there(self, key: Key) -> bool:
        try:
            self._api.get("ServedModel", *split_key(key))
        except NotFoundError:
            return False
        return True

    def write_status(self, key: Key, status: Status) -> None:
        """Replace the status of the ServedModel that was read.

        Raises:
            ConflictError: It was changed meanwhile; look again.
        """
        document = {**self._read[key], "status": _status_document(status)}
        self._read[key] = self._api.replace(document, "status")
        self._metrics.saw(key, split_key(key)[1], status)

    def hold(self, key: Key, *, held: bool) -> None:
        """Set or take away our finalizer, and no other one's.

        Raises:
            ConflictError: It was changed meanwhile; look again.
        """
        namespace, name = split_key(key)
        known = self._read[key]["metadata"]
        metadata: Document = {"name": name, "namespace": namespace, "uid": known["uid"]}
        if held:  # the uid: never make one that is gone
            metadata["finalizers"] = [FINALIZER]
            self._api.apply({**HEAD, "metadata": metadata}, manager=f"{MANAGER}-finalizer")
            return
        # Not by applying without it: that leaves what another field manager has written, as who
        # restores a backup does, and the ServedModel could never go.
        metadata["resourceVersion"] = known["resourceVersion"]
        metadata["finalizers"] = [f for f in known.get("finalizers", ()) if f != FINALIZER]
        try:
            self._read[key] = self._api.patch(
                "ServedModel", namespace, name, {"metadata": metadata}
            )
        except NotFoundError as error:
            log.info("%s: the finalizer is gone already: %s", key, error)

    def emit(self, key: Key, event: EmitEvent, at: datetime) -> None:
        """Write an Event; the same id is written once."""
        told = f"{self._read[key]['metadata']['uid']}/{event.id}"
        if self._told.get(key) == told:
            return
        try:
            self._api.create(_event(self._read[key]["metadata"], event, at))
        except ConflictError as error:
            log.debug("%s: an earlier pass has written it: %s", key, error)
        except FairleadError as error:  # an event is news, not state
            log.warning("%s: the event %s was not written: %s", key, event.reason, error)
            if isinstance(error, UnavailableError):
                return
        self._told[key] = told

    def names(self) -> tuple[Key, ...]:
        """Return the keys of the ServedModels in the store's namespace."""
        found = self._api.list("ServedModel", self._namespace, {})
        return tuple(sorted(f"{self._namespace}/{d['metadata']['name']}" for d in found))

    def manifest(self, key: Key) -> Document:
        """Return a ServedModel's document.

        Raises:
            NotFoundError: There is none of that name.
        """
        namespace, name = split_key(key)
        try:
            return self._api.get("ServedModel", namespace, name)
        except NotFoundError as error:
            known = ", ".join(split_key(other)[1] for other in self.names()) or "none"
            raise NotFoundError(
                f"there is no served model {name!r} in namespace {namespace} (there are: {known})"
            ) from error

    def created_at(self, key: Key) -> datetime:
        """Return when a ServedModel was made."""
        return parse_time(self.manifest(key)["metadata"]["creationTimestamp"])

    def ask(self, key: Key, request: Request) -> None:
        """Leave a person's request for the controller."""
        namespace, name = split_key(key)
        note = {REQUEST: json.dumps(to_document(request))}
        self._api.patch("ServedModel", namespace, name, {"metadata": {"annotations": note}})


def _in_conflict(served: ServedModel, rival: Key) -> ServedModel:
    problem = f"the older ServedModel {rival} has the same name, which is the path at the gateway; rename one of them"
    return replace(served, spec=None, problem=problem, reason=Reason.ROUTE_CONFLICT)


def served_model(document: Document) -> ServedModel:
    """Read a ServedModel document."""
    metadata = document["metadata"]
    spec, problem = _spec(document)
    return ServedModel(
        key=f"{metadata['namespace']}/{metadata['name']}",
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        spec=spec,
        problem=problem,
        status=_status(document.get("status")),
        request=_request(metadata.get("annotations") or {}),
        deleted_at=_time(metadata.get("deletionTimestamp")),
        is_held=FINALIZER in metadata.get("finalizers", ()),
    )


def _spec(document: Document) -> tuple[ServedModelSpec | None, str]:
    metadata = {"name": document["metadata"]["name"]}
    parts = {key: document[key] for key in ("apiVersion", "kind", "spec")}
    try:
        return read_stored_spec({**parts, "metadata": metadata}), ""
    except InvalidSpecError as error:
        return None, str(error)


def _status(document: Any) -> Status | None:
    """Read a status; one that is not ours is a lost one."""
    if not document:
        return None
    try:
        return from_document(document)
    except (KeyError, TypeError, ValueError):
        log.exception("a status cannot be read; it is taken for lost")
        return None


def _status_document(status: Status) -> Document:
    document: Document = to_document(status)
    return {**document, "summary": to_document(summary_of(status))}


def _request(annotations: Mapping[str, str]) -> Request | None:
    try:
        asked = json.loads(annotations.get(REQUEST, "null"))
        if asked is None:
            return None
        return Request(
            id=str(asked["id"]),
            verb=Verb(asked["verb"]),
            rollout=str(asked["rollout"]),
            by=str(asked.get("by", "")),
            step=asked.get("step"),
        )
    except (KeyError, TypeError, ValueError):
        log.warning("the annotation %s is no request; it is ignored", REQUEST)
        return None


def _event(metadata: Document, event: EmitEvent, at: datetime) -> Document:
    """Build an Event whose name makes a repeated pass write it once."""
    tail = hashlib.sha256(f"{metadata['uid']}/{event.id}".encode()).hexdigest()[:16]
    reference = {
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": "ServedModel",
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "uid": metadata["uid"],
    }
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{tail}", "namespace": metadata["namespace"]},
        "eventTime": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": event.type,
        "reason": event.reason,
        "note": event.message.encode()[:MAX_NOTE].decode(errors="ignore"),
        "action": "Reconcile",
        "regarding": reference,
        "reportingController": "fairlead.dev/controller",
        "reportingInstance": "controller",
    }


def _time(text: str | None) -> datetime | None:
    return parse_time(text) if text else None

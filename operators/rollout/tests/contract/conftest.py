"""Two API servers for the same tests: one in memory, and the real one.

What the tests say of the first is only worth something because the second agrees. The real one is
asked where FAIRLEAD_E2E=1 and the kubeconfig name a cluster; each test has a namespace of its own.
"""

import copy
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest

from fairlead_rollout.adapters.crd import build_crd
from fairlead_rollout.adapters.k8s.api import KubeApi, connect
from fairlead_rollout.domain.errors import (
    ConflictError,
    FairleadError,
    NotFoundError,
    UnavailableError,
)

Document = dict[str, Any]
Place = tuple[str, str, str]  # kind, namespace, name


class FakeKube:
    """The API server as `KubeApi` shows it, in memory."""

    def __init__(self) -> None:
        self._objects: dict[Place, Document] = {}
        self._applied: dict[tuple[Place, str], Document] = {}
        self._versions = itertools.count(1)

    def get(self, kind: str, namespace: str, name: str) -> Document:
        """See KubeApi."""
        return copy.deepcopy(self._at((kind, namespace, name)))

    def list(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Document]:
        """See KubeApi."""
        return [
            copy.deepcopy(document)
            for (its_kind, its_namespace, _), document in self._objects.items()
            if (its_kind, its_namespace) == (kind, namespace)
            and labels.items() <= document["metadata"].get("labels", {}).items()
        ]

    def create(self, document: Document) -> Document:
        """See KubeApi."""
        place = _place(document)
        if place in self._objects:
            raise ConflictError(f"{place} already exists")
        made = _stored(document)
        made.pop("status", None)
        created = {
            "uid": str(uuid4()),
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        }
        made["metadata"] = {**made["metadata"], **created}
        return self._keep(place, made)

    def replace(self, document: Document, subresource: str = "") -> Document:
        """See KubeApi."""
        place, wanted = _place(document), _stored(document)
        before = self._at(place)
        self._check(place, wanted["metadata"])
        if subresource == "status":
            return self._keep(place, {**before, "status": wanted.get("status")})
        status = {"status": before["status"]} if "status" in before else {}
        return self._change(place, {**wanted, **status})

    def patch(self, kind: str, namespace: str, name: str, change: Document) -> Document:
        """See KubeApi."""
        place, wanted = (kind, namespace, name), _stored(change)
        self._check(place, wanted.get("metadata", {}))
        merged = _merge_patched(self._at(place), wanted)
        assert isinstance(merged, dict)
        return self._change(place, merged)

    def apply(
        self, document: Document, manager: str = "fairlead", *, force: bool = True
    ) -> Document:
        """See KubeApi; of lists only finalizers are merged, by item."""
        place, wanted = _place(document), _stored(document)
        there = self._objects.get(place)
        uid = wanted["metadata"].pop("uid", None)
        if uid is not None and (there is None or there["metadata"]["uid"] != uid):
            raise ConflictError(f"{place} has another uid, or is gone")
        earlier = self._applied.get((place, manager), {})
        if not force and there is not None and _differs(there["spec"], wanted["spec"]):
            raise ConflictError(f"{place}: another manager has written something else")
        self._applied[(place, manager)] = wanted
        if there is None:
            return self.create(wanted)
        others = [d for at, d in self._applied.items() if at[0] == place and at[1] != manager]
        changed = _applied(_without(there, earlier, wanted, others), wanted)
        if place[0] == "Deployment":
            changed["spec"].setdefault("replicas", 1)
        return self._change(place, changed)

    def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """See KubeApi."""
        place = (kind, namespace, name)
        if place not in self._objects:
            return
        self._check(place, {"uid": uid})
        metadata = self._objects[place]["metadata"]
        metadata.setdefault("deletionTimestamp", "2026-01-01T00:00:00Z")
        self._keep(place, self._objects[place])

    def _check(self, place: Place, given: Document) -> None:
        """Refuse a write that is meant for another object, or for an earlier state of it."""
        there = self._at(place)["metadata"]
        if any(given.get(key, there[key]) != there[key] for key in ("uid", "resourceVersion")):
            raise ConflictError(f"{place} has changed")

    def _at(self, place: Place) -> Document:
        if place not in self._objects:
            raise NotFoundError(f"{place} is not there")
        return self._objects[place]

    def _change(self, place: Place, document: Document) -> Document:
        before = self._at(place)
        finalizers = document["metadata"].get("finalizers", [])
        news = set(finalizers) - set(before["metadata"].get("finalizers", []))
        if "deletionTimestamp" in before["metadata"] and news:
            raise FairleadError(f"{place}: no new finalizers can be added while it is deleted")
        changed = copy.deepcopy(document)
        if changed.get("spec") != before.get("spec"):
            changed["metadata"]["generation"] = before["metadata"]["generation"] + 1
        return self._keep(place, changed)

    def _keep(self, place: Place, document: Document) -> Document:
        metadata = document["metadata"]
        metadata["resourceVersion"] = str(next(self._versions))
        self._objects[place] = document
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            self._remove(place)
        return copy.deepcopy(document)

    def _remove(self, place: Place) -> None:
        """Let an object go, and what belongs to it."""
        uid = self._objects.pop(place)["metadata"]["uid"]
        self._applied = {k: v for k, v in self._applied.items() if k[0] != place}
        for other, document in list(self._objects.items()):
            owners = document["metadata"].get("ownerReferences", ())
            if other in self._objects and any(owner["uid"] == uid for owner in owners):
                self.delete(*other, document["metadata"]["uid"])


def _place(document: Document) -> Place:
    metadata = document["metadata"]
    return document["kind"], metadata["namespace"], metadata["name"]


def _stored(value: Any) -> Any:
    """Copy a value as the API server keeps it: it knows no 5.0, only 5."""
    if isinstance(value, dict):
        return {key: _stored(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_stored(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _merge_patched(base: Any, change: Any) -> Any:
    """Merge by RFC 7396."""
    if not isinstance(change, dict):
        return change
    merged = dict(base) if isinstance(base, dict) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_patched(merged.get(key), value)
    return merged


def _applied(there: Any, wanted: Any, name: str = "") -> Any:
    if isinstance(there, dict) and isinstance(wanted, dict):
        shared = {k: _applied(there[k], v, k) for k, v in wanted.items() if k in there}
        return {**there, **wanted, **shared}
    if name == "finalizers":
        return [*there, *(item for item in wanted if item not in there)]
    return wanted


def _differs(there: Document, wanted: Document) -> bool:
    return any(key in there and there[key] != value for key, value in wanted.items())


def _without(there: Any, earlier: Any, wanted: Any, others: list[Any]) -> Any:
    """Take away what a manager applied before and does not apply any more.

    What others apply too, or have changed since, is not its own any more.
    """
    kept = {}
    for key, value in there.items():
        if key not in earlier:
            kept[key] = value
        elif isinstance(value, dict) and isinstance(earlier[key], dict):
            theirs = [other.get(key, {}) for other in others]
            kept[key] = _without(value, earlier[key], wanted.get(key, {}), theirs)
        elif key == "finalizers":
            gone = set(earlier[key]) - set(wanted.get(key, ()))
            kept[key] = [item for item in value if item not in gone]
        elif key in wanted or value != earlier[key] or any(key in other for other in others):
            kept[key] = value
    return kept


@dataclass
class Kube:
    """An API server and a namespace on it that is empty.

    Attributes:
        is_real: Whether other controllers act in it.
    """

    api: Any
    namespace: str
    is_real: bool
    writes: list[str] = field(default_factory=list)

    def recorded(self) -> Any:
        """Return the API, and note every write from now on."""
        return Recorder(self.api, self.writes)

    def names(self, kind: str) -> set[str]:
        """Return the names of what is there and not being deleted."""
        found = self.api.list(kind, self.namespace, {})
        return {d["metadata"]["name"] for d in found if "deletionTimestamp" not in d["metadata"]}

    def delete(self, kind: str, name: str) -> None:
        """Delete an object as a person would."""
        uid = self.api.get(kind, self.namespace, name)["metadata"]["uid"]
        self.api.delete(kind, self.namespace, name, uid)

    def change(self, kind: str, name: str, change: Callable[[Document], None]) -> Document:
        """Change the status of an object as its own controller would, however often that takes."""
        for _ in range(20):
            document = self.api.get(kind, self.namespace, name)
            change(document)
            try:
                return self.api.replace(document, "status")  # type: ignore[no-any-return]
            except ConflictError:
                continue
        raise AssertionError(f"{kind} {name} never keeps still")


class Recorder:
    """Passes calls on and notes those that write."""

    def __init__(self, api: Any, writes: list[str]):
        self._api = api
        self._writes = writes

    def __getattr__(self, name: str) -> Any:
        """Return a method that notes its use."""
        method = getattr(self._api, name)
        if name in {"get", "list"}:
            return method

        def noted(*arguments: Any, **options: Any) -> Any:
            what = arguments[0]
            kind = what["kind"] if isinstance(what, dict) else what
            self._writes.append(f"{name} {kind}")
            return method(*arguments, **options)

        return noted


@pytest.fixture(
    params=[
        pytest.param(False, id="fake"),
        pytest.param(True, id="real", marks=pytest.mark.cluster),
    ]
)
def kube(request: pytest.FixtureRequest) -> Iterator[Kube]:
    """Return each API server in turn."""
    if not request.param:
        yield Kube(api=FakeKube(), namespace="ml", is_real=False)
        return
    if os.environ.get("FAIRLEAD_E2E") != "1":
        pytest.skip("needs a real cluster: set FAIRLEAD_E2E=1 and KUBECONFIG")
    yield from _real()


def _real() -> Iterator[Kube]:
    from kubernetes import client  # noqa: PLC0415 -- slow to import, and needed here only

    connection = connect()
    core, namespace = client.CoreV1Api(connection), f"rollout-contract-{uuid4().hex[:8]}"
    _install_crd(client.ApiextensionsV1Api(connection), KubeApi(connection))
    core.create_namespace({"metadata": {"name": namespace}})
    kube = Kube(api=KubeApi(connection), namespace=namespace, is_real=True)
    try:
        yield kube
    finally:
        core.delete_namespace(namespace)
        for served in kube.api.list("ServedModel", namespace, {}):
            if served["metadata"].get("finalizers"):
                none = {"metadata": {"finalizers": None}}
                kube.api.patch("ServedModel", namespace, served["metadata"]["name"], none)
        connection.close()


def _install_crd(extensions: Any, api: KubeApi) -> None:
    from kubernetes.client.exceptions import ApiException  # noqa: PLC0415 -- as above

    try:
        extensions.create_custom_resource_definition(build_crd())
    except ApiException as error:
        if error.status != 409:
            raise
    wait_until(lambda: _knows_served_models(api))


def _knows_served_models(api: KubeApi) -> bool:
    try:
        api.list("ServedModel", "default", {})
    except (NotFoundError, UnavailableError):  # The server is still making room for them.
        return False
    return True


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Wait until something is so, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.1)


@pytest.fixture
def until() -> Callable[..., None]:
    """Return `wait_until`."""
    return wait_until


@pytest.fixture
def served_document(kube: Kube, build_manifest: Callable[..., Document]) -> Document:
    """Return a ServedModel that is not on the API server yet."""
    document = build_manifest()
    document["metadata"]["namespace"] = kube.namespace
    return document


@pytest.fixture
def served_model(kube: Kube, served_document: Document) -> Document:
    """Return a ServedModel that is on the API server."""
    made: Document = kube.api.create(served_document)
    return made

"""ServedModels on an API server: who may change what, and what is never done."""

from datetime import UTC, datetime
from typing import Any

import pytest

from fairlead_rollout.adapters.k8s.store import FINALIZER, MAX_NOTE, REQUEST, KubernetesStore
from fairlead_rollout.adapters.k8s.store import served_model as read_served_model
from fairlead_rollout.app.ports import ServedModel
from fairlead_rollout.domain.actions import EmitEvent
from fairlead_rollout.domain.errors import (
    ConflictError,
    FairleadError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from fairlead_rollout.domain.snapshot import Request, Verb
from fairlead_rollout.domain.status import (
    Condition,
    Numbers,
    Retiring,
    Rollout,
    RolloutState,
    Status,
    Writeback,
)
from fairlead_rollout.domain.traffic import build_plan, plan_digest

Document = dict[str, Any]
Kube = Any

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
NAME = "flight-delay"
EVENT = EmitEvent(id="a/1", type="Normal", reason="Serving", message="version 1 serves")


@pytest.fixture
def key(kube: Kube, served_model: Document) -> str:
    """Return the key of the ServedModel that is there."""
    return f"{kube.namespace}/{NAME}"


@pytest.fixture
def store(kube: Kube) -> KubernetesStore:
    """Return the store under test."""
    return KubernetesStore(kube.recorded())


def read(store: KubernetesStore, key: str) -> ServedModel:
    """Read a ServedModel that is there."""
    served = store.read(key)
    assert served is not None
    return served


def document(kube: Kube) -> Document:
    """Return the ServedModel as the API server has it."""
    found: Document = kube.api.get("ServedModel", kube.namespace, NAME)
    return found


def annotate(kube: Kube, key: str, value: str | None) -> None:
    """Change a ServedModel as somebody else would."""
    change = {"metadata": {"annotations": {key: value}}}
    kube.api.patch("ServedModel", kube.namespace, NAME, change)


def full_status(served: ServedModel) -> Status:
    """Build a status in which every part is filled."""
    assert served.spec is not None
    rollout = Rollout(
        id="5f0c2f0e-8f4d-5b53-9a0e-2b4f6f9f7c11",
        candidate="4",
        baseline="3",
        state=RolloutState.RUNNING,
        started_at=NOW,
        step=1,
        step_started_at=NOW,
        reason="StepHolding",
        message="50 %",
        numbers=Numbers(effect=-0.01, ci_low=-1.0, ci_high=0.0, units_stable=9),
    )
    condition = Condition(
        type="Ready", status="True", reason="Serving", message="so", last_transition_time=NOW
    )
    tags = Writeback(kind="tags", rollout="r", version="4", content={"rollout.id": "r"})
    return Status(
        observed_generation=1,
        production="4",
        stable="3",
        attempts=1,
        rollout=rollout,
        traffic=build_plan(
            served.spec, name=NAME, stable="3", candidate="4", weight=10, rollout=rollout.id, step=1
        ),
        retiring=(Retiring(version="2", since=NOW),),
        writeback=(tags,),
        handled_request="request-1",
        conditions=(condition,),
        history=(rollout,),
    )


def test_a_status_comes_back_as_it_was_written(store: KubernetesStore, key: str) -> None:
    """The CRD's schema drops no part of a status."""
    status = full_status(read(store, key))
    store.write_status(key, status)
    assert read(store, key).status == status


def test_a_status_without_a_version_comes_back_too(store: KubernetesStore, key: str) -> None:
    """What is not known yet is null, and the schema takes it."""
    read(store, key)
    store.write_status(key, Status())
    assert read(store, key).status == Status()


def test_the_columns_of_kubectl_are_filled(kube: Kube, store: KubernetesStore, key: str) -> None:
    """The summary is written with the status."""
    store.write_status(key, full_status(read(store, key)))
    assert document(kube)["status"]["summary"] == {
        "stable": "3",
        "candidate": "4",
        "weight": "0.1 %",
        "state": "running: StepHolding",
    }


def test_everybody_digests_the_stored_plan_alike(
    kube: Kube, store: KubernetesStore, key: str
) -> None:
    """The gateway reads the plan from the API; so does the controller at its next pass."""
    store.write_status(key, full_status(read(store, key)))
    status = read(store, key).status
    assert status is not None
    assert status.traffic is not None
    assert plan_digest(status.traffic) == plan_digest(document(kube)["status"]["traffic"])


def test_a_status_is_not_written_over_a_change(
    kube: Kube, store: KubernetesStore, key: str
) -> None:
    """What was decided on an older picture is decided again."""
    read(store, key)
    annotate(kube, "team", "b")
    with pytest.raises(ConflictError):
        store.write_status(key, Status(stable="3"))
    assert not document(kube).get("status")
    read(store, key)
    store.write_status(key, Status(stable="3"))
    assert document(kube)["status"]["stable"] == "3"


def test_an_earlier_leader_cannot_overwrite_its_successor(
    kube: Kube, store: KubernetesStore, key: str
) -> None:
    """Two processes that both think they lead do no harm."""
    earlier = KubernetesStore(kube.api)
    earlier.read(key)
    read(store, key)
    store.write_status(key, Status(stable="4"))
    with pytest.raises(ConflictError):
        earlier.write_status(key, Status(stable="3"))
    assert document(kube)["status"]["stable"] == "4"


def test_a_status_can_be_written_twice_on_one_reading(store: KubernetesStore, key: str) -> None:
    """Our own write is not a change by somebody else."""
    read(store, key)
    store.write_status(key, Status(stable="3"))
    store.write_status(key, Status(stable="4"))
    assert read(store, key).status == Status(stable="4")


def test_a_status_that_was_wiped_is_a_lost_one(
    kube: Kube, store: KubernetesStore, key: str
) -> None:
    """A restored backup has no status."""
    store.write_status(key, full_status(read(store, key)))
    kube.change("ServedModel", NAME, lambda d: d.pop("status"))
    assert read(store, key).status is None


@pytest.mark.parametrize(
    "foreign",
    [{"history": [{"id": "r"}]}, {"retiring": "all"}, {"rollout": {"state": "odd"}}],
)
def test_a_foreign_status_is_a_lost_one(served_document: Document, foreign: Any) -> None:
    """What cannot be read is rebuilt, not guessed at."""
    metadata = {**served_document["metadata"], "uid": "u", "generation": 1}
    served = read_served_model({**served_document, "metadata": metadata, "status": foreign})
    assert served.status is None
    assert served.spec is not None


def test_a_status_that_could_not_be_read_is_not_taken(kube: Kube, key: str) -> None:
    """The CRD's schema asks for what the controller needs."""
    if not kube.is_real:
        pytest.skip("only the real API server checks the schema")
    with pytest.raises(FairleadError, match="history"):
        kube.change("ServedModel", NAME, lambda d: d.update(status={"history": [{"id": "r"}]}))


def test_a_served_model_that_is_not_there_is_none(kube: Kube, store: KubernetesStore) -> None:
    """Gone is no error."""
    assert store.read(f"{kube.namespace}/nobody") is None


@pytest.mark.parametrize(
    "path", ["", "rollout", "rollout.objective", "rollout.steps.0", "server", "server.keep"]
)
def test_a_field_of_a_newer_definition_stalls_nothing(served_document: Document, path: str) -> None:
    """While an installation is upgraded or rolled back, defaults come that the controller lacks."""
    served_document["metadata"] |= {"uid": "1", "generation": 1}
    expected = read_served_model(served_document)
    place = served_document["spec"]
    for part in path.split(".") if path else ():
        place = place[int(part)] if part.isdigit() else place[part]
    place["fromTheFuture"] = {"enabled": True}
    read = read_served_model(served_document)
    assert (read.problem, read.spec) == ("", expected.spec)


def test_a_value_of_a_newer_definition_is_not_passed_over(served_document: Document) -> None:
    """What a person chose is followed or refused by name, never guessed."""
    served_document["metadata"] |= {"uid": "1", "generation": 1}
    served_document["spec"]["registry"] = {"production": {"tag": "prod"}, "onAbort": "keep"}
    read = read_served_model(served_document)
    assert read.spec is None
    assert "spec.registry.production: needs exactly one of stage, alias" in read.problem


def test_an_older_one_of_the_same_name_stalls_the_newer(kube: Kube, key: str) -> None:
    """The newer one is told whom it is in the way of, and keeps its status."""
    store = KubernetesStore(_Elsewhere(kube.api), rivals=lambda _: (f"other/{NAME}",))
    served = read(store, key)
    assert served.spec is None
    assert served.reason == "RouteConflict"
    assert f"other/{NAME}" in served.problem


def test_one_whose_going_was_not_seen_is_in_nobodys_way(kube: Kube, key: str) -> None:
    """A watch that was broken off tells of no deletion meanwhile; the name is free all the same."""
    rivals = (f"gone/{NAME}", f"gone-too/{NAME}")
    assert read(KubernetesStore(kube.api, rivals=lambda _: rivals), key).spec is not None
    rivals = (f"gone/{NAME}", f"other/{NAME}")
    served = read(KubernetesStore(_Elsewhere(kube.api), rivals=lambda _: rivals), key)
    assert f"other/{NAME}" in served.problem


class _Elsewhere:
    """An API server with a ServedModel in one more namespace."""

    def __init__(self, api: Any):
        self._api = api

    def get(self, kind: str, namespace: str, name: str) -> Any:
        if namespace == "other":
            return {"kind": kind, "metadata": {"namespace": namespace, "name": name}}
        return self._api.get(kind, namespace, name)


# ------------------------------------------------------------------ events


def events(kube: Kube) -> list[Document]:
    """Return the events of the namespace."""
    found: list[Document] = kube.api.list("Event", kube.namespace, {})
    ours = "fairlead.dev/controller"
    return [e for e in found if e.get("reportingController") == ours]


def test_an_event_is_written_once(kube: Kube, store: KubernetesStore, key: str) -> None:
    """A pass that is repeated after a crash tells nothing twice."""
    read(store, key)
    store.emit(key, EVENT, NOW)
    store.emit(key, EVENT, NOW)
    again = KubernetesStore(kube.api)
    read(again, key)
    again.emit(key, EVENT, NOW)
    (event,) = events(kube)
    assert (event["reason"], event["note"], event["type"]) == (
        "Serving",
        "version 1 serves",
        "Normal",
    )
    assert event["regarding"]["name"] == NAME


def test_an_event_that_each_pass_has_is_sent_once(
    kube: Kube, store: KubernetesStore, key: str
) -> None:
    """What stays refused for a week is not told to the API server twice a second."""
    for _ in range(5):
        read(store, key)
        store.emit(key, EVENT, NOW)
    assert kube.writes == ["create Event"]
    store.emit(key, EmitEvent(id="a/2", type="Warning", reason="X", message="y"), NOW)
    assert kube.writes == ["create Event"] * 2


def test_an_event_that_got_lost_is_sent_again(
    kube: Kube, store: KubernetesStore, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage takes no news away; a refusal is said once in the log."""
    read(store, key)
    store._api = _Refusing(kube.api, UnavailableError("away"))
    store.emit(key, EVENT, NOW)
    store._api = _Refusing(kube.api)
    store.emit(key, EVENT, NOW)
    store.emit(key, EVENT, NOW)
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "away",
        "403 events is forbidden",
    ]


def test_events_of_one_that_is_gone_are_not_remembered(
    kube: Kube, store: KubernetesStore, key: str
) -> None:
    """ServedModels come and go for months."""
    read(store, key)
    store.emit(key, EVENT, NOW)
    kube.delete("ServedModel", NAME)
    assert store.read(key) is None
    assert store._told == {}


def test_another_event_is_another(kube: Kube, store: KubernetesStore, key: str) -> None:
    """Events are told apart by their id; a long note is cut, as Kubernetes counts bytes."""
    read(store, key)
    store.emit(key, EVENT, NOW)
    store.emit(key, EmitEvent(id="a/2", type="Warning", reason="X", message="é" * 600), NOW)
    notes = {event["reason"]: event["note"] for event in events(kube)}
    assert notes["X"] == "é" * (MAX_NOTE // 2)
    assert len(notes) == 2


def test_an_event_that_is_refused_stops_nothing(
    kube: Kube, store: KubernetesStore, key: str
) -> None:
    """An event is news, not state: the pass goes on."""
    read(store, key)
    store._api = _Refusing(kube.api)
    store.emit(key, EVENT, NOW)
    store.write_status(key, Status(stable="3"))
    assert events(kube) == []


class _Refusing:
    """An API that takes no new object."""

    def __init__(self, api: Any, error: FairleadError | None = None):
        self._api = api
        self._error = error or RefusedError("403 events is forbidden")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def create(self, document: Document) -> Document:
        raise self._error


# ------------------------------------------------------------------ finalizer


def finalizers(kube: Kube) -> list[str]:
    """Return the finalizers of the ServedModel."""
    found: list[str] = document(kube)["metadata"].get("finalizers", [])
    return found


def test_our_finalizer_comes_and_goes_and_no_other(
    kube: Kube, store: KubernetesStore, served_document: Document
) -> None:
    """Another controller's finalizer is not ours to take away."""
    served_document["metadata"]["finalizers"] = ["example.com/backup"]
    kube.api.create(served_document)
    key = f"{kube.namespace}/{NAME}"
    assert not read(store, key).is_held
    store.hold(key, held=True)
    store.hold(key, held=True)
    assert sorted(finalizers(kube)) == ["example.com/backup", FINALIZER]
    assert read(store, key).is_held
    store.hold(key, held=False)
    store.hold(key, held=False)
    assert finalizers(kube) == ["example.com/backup"]


def test_a_held_served_model_stays_until_it_is_released(
    kube: Kube, store: KubernetesStore, key: str
) -> None:
    """A deletion is seen, and waits for us."""
    read(store, key)
    store.hold(key, held=True)
    kube.delete("ServedModel", NAME)
    served = read(store, key)
    assert served.deleted_at is not None
    assert served.is_held
    store.write_status(key, Status(stable="3"))
    store.hold(key, held=False)
    assert store.read(key) is None


def test_a_finalizer_that_a_backup_brought_back_is_ours_to_take_away(
    kube: Kube, store: KubernetesStore, served_document: Document
) -> None:
    """Who restores a ServedModel owns the field; it must not be held for ever by that."""
    served_document["metadata"]["finalizers"] = [FINALIZER, "example.com/backup"]
    kube.api.create(served_document)
    key = f"{kube.namespace}/{NAME}"
    assert read(store, key).is_held
    store.hold(key, held=False)
    assert finalizers(kube) == ["example.com/backup"]


def test_a_finalizer_that_comes_while_ours_is_taken_away_stays(
    kube: Kube, store: KubernetesStore, key: str
) -> None:
    """What was decided on an older picture is decided again."""
    read(store, key)
    store.hold(key, held=True)
    read(store, key)
    finalizing = {"metadata": {"finalizers": [FINALIZER, "example.com/backup"]}}
    kube.api.patch("ServedModel", kube.namespace, NAME, finalizing)
    with pytest.raises(ConflictError):
        store.hold(key, held=False)
    read(store, key)
    store.hold(key, held=False)
    assert finalizers(kube) == ["example.com/backup"]


def test_holding_and_releasing_go_with_a_status_write(
    kube: Kube, store: KubernetesStore, key: str
) -> None:
    """Status and finalizer are written in one pass, one after the other."""
    read(store, key)
    store.write_status(key, Status(stable="3"))
    store.hold(key, held=True)
    read(store, key)
    store.write_status(key, Status(stable="4"))
    store.hold(key, held=False)
    assert finalizers(kube) == []


def test_a_deleted_served_model_is_never_made_again(
    kube: Kube, store: KubernetesStore, key: str
) -> None:
    """Whatever a pass still writes, a person's deletion stands."""
    read(store, key)
    kube.delete("ServedModel", NAME)
    with pytest.raises(FairleadError):
        store.hold(key, held=True)
    store.hold(key, held=False)
    with pytest.raises(FairleadError):
        store.write_status(key, Status(stable="3"))
    with pytest.raises(NotFoundError):
        store.ask(key, Request(id="1", verb=Verb.ABORT, rollout="r"))
    assert kube.names("ServedModel") == set()


def test_one_made_again_under_the_same_name_is_another(
    kube: Kube, store: KubernetesStore, key: str, served_document: Document
) -> None:
    """A pass over the deleted one does not touch its namesake."""
    read(store, key)
    kube.delete("ServedModel", NAME)
    kube.api.create(served_document)
    before = document(kube)
    for held in (True, False):
        with pytest.raises(FairleadError):
            store.hold(key, held=held)
    with pytest.raises(ConflictError):
        store.write_status(key, Status(stable="3"))
    assert document(kube) == before


# ------------------------------------------------------------------ requests


def test_a_persons_request_reaches_the_controller(store: KubernetesStore, key: str) -> None:
    """What the command leaves is what a pass reads."""
    request = Request(id="1", verb=Verb.PROMOTE, rollout="r", by="ada")
    store.ask(key, request)
    assert read(store, key).request == request


@pytest.mark.parametrize(
    "note", ["", "text", "[]", '{"id": "1"}', '{"id": "1", "verb": "explode", "rollout": "r"}']
)
def test_an_annotation_that_is_no_request_is_ignored(
    kube: Kube, store: KubernetesStore, key: str, note: str
) -> None:
    """A person may write anything there; nothing stops."""
    annotate(kube, REQUEST, note)
    assert read(store, key).request is None


def test_a_request_does_not_make_a_new_generation(store: KubernetesStore, key: str) -> None:
    """Only a changed spec does: neither does a status."""
    before = read(store, key).generation
    store.ask(key, Request(id="1", verb=Verb.PAUSE, rollout="r"))
    assert read(store, key).generation == before
    store.write_status(key, Status(stable="3"))
    assert read(store, key).generation == before

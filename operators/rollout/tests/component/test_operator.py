"""The process that leads: it never goes on without one of its parts."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kopf
import pytest
from kubernetes.client import ApiClient, Configuration

from fairlead_rollout.adapters.k8s import watch as watching
from fairlead_rollout.adapters.k8s.watch import Watch, run_watch
from fairlead_rollout.adapters.schema import read_spec
from fairlead_rollout.domain.errors import UnavailableError
from fairlead_rollout.domain.status import Writeback
from fairlead_rollout.entrypoints import operator as module
from fairlead_rollout.entrypoints.operator import Operator, read_settings

SETTINGS = {
    "namespaces": ["ml"],
    "identity": {"namespace": "fairlead", "lease": "fairlead-controller"},
    "mlflow": {"url": "http://mlflow.invalid:5000"},
    "experiments": {"url": "http://experiments.invalid:8080"},
    "gateway": {"namespace": "fairlead", "service": "fairlead-gateway-agents"},
    "serving": {
        "image": "fairlead/serving:test",
        "imagePullPolicy": "IfNotPresent",
        "imagePullSecrets": [],
        "mlflowUrl": "http://mlflow.invalid:5000",
        "credentialsSecret": "",
        "resources": {},
        "networkPolicy": {"enabled": False, "ingressFrom": [], "egress": []},
    },
}
LIMIT = 10  # seconds


class Lease:
    """A Lease that is ours for as long as nobody tells us to stop."""

    is_held = True

    def hold(self, stop: threading.Event) -> None:
        """See Lease."""
        assert stop.wait(LIMIT), "nobody told the leader to stop"


def until_told(*arguments: Any) -> None:
    """Stand for a part that works until it is told to stop."""
    stop = next(argument for argument in arguments if isinstance(argument, threading.Event))
    assert stop.wait(LIMIT)


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """Return an operator whose parts do nothing."""
    path = tmp_path / "controller.json"
    path.write_text(json.dumps(SETTINGS), "utf-8")
    monkeypatch.setattr(module, "connect", lambda: ApiClient(Configuration()))
    made = Operator(read_settings(path))
    monkeypatch.setattr(made, "_lease", Lease())
    monkeypatch.setattr(made._registry, "run", until_told)
    monkeypatch.setattr(made._gateways, "run", until_told)
    monkeypatch.setattr(made, "_control", until_told)
    monkeypatch.setattr(module, "run_watch", until_told)
    return made


def broken(*_: Any) -> None:
    """Stand for a part that fails."""
    raise RuntimeError("something nobody thought of")


@pytest.mark.parametrize("part", ["_registry", "_gateways", "_control", "run_watch"])
@pytest.mark.parametrize("end", [broken, lambda *_: None], ids=["fails", "ends"])
def test_a_leader_that_has_lost_a_part_lets_another_lead(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, part: str, end: Callable[..., None]
) -> None:
    """One that renews its Lease and is never woken again would be worse than none."""
    if part == "run_watch":
        monkeypatch.setattr(module, part, end)
    elif part == "_control":
        monkeypatch.setattr(operator, part, end)
    else:
        monkeypatch.setattr(getattr(operator, part), "run", end)
    assert operator._lead() == 1


def test_a_leader_that_is_told_to_stop_ends_in_order(operator: Operator) -> None:
    """After a signal the exit code says that nothing is wrong."""
    operator._stop.set()
    assert operator._lead() == 0


def test_a_leader_that_is_none_any_more_writes_nothing(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass that is under way when the lead is lost ends at its next write."""
    monkeypatch.setattr(operator._lease, "is_held", False)
    with pytest.raises(UnavailableError, match="lead"):
        operator._api.delete("Deployment", "ml", "flight-delay-v3-1a2b3c", "uid-1")


def test_a_leader_that_is_none_any_more_tells_other_systems_nothing(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, build_manifest: Callable[..., Any]
) -> None:
    """A verdict of the one before must not overwrite that of its successor."""
    monkeypatch.setattr(operator._lease, "is_held", False)
    item = Writeback(kind="tags", rollout="r", version="1", content={"rollout.status": "running"})
    with pytest.raises(UnavailableError, match="set-tag: not sent, as this replica does not lead"):
        operator._registry.write(read_spec(build_manifest()), item)
    with pytest.raises(UnavailableError, match="rollouts/r: not sent"):
        operator._experiments.put_record(item)


def test_a_watch_that_ends_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition of a ServedModel may be away for a moment, or the rights to watch it."""
    stop, starts = threading.Event(), []

    async def watch(**_: Any) -> None:
        starts.append(1)
        if len(starts) == 1:
            raise RuntimeError("404 the server could not find the requested resource")
        if len(starts) == 3:
            stop.set()

    monkeypatch.setattr(kopf, "operator", watch)
    monkeypatch.setattr(watching, "AGAIN_AFTER", 0.0)
    run_watch(Watch(), ("ml",), stop, exists=lambda _: True)
    assert len(starts) == 3


def test_a_namespace_that_is_gone_is_left_out_of_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are watched meanwhile; made again, it is watched again, and nothing before."""
    stop = threading.Event()
    watched: list[tuple[str, ...]] = []
    there = {"ml", "other"}

    async def watch(*, namespaces: tuple[str, ...], stop_flag: asyncio.Event, **_: Any) -> None:
        watched.append(namespaces)
        match len(watched):
            case 1:
                there.remove("other")
            case 2:
                there.add("other")
            case 3:
                there.clear()
            case 4:
                stop.set()
        await asyncio.wait_for(stop_flag.wait(), LIMIT)
        if len(watched) == 3:
            there.add("ml")

    known = Watch()
    for namespace in ("ml", "other"):
        known.see(served_model(namespace), is_gone=False)
    monkeypatch.setattr(kopf, "operator", watch)
    monkeypatch.setattr(watching, "LOOK_AGAIN_AFTER", 0.0)
    monkeypatch.setattr(watching, "AGAIN_AFTER", LIMIT)  # No failure: nothing to wait for.
    run_watch(known, ("ml", "other"), stop, exists=there.__contains__)
    assert watched == [("ml", "other"), ("ml",), ("ml", "other"), ("ml",)]
    assert known.keys() == ("ml/flight-delay",)


def test_without_any_namespace_the_watch_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No namespaces mean all of them to kopf, so it is not begun before there is one."""
    stop, looked, watched = threading.Event(), [], []

    def exists(_: str) -> bool:
        looked.append(1)
        return len(looked) > 2

    async def watch(*, namespaces: tuple[str, ...], **_: Any) -> None:
        watched.append(namespaces)
        stop.set()

    monkeypatch.setattr(kopf, "operator", watch)
    monkeypatch.setattr(watching, "LOOK_AGAIN_AFTER", 0.0)
    run_watch(Watch(), ("ml",), stop, exists)
    assert watched == [("ml",)]


def served_model(namespace: str) -> dict[str, Any]:
    """Make what the watch takes in of a ServedModel."""
    metadata = {
        "namespace": namespace,
        "name": "flight-delay",
        "uid": namespace,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return {"metadata": metadata, "spec": {"model": "flight-delay"}}

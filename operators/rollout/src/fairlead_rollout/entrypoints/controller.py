"""The controller of a local stack."""

import logging
import threading
from pathlib import Path

from fairlead_rollout.adapters.clock import SystemClock
from fairlead_rollout.adapters.experiments_client import ExperimentsClient
from fairlead_rollout.adapters.folder_cluster import FolderCluster
from fairlead_rollout.adapters.folder_store import Changes, FolderStore
from fairlead_rollout.adapters.gateway_client import GatewayClient
from fairlead_rollout.adapters.home import Home
from fairlead_rollout.adapters.http import client, mlflow_account
from fairlead_rollout.adapters.mlflow_registry import MlflowRegistry
from fairlead_rollout.adapters.stack import read_addresses
from fairlead_rollout.app.controller import Controller
from fairlead_rollout.app.ports import Ports
from fairlead_rollout.entrypoints.signals import stop_on_signals


def run_controller(root: Path) -> int:
    """Reconcile the served models of a folder until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it prints a line for each request
    home = Home(root.resolve())
    addresses = read_addresses(home)
    store = FolderStore(home)
    registry = MlflowRegistry(client(addresses.url("mlflow"), mlflow_account()))
    ports = Ports(
        store=store,
        registry=registry,
        cluster=FolderCluster(home),
        gateway=GatewayClient(client(addresses.url("agent"))),
        experiments=ExperimentsClient(client(addresses.url("experiments"))),
        clock=SystemClock(),
    )
    stop, woken = threading.Event(), threading.Event()
    stop_on_signals(stop)
    wake = lambda _: woken.set()  # noqa: E731 -- one machine has few models: all are looked at
    poller = threading.Thread(target=registry.run, args=(stop, wake), daemon=True)
    poller.start()
    Controller(ports, _Due(Changes(store), store, woken)).run(stop)
    return 0


class _Due:
    """All served models are due when the registry has changed, else those a person has changed."""

    def __init__(self, changes: Changes, store: FolderStore, woken: threading.Event):
        self._changes = changes
        self._store = store
        self._woken = woken

    def keys(self) -> tuple[str, ...]:
        return self._store.names()

    def take_changed(self) -> frozenset[str]:
        changed = self._changes()
        if self._woken.is_set():
            self._woken.clear()
            return frozenset(self._store.names())
        return changed

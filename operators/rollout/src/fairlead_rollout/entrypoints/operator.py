"""The controller of a cluster: elected, woken by changes, seen through metrics."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fairlead_rollout.adapters.clock import SystemClock
from fairlead_rollout.adapters.experiments_client import ExperimentsClient
from fairlead_rollout.adapters.http import client, mlflow_account
from fairlead_rollout.adapters.k8s.api import KubeApi, connect
from fairlead_rollout.adapters.k8s.cluster import KubernetesCluster
from fairlead_rollout.adapters.k8s.gateways import GatewayReplicas
from fairlead_rollout.adapters.k8s.lease import TIMEOUT as LEASE_TIMEOUT
from fairlead_rollout.adapters.k8s.lease import Lease
from fairlead_rollout.adapters.k8s.store import KubernetesStore
from fairlead_rollout.adapters.k8s.watch import Watch, run_watch
from fairlead_rollout.adapters.metrics import ControllerMetrics, Health
from fairlead_rollout.adapters.mlflow_registry import MlflowRegistry
from fairlead_rollout.app.controller import Controller
from fairlead_rollout.app.ports import Ports
from fairlead_rollout.domain.errors import InvalidSettingsError
from fairlead_rollout.domain.platform import PlatformSettings, parse_settings
from fairlead_rollout.entrypoints.signals import stop_on_signals

log = logging.getLogger(__name__)

PORT = 8080
RESYNC = timedelta(minutes=5)  # everything that matters wakes us; this is for what was missed
LOST_THE_LEAD = 1
ENDING = 2.0  # seconds that what is under way may take, before the lead is given back


def run_operator(settings_file: Path) -> int:
    """Reconcile the ServedModels of a cluster until SIGTERM.

    Returns:
        0 after a signal; 1 when the Lease or a part of the process was lost: it must not act any
        more.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for noisy in ("httpx", "kopf", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return Operator(read_settings(settings_file)).run()


def read_settings(path: Path) -> PlatformSettings:
    """Read the settings file that the chart writes.

    Raises:
        InvalidSettingsError: It cannot be read, or a setting is wrong.
    """
    try:
        return parse_settings(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise InvalidSettingsError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidSettingsError(f"{path}: is not JSON") from error


class Operator:
    """One replica of the controller."""

    def __init__(self, settings: PlatformSettings):
        self._settings = settings
        self._stop = threading.Event()
        self._has_failed = False
        self._metrics = ControllerMetrics()
        self._watch = Watch()
        cluster = connect()
        self._api = KubeApi(cluster, may_write=self._leads)
        self._lease = Lease(
            KubeApi(cluster, LEASE_TIMEOUT),
            namespace=settings.lease_namespace,
            name=settings.lease,
            identity=os.environ.get("POD_NAME") or socket.gethostname(),
            monotonic=time.monotonic,
        )
        mlflow = client(settings.mlflow_url, mlflow_account(), self._leads)
        self._registry = MlflowRegistry(mlflow)
        self._experiments = ExperimentsClient(
            client(settings.experiments_url, may_write=self._leads)
        )
        self._gateways = GatewayReplicas(
            self._api, namespace=settings.gateway_namespace, service=settings.gateway_service
        )

    def _leads(self) -> bool:
        """Say whether this replica may write, wherever it is."""
        return self._lease.is_held

    def run(self) -> int:
        """Wait for the lead, act, give the lead back."""
        stop_on_signals(self._stop)
        server = _serve(self._answer)
        try:
            if not self._lease.acquire(self._stop):
                return 0
            return self._lead()
        finally:
            self._lease.release()
            server.shutdown()

    def _lead(self) -> int:
        ended = threading.Event()
        parts: tuple[Callable[[], None], ...] = (
            lambda: self._registry.run(ended, self._watch.wake),
            lambda: self._gateways.run(ended),
            lambda: run_watch(
                self._watch, self._settings.namespaces, ended, self._api.has_namespace
            ),
            lambda: self._control(ended),
        )
        threads = [
            threading.Thread(target=self._run_part, args=(part, ended), daemon=True)
            for part in parts
        ]
        for thread in threads:
            thread.start()
        self._lease.hold(self._stop)
        lost = self._has_failed or not self._stop.is_set()
        ended.set()
        until = time.monotonic() + ENDING
        for thread in threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))
        return LOST_THE_LEAD if lost else 0

    def _run_part(self, part: Callable[[], None], ended: threading.Event) -> None:
        """Run a part; without it the process would lead and do nothing, so it stops leading."""
        try:
            part()
        except Exception:
            log.exception("a part of the controller has failed")
        if not ended.is_set():
            log.error("a part of the controller has ended; another replica is to lead")
            self._has_failed = True
            self._stop.set()

    def _control(self, stop: threading.Event) -> None:
        store = KubernetesStore(self._api, self._watch.rivals, self._metrics)
        ports = Ports(
            store=store,
            registry=self._registry,
            cluster=KubernetesCluster(self._api, self._settings.serving),
            gateway=self._gateways,
            experiments=self._experiments,
            clock=SystemClock(),
        )
        may_act = lambda: self._leads() and not stop.is_set()  # noqa: E731 -- asked before every pass
        Controller(
            ports, self._watch, idle=RESYNC, may_act=may_act, passed=self._metrics.passed
        ).run(stop)

    def _answer(self, path: str) -> tuple[int, bytes]:
        match path:
            case "/livez":
                return 200, b"ok\n"
            case "/readyz":
                return 200, b"leads\n" if self._lease.is_held else b"stands by\n"
            case "/metrics":
                return 200, self._metrics.expose(self._health())
        return 404, b"there are /livez, /readyz and /metrics\n"

    def _health(self) -> Health:
        return Health(
            leads=self._lease.is_held,
            registry=self._registry.problem is None,
            experiments=self._experiments.problem is None,
            gateways=self._gateways.states(self._metrics.wanted_digests()),
        )


def _serve(answer: Callable[[str], tuple[int, bytes]]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base's name
            del format, args  # a probe every few seconds is no news

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            del request, client_address  # a probe that gave up waiting is no news

    server = Server(("0.0.0.0", PORT), Handler)  # noqa: S104 -- the pod's address
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server

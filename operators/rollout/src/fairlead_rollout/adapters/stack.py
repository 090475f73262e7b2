"""What the local stack is made of: each service's command, addresses and readiness."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from fairlead_rollout.adapters.files import read_json, write_json
from fairlead_rollout.adapters.home import Home
from fairlead_rollout.adapters.processes import free_port, is_free
from fairlead_rollout.domain.errors import FairleadError, NotFoundError
from fairlead_rollout.domain.manifests import EXPERIMENTS_VARIABLE, environment_option
from fairlead_rollout.domain.processes import ProcessSpec

LISTENERS = ("gateway", "mlflow", "experiments", "agent", "admin")
SERVICE_OF = {
    "gateway": "envoy",
    "mlflow": "mlflow",
    "experiments": "experiments",
    "agent": "agent",
    "admin": "envoy",
}
DRAIN_SECONDS = 2  # longer than the gateway needs to stop using an endpoint


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the stack listens, all on the loopback interface.

    Attributes:
        ports: Port by listener.
        external_mlflow: Address of an MLflow that is not ours to start, or None.
    """

    ports: Mapping[str, int]
    external_mlflow: str | None = None

    def url(self, listener: str) -> str:
        """Return a listener's base address."""
        if listener == "mlflow" and self.external_mlflow:
            return self.external_mlflow
        return f"http://127.0.0.1:{self.ports[listener]}"

    def shown(self, listener: str) -> str:
        """Return a listener's address as people may see it: without a password."""
        return str(httpx.URL(self.url(listener)).copy_with(username=None, password=None))


def choose_addresses(
    home: Home, wanted: Mapping[str, int], mlflow: str | None, held: Mapping[str, int | None]
) -> Addresses:
    """Choose a port for every listener: the wanted one, the one of last time, or any free one.

    Args:
        home: The folder of the stack.
        wanted: Port by listener that a person asked for.
        mlflow: Address of an MLflow that is not ours to start.
        held: Port by service that still runs from last time; its listeners keep theirs.

    Raises:
        FairleadError: A wanted port is taken.
    """
    before = (read_json(home.ports) or {}).get("ports", {})
    ports: dict[str, int] = {}
    for listener in LISTENERS:
        asked, kept = wanted.get(listener), before.get(listener)
        if kept and SERVICE_OF[listener] in held and asked in {0, None, kept}:
            ports[listener] = kept
            continue
        if asked and not is_free(asked):
            raise FairleadError(
                f"--{listener}-port: port {asked} is taken by another program; "
                "choose another one, or leave the option out to take any free port"
            )
        ports[listener] = asked or (kept if kept and is_free(kept) else free_port())
    write_json(home.ports, {"ports": ports, "mlflow": mlflow})
    return Addresses(ports=ports, external_mlflow=mlflow)


def read_addresses(home: Home) -> Addresses:
    """Return where the stack of a folder listens.

    Raises:
        NotFoundError: No stack was ever started there.
    """
    document = read_json(home.ports)
    if document is None:
        raise NotFoundError(f"there is no local stack in {home.root}; 'fairlead up' starts one")
    return Addresses(ports=document["ports"], external_mlflow=document.get("mlflow"))


def services(home: Home, addresses: Addresses) -> tuple[ProcessSpec, ...]:
    """Return the processes of the stack itself, in the order they are started."""
    mlflow = () if addresses.external_mlflow else (_mlflow(home, addresses),)
    return (*mlflow, *(make(home, addresses) for make in (_experiments, _agent, _envoy, _control)))


def serving(home: Home, addresses: Addresses, wanted: Mapping[str, Any]) -> tuple[ProcessSpec, ...]:
    """Return the processes of one workload, as `FolderCluster` wrote it down."""
    return tuple(_server(home, addresses, wanted, n) for n in range(wanted["replicas"]))


def termination_log(home: Home, workload: str, replica: int) -> Path:
    """Return the file into which a serving process writes why it cannot go on."""
    return home.workloads / workload / f"termination-{replica}.log"


def program(name: str) -> str:
    """Return a command that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def _mlflow(home: Home, addresses: Addresses) -> ProcessSpec:
    home.mlflow.mkdir(parents=True, exist_ok=True)
    server = (sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1")
    return ProcessSpec(
        workload="mlflow",
        replica=0,
        command=(
            *server,
            "--port",
            "{port}",
            "--artifacts-destination",
            str(home.mlflow / "artifacts"),
        ),
        environment={
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{home.mlflow / 'mlflow.db'}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its runner takes 1.5 GB
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        port=addresses.ports["mlflow"],
        probe="/health",
    )


def _experiments(home: Home, addresses: Addresses) -> ProcessSpec:
    return ProcessSpec(
        workload="experiments",
        replica=0,
        command=(program("fairlead-experiments"), "serve", "--port", "{port}"),
        environment={"FAIRLEAD_DATABASE_URL": f"sqlite:///{home.experiments}"},
        port=addresses.ports["experiments"],
        probe="/readyz",
    )


def _agent(home: Home, addresses: Addresses) -> ProcessSpec:
    return ProcessSpec(
        workload="agent",
        replica=0,
        command=(
            *(program("fairlead-gateway"), "agent", "--home", str(home.root), "--port", "{port}"),
            *("--listen-port", str(addresses.ports["gateway"])),
            *("--envoy-admin-port", str(addresses.ports["admin"])),
            *("--experiments-url", addresses.url("experiments")),
        ),
        port=addresses.ports["agent"],
        probe="/readyz",
    )


def _envoy(home: Home, addresses: Addresses) -> ProcessSpec:
    admin = addresses.ports["admin"]
    return ProcessSpec(
        workload="envoy",
        replica=0,
        command=(
            *(program("fairlead-gateway"), "envoy", "--home", str(home.root)),
            *("--listen-port", "{port}", "--admin-port", str(admin)),
        ),
        port=addresses.ports["gateway"],
        probe="/ready",
        probe_port=admin,
    )


def _control(home: Home, addresses: Addresses) -> ProcessSpec:
    del addresses  # it reads them from the folder
    return ProcessSpec(
        workload="controller",
        replica=0,
        command=(program("fairlead"), "--home", str(home.root), "controller"),
    )


def _server(
    home: Home, addresses: Addresses, wanted: Mapping[str, Any], replica: int
) -> ProcessSpec:
    uri = f"models:/{wanted['registeredModel']}/{wanted['version']}"
    termination = termination_log(home, wanted["workload"], replica)
    return ProcessSpec(
        workload=wanted["workload"],
        replica=replica,
        command=(
            *(program("fairlead-serving"), "--model", uri, "--name", wanted["model"]),
            *("--host", "127.0.0.1", "--port", "{port}", "--cache", str(home.cache)),
            *("--drain-seconds", str(DRAIN_SECONDS), "--termination-log", str(termination)),
            *("--max-body-bytes", str(wanted["maxBodyBytes"])),
            *environment_option(wanted["environment"]),
        ),
        environment={
            "MLFLOW_TRACKING_URI": addresses.url("mlflow"),
            EXPERIMENTS_VARIABLE: addresses.url("experiments"),
        },
        probe="/readyz",
        grace=timedelta(seconds=wanted["timeout"] + 2 * DRAIN_SECONDS),
        is_replaced=False,
    )

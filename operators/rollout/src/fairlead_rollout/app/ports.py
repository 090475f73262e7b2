"""What the use cases need of the outside, as protocols; adapters fit them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from fairlead_rollout.domain.actions import EmitEvent
from fairlead_rollout.domain.snapshot import (
    Analysis,
    Applied,
    RegistryView,
    Request,
    Workload,
)
from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import Status, Writeback


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A ServedModel as its store holds it.

    Attributes:
        spec: None when it is wrong; then `problem` says what.
        status: None when there is none.
    """

    name: str
    uid: str
    generation: int
    spec: ServedModelSpec | None
    problem: str
    status: Status | None
    request: Request | None


class Store(Protocol):
    """Where ServedModels and their status are kept."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all ServedModels."""

    def read(self, name: str) -> ServedModel | None:
        """Return a ServedModel, or None when it is gone."""

    def write_status(self, name: str, status: Status) -> None:
        """Replace the status, whole or not at all."""

    def emit(self, name: str, event: EmitEvent, at: datetime) -> None:
        """Keep an event; the same id is kept once."""


class Registry(Protocol):
    """MLflow's model registry."""

    def view(self, spec: ServedModelSpec) -> RegistryView | None:
        """Return where the pointers stand, or None while the registry does not answer."""

    def write(self, spec: ServedModelSpec, item: Writeback) -> None:
        """Tell MLflow (tags, production, report); idempotent.

        Raises:
            UnavailableError: MLflow does not answer; try again later.
        """


class Cluster(Protocol):
    """What runs the versions' processes."""

    def workloads(self, name: str) -> tuple[Workload, ...]:
        """Return the observed workloads of a served model."""

    def ensure(self, name: str, spec: ServedModelSpec, version: str, replicas: int) -> None:
        """Ask for a number of processes of a version; idempotent."""

    def remove(self, name: str, version: str) -> None:
        """Ask for none of a version; idempotent."""


class Gateway(Protocol):
    """The gateway's agent."""

    def applied(self, name: str) -> Applied | None:
        """Return what the gateway routes by, or None while the agent does not answer."""


class Experiments(Protocol):
    """The experiments service."""

    def analysis(self, rollout: str) -> Analysis | None:
        """Return the analysis of a rollout, or None while the service cannot say.

        Raises:
            NotFoundError: The service knows nothing of the rollout; its record was lost.
        """

    def records(self, name: str) -> tuple[Mapping[str, Any], ...] | None:
        """Return the rollout records of a served model, newest last, or None while away."""

    def put_record(self, item: Writeback) -> None:
        """Keep a rollout's record; idempotent.

        Raises:
            UnavailableError: The service does not answer; try again later.
        """


class Clock(Protocol):
    """The time."""

    def now(self) -> datetime:
        """Return the time, with zone."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """All of the outside in one value."""

    store: Store
    registry: Registry
    cluster: Cluster
    gateway: Gateway
    experiments: Experiments
    clock: Clock

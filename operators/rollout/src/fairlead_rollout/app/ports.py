"""What the use cases need of the outside, as protocols; adapters fit them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from fairlead_rollout.domain.actions import EmitEvent
from fairlead_rollout.domain.reasons import Reason
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
        key: What its store knows it by: the name, in a cluster `namespace/name`.
        name: The name in the path.
        spec: None when it cannot be followed; then `problem` says why.
        reason: The kind of problem.
        status: None when there is none.
        deleted_at: When a person deleted it; it goes once its rollout's end has been told.
        is_held: Whether it is kept from going until then.
    """

    key: str
    name: str
    uid: str
    generation: int
    spec: ServedModelSpec | None
    problem: str
    reason: Reason = Reason.INVALID_SPEC
    status: Status | None
    request: Request | None
    deleted_at: datetime | None = None
    is_held: bool = False


class Due(Protocol):
    """Which ServedModels there are, and which are to be looked at."""

    def keys(self) -> tuple[str, ...]:
        """Return the keys of all ServedModels."""

    def take_changed(self) -> frozenset[str]:
        """Return the keys that changed since this was last asked."""


class Store(Protocol):
    """Where ServedModels and their status are kept."""

    def read(self, key: str) -> ServedModel | None:
        """Return a ServedModel, or None when it is gone."""

    def write_status(self, key: str, status: Status) -> None:
        """Replace the status, whole or not at all.

        Raises:
            ConflictError: Somebody has changed the ServedModel since it was read.
        """

    def hold(self, key: str, *, held: bool) -> None:
        """Keep a ServedModel from going when it is deleted, or no longer; idempotent."""

    def emit(self, key: str, event: EmitEvent, at: datetime) -> None:
        """Keep an event; the same id is kept once."""


class People(Protocol):
    """What people see of ServedModels, and how they ask for something."""

    def names(self) -> tuple[str, ...]:
        """Return the keys of all ServedModels in sight."""

    def manifest(self, key: str) -> Mapping[str, Any]:
        """Return a ServedModel's document.

        Raises:
            NotFoundError: There is none; the message names those there are.
        """

    def read(self, key: str) -> ServedModel | None:
        """Return a ServedModel, or None when it is gone."""

    def created_at(self, key: str) -> datetime:
        """Return when it was made."""

    def ask(self, key: str, request: Request) -> None:
        """Leave a person's request for the controller."""


class Registry(Protocol):
    """MLflow's model registry."""

    @property
    def problem(self) -> str | None:
        """Return why it did not answer last, or None."""

    def view(self, spec: ServedModelSpec, approval_of: str | None = None) -> RegistryView | None:
        """Return where the pointers stand, or None while the registry does not answer.

        Args:
            spec: Whose pointers.
            approval_of: A version whose tag `rollout.approve` is to be looked at, if any.

        Raises:
            NotLookedYetError: It is about to be asked for this model for the first time.
        """

    def write(self, spec: ServedModelSpec, item: Writeback) -> None:
        """Tell MLflow (tags, approval, description, production, report, page); idempotent.

        The content of a report or a page is a file: its text by its name.

        Raises:
            UnavailableError: MLflow does not answer; try again later.
        """


class Cluster(Protocol):
    """What runs the versions' processes."""

    def workloads(self, served: ServedModel) -> tuple[Workload, ...]:
        """Return the observed workloads of a served model."""

    def ensure(self, served: ServedModel, version: str, replicas: int) -> None:
        """Ask for a number of processes of a version; idempotent."""

    def remove(self, served: ServedModel, version: str) -> None:
        """Ask for none of a version; idempotent."""


class Gateway(Protocol):
    """The gateway's agents, one beside each Envoy."""

    def applied(self, name: str) -> Applied | None:
        """Return what the gateway routes by, or None while no agent answers."""


class Experiments(Protocol):
    """The experiments service."""

    @property
    def problem(self) -> str | None:
        """Return why it did not answer last, or None."""

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

    def put_decision(self, item: Writeback) -> None:
        """Keep a decision; idempotent.

        Raises:
            UnavailableError: The service does not answer; try again later.
        """

    def decisions(self, rollout: str) -> tuple[Mapping[str, Any], ...]:
        """Return the decisions of a rollout, the earliest first.

        Raises:
            NotFoundError: The service knows nothing of the rollout.
            UnavailableError: The service does not answer; try again later.
        """

    def report(self, rollout: str) -> str:
        """Return the report of a rollout as a page of HTML.

        Raises:
            NotFoundError: The service knows nothing of the rollout.
            UnavailableError: The service does not answer, or is still drawing; try again later.
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

"""What the use cases need from the outside."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fairlead_gateway.domain.endpoints import Endpoint, VersionKey
from fairlead_gateway.domain.exposure import Exposure, LogLine
from fairlead_gateway.domain.plan import TrafficPlan
from fairlead_gateway.domain.render.shared import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What others want served, at one moment.

    Attributes:
        plans: The plan of each served model that has one.
        endpoints: Every version's endpoints.
        problems: The served models whose plan cannot be read, with the reason.
        workload_problems: The workloads, or whole lists, that cannot be read, with the reason.
        complete: Whether all of it has been read; nothing is written from less.
    """

    plans: Mapping[str, TrafficPlan]
    endpoints: Mapping[VersionKey, tuple[Endpoint, ...]]
    problems: Mapping[str, str] = field(default_factory=dict)
    workload_problems: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The plan of one served model that Envoy follows.

    Attributes:
        plan: The plan.
        at: When it was first seen to be followed, in seconds since the epoch.
    """

    plan: TrafficPlan
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyStatus:
    """What Envoy has taken of what was written.

    Attributes:
        versions: The version of `listeners`, `clusters`, `rollouts` and `scopes` it follows.
    """

    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The endpoints of one version.

    Attributes:
        healthy: How many Envoy sends traffic to.
        total: How many there are, ready or not.
    """

    healthy: int
    total: int


class Source(Protocol):
    """Where plans and endpoints come from."""

    def read(self) -> Snapshot:
        """Return what is wanted now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some of many entries of a file, made only when what they depend on has changed.

    Attributes:
        name: Which part; the same over time.
        inputs: What the entries depend on.
        render: Makes the entries.
    """

    name: str
    inputs: tuple[object, ...]
    render: Callable[[], JSON]


class Configuration(Protocol):
    """The files Envoy reads."""

    def clusters(self) -> Sequence[str]:
        """Return the names of the clusters written last."""

    def write_clusters(self, parts: Sequence[Part]) -> str:
        """Replace the clusters, unless they are the same; return their version.

        Args:
            parts: Each cluster, under its name.
        """

    def write_listener(self, listener: JSON) -> str:
        """Replace the listener, unless it is the same; return its version."""

    def shared_scopes(self) -> Collection[str]:
        """Return the names of the scopes found at the start whose routes are among the rollouts'."""

    def write_rollouts(self, parts: Sequence[Part], wrap: Callable[[object], JSON]) -> str:
        """Replace the rollouts' routes, unless they are the same; return their version.

        Args:
            parts: Each model's routes, under its name.
            wrap: Makes the configuration around all entries.
        """

    def write_scopes(self, parts: Sequence[Part]) -> str:
        """Replace the scopes, unless they are the same; return their version.

        Args:
            parts: Each model's scope, under its name.
        """

    def renew(self, kind: str) -> None:
        """Replace a file by the same one, for Envoy to read it again.

        Args:
            kind: Which one, as in `EnvoyStatus`.
        """


class Envoy(Protocol):
    """A running Envoy's administration interface."""

    def status(self) -> EnvoyStatus | None:
        """Return what it has taken, or None while it is not there."""

    def rejections(self) -> Mapping[str, int] | None:
        """Return how often it has refused each kind of file, or None if it does not say.

        It has to look through all it counts.
        """

    def healthy(self) -> Mapping[str, int]:
        """Return how many endpoints of its own each cluster can use; empty if not reached."""

    def reopen_logs(self) -> bool:
        """Make it open its log anew; False if it cannot be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What an Envoy's clients have asked; who asks for its readiness is none.

    Attributes:
        active: How many requests are under way.
        answered: How many have been answered since it was started.
    """

    active: int
    answered: int


class Draining(Protocol):
    """A running Envoy that is to go."""

    def start_draining(self) -> bool:
        """Make it unready, and make it close each connection after the request under way.

        False if it cannot be reached.
        """

    def requests(self) -> Requests | None:
        """Return what its clients have asked, or None while it cannot be reached."""


class Validator(Protocol):
    """Checks a configuration before it is written."""

    def check(self, static: JSON) -> str | None:
        """Return why Envoy would refuse it, or None."""


class Memory(Protocol):
    """What survives a restart of the agent: the plans last followed."""

    def load(self) -> Mapping[str, Applied]:
        """Return the plans saved last."""

    def save(self, applied: Mapping[str, Applied]) -> None:
        """Replace the plans."""


class Clock(Protocol):
    """The time."""

    def now(self) -> float:
        """Return seconds since the epoch."""

    def monotonic(self) -> float:
        """Return seconds that never run back."""


class Experiments(Protocol):
    """The experiments service."""

    def send(self, exposures: Sequence[Exposure]) -> "Delivery":
        """Hand exposures over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What became of a batch.

    Attributes:
        taken: Whether the service has it for good.
        refused: Whether it will never take this batch as it is.
        rejected: Items it named as wrong, by field.
        reason: Why it was not taken.
    """

    taken: bool
    refused: bool = False
    rejected: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""


class Log(Protocol):
    """Envoy's access log, read once from front to back."""

    def read(self) -> Sequence[bytes]:
        """Return the next lines, without those already returned; empty if there are none."""

    def commit(self) -> None:
        """Remember that all lines returned so far are done with, and survive a restart."""

    def backlog(self) -> int:
        """Return how many bytes are not done with."""


class Meter(Protocol):
    """What is counted."""

    def request(self, line: LogLine) -> None:
        """Count one request to a served model."""

    def shipped(self, count: int) -> None:
        """Count exposures the experiments service has taken."""

    def dropped(self, reason: str, count: int) -> None:
        """Count lines and exposures that will never be taken."""

    def backlog(self, size: int) -> None:
        """Note how many bytes of the log are not shipped."""

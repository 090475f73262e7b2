"""What `decide` can ask for. Each is idempotent: carried out twice it is as once."""

from dataclasses import dataclass

from fairlead_rollout.domain.status import Writeback


@dataclass(frozen=True, kw_only=True)
class EnsureWorkload:
    """Have this many processes of a version."""

    version: str
    replicas: int


@dataclass(frozen=True, kw_only=True)
class RemoveWorkload:
    """Have none of a version."""

    version: str


@dataclass(frozen=True, kw_only=True)
class EmitEvent:
    """Tell people; the id keeps a repeated pass from telling twice."""

    id: str
    type: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class KeepLook:
    """Keep a decision that changed nothing; one that cannot be kept just now is missing later."""

    item: Writeback


Action = EnsureWorkload | RemoveWorkload | EmitEvent | KeepLook

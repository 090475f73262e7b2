"""Which processes should run on this machine, and when one is started again. Pure."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

FIRST_WAIT = timedelta(milliseconds=300)
LONGEST_WAIT = timedelta(seconds=30)
MAX_DOUBLINGS = 10


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One process that should run.

    Attributes:
        workload: Name of what it belongs to; a service of the stack, or a model version.
        replica: Which one of the workload's processes, from 0.
        command: What to run; `{port}` stands for the port.
        environment: Variables on top of the inherited ones.
        port: Port to listen on; None takes any free one at each start.
        probe: Path that answers 200 when the process is ready; None is ready while it runs.
        probe_port: Port of the probe if it is not the process's own.
        grace: Time between being asked to end and being ended.
        is_replaced: Whether a process of an older definition is replaced at once. One that serves
            a model is not: all of its kind would stop together. It ends as it began.
    """

    workload: str
    replica: int
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    probe: str | None = None
    probe_port: int | None = None
    grace: timedelta = timedelta(seconds=10)
    is_replaced: bool = True

    @property
    def key(self) -> str:
        """Name the process among all of the stack."""
        return f"{self.workload}/{self.replica}"

    def is_outdated(self, digest: str) -> bool:
        """Say whether a process of another definition must give way to this one."""
        return self.is_replaced and digest != self.digest

    @property
    def digest(self) -> str:
        """Return what changes when the process must be replaced."""
        text = json.dumps([self.command, sorted(self.environment.items()), self.port])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def restart_wait(failures: int) -> timedelta:
    """Return how long to wait before a start after so many failures in a row."""
    if failures == 0:
        return timedelta(0)
    doubled: timedelta = FIRST_WAIT * 2 ** min(failures - 1, MAX_DOUBLINGS)
    return min(doubled, LONGEST_WAIT)

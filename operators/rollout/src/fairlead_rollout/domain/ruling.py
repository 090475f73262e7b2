"""What a check of the decision chain gets and gives."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.snapshot import Request, Snapshot
from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import Rollout, Status

AT_ONCE = timedelta(0)
SOON = timedelta(milliseconds=250)  # something is about to happen in another process
ANALYSIS_EVERY = timedelta(seconds=1)
IDLE = timedelta.max  # nothing is expected: whatever happens wakes us
SELDOM = timedelta(seconds=30)  # something is expected that has not come for long


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """The word of the first check that spoke.

    Attributes:
        check: The check's name.
    """

    status: Status
    reason: str
    message: str
    requeue_after: timedelta
    check: str = ""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every check sees: the snapshot, the status so far, the time."""

    snapshot: Snapshot
    status: Status
    now: datetime

    @property
    def spec(self) -> ServedModelSpec:
        """Return what the person asked for."""
        return self.snapshot.spec

    @property
    def active(self) -> bool:
        """Say whether a rollout is to be decided."""
        return self.status.rollout is not None and self.status.rollout.is_active

    @property
    def rollout(self) -> Rollout:
        """Return the rollout on trial; only for checks of a running one."""
        assert self.status.rollout is not None
        return self.status.rollout

    @property
    def request(self) -> Request | None:
        """Return the person's request that has not been dealt with."""
        request = self.snapshot.request
        return request if request and request.id != self.status.handled_request else None

    def is_available(self, version: str, *, at_least: int = 1) -> bool:
        """Say whether a version has enough processes that are ready and healthy in the gateway."""
        workload, applied = self.snapshot.workload(version), self.snapshot.applied
        if workload is None or applied is None:
            return False
        return workload.ready >= at_least and applied.healthy.get(version, 0) >= at_least

    def rule(self, reason: Reason, message: str, requeue_after: timedelta) -> Ruling:
        """Speak without changing the rollout's state."""
        return Ruling(
            status=self.status, reason=reason, message=message, requeue_after=requeue_after
        )

    def keep(
        self, rollout: Rollout, reason: Reason, message: str, requeue_after: timedelta
    ) -> Ruling:
        """Speak and keep a changed rollout."""
        status = replace(self.status, rollout=replace(rollout, reason=reason, message=message))
        return Ruling(status=status, reason=reason, message=message, requeue_after=requeue_after)


Check = Callable[[Context], Ruling | None]
"""A question to one pass; None leaves the word to the next check."""

"""A version that arrives while another is on trial: it waits for its turn, or stays out.

With `onNewVersion: restart` neither: it ends the trial and begins its own (trial.py).
"""

from dataclasses import replace

from fairlead_rollout.domain.changes import tell
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.rollback import is_immediate
from fairlead_rollout.domain.snapshot import Snapshot
from fairlead_rollout.domain.spec import OnNewVersion
from fairlead_rollout.domain.status import Rollout, Status
from fairlead_rollout.domain.writebacks import turn_of


def with_newcomer(status: Status, snapshot: Snapshot) -> Status:
    """Have a version that arrives during a trial wait or stay out, and MLflow told."""
    status = _without_outdated(status)
    newcomer, rollout = _newcomer(status, snapshot), status.rollout
    if newcomer is None or rollout is None:
        return status
    match snapshot.spec.rollout.on_new_version:
        case OnNewVersion.QUEUE:
            return _queued(status, newcomer, rollout)
        case OnNewVersion.REFUSE:
            return _refused(status, newcomer, rollout)
        case OnNewVersion.RESTART:
            settled = None if status.settled == newcomer else status.settled
            return replace(status, settled=settled, waiting=None)


def _newcomer(status: Status, snapshot: Snapshot) -> str | None:
    """Return the version that production names beside a running trial."""
    rollout, version = status.rollout, status.production
    if rollout is None or not rollout.is_active or status.stable is None:
        return None
    on_trial = None if rollout.alias else rollout.candidate
    if version in {None, on_trial, status.stable}:
        return None
    if rollout.alias and version == status.settled:
        return None  # it was stable until a candidate was promoted, and production is being moved
    return None if is_immediate(status, snapshot.spec, version) else version


def _queued(status: Status, newcomer: str, rollout: Rollout) -> Status:
    if status.waiting == newcomer:
        return status
    why = f"{Reason.QUEUED}: waits until version {rollout.candidate} has been decided"
    waiting = replace(status, waiting=newcomer, settled=None)
    return tell(waiting, turn_of(newcomer, rollout, "pending", why))


def _refused(status: Status, newcomer: str, rollout: Rollout) -> Status:
    if status.settled == newcomer:
        return status
    why = f"{Reason.REFUSED}: version {rollout.candidate} was on trial; promote it again after that"
    settled = replace(status, settled=newcomer, waiting=None)
    return tell(settled, turn_of(newcomer, rollout, "refused", why))


def _without_outdated(status: Status) -> Status:
    """Let go of a version that waits and that production names no more."""
    waiting, rollout = status.waiting, status.rollout
    if waiting is None or rollout is None or waiting == status.production:
        return status
    why = f"{Reason.SUPERSEDED}: the pointer moved on to "
    why += f"version {status.production} before its turn" if status.production else "no version"
    return tell(replace(status, waiting=None), turn_of(waiting, rollout, "superseded", why))

"""Going back to a version that was stable: by the registry's pointer, as everything."""

from fairlead_rollout.domain.spec import Rollback, ServedModelSpec
from fairlead_rollout.domain.status import RolloutState, Status


def is_rollback(status: Status, version: str) -> bool:
    """Say whether a version is older than stable, and was stable until a newer one took over.

    One that was left by a rollback itself was not good enough: it is put on trial.
    """
    if status.stable is None or int(version) >= int(status.stable):
        return False
    return any(
        r.state is RolloutState.PROMOTED
        and r.baseline == version
        and int(r.candidate) > int(version)
        for r in status.history
    )


def is_immediate(status: Status, spec: ServedModelSpec, version: str | None) -> bool:
    """Say whether a version is to take all traffic as soon as it is available."""
    immediate = spec.rollout.rollback is Rollback.IMMEDIATE
    return immediate and version is not None and is_rollback(status, version)


def version_before(status: Status) -> str | None:
    """Return the version that was stable before the one that serves; None if none is known."""
    replaced = (
        r.baseline
        for r in reversed(status.history)
        if r.state is RolloutState.PROMOTED and r.candidate == status.stable
    )
    return next((version for version in replaced if is_rollback(status, version)), None)

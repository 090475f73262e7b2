"""Checks while no version serves yet; the first that speaks wins."""

from dataclasses import replace

from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.ruling import AT_ONCE, IDLE, SOON, Check, Context, Ruling
from fairlead_rollout.domain.words import because


def _no_version(context: Context) -> Ruling | None:
    if context.status.production is not None:
        return None
    pointer, model = context.spec.production, context.spec.model
    message = f"waiting for a version of {model!r} at {pointer} in MLflow"
    return context.rule(Reason.WAITING_FOR_VERSION, message, IDLE)


def _first_version_failed(context: Context) -> Ruling | None:
    workload = context.snapshot.workload(context.status.production)
    if workload is None or not workload.has_failed or workload.failure is None:
        return None
    message = f"version {workload.version} does not start: {workload.failure.reason}"
    return context.rule(Reason.FIRST_VERSION_FAILED, message, IDLE)


def _first_version_starting(context: Context) -> Ruling | None:
    version = context.status.production
    if version is not None and context.is_available(version):
        return None
    message = f"version {version} is starting{because(context.snapshot.workload(version))}"
    return context.rule(Reason.STARTING_FIRST_VERSION, message, SOON)


def _first_version_serves(context: Context) -> Ruling:
    status = replace(context.status, stable=context.status.production)
    message = f"version {status.stable} serves"
    return Ruling(status=status, reason=Reason.SERVING, message=message, requeue_after=AT_ONCE)


FIRST_VERSION: tuple[Check, ...] = (
    _no_version,  # nothing to serve
    _first_version_failed,  # a person must act
    _first_version_starting,  # its processes are not ready
    _first_version_serves,
)

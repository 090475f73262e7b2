"""Take a gateway out of service without breaking a request."""

from collections.abc import Callable
from dataclasses import dataclass

from fairlead_gateway.app.ports import Clock, Draining, Requests

_LOOK = 0.05  # Seconds between two looks.


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainSettings:
    """How long a drain takes.

    Attributes:
        at_least: Seconds new connections may still arrive, as those who send them here learn late.
        at_most: Seconds after which requests still under way are left to their fate.
        quiet: Seconds in which no request is under way or arrives, before it counts as done.
    """

    at_least: float = 3.0
    at_most: float = 25.0
    quiet: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """How a drain ended.

    Attributes:
        done: Whether no request was under way any more.
        active: How many were; None if Envoy could not be asked.
        seconds: How long it took.
    """

    done: bool
    active: int | None
    seconds: float


def drain(
    envoy: Draining, clock: Clock, pause: Callable[[float], None], settings: DrainSettings
) -> Drained:
    """Turn the readiness, close connections as they fall idle, and wait for the last request.

    Requests that arrive meanwhile are answered. An Envoy that cannot be asked counts as busy.

    Args:
        envoy: The Envoy to drain.
        clock: The time.
        pause: Waits for some seconds.
        settings: How long to wait.
    """
    begin = quiet_since = clock.monotonic()
    is_draining = False
    before: Requests | None = None
    while True:
        is_draining = is_draining or envoy.start_draining()
        seen = envoy.requests() if is_draining else None
        now = clock.monotonic()
        # A quick request comes and goes between two looks: the Service has not forgotten us yet.
        if seen is None or seen.active or seen != before:
            quiet_since = now
        before = seen
        done = now - quiet_since >= settings.quiet and now - begin >= settings.at_least
        if done or now - begin >= settings.at_most:
            active = None if seen is None else seen.active
            return Drained(done=done, active=active, seconds=now - begin)
        pause(_LOOK)

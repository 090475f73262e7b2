"""How many users there are at each moment of a run."""

from dataclasses import dataclass
from typing import Final

LEVELS: Final = 10
CALM: Final = 0.2  # the users before and after a spike, as a share
KINDS: Final = ("steady", "ramp", "spike", "promote")
PROMOTE_AT: Final = 0.25  # of the run


@dataclass(frozen=True, slots=True)
class Stage:
    """So many users until a moment, in seconds from the start; `spawn_rate` come a second."""

    until: float
    users: int
    spawn_rate: float


def stages(kind: str, users: int, seconds: float) -> tuple[Stage, ...]:
    """Answer the stages of a run.

    `steady` and `promote` have all users from the start, `ramp` brings them in ten levels, `spike`
    has a fifth of them, all at once everybody for a fifth of the time, and a fifth again.

    Raises:
        ValueError: There is no such kind, or nobody to send.
    """
    if users < 1 or seconds <= 0:
        raise ValueError("a run needs at least one user and a time")
    if kind in {"steady", "promote"}:
        return (Stage(seconds, users, _at_once(users)),)
    if kind == "ramp":
        counts = [max(1, users * level // LEVELS) for level in range(1, LEVELS + 1)]
        times = [seconds * level / LEVELS for level in range(1, LEVELS + 1)]
        return tuple(Stage(t, n, _at_once(users)) for t, n in zip(times, counts, strict=True))
    if kind == "spike":
        calm = max(1, round(users * CALM))
        shares = ((0.4, calm), (0.6, users), (1.0, calm))
        return tuple(Stage(seconds * share, n, _at_once(users)) for share, n in shares)
    raise ValueError(f"no shape is called {kind}; there are {', '.join(KINDS)}")


def stage_at(plan: tuple[Stage, ...], seconds: float) -> Stage | None:
    """Answer the stage at a moment, None after the last."""
    return next((stage for stage in plan if seconds < stage.until), None)


def is_time_to_promote(kind: str, seconds: float, whole: float) -> bool:
    """Tell whether the promotion of a run is due."""
    return kind == "promote" and seconds >= whole * PROMOTE_AT


def _at_once(users: int) -> float:
    """All within about a second: Locust cannot do it faster without a burst of connections."""
    return float(users)

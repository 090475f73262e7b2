"""Waiting for conditions; nothing here sleeps for a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
LOOK_EVERY = 0.25


def wait_until(
    condition: Callable[[], Found], within: float, what: str, seen: Callable[[], object] = str
) -> Found:
    """Wait for something to be so and return it.

    Args:
        condition: Says what was found; falsy means not yet.
        within: Seconds to wait at most.
        what: The condition in words, for the message.
        seen: Says what there is instead, for the message.
    """
    deadline = time.monotonic() + within
    while True:
        if found := condition():
            return found
        if time.monotonic() >= deadline:
            raise AssertionError(f"not so within {within:g} s: {what}\n{seen()}")
        time.sleep(LOOK_EVERY)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds so far."""
        return time.monotonic() - self._began

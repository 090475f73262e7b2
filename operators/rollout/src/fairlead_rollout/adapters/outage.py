"""What is remembered of a system that hangs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from fairlead_rollout.domain.errors import UnavailableError

LONG = 0.5  # seconds in vain, from which on trying each time would hold up what else there is to do
SEVERAL = 2


class Outage:
    """Lets calls fail at once for a moment after a system has hung.

    One thread makes the passes of all models: with a time-out for each rollout that is on trial, an
    abort would wait for the time-outs of all others. Nothing is decided on by what is remembered
    here; a call that fails at once fails as one that has waited. One subject that hangs alone is
    no outage: a rollout that takes too long to analyse must not keep others from their numbers.
    """

    def __init__(self, lasts: timedelta, monotonic: Callable[[], float] = time.monotonic):
        """Build a memory.

        Args:
            lasts: How long calls fail at once; the next one after that tries again.
            monotonic: A clock that nobody sets back.
        """
        self._lasts = lasts.total_seconds()
        self._monotonic = monotonic
        self._hanging: set[str] = set()  # subjects since the last answer
        self._until: float | None = None
        self._problem = ""

    @contextmanager
    def noticed(self, subject: str) -> Iterator[None]:
        """Call the system about a subject in here.

        Raises:
            UnavailableError: It did not answer, or has not answered others a moment ago.
        """
        started = self._monotonic()
        if self._until is not None and started < self._until:
            raise UnavailableError(self._problem)
        try:
            yield
        except UnavailableError as error:
            if self._monotonic() - started >= LONG:
                self._note(subject, str(error))
            raise
        self._hanging.clear()

    def _note(self, subject: str, problem: str) -> None:
        self._hanging.add(subject)
        if len(self._hanging) >= SEVERAL:
            self._until, self._problem = self._monotonic() + self._lasts, problem

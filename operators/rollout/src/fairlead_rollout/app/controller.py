"""The controller's loop: every served model is reconciled when it is due."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from fairlead_rollout.app.ports import Ports
from fairlead_rollout.app.reconcile import reconcile

log = logging.getLogger(__name__)

AFTER_ERROR = timedelta(seconds=2)
TICK = timedelta(milliseconds=100)


class Controller:
    """Reconciles served models one after the other.

    Nothing it remembers matters: when it looks next is all it knows, and after a restart
    everything is due.
    """

    def __init__(self, ports: Ports, changed: Callable[[], frozenset[str]]):
        """Build a controller.

        Args:
            ports: The outside.
            changed: Names that changed since it was last asked, to be looked at without waiting.
        """
        self._ports = ports
        self._changed = changed
        self._due: dict[str, float] = {}  # by a clock that nobody sets back

    def run(self, stop: threading.Event) -> None:
        """Reconcile until told to stop."""
        while not stop.is_set():
            self.run_once()
            stop.wait(TICK.total_seconds())

    def run_once(self) -> None:
        """Reconcile what is due now."""
        names = self._ports.store.names()
        changed = self._changed()
        now = time.monotonic()
        for name in names:
            if name in changed or self._due.get(name, now) <= now:
                self._reconcile(name)

    def _reconcile(self, name: str) -> None:
        try:
            wait = reconcile(name, self._ports)
        except Exception:  # one model's trouble must not stop the others
            log.exception("%s: cannot be reconciled; trying again", name)
            wait = AFTER_ERROR
        after = wait if wait is not None else AFTER_ERROR
        self._due[name] = time.monotonic() + after.total_seconds()

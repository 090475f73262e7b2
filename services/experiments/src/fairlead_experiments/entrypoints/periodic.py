"""Lets go of old rows now and then, in a thread beside the requests."""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta

from fairlead_experiments.adapters.preparation import REST
from fairlead_experiments.app.errors import StoreUnavailableError
from fairlead_experiments.app.retention import Retention

_log = logging.getLogger(__name__)
_EVERY = 6 * 3600.0  # seconds
_AGAIN = 5.0


class Periodic:
    """A pass at the start and every six hours; sooner after one that failed.

    Args:
        build: Makes the use case, which asks what it is given whether it shall end.
        keep: How long rows stay.
    """

    def __init__(self, build: Callable[[Callable[[], bool]], Retention], keep: timedelta) -> None:
        self._is_ended = threading.Event()
        self._retention = build(self.rest)
        self._keep = keep

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="retention", daemon=True).start()

    def stop(self) -> None:
        """End after the step that is under way."""
        self._is_ended.set()

    def rest(self) -> bool:
        """Let batches that wait for the database in; answer whether the pass ends here."""
        return self._is_ended.wait(REST)

    def _run(self) -> None:
        wait = 0.0
        while not self._is_ended.wait(wait):
            wait = _EVERY if self._is_done() else _AGAIN

    def _is_done(self) -> bool:
        try:
            removed = self._retention.run(self._keep)
        except StoreUnavailableError as error:
            _log.info("Old rows stay for now, trying again: %s", error.reason)
            return False
        except Exception:  # noqa: BLE001 - told in the log, not a thread's silent end
            _log.exception("Old rows could not be removed")
            return True
        if removed.closed or removed.partitions or removed.rows:
            message = "Old rows: closed %d rollouts, dropped %d partitions, removed %d rows"
            _log.info(message, removed.closed, removed.partitions, removed.rows)
        return True

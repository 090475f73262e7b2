"""Brings the tables up to date while the service already answers its probes."""

import logging
import threading

from sqlalchemy import Engine

from fairlead_experiments.adapters.database import migrate
from fairlead_experiments.adapters.sql import SqlStore
from fairlead_experiments.app.errors import StoreUnavailableError

_log = logging.getLogger(__name__)
_BETWEEN = 1.0  # seconds
_STEP = 5.0
REST = 0.05
"""Seconds between two steps of long work, in which batches that wait for the database come in."""


class Preparation:
    """Tries until the database is there, in a thread of its own.

    A service that ended instead would be started again ever more slowly by whoever watches it, and
    stay away for minutes after its database is back.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = SqlStore(engine)
        self._reason = "the tables are being brought up to date"
        self._is_done = threading.Event()
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preparation", daemon=True)

    def check(self) -> None:
        """Raise unless the tables are up to date, with the reason why they are not."""
        if not self._is_done.is_set():
            raise StoreUnavailableError(self._reason)

    def run_once(self) -> None:
        """Bring the tables up to date, or raise."""
        migrate(self._engine)
        self._store.count_stale()
        self._is_done.set()

    def start(self) -> None:
        """Begin to try; then count what is being counted afresh, beside the requests."""
        self._thread.start()

    def stop(self) -> None:
        """Try no more, and wait a while for the step that is under way."""
        self._is_ended.set()
        if self._thread.is_alive():
            self._thread.join(_STEP)

    def _run(self) -> None:
        while not self._is_ended.is_set():
            try:
                self._go_on()
            except StoreUnavailableError as error:
                self._note(error.reason)
            except Exception as error:  # noqa: BLE001 - told by the probe, not a thread's silent end
                self._note(type(error).__name__)
                _log.exception("What is stored cannot be brought up to date")
            else:
                return
            self._is_ended.wait(_BETWEEN)

    def _go_on(self) -> None:
        if not self._is_done.is_set():
            self.run_once()
            _log.info("The tables are up to date")
        while self._store.count_some() and not self._is_ended.wait(REST):
            pass

    def _note(self, reason: str) -> None:
        if reason != self._reason:
            _log.warning("The database is not ready, trying again: %s", reason)
        self._reason = reason

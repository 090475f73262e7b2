"""The controller's loop: every served model is reconciled when it is due."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

from fairlead_rollout.app.ports import Due, Ports
from fairlead_rollout.app.reconcile import reconcile
from fairlead_rollout.domain.errors import ConflictError, UnavailableError

log = logging.getLogger(__name__)

AFTER_ERROR = timedelta(seconds=2)
TICK = timedelta(milliseconds=100)
AT_THE_LATEST = timedelta(seconds=2)  # as often as the registry is polled


class Controller:
    """Reconciles served models one after the other.

    Nothing it remembers matters: when it looks next is all it knows, and after a restart
    everything is due.
    """

    def __init__(
        self,
        ports: Ports,
        due: Due,
        *,
        idle: timedelta = AT_THE_LATEST,
        may_act: Callable[[], bool] = lambda: True,
        passed: Callable[[str, float, bool], None] = lambda *_: None,
    ):
        """Build a controller.

        Args:
            ports: The outside.
            due: Which ServedModels there are, and which are to be looked at without waiting.
            idle: When to look again at the latest, also where nothing is expected to happen.
            may_act: Asked before every pass: another replica may have taken over.
            passed: Told after every pass: the key, the seconds it took, whether it failed.
        """
        self._ports = ports
        self._changes = due
        self._idle = idle
        self._may_act = may_act
        self._passed = passed
        self._due: dict[str, float] = {}  # by a clock that nobody sets back

    def run(self, stop: threading.Event) -> None:
        """Reconcile until told to stop."""
        while not stop.is_set():
            self.run_once()
            stop.wait(TICK.total_seconds())

    def run_once(self) -> None:
        """Reconcile what is due now.

        What changes meanwhile takes every second turn: a promotion does not wait until a thousand
        others have been looked at, and those do not wait for a crowd of changes.
        """
        now = time.monotonic()
        self._due = {key: self._due.get(key, now) for key in self._changes.keys()}  # noqa: SIM118 -- no mapping
        due = deque(key for key, when in self._due.items() if when <= now)
        changed: dict[str, None] = {}  # in the order they came
        while True:
            news = self._changes.take_changed() & self._due.keys()
            changed |= dict.fromkeys(sorted(news))
            if changed:
                key = next(iter(changed))
                del changed[key]
                self._pass(key)
            elif not due:
                return
            if due and self._due[key := due.popleft()] <= now:
                changed.pop(key, None)
                self._pass(key)

    def _pass(self, key: str) -> None:
        if not self._may_act():
            return
        started = time.monotonic()
        wait, failed = self._reconcile(key)
        self._passed(key, time.monotonic() - started, failed)
        self._due[key] = time.monotonic() + wait.total_seconds()

    def _reconcile(self, key: str) -> tuple[timedelta, bool]:
        try:
            wait = reconcile(key, self._ports)
        except ConflictError as error:
            log.info("%s: %s; looking again", key, error)
            return TICK, False
        except UnavailableError as error:
            log.warning("%s: %s; trying again", key, error)
            return AFTER_ERROR, True
        except Exception:  # one model's trouble must not stop the others
            log.exception("%s: cannot be reconciled; trying again", key)
            return AFTER_ERROR, True
        return self._idle if wait is None else min(wait, self._idle), False

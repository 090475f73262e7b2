"""One controller of several leads: the holder of a Lease.

The official client's election can be neither stopped nor does it give the Lease back, so that
every orderly hand-over would take as long as one after a crash.
"""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from fairlead_rollout.adapters.k8s.api import Document, KubeApi
from fairlead_rollout.domain.errors import ConflictError, FairleadError, NotFoundError

log = logging.getLogger(__name__)

HELD_FOR = timedelta(seconds=12)  # without renewal, before another may take it
RENEW_EVERY = timedelta(seconds=3)
GIVE_UP_AFTER = timedelta(seconds=9)  # without renewal, the holder stops: before another starts
TIMEOUT = (1.0, 2.0)  # seconds to connect, to answer: one call that hangs must not cost the lead


class Lease:
    """The Lease of one installation.

    Another holder's silence is measured by this process's own clock from when its last renewal
    was seen, as clocks of two machines differ.
    """

    def __init__(  # noqa: PLR0913 -- where it is, who we are, and the two clocks
        self,
        api: KubeApi,
        *,
        namespace: str,
        name: str,
        identity: str,
        monotonic: Callable[[], float],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._monotonic = monotonic
        self._now = now
        self._seen: Any = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None

    @property
    def is_held(self) -> bool:
        """Say whether this process may act."""
        if self._renewed_at is None:
            return False
        return self._monotonic() - self._renewed_at < GIVE_UP_AFTER.total_seconds()

    def acquire(self, stop: threading.Event) -> bool:
        """Wait until the Lease is ours; False when told to stop before."""
        while not stop.is_set():
            if self.step():
                log.info("%s leads", self._identity)
                return True
            stop.wait(RENEW_EVERY.total_seconds() / 2)
        return False

    def hold(self, stop: threading.Event) -> None:
        """Renew until told to stop, or until the Lease is lost."""
        while not stop.wait(RENEW_EVERY.total_seconds()):
            self.step()
            if not self.is_held:
                log.error("%s no longer leads: the Lease could not be renewed", self._identity)
                return

    def step(self) -> bool:
        """Take the Lease or renew it, if it is free or ours; say whether it is ours now."""
        started = self._monotonic()
        try:
            taken = self._take()
        except ConflictError:
            taken = False  # another one was faster
        except FairleadError as error:
            log.warning("the Lease cannot be renewed: %s", error)
            return self.is_held
        self._renewed_at = started if taken else None
        return taken

    def release(self) -> None:
        """Give the Lease back, so that another takes it at once."""
        if not self.is_held:
            return
        self._renewed_at = None
        try:
            lease = self._api.get("Lease", self._namespace, self._name)
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                self._api.replace(lease)
        except FairleadError as error:
            log.warning("the Lease could not be given back: %s", error)

    def _take(self) -> bool:
        try:
            lease = self._api.get("Lease", self._namespace, self._name)
        except NotFoundError:
            self._api.create(self._document({"acquireTime": _time(self._now())}))
            return True
        spec = lease.get("spec") or {}
        if not self._may_take(spec):
            return False
        self._api.replace({**lease, "spec": {**spec, **self._spec(spec)}})
        return True

    def _may_take(self, spec: Document) -> bool:
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        renewal = (holder, spec.get("renewTime"))
        if renewal != self._seen:
            self._seen, self._seen_at = renewal, self._monotonic()
        silence = self._monotonic() - self._seen_at
        return silence >= float(spec.get("leaseDurationSeconds") or HELD_FOR.total_seconds())

    def _spec(self, before: Document) -> Document:
        changes = int(before.get("leaseTransitions") or 0)
        renewed = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(HELD_FOR.total_seconds()),
            "renewTime": _time(self._now()),
        }
        if before.get("holderIdentity") == self._identity:
            return renewed
        return {
            **renewed,
            "acquireTime": renewed["renewTime"],
            "leaseTransitions": changes + 1,
        }

    def _document(self, spec: Document) -> Document:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {**self._spec({}), **spec},
        }


def _time(moment: datetime) -> str:
    """Write a moment as a Lease's MicroTime."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

"""The gateway's replicas, asked one by one what they route by."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx

from fairlead_rollout.adapters.http import TIMEOUT
from fairlead_rollout.adapters.k8s.api import Document, KubeApi
from fairlead_rollout.domain.errors import FairleadError
from fairlead_rollout.domain.snapshot import Applied

log = logging.getLogger(__name__)

ASK_EVERY = timedelta(milliseconds=250)
ASK_WHEN_IDLE = timedelta(seconds=2)
PEACE = 5  # times as long as a look took
STALE_AFTER = timedelta(seconds=60)  # without a look that succeeded, nothing is known
SERVICE_NAME = "kubernetes.io/service-name"
Models = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one replica said last; None when it did not answer."""

    replica: str
    models: Models | None


@dataclass(kw_only=True)
class _Look:
    answers: tuple[Answer, ...] = ()
    at: float | None = None
    asked: threading.Event = field(default_factory=threading.Event)


class GatewayReplicas:
    """Looks at every replica that gets traffic, in a thread of its own."""

    def __init__(
        self,
        api: KubeApi,
        *,
        namespace: str,
        service: str,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        self._api = api
        self._monotonic = monotonic
        self._namespace = namespace
        self._service = service
        self._http = httpx.Client(timeout=TIMEOUT, trust_env=False)
        self._look = _Look()

    def run(self, stop: threading.Event) -> None:
        """Look until told to stop; more often while somebody waits for an answer."""
        while not stop.is_set():
            started = time.monotonic()
            try:
                self.look()
            except FairleadError as error:
                log.warning("the gateway's replicas cannot be listed: %s", error)
            except Exception:  # the next look may be better; without one nothing moves any more
                log.exception("the gateway's replicas cannot be looked at")
            # With a thousand models an answer costs an agent 0.2 s: it is left in peace for longer.
            took = time.monotonic() - started
            stop.wait(max(ASK_EVERY.total_seconds(), PEACE * took))
            if not self._look.asked.wait((ASK_WHEN_IDLE - ASK_EVERY).total_seconds()):
                continue
            self._look.asked.clear()

    def look(self) -> None:
        """Ask every replica once."""
        started, labels = self._monotonic(), {SERVICE_NAME: self._service}
        slices = self._api.list("EndpointSlice", self._namespace, labels)
        found = sorted({place for part in slices for place in _places(part)})
        self._look.answers = tuple(self._ask(replica, url) for replica, url in found)
        self._look.at = started

    def applied(self, name: str) -> Applied | None:
        """Return what the replicas route by, or None when none of them answers."""
        self._look.asked.set()
        answers = self._look.answers
        if not self._is_fresh() or all(answer.models is None for answer in answers):
            return None
        return combine(name, answers)

    def _is_fresh(self) -> bool:
        at = self._look.at
        return at is not None and self._monotonic() - at <= STALE_AFTER.total_seconds()

    def states(self, wanted: Mapping[str, str]) -> Mapping[str, int]:
        """Count the replicas by how they stand.

        Args:
            wanted: Digest of every model's plan.
        """
        count = {"applied": 0, "behind": 0, "silent": 0}
        for answer in self._look.answers:
            count[_state(answer, wanted)] += 1
        return count

    def _ask(self, replica: str, url: str) -> Answer:
        try:
            response = self._http.get(f"{url}/v1/applied")
            models = response.json()["models"] if response.is_success else None
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            models = None
        return Answer(replica=replica, models=models)


def _state(answer: Answer, wanted: Mapping[str, str]) -> str:
    if answer.models is None:
        return "silent"
    applied = all(
        answer.models.get(model, {}).get("digest") == digest for model, digest in wanted.items()
    )
    return "applied" if applied else "behind"


def combine(name: str, answers: tuple[Answer, ...]) -> Applied:
    """Sum up the replicas' answers about one served model.

    A version has as many healthy endpoints as the replica that sees the fewest.
    """
    told = {a.replica: (a.models or {}).get(name) or {} for a in answers}
    digests = {replica: model.get("digest") for replica, model in told.items()}
    versions = {version for model in told.values() for version in model.get("versions", {})}
    return Applied(
        digests=digests,
        healthy={
            version: min(
                model.get("versions", {}).get(version, {}).get("healthy", 0)
                for model in told.values()
            )
            for version in versions
        },
    )


def _places(part: Document) -> list[tuple[str, str]]:
    """Return name and address of the replicas in an EndpointSlice that get traffic."""
    ports = [port["port"] for port in part.get("ports") or ()]
    return [
        ((endpoint.get("targetRef") or {}).get("name", address), _url(address, ports[0]))
        for endpoint in part.get("endpoints") or ()
        if (endpoint.get("conditions") or {}).get("ready")
        for address in endpoint["addresses"][:1]
        if ports
    ]


def _url(address: str, port: int) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}"

"""The experiments service over HTTP."""

import logging
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import httpx

from fairlead_rollout.adapters.http import WRITE_TIMEOUT, call
from fairlead_rollout.adapters.outage import Outage
from fairlead_rollout.domain.errors import NotFoundError, UnavailableError
from fairlead_rollout.domain.snapshot import Analysis, StepCounts, Verdict
from fairlead_rollout.domain.status import Writeback, parse_time

log = logging.getLogger(__name__)

Comparison = Mapping[str, Any]
"""A comparison document of `docs/reference/contracts.md`."""

ASK_AGAIN_AFTER = timedelta(seconds=2)  # of hanging: without numbers no trial is guarded
PATIENCE = 1.0  # seconds for a page: one thread serves all rollouts, and an abort is worth more
_NEVER_TAKEN = frozenset({httpx.codes.UNPROCESSABLE_ENTITY, httpx.codes.REQUEST_ENTITY_TOO_LARGE})


class ExperimentsClient:
    """Reads analyses and keeps rollout records."""

    def __init__(self, http: httpx.Client, *, monotonic: Callable[[], float] = time.monotonic):
        self._http = http
        self._outage = Outage(ASK_AGAIN_AFTER, monotonic)
        self.problem: str | None = None

    def analysis(self, rollout: str) -> Analysis | None:
        """Return the analysis of a rollout, or None while the service cannot say.

        Raises:
            NotFoundError: The service knows nothing of the rollout.
        """
        response = self._get(rollout, f"/v1/rollouts/{rollout}/analysis")
        if response is None:
            return None
        if response.status_code == httpx.codes.NOT_FOUND:
            raise NotFoundError(f"the experiments service has no record of rollout {rollout}")
        return read_analysis(response.json()) if response.is_success else None

    def comparisons(self, name: str, shadow: str, tolerance: float) -> tuple[Comparison, ...]:
        """Return how a shadow compares with each version that has answered beside it.

        Args:
            name: The served model.
            shadow: The version that gets copies.
            tolerance: How far numbers may differ and agree, in the prediction's unit.
        """
        params = {"shadow": shadow, "tolerance": tolerance}
        response = self._get(name, f"/v1/models/{name}/shadow", params=params)
        if response is None or not response.is_success:
            return ()
        return tuple(response.json()["comparisons"])

    def records(self, name: str) -> tuple[Mapping[str, Any], ...] | None:
        """Return the rollout records of a served model, newest last, or None while away."""
        response = self._get(name, "/v1/rollouts", params={"model": name})
        if response is None or not response.is_success:
            return None
        return tuple(sorted(response.json()["rollouts"], key=lambda r: str(r["startedAt"])))

    def _get(self, subject: str, path: str, **options: Any) -> httpx.Response | None:
        try:
            with self._outage.noticed(subject):
                response = call(self._http, "GET", path, **options)
        except UnavailableError as error:
            self.problem = str(error)
            return None
        self.problem = None
        return response

    def put_record(self, item: Writeback) -> None:
        """Keep a rollout's record.

        Raises:
            UnavailableError: The service does not answer, or does not take it.
        """
        path = f"/v1/rollouts/{item.rollout}"
        with self._outage.noticed(item.rollout):
            response = call(self._http, "PUT", path, json=item.content, timeout=WRITE_TIMEOUT)
        if not response.is_success:
            raise UnavailableError(f"PUT {path}: {response.status_code} {response.text[:200]}")

    def put_decision(self, item: Writeback) -> None:
        """Keep a decision; one that the service will never take is logged and given up.

        Raises:
            UnavailableError: The service does not answer, or does not know of decisions yet.
        """
        path = f"/v1/rollouts/{item.rollout}/decisions/{item.content['id']}"
        with self._outage.noticed(item.rollout):
            response = call(self._http, "PUT", path, json=item.content, timeout=WRITE_TIMEOUT)
        if response.status_code in _NEVER_TAKEN:
            log.error("PUT %s: %s %s", path, response.status_code, response.text[:200])
        elif not response.is_success:
            raise UnavailableError(f"PUT {path}: {response.status_code} {response.text[:200]}")

    def decisions(self, rollout: str) -> tuple[Mapping[str, Any], ...]:
        """Return the decisions of a rollout, the earliest first.

        Raises:
            NotFoundError: The service knows nothing of the rollout.
            UnavailableError: The service does not answer.
        """
        with self._outage.noticed(rollout):
            response = self._known(rollout, "decisions")
        return tuple(response.json()["decisions"])

    def report(self, rollout: str, patience: float = PATIENCE) -> str:
        """Return the report of a rollout as a page of HTML.

        Drawing takes the service a second or more; that is no outage. It keeps what it has drawn, so
        asking again gets it.

        Args:
            rollout: Its id.
            patience: Seconds to wait.

        Raises:
            NotFoundError: The service knows nothing of the rollout.
            UnavailableError: The service does not answer, or is still drawing.
        """
        return self._known(rollout, "report", timeout=patience).text

    def _known(self, rollout: str, what: str, **options: Any) -> httpx.Response:
        path = f"/v1/rollouts/{rollout}/{what}"
        response = call(self._http, "GET", path, **options)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise NotFoundError(f"the experiments service has no record of rollout {rollout}")
        if not response.is_success:
            raise UnavailableError(f"GET {path}: {response.status_code}")
        return response


def read_analysis(document: Mapping[str, Any]) -> Analysis:
    """Read the analysis document of `docs/reference/contracts.md`."""
    steps = {
        step["index"]: StepCounts(
            stable=step["stable"]["requests"], candidate=step["candidate"]["requests"]
        )
        for step in document["steps"]
    }
    last = document.get("lastDecisionAt")
    return Analysis(
        verdict=Verdict(document["verdict"]),
        reason=document["reason"],
        at=parse_time(document["at"]),
        steps=steps,
        objective=document["objective"],
        guardrails=tuple(document["guardrails"]),
        srm=document["srm"],
        arms=document["arms"],
        last_decision_at=parse_time(last) if last else None,
        shadow=document.get("shadow"),
    )

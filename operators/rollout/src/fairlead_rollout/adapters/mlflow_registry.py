"""MLflow's registry over its REST API.

One tag-filtered search tells where all pointers stand: stages send no webhook, and moving an alias
changes no timestamp, so a poll is the only truth. The MLflow client is not imported: it costs a
second and 100 MB to start.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx

from fairlead_rollout.adapters.http import WRITE_TIMEOUT, call
from fairlead_rollout.adapters.outage import Outage
from fairlead_rollout.domain.description import with_block
from fairlead_rollout.domain.errors import FairleadError, NotLookedYetError, UnavailableError
from fairlead_rollout.domain.snapshot import RegistryView
from fairlead_rollout.domain.spec import Pointer, ServedModelSpec
from fairlead_rollout.domain.status import Writeback
from fairlead_rollout.domain.writebacks import APPROVE_TAG

log = logging.getLogger(__name__)

API = "/api/2.0/mlflow"
MANAGED = "fairlead.managed"
POLL_EVERY = timedelta(seconds=2)
STALE_AFTER = timedelta(seconds=6)  # three polls missed
TELL_AGAIN_AFTER = timedelta(seconds=5)  # of hanging: a verdict in MLflow may be late
WANTED_FOR = timedelta(minutes=15)  # since a pass has asked; each makes one every five minutes
ASKING = timedelta(seconds=0.5)  # that one poll may take for models that are not found
LONGEST_PAUSE = timedelta(seconds=30)  # until one that is not there is asked for again
PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class _Missing:
    """A registered model that the search does not find.

    Attributes:
        due: When to ask for it again.
        pause: Seconds from the last time until then; 0 when it was never asked for.
        problem: Why MLflow could not say whether it exists; None when it could.
    """

    due: float = 0.0
    pause: float = 0.0
    problem: str | None = None

    @property
    def is_known_not_to_be(self) -> bool:
        return self.pause > 0 and self.problem is None

    def asked(self, now: float, problem: str | None) -> "_Missing":
        longest = LONGEST_PAUSE.total_seconds()
        pause = min(max(2 * self.pause, POLL_EVERY.total_seconds()), longest)
        return _Missing(due=now + pause, pause=pause, problem=problem)


class _ApprovalTags:
    """The tags `rollout.approve` of the versions that wait for a person.

    Each is a call of its own: one poll asks for as many as fit into its time, the oldest first.
    """

    def __init__(self, ask: Callable[[str, str], str], monotonic: Callable[[], float]):
        self._ask = ask
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._wanted: dict[tuple[str, str], float] = {}  # since when nobody has asked for it
        self._known: dict[tuple[str, str], str] = {}  # the one looked at last comes last

    def want(self, model: str, version: str) -> str | None:
        """Return a version's tag as last seen, and have it looked at from now on."""
        with self._lock:
            self._wanted[model, version] = self._monotonic()
            return self._known.get((model, version))

    def look(self) -> frozenset[str]:
        """Look at the wanted tags; return the registered models with news.

        Raises:
            UnavailableError: MLflow does not answer.
        """
        until, news = self._monotonic() + ASKING.total_seconds(), set()
        for model, version in self._due():
            tag = self._ask(model, version)
            with self._lock:
                if self._known.pop((model, version), None) != tag:
                    news.add(model)
                self._known[model, version] = tag
            if self._monotonic() >= until:
                break
        return frozenset(news)

    def _due(self) -> list[tuple[str, str]]:
        with self._lock:
            since = self._monotonic() - WANTED_FOR.total_seconds()
            self._wanted = {pair: at for pair, at in self._wanted.items() if at >= since}
            self._known = {pair: tag for pair, tag in self._known.items() if pair in self._wanted}
            order = {pair: place for place, pair in enumerate(self._known)}
            return sorted(self._wanted, key=lambda pair: order.get(pair, -1))


class MlflowRegistry:
    """Looks at MLflow every two seconds and writes verdicts back.

    The poll has a thread of its own, so that a registry that hangs never delays an abort.
    """

    def __init__(self, http: httpx.Client, *, monotonic: Callable[[], float] = time.monotonic):
        self._http = http
        self._monotonic = monotonic
        self._outage = Outage(TELL_AGAIN_AFTER, monotonic)
        self._lock = threading.Lock()
        self._models: Mapping[str, Mapping[str, Any]] = {}
        self._seen_at: float | None = None
        self._wanted: dict[str, float] = {}  # since when nobody has asked for it
        self._tags = _ApprovalTags(self._approval, monotonic)
        self._missing: dict[str, _Missing] = {}  # for the poll alone
        self._looked_for: frozenset[str] = frozenset()
        self._attempted: frozenset[str] = frozenset()
        self._is_away = False
        self.problem: str | None = None

    def run(self, stop: threading.Event, wake: Callable[[frozenset[str]], None]) -> None:
        """Poll until told to stop; `wake` is given the registered models with news."""
        while not stop.is_set():
            news = self._poll_safely()
            if news:
                wake(news)
            stop.wait(POLL_EVERY.total_seconds())

    def _poll_safely(self) -> frozenset[str]:
        """Poll; when MLflow goes away or comes back, that is news for all."""
        changed, wanted = frozenset[str](), self._still_wanted()
        try:
            changed = self.poll()
            failed = {name: m.problem for name, m in self._missing.items() if m.problem}
            problem, attempted = next(iter(failed.values()), None), frozenset(failed)
        except FairleadError as error:
            problem, attempted = str(error), wanted
        except Exception as error:  # whatever it answered: the next poll may be better
            log.exception("MLflow answered something unknown")
            problem, attempted = type(error).__name__, wanted
        with self._lock:
            self.problem, self._attempted = problem, attempted
            is_away = problem is not None and self._is_stale()
            has_turned, self._is_away = is_away != self._is_away, is_away
        return wanted | changed if has_turned else changed

    def poll(self) -> frozenset[str]:
        """Look once.

        Returns:
            The registered models whose pointers have moved, whose candidate has another approval,
            or that were looked for the first time.

        Raises:
            UnavailableError: MLflow does not answer.
        """
        wanted = self._still_wanted()
        models, seen_at = self._pointers_now(), self._monotonic()
        if self._manage_missing(wanted - models.keys()):
            models, seen_at = self._pointers_now(), self._monotonic()
        approvals = self._tags.look()
        not_there = {name for name, m in self._missing.items() if m.is_known_not_to_be}
        looked_for = wanted & (models.keys() | not_there)
        with self._lock:
            names = models.keys() | self._models.keys()
            moved = {name for name in names if models.get(name) != self._models.get(name)}
            changed = frozenset(moved | (looked_for - self._looked_for) | approvals)
            self._models, self._looked_for, self._seen_at = models, looked_for, seen_at
        return changed

    def _still_wanted(self) -> frozenset[str]:
        """Return the registered models that passes ask for; others have lost their ServedModel."""
        with self._lock:
            since = self._monotonic() - WANTED_FOR.total_seconds()
            self._wanted = {model: at for model, at in self._wanted.items() if at >= since}
            return frozenset(self._wanted)

    def view(self, spec: ServedModelSpec, approval_of: str | None = None) -> RegistryView | None:
        """Return where the pointers stood at the last poll; None when that is too long ago.

        Args:
            spec: Whose pointers.
            approval_of: A version whose tag `rollout.approve` the polls are to look at from now on.

        Raises:
            NotLookedYetError: No poll has been made since the model was first asked for.
        """
        with self._lock:
            self._wanted[spec.model] = self._monotonic()
            if spec.model not in self._looked_for | self._attempted:
                raise NotLookedYetError(f"the registry has not been asked for {spec.model!r} yet")
            if self._is_stale() or spec.model not in self._looked_for:
                return None
            pointers = self._models.get(spec.model, {})
        shadow = spec.shadow
        return RegistryView(
            production=pointers.get(_key(spec.production)),
            shadow=pointers.get(_key(shadow)) if shadow else None,
            candidates={a: v for a in spec.candidates if (v := pointers.get(f"alias/{a}"))},
            approval=self._tags.want(spec.model, approval_of) if approval_of else None,
        )

    def _is_stale(self) -> bool:
        at = self._seen_at
        return at is None or self._monotonic() - at > STALE_AFTER.total_seconds()

    def write(self, spec: ServedModelSpec, item: Writeback) -> None:
        """Tell MLflow about a rollout.

        A version or a run that is gone cannot be told any more; that is logged, not an error.

        Raises:
            UnavailableError: MLflow does not answer; try again later.
        """
        with self._outage.noticed(f"{item.rollout}/{item.kind}"):
            self._write(spec, item)

    def _write(self, spec: ServedModelSpec, item: Writeback) -> None:
        match item.kind:
            case "tags" | "approval":
                for key, value in item.content.items():
                    version = {"name": spec.model, "version": item.version}
                    tag = {**version, "key": key, "value": value}
                    self._post("/model-versions/set-tag", tag)
            case "description":
                self._describe(spec.model, item)
            case "production":
                if self._names(spec, item.content["candidate"]):
                    self._move(spec.model, spec.production, item.version)
            case "report" | "page":
                self._log_files(spec.model, item.version, item.content)

    def _manage_missing(self, missing: frozenset[str]) -> bool:
        """Tag registered models so that the search finds them.

        Each is a call of its own, and hundreds may not exist: what does not fit into this poll is
        left for the next, or what does exist would be seen too late.

        Returns:
            Whether one was tagged.
        """
        self._missing = {model: self._missing.get(model, _Missing()) for model in missing}
        until, tagged = self._monotonic() + ASKING.total_seconds(), False
        for model in sorted(missing, key=lambda m: (self._missing[m].due, m)):
            now, problem = self._monotonic(), None
            if now >= until or self._missing[model].due > now:
                break
            try:
                tagged |= self._manage(model)
            except UnavailableError as error:
                problem = str(error)
            self._missing[model] = self._missing[model].asked(now, problem)
            if problem is not None:
                break  # the others would wait as long in vain
        return tagged

    def _manage(self, model: str) -> bool:
        """Tag a registered model; return whether it exists."""
        tag = {"name": model, "key": MANAGED, "value": "true"}
        return call(self._http, "POST", f"{API}/registered-models/set-tag", json=tag).is_success

    def _pointers_now(self) -> dict[str, dict[str, str]]:
        return {model["name"]: _pointers(model) for model in self._search()}

    def _search(self) -> Iterable[Mapping[str, Any]]:
        token = ""
        while True:
            query = {"filter": f"tags.`{MANAGED}` = 'true'", "max_results": PAGE}
            page = {"page_token": token} if token else {}
            path = f"{API}/registered-models/search"
            # A thousand models take MLflow over a second, and longer while it is busy.
            timeout = WRITE_TIMEOUT
            response = call(self._http, "GET", path, params={**query, **page}, timeout=timeout)
            if not response.is_success:
                raise UnavailableError(f"GET {path}: {response.status_code}")
            document = response.json()
            yield from document.get("registered_models", ())
            token = document.get("next_page_token", "")
            if not token:
                return

    def _names(self, spec: ServedModelSpec, version: str) -> bool:
        """Say whether production names a version just now; a newer promotion is not undone."""
        return self._pointers_now().get(spec.model, {}).get(_key(spec.production)) == version

    def _move(self, model: str, pointer: Pointer, version: str) -> None:
        target = {"name": model, "version": version}
        if pointer.alias:
            self._post("/registered-models/alias", {**target, "alias": pointer.alias})
            return
        # Without archiving, the higher version number would go on being the stage's version.
        stage = {"stage": pointer.stage, "archive_existing_versions": True}
        self._post("/model-versions/transition-stage", {**target, **stage})

    def _describe(self, model: str, item: Writeback) -> None:
        """Put our block into a version's description; what a person wrote there stays."""
        version = self._version(model, item.version)
        if version is None:
            log.warning("%s version %s is gone; it gets no description", model, item.version)
            return
        before = version.get("description", "")
        after = with_block(before, item.content["summary"], item.content["why"])
        if after is None:
            log.warning("the description of %s version %s is full", model, item.version)
        elif after != before:
            target = {"name": model, "version": item.version, "description": after}
            self._send("PATCH", "/model-versions/update", target)

    def _log_files(self, model: str, version: str, files: Mapping[str, str]) -> None:
        """Put files among the artifacts of the run that made a version."""
        run = (self._version(model, version) or {}).get("run_id")
        uri = self._artifact_uri(run) if run else None
        if uri is None or not uri.startswith("mlflow-artifacts:"):
            names = ", ".join(files)
            log.warning("%s of %s version %s: there is no run to go to", names, model, version)
            return
        path = quote(uri.removeprefix("mlflow-artifacts:").lstrip("/"))
        for name, text in files.items():
            url = f"/api/2.0/mlflow-artifacts/artifacts/{path}/{name}"
            response = call(self._http, "PUT", url, content=text.encode(), timeout=WRITE_TIMEOUT)
            if not response.is_success:
                log.error("MLflow does not take %s of %s: %s", name, model, response.status_code)

    def _version(self, model: str, version: str) -> Mapping[str, Any] | None:
        query = {"name": model, "version": version}
        response = call(self._http, "GET", f"{API}/model-versions/get", params=query)
        if not response.is_success:
            return None
        found: Mapping[str, Any] = response.json()["model_version"]
        return found

    def _artifact_uri(self, run: str) -> str | None:
        response = call(self._http, "GET", f"{API}/runs/get", params={"run_id": run})
        return response.json()["run"]["info"]["artifact_uri"] if response.is_success else None

    def _approval(self, model: str, version: str) -> str:
        """Return what a version's tag `rollout.approve` holds; empty without one."""
        query = {"name": model, "version": version}
        response = call(self._http, "GET", f"{API}/model-versions/get", params=query)
        found = response.json()["model_version"] if response.is_success else {}
        tags = {tag["key"]: tag["value"] for tag in found.get("tags", ())}
        return str(tags.get(APPROVE_TAG, ""))

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        self._send("POST", path, body)

    def _send(self, method: str, path: str, body: Mapping[str, Any]) -> None:
        response = call(self._http, method, API + path, json=body, timeout=WRITE_TIMEOUT)
        if not response.is_success:
            log.error(
                "MLflow does not take %s for %s: %s", path, body["name"], response.status_code
            )


def _key(pointer: Pointer) -> str:
    return f"stage/{pointer.stage}" if pointer.stage else f"alias/{pointer.alias}"


def _pointers(model: Mapping[str, Any]) -> dict[str, str]:
    """Read where a registered model's stages and aliases point.

    MLflow's own rule holds for stages: the highest version number in the stage.
    """
    stages: dict[str, str] = {}
    for version in model.get("latest_versions", ()):
        key = f"stage/{version['current_stage']}"
        stages[key] = max(stages.get(key, "0"), str(version["version"]), key=int)
    aliases = {f"alias/{a['alias']}": str(a["version"]) for a in model.get("aliases", ())}
    return stages | aliases

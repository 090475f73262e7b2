"""Files: atomic writes, Envoy's resource files, the folder others write, the agent's memory."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import orjson

from fairlead_gateway.app.ports import Applied, Part, Snapshot
from fairlead_gateway.domain.documents import PlanError
from fairlead_gateway.domain.endpoints import Workload, endpoints_by_version, parse_workload
from fairlead_gateway.domain.plan import TrafficPlan, parse_plan, to_dict
from fairlead_gateway.domain.render.shared import JSON

_Value = TypeVar("_Value")

_log = logging.getLogger(__name__)

_TYPE = "type.googleapis.com/envoy.config"
_LISTENER = f"{_TYPE}.listener.v3.Listener"
_CLUSTER = f"{_TYPE}.cluster.v3.Cluster"
_ROUTES = f"{_TYPE}.route.v3.RouteConfiguration"
_SCOPE = f"{_TYPE}.route.v3.ScopedRouteConfiguration"
_CERTIFICATE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a reader sees the old content or the new one.

    Args:
        path: The file.
        content: Its new content.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
    temporary.replace(path)


class Home:
    """The places below the folder all local processes share.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.served_models = root / "served-models"
        self.workloads = root / "workloads"
        self.gateway = root / "gateway"
        self.xds = self.gateway / "xds"
        self.listeners = self.xds / "listeners.json"
        self.clusters = self.xds / "clusters.json"
        self.rollouts = self.xds / "rollouts.json"
        self.scopes = self.xds / "scopes.json"
        self.certificate = self.xds / "certificate.json"
        self.access_log = self.gateway / "access.log"
        self.position = self.gateway / "position.json"
        self.memory = self.gateway / "applied.json"
        self.listen = self.gateway / "listen.json"
        self.bootstrap = self.gateway / "bootstrap.json"

    def prepare(self) -> None:
        """Make the folders, and files that hold Envoy back until the agent has replaced them.

        Envoy will not start without the files, and takes an empty one for an empty configuration.
        One that is no JSON leaves it waiting, unready.
        """
        self.xds.mkdir(parents=True, exist_ok=True)
        for path in (self.listeners, self.clusters, self.rollouts, self.scopes):
            with contextlib.suppress(FileExistsError), path.open("xb") as file:
                file.write(b"the agent has not written this file yet\n")


class XdsFiles:
    """The resource files Envoy reads.

    Args:
        home: Where they are.
    """

    def __init__(self, home: Home) -> None:
        home.prepare()
        self._home = home
        self._clusters = _LongFile(home.clusters, _CLUSTER)
        self._rollouts = _LongFile(home.rollouts)
        self._scopes = _LongFile(home.scopes, _SCOPE)
        self._names: Sequence[str] = [found["name"] for found in _resources_in(home.clusters)]
        self._shared = frozenset(
            scope["name"]
            for scope in _resources_in(home.scopes)
            if "route_configuration_name" in scope
        )

    def clusters(self) -> Sequence[str]:
        """Return the names of the clusters written last."""
        return self._names

    def write_clusters(self, parts: Sequence[Part]) -> str:
        """Replace the clusters, unless they are the same; return their version."""
        version = self._clusters.write(parts, lambda clusters: clusters)
        self._names = [part.name for part in parts]
        return version

    def write_listener(self, listener: JSON) -> str:
        """Replace the listener, unless it is the same; return its version."""
        return _push(self._home.listeners, _LISTENER, listener)

    def shared_scopes(self) -> Collection[str]:
        """Return the names of the scopes found at the start whose routes are among the rollouts'."""
        return self._shared

    def write_rollouts(self, parts: Sequence[Part], wrap: Callable[[object], JSON]) -> str:
        """Replace the rollouts' routes, unless they are the same; return their version."""
        return self._rollouts.write(parts, lambda routes: [{"@type": _ROUTES, **wrap(routes)}])

    def write_scopes(self, parts: Sequence[Part]) -> str:
        """Replace the scopes, unless they are the same; return their version."""
        return self._scopes.write(parts, lambda scopes: scopes)

    def renew(self, kind: str) -> None:
        """Replace a file by the same one, for Envoy to read it again.

        Args:
            kind: `listeners`, `clusters`, `rollouts` or `scopes`.
        """
        path = self._home.xds / f"{kind}.json"
        with contextlib.suppress(FileNotFoundError):  # Then it is about to be written anyway.
            write_atomically(path, path.read_bytes())

    def write_certificate(self, certificate: JSON) -> None:
        """Replace where the certificate is, unless it is the same."""
        _push(self._home.certificate, _CERTIFICATE, certificate)


def _push(path: Path, kind: str, resource: JSON) -> str:
    resources = [{"@type": kind, **resource}]
    version = _digest(_dumps(resources)).hex()
    document = _dumps({"version_info": version, "resources": resources})
    if not _holds(path, document):
        write_atomically(path, document)
    return version


class _LongFile:
    """A file of many parts, of which each is written down anew only when it has changed.

    Args:
        path: The file.
        kind: The type of each part, where it is one item of a list; else it is entries of an object.
    """

    def __init__(self, path: Path, kind: str = "") -> None:
        self._path = path
        self._kind = kind
        self._parts: dict[str, _Written] = {}
        self._version = ""
        self._stamp: tuple[int, int, int] | None = None

    def write(self, parts: Sequence[Part], wrap: Callable[[object], object]) -> str:
        """Replace the file, unless it is the same; return its version.

        Args:
            parts: What it holds.
            wrap: Makes the resources around all parts.
        """
        known = self._parts
        self._parts = {part.name: self._written(part, known.get(part.name)) for part in parts}
        digests = [written.digest for written in self._parts.values()]
        version = _digest(b"".join([_dumps(wrap(None)), *digests])).hex()
        if version != self._version or _stamp(str(self._path)) != self._stamp:
            document = _dumps({"version_info": version, "resources": wrap(self._joined())})
            if not _holds(self._path, document):
                write_atomically(self._path, document)
            self._version, self._stamp = version, _stamp(str(self._path))
        return version

    def _written(self, part: Part, before: "_Written | None") -> "_Written":
        if before is not None and before.inputs == part.inputs:
            return before
        made = part.render()
        content = _dumps([{"@type": self._kind, **made}] if self._kind else made)[1:-1]
        return _Written(inputs=part.inputs, content=content, digest=_digest(content))

    def _joined(self) -> object:
        if not self._parts:
            return [] if self._kind else {}
        content = b",".join(written.content for written in self._parts.values())
        return orjson.Fragment(b"[%b]" % content if self._kind else b"{%b}" % content)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """One part, as it stands in the file: without the brackets around it."""

    inputs: tuple[object, ...]
    content: bytes
    digest: bytes


def _resources_in(path: Path) -> Sequence[JSON]:
    document = _read_json(path)
    return document["resources"] if isinstance(document, dict) else []


def _holds(path: Path, content: bytes) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes() == content
    return False


def _dumps(document: object) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:8]


class FolderSource:
    """The folder of local mode: one file for each served model and each workload.

    Args:
        home: The folder.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._models: _Folder[TrafficPlan | None] = _Folder(
            home.served_models, _plan_of, keeper="manifest.json"
        )
        self._workloads: _Folder[Workload] = _Folder(home.workloads, parse_workload)
        self._last: Snapshot | None = None

    def read(self) -> Snapshot:
        """Return what is wanted now; the same object as before if no file has changed."""
        changed = [self._models.scan(), self._workloads.scan()]
        if any(changed) or self._last is None:
            self._last = self._collect()
        return self._last

    def _collect(self) -> Snapshot:
        plans: dict[str, TrafficPlan] = {}
        for plan in filter(None, self._models.values.values()):
            plans.setdefault(plan.model, plan)
        return Snapshot(
            plans=plans,
            endpoints=endpoints_by_version(self._workloads.values.values()),
            problems=self._models.problems,
            workload_problems=self._workloads.problems,
            # A folder that was never there is empty; one that is away is no reason to forget.
            complete=self._home.served_models.is_dir() or not self._home.memory.exists(),
        )


class _Folder(Generic[_Value]):
    """The `status.json` files of a folder's folders, parsed when they change.

    Args:
        root: The folder.
        parse: Reads one document.
        keeper: A file beside the status that says that it belongs to something that still is:
            while it is there a status that is missing is a lost one, and its last value stays.
    """

    def __init__(
        self, root: Path, parse: Callable[[object], _Value], keeper: str | None = None
    ) -> None:
        self._root = root
        self._parse = parse
        self._keeper = keeper
        self._stamps: dict[str, tuple[int, int, int]] = {}
        self.values: dict[str, _Value] = {}
        self.problems: dict[str, str] = {}

    def scan(self) -> bool:
        """Read what has changed; return whether anything has."""
        stamps = _stamps(self._root, self._keeper)
        if stamps is None or stamps == self._stamps:
            return False
        changed = [name for name, stamp in stamps.items() if self._stamps.get(name) != stamp]
        # New objects, as the last snapshot still holds the old ones.
        self.values = {name: value for name, value in self.values.items() if name in stamps}
        self.problems = {name: why for name, why in self.problems.items() if name in stamps}
        self._stamps = stamps
        for name in changed:
            self._load(name)
        return True

    def _load(self, name: str) -> None:
        """Read one file; one that is wrong keeps its last good value and names its fault."""
        try:
            document = json.loads((self._root / name / "status.json").read_bytes())
            value = self._parse(document)
            if value is None and self.values.get(name) is not None:
                self.problems[name] = "the plan is gone; what was applied last stays"
                return
            self.values[name] = value
            self.problems.pop(name, None)
        except FileNotFoundError:
            if self._keeper is not None and (self._root / name / self._keeper).exists():
                self.problems[name] = "status.json is missing; what was applied last stays"
                return
            self.values.pop(name, None)
            self._stamps.pop(name, None)
        except (PlanError, ValueError) as error:
            self._note(name, str(error))
        except OSError as error:
            self._note(name, str(error) or type(error).__name__)
            self._stamps.pop(name)  # The file may be right: it is looked at again.

    def _note(self, name: str, reason: str) -> None:
        if self.problems.get(name) != reason:
            _log.error("A status file is wrong", extra={"file": name, "reason": reason})
        self.problems[name] = reason


def _stamps(root: Path, keeper: str | None) -> dict[str, tuple[int, int, int]] | None:
    """Return a stamp of each status; None if the folder is away, which does not make it empty."""
    found: dict[str, tuple[int, int, int]] = {}
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                stamp = _stamp(f"{entry.path}/status.json")
                if stamp is None and keeper and _stamp(f"{entry.path}/{keeper}") is not None:
                    stamp = (0, 0, 0)
                if stamp is not None:
                    found[entry.name] = stamp
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(path)  # noqa: PTH116 - 20 times a second.
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _plan_of(document: object) -> TrafficPlan | None:
    if not isinstance(document, dict):
        raise PlanError("status", "must be an object")
    traffic = document.get("traffic")
    return None if traffic is None else parse_plan(traffic)


class PlanMemory:
    """The plans Envoy followed last, in a file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Mapping[str, Applied]:
        """Return the plans saved last; none if the file is missing or wrong."""
        document = _read_json(self._path)
        if not isinstance(document, dict):
            return {}
        try:
            found = [
                Applied(plan=parse_plan(item["plan"]), at=float(item["at"]))
                for item in document["applied"]
            ]
        except (KeyError, TypeError, ValueError):
            _log.exception("The plans followed last cannot be read; the source alone counts")
            return {}
        return {applied.plan.model: applied for applied in found}

    def save(self, applied: Mapping[str, Applied]) -> None:
        """Replace the plans."""
        items = [{"plan": to_dict(one.plan), "at": one.at} for one in applied.values()]
        write_atomically(self._path, orjson.dumps({"applied": items}))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None

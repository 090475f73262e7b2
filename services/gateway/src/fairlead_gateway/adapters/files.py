"""Files: atomic writes, Envoy's resource files, the folder others write, the agent's memory."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from fairlead_gateway.app.ports import Applied, Snapshot
from fairlead_gateway.domain.endpoints import Workload, endpoints_by_version, parse_workload
from fairlead_gateway.domain.plan import PlanError, TrafficPlan, parse_plan, to_dict
from fairlead_gateway.domain.render import JSON, XdsPaths, render_cluster

_Value = TypeVar("_Value")

_log = logging.getLogger(__name__)

_TYPE = "type.googleapis.com/envoy.config"
_LISTENER = f"{_TYPE}.listener.v3.Listener"
_CLUSTER = f"{_TYPE}.cluster.v3.Cluster"
_ROUTES = f"{_TYPE}.route.v3.RouteConfiguration"
_ENDPOINTS = f"{_TYPE}.endpoint.v3.ClusterLoadAssignment"
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
        self.endpoints = self.xds / "endpoints"
        self.listeners = self.xds / "listeners.json"
        self.clusters = self.xds / "clusters.json"
        self.routes = self.xds / "routes.json"
        self.certificate = self.xds / "certificate.json"
        self.access_log = self.gateway / "access.log"
        self.position = self.gateway / "position.json"
        self.memory = self.gateway / "applied.json"
        self.listen = self.gateway / "listen.json"
        self.bootstrap = self.gateway / "bootstrap.json"

    @property
    def paths(self) -> XdsPaths:
        """Where Envoy reads."""
        return XdsPaths(routes=str(self.routes), endpoints=str(self.endpoints))

    def prepare(self) -> None:
        """Make the folders, and files that hold Envoy back until the agent has replaced them.

        Envoy will not start without the files, and takes an empty one for an empty configuration.
        One that is no JSON leaves it waiting, unready.
        """
        self.endpoints.mkdir(parents=True, exist_ok=True)
        for path in (self.listeners, self.clusters, self.routes):
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

    def clusters(self) -> Sequence[str]:
        """Return the names of the clusters written last."""
        document = _read_json(self._home.clusters)
        if not isinstance(document, dict):
            return []
        return [resource["name"] for resource in document["resources"]]

    def write_endpoints(self, cluster: str, endpoints: JSON) -> None:
        """Replace one cluster's endpoints, unless they are the same."""
        _push(self._home.endpoints / f"{cluster}.json", _ENDPOINTS, [endpoints])

    def write_clusters(self, names: Sequence[str]) -> str:
        """Replace the clusters, unless they are the same; return their version."""
        rendered = [render_cluster(name, self._home.paths) for name in names]
        return _push(self._home.clusters, _CLUSTER, rendered)

    def write_listener(self, listener: JSON) -> str:
        """Replace the listener, unless it is the same; return its version."""
        return _push(self._home.listeners, _LISTENER, [listener])

    def write_routes(self, routes: JSON) -> str:
        """Replace the routes, unless they are the same; return their version."""
        return _push(self._home.routes, _ROUTES, [routes])

    def write_certificate(self, certificate: JSON) -> None:
        """Replace where the certificate is, unless it is the same."""
        _push(self._home.certificate, _CERTIFICATE, [certificate])

    def remove_endpoints(self, keep: Sequence[str]) -> None:
        """Remove the endpoints of every cluster not kept."""
        for path in self._home.endpoints.glob("*.json"):
            if path.stem not in keep:
                path.unlink(missing_ok=True)


def _push(path: Path, kind: str, resources: Sequence[JSON]) -> str:
    typed = [{"@type": kind, **resource} for resource in resources]
    content = json.dumps(typed, sort_keys=True)
    version = hashlib.sha256(content.encode()).hexdigest()[:16]
    document = json.dumps({"version_info": version, "resources": typed}, sort_keys=True).encode()
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == document:
            return version
    write_atomically(path, document)
    return version


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
        if stamps == self._stamps:
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
        except (PlanError, ValueError, OSError) as error:
            self.problems[name] = str(error) or type(error).__name__
            _log.error("A status file is wrong", extra={"file": name, "reason": str(error)})


def _stamps(root: Path, keeper: str | None) -> dict[str, tuple[int, int, int]]:
    found: dict[str, tuple[int, int, int]] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(root) as entries:
        for entry in entries:
            stamp = _stamp(f"{entry.path}/status.json")
            if stamp is None and keeper and _stamp(f"{entry.path}/{keeper}") is not None:
                stamp = (0, 0, 0)
            if stamp is not None:
                found[entry.name] = stamp
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
        write_atomically(self._path, json.dumps({"applied": items}).encode())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None

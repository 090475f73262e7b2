"""Workloads in a folder: the local stand-in for Deployments.

The controller writes what it wants (`spec.json`); `fairlead up` runs the processes and writes what
it sees (`status.json`), as a kubelet would.
"""

import shutil
from pathlib import Path

from fairlead_rollout.adapters.files import read_json, write_json
from fairlead_rollout.adapters.home import Home
from fairlead_rollout.app.ports import ServedModel
from fairlead_rollout.domain.names import workload_name
from fairlead_rollout.domain.snapshot import Failure, Workload


class FolderCluster:
    """Asks for workloads and reads how they are."""

    def __init__(self, home: Home):
        self._root = home.workloads

    def workloads(self, served: ServedModel) -> tuple[Workload, ...]:
        """Return the observed workloads of a served model."""
        specs = (read_json(path) for path in sorted(self._root.glob("*/spec.json")))
        return tuple(self._observe(spec) for spec in specs if spec and spec["model"] == served.name)

    def ensure(self, served: ServedModel, version: str, replicas: int) -> None:
        """Ask for a number of processes of a version."""
        name, spec = served.name, served.spec
        assert spec is not None
        workload = workload_name(name, spec.model, version)
        wanted = {
            "workload": workload,
            "model": name,
            "registeredModel": spec.model,
            "version": version,
            "replicas": replicas,
            "environment": spec.environment,
            "timeout": spec.timeout.total_seconds(),
            "maxBodyBytes": spec.max_body_bytes,
        }
        path = self._root / workload / "spec.json"
        if read_json(path) != wanted:
            write_json(path, wanted)

    def remove(self, served: ServedModel, version: str) -> None:
        """Ask for none of a version; `fairlead up` removes the folder when all have ended."""
        for path in self._root.glob("*/spec.json"):
            spec = read_json(path)
            if spec and (spec["model"], spec["version"]) == (served.name, version):
                path.unlink(missing_ok=True)

    def _observe(self, spec: dict[str, str | int]) -> Workload:
        name = str(spec["workload"])
        status = read_json(self._root / name / "status.json") or {}
        failure = status.get("failure")
        return Workload(
            name=name,
            version=str(spec["version"]),
            wanted=int(spec["replicas"]),
            ready=sum(1 for endpoint in status.get("endpoints", ()) if endpoint["ready"]),
            restarts=status.get("restarts", 0),
            failure=Failure(exit_code=failure["exitCode"], reason=failure["reason"])
            if failure
            else None,
        )


def forget(folder: Path) -> None:
    """Remove the folder of a workload that is no longer wanted and has ended."""
    if not (folder / "spec.json").exists():
        shutil.rmtree(folder, ignore_errors=True)

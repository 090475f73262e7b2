"""Runs the load test in the cluster, and copies its report here.

    python -m fairlead_load.cluster --namespace ml [--release load] [-- Helm's options]

It finds the stable version's Service, installs the chart beside the served model, waits for the
end, fetches the report, and removes what it installed. Needs `kubectl` and `helm`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

CHART: Final = Path(__file__).parent.parent / "chart"
STARTS_WITHIN: Final = 600.0  # seconds
EVERY: Final = 1.0

Run = Callable[[Sequence[str]], str]
"""Runs a command; answers what it printed."""


class ClusterError(Exception):
    """The run cannot be started, or its report not fetched; the message says why."""


class Cluster:
    """What is asked of a cluster, in one namespace.

    Args:
        namespace: The served model's.
        release: The name of the load test.
        run: Runs a command.
    """

    def __init__(self, namespace: str, release: str, run: Run) -> None:
        self._namespace = namespace
        self._release = release
        self._run = run

    def direct(self, model: str) -> str:
        """Answer the address of the stable version's Service."""
        served = json.loads(self._kubectl("get", "servedmodel", model, "--output=json"))
        stable = served.get("status", {}).get("stable")
        if stable is None:
            raise ClusterError(f"the ServedModel {model} serves no version yet")
        labels = f"--selector=fairlead.dev/model={model},fairlead.dev/version={stable}"
        found = json.loads(self._kubectl("get", "service", labels, "--output=json"))["items"]
        if not found:
            raise ClusterError(f"version {stable} of the ServedModel {model} has no Service")
        return f"http://{found[0]['metadata']['name']}:8080"

    def install(self, values: dict[str, str], options: Sequence[str]) -> None:
        """Install the chart."""
        given = [f"--set-string={name}={value}" for name, value in values.items()]
        self._helm("install", self._release, str(CHART), *given, *options)

    def uninstall(self) -> None:
        """Remove what was installed."""
        self._helm("uninstall", self._release, "--wait")

    def exit_code(self) -> int | None:
        """Answer how the run ended, None while it has not."""
        pods = self._master_pods()
        states = [s for p in pods for s in p.get("status", {}).get("containerStatuses", ())]
        ended = [s["state"]["terminated"] for s in states if "terminated" in s.get("state", {})]
        master = [
            s["state"]["terminated"]["exitCode"]
            for s in states
            if s["name"] == "master" and "terminated" in s.get("state", {})
        ]
        if not master and ended:
            raise ClusterError("the master's pod ended before the run did")
        return int(master[0]) if master else None

    def has_started(self) -> bool:
        """Tell whether the master runs, or has run."""
        states = [s for p in self._master_pods() for s in p["status"].get("containerStatuses", ())]
        return any(s["name"] == "master" and "waiting" not in s["state"] for s in states)

    def log(self) -> str:
        """Answer what the master printed."""
        return self._kubectl("logs", f"job/{self._release}-master", "--container=master")

    def fetch(self, folder: Path) -> None:
        """Copy the report, and let its pod end."""
        pod = self._master_pods()[0]["metadata"]["name"]
        self._kubectl("cp", "--container=report", f"{pod}:/report", str(folder))
        self._kubectl("exec", pod, "--container=report", "--", "touch", "/report/fetched")

    def _master_pods(self) -> list[dict[str, Any]]:
        selector = f"--selector=job-name={self._release}-master"
        found: list[dict[str, Any]] = json.loads(
            self._kubectl("get", "pod", selector, "--output=json")
        )["items"]
        return found

    def _kubectl(self, *arguments: str) -> str:
        return self._run(["kubectl", "--namespace", self._namespace, *arguments])

    def _helm(self, *arguments: str) -> str:
        return self._run(["helm", "--namespace", self._namespace, *arguments])


def run(command: Sequence[str]) -> str:
    """Run a command.

    Raises:
        ClusterError: It failed; with the last line it wrote.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise ClusterError(f"'{command[0]} {command[3]}': {reason}")
    return done.stdout


def wait_for_end(cluster: Cluster, sleep: Callable[[float], None], now: Callable[[], float]) -> int:
    """Wait until the run is over; answer the master's exit code."""
    deadline = now() + STARTS_WITHIN
    has_started = False
    while (code := cluster.exit_code()) is None:
        has_started = has_started or cluster.has_started()
        if not has_started and now() > deadline:
            raise ClusterError(f"the master did not start within {STARTS_WITHIN:g} s")
        sleep(EVERY)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load test; answer its exit code: 1 when a threshold was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--release", default="load")
    parser.add_argument("--model", default="flight-delay", help="the ServedModel's name")
    parser.add_argument("--output", type=Path, default=Path(".fairlead/load"))
    parser.add_argument("helm", nargs="*", help="options of helm install, such as --set users=200")
    options = parser.parse_args(arguments)
    cluster = Cluster(options.namespace, options.release, run)
    folder = options.output / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    try:
        values = {"model": options.model, "direct.url": cluster.direct(options.model)}
        cluster.install(values, options.helm)
        try:
            code = wait_for_end(cluster, time.sleep, time.monotonic)
            sys.stdout.write(cluster.log())
            folder.mkdir(parents=True)
            cluster.fetch(folder)
        finally:
            cluster.uninstall()
    except ClusterError as error:
        sys.stderr.write(f"load: {error}\n")
        return 2
    sys.stderr.write(f"load: the report is in {folder}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())

"""`make load`: runs the load test against a stack on this machine, and starts one if none runs.

    python -m fairlead_load.local [--home .fairlead] [--web] [Locust's options, and ours]

What a stack lacks is made: flights, a registered version (two for the shape `promote`), the served
model. The report is kept in `HOME/load/<when>/`: report.html, stats*.csv, verdict.json.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fairlead_load.promotion import PromotionError, Registry

NAME: Final = "flight-delay"
RECIPES: Final = ("first", "weather")
WITHIN: Final = 120.0  # seconds
LOCUSTFILE: Final = Path(__file__).parent.parent / "locustfile.py"
SERVED_MODEL: Final = {
    "apiVersion": "fairlead.dev/v1alpha1",
    "kind": "ServedModel",
    "metadata": {"name": NAME},
    "spec": {
        "model": NAME,
        "server": {"replicas": 2},
        "rollout": {
            "steps": [{"weight": 10, "for": "10s"}, {"weight": 50, "until": "decided"}],
            "objective": {"outcome": "squared_error", "better": "lower", "minimumEffect": 0.01},
            "guardrails": {"errors": {"margin": 0.25}},
        },
    },
}


class LocalError(Exception):
    """The stack on this machine cannot be used; the message says what to do."""


class Stack:
    """The stack in a folder.

    Args:
        home: The folder.
    """

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.data = self.home / "data"

    def url(self, listener: str) -> str:
        """Answer a listener's address."""
        return f"http://127.0.0.1:{self._read('ports.json')['ports'][listener]}"

    def is_ready(self) -> bool:
        """Tell whether everything answers."""
        try:
            return all(
                _answers(f"{self.url(listener)}{path}")
                for listener, path in (
                    ("agent", "/readyz"),
                    ("experiments", "/readyz"),
                    ("mlflow", "/health"),
                )
            )
        except KeyError:
            return False

    def stable(self) -> str | None:
        """Answer the version that serves, once the gateway routes to it."""
        status = self._read(f"served-models/{NAME}/status.json")
        applied = {c["type"]: c["status"] for c in status.get("conditions", ())}
        version: str | None = status.get("stable")
        return version if applied.get("TrafficApplied") == "True" else None

    def is_rolling_out(self) -> bool:
        """Tell whether a candidate is on trial."""
        rollout = self._read(f"served-models/{NAME}/status.json").get("rollout") or {}
        return rollout.get("state") in {"pending", "running"}

    def direct(self, version: str) -> str:
        """Answer the address of one process of a version."""
        for path in sorted(self.home.glob("workloads/*/status.json")):
            workload = self._read(str(path.relative_to(self.home)))
            if (workload.get("model"), workload.get("version")) == (NAME, version):
                for endpoint in workload.get("endpoints", ()):
                    if endpoint["ready"]:
                        return f"http://{endpoint['address']}:{endpoint['port']}"
        raise LocalError(f"version {version} of {NAME} has no process that is ready")

    def run(self, *command: str, text: str = "") -> str:
        """Run one of Fairlead's commands for this stack; answer what it printed."""
        environment = {**os.environ, "FAIRLEAD_HOME": str(self.home)}
        done = subprocess.run(
            command, input=text, stdout=subprocess.PIPE, text=True, check=False, env=environment
        )
        if done.returncode:
            raise LocalError(f"'{' '.join(command[:2])}' ended with exit code {done.returncode}")
        return done.stdout

    def _read(self, name: str) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads((self.home / name).read_bytes())
        except (OSError, ValueError):
            return {}
        return document


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[None]:
    """Have the stack run: the one that does, or one that ends with the test."""
    if stack.is_ready():
        _say(f"using the stack that runs in {stack.home}")
        yield
        return
    _say(f"starting a stack in {stack.home}")
    stack.home.mkdir(parents=True, exist_ok=True)
    with (stack.home / "load.log").open("ab") as log:
        command = ["fairlead", "--home", str(stack.home), "up"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait(lambda: _is_up(process, stack), f"the stack; see {stack.home / 'load.log'}")
        yield
    finally:
        process.terminate()
        process.wait(60)


def _is_up(process: subprocess.Popen[bytes], stack: Stack) -> bool:
    if process.poll() is not None:
        raise LocalError(f"the stack ended; see {stack.home / 'load.log'}")
    return stack.is_ready()


def prepare(stack: Stack, versions: int) -> str:
    """Have flights, registered versions and a served model; answer the version that serves."""
    stack.run("fairlead-training", "prepare", "--data", str(stack.data))
    registry = Registry(stack.url("mlflow"), NAME, {})
    known = len(registry.versions())
    for recipe in RECIPES[known:versions]:
        _say(f"training the version {recipe!r}")
        _register(stack, recipe)
    if stack.stable() is None:
        stack.run("fairlead", "apply", "-f", "-", text=json.dumps(SERVED_MODEL))
        if all(v.stage != "Production" for v in registry.versions()):
            registry.promote(1)
    _wait(lambda: stack.stable() is not None, f"{NAME} to serve; see 'fairlead status'")
    if stack.is_rolling_out():
        _say(f"a rollout of {NAME} is under way: the run's figures will be those of both versions")
    return str(stack.stable())


def _register(stack: Stack, recipe: str) -> None:
    tracking = ("--tracking-uri", stack.url("mlflow"))
    data = ("--data", str(stack.data))
    printed = stack.run("fairlead-training", "train", "--version", recipe, *data, *tracking)
    run_id = printed.split()[-1]
    given = ("--run-id", run_id, "--model", NAME)
    stack.run("fairlead-training", "register", *given, *data, *tracking)


def locust(stack: Stack, version: str, folder: Path, *, web: bool, more: Sequence[str]) -> int:
    """Run Locust; answer its exit code."""
    command = [
        *(sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE)),
        *("--host", stack.url("gateway"), "--model", NAME),
        *("--experiments", stack.url("experiments"), "--mlflow", stack.url("mlflow")),
        *("--direct", stack.direct(version), "--data", str(stack.data / "heldout")),
        *("--html", str(folder / "report.html"), "--csv", str(folder / "stats")),
        *("--verdict", str(folder / "verdict.json")),
        *(("--web-host", "127.0.0.1") if web else ("--headless", "--only-summary")),
        *more,
    ]
    return subprocess.run(command, check=False).returncode


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - this machine
            return True
    except (OSError, urllib.error.HTTPError):
        return False


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN
    while not condition():
        if time.monotonic() > deadline:
            raise LocalError(f"waited {WITHIN:g} s in vain for {what}")
        time.sleep(0.1)


def _say(what: str) -> None:
    sys.stderr.write(f"load: {what}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load test; answer Locust's exit code: 1 when a threshold was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--home", type=Path, default=Path(os.environ.get("FAIRLEAD_HOME", ".fairlead"))
    )
    parser.add_argument("--web", action="store_true", help="Locust's web page instead of one run")
    parser.add_argument("--shape", default="steady")
    parser.add_argument("--users", default="20")
    options, more = parser.parse_known_args(arguments)
    stack = Stack(options.home)
    folder = stack.home / "load" / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    given = ("--shape", options.shape, "--users", options.users, *more)
    try:
        with running(stack):
            version = prepare(stack, versions=2 if options.shape == "promote" else 1)
            folder.mkdir(parents=True)
            code = locust(stack, version, folder, web=options.web, more=given)
    except (LocalError, PromotionError) as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    _say(f"the report is in {folder}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())

"""Processes of this machine: start, find again, probe, end.

Every process is started in a session of its own and carries in its environment whose it is. The
table of processes is therefore the only record: a second `fairlead up` finds what a killed one
left, whatever it had or had not written down.
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from fairlead_rollout.domain.processes import ProcessSpec

HOME = "FAIRLEAD_HOME"
KEY = "FAIRLEAD_PROCESS"
PORT = "FAIRLEAD_PORT"
DIGEST = "FAIRLEAD_DIGEST"


@dataclass(frozen=True, kw_only=True)
class Running:
    """A process that was started or found."""

    key: str
    port: int | None
    digest: str
    process: psutil.Process

    @property
    def is_alive(self) -> bool:
        """Say whether the process still runs; one that ended and was not waited for does not."""
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def exit_code(self) -> int | None:
        """Return how an ended process ended: negative for a signal, None when not known."""
        try:
            code: int | None = self.process.wait(timeout=0)
        except psutil.Error:
            return None
        return code

    def terminate(self) -> None:
        """Ask the process to end."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.terminate()

    def kill(self) -> None:
        """End the process and all it started, at once."""
        kill_group(self.process.pid)


def kill_group(leader: int) -> None:
    """End every process of a session that we started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Say whether a port of the loopback interface can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def start(spec: ProcessSpec, home: Path, log: Path) -> Running:
    """Start a process; what it prints goes to its log file."""
    port = spec.port if spec.port is not None else free_port()
    marks = {HOME: str(home), KEY: spec.key, PORT: str(port), DIGEST: spec.digest}
    command = [part.replace("{port}", str(port)) for part in spec.command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(  # noqa: S603 -- our own commands, no shell
            command,
            env={**os.environ, **spec.environment, **marks},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    child.returncode = 0  # psutil waits for it; Popen's own finalizer must not
    return Running(key=spec.key, port=port, digest=spec.digest, process=psutil.Process(child.pid))


def find(home: Path) -> Iterator[Running]:
    """Find what an earlier `fairlead up` of the folder started and left.

    A group whose leader is gone (a server's worker that outlived it) is ended on the way.
    """
    for process in psutil.process_iter():
        marks = _marks(process)
        if marks.get(HOME) != str(home) or process.pid == os.getpid():
            continue
        leader = _group(process.pid)
        if leader == process.pid:
            yield Running(
                key=marks[KEY],
                port=int(marks[PORT]),
                digest=marks.get(DIGEST, ""),
                process=process,
            )
        elif leader is not None and _has_ended(leader):
            kill_group(leader)


def _has_ended(pid: int) -> bool:
    """Say whether a process has ended; where nobody waits for orphans, it is there all the same."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _marks(process: psutil.Process) -> dict[str, str]:
    try:
        environment: dict[str, str] = process.environ()
    except (psutil.Error, OSError):
        return {}
    return environment if {HOME, KEY, PORT} <= environment.keys() else {}


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None

"""Starts a server on one processor, checks its answers, and measures what it uses under load."""

import concurrent.futures
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from peers import QUIET, Launch

HERE = Path(__file__).parent
SERVER_CPU, CLIENT_CPU = "0", "1"
SINGLES = 40
_TICK = os.sysconf("SC_CLK_TCK")
_START, _END = 120.0, 5.0


class ServerFailedError(Exception):
    """A server did what makes its figures worthless; the message is the reason.

    Args:
        reason: What it did; this machine's folders are cut off the paths in it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(re.sub(r"/[^\s'\":]*/", "", reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of load on one server.

    Attributes:
        rate: Requests answered in a second.
        cpu: Processor seconds of the server's processes per request.
        p50: Milliseconds within which half of the answers came.
        p99: Milliseconds within which 99 of 100 came.
        errors: Answers that were none, or not 200.
        others: How many processors everybody else used meanwhile.
    """

    rate: float
    cpu: float
    p50: float
    p99: float
    errors: int
    others: float


class Server:
    """A server that runs.

    Args:
        launch: How it was started.
        model: The folder of its model, with the bodies.
        process: Its first process.
        freezes: Whether it is stopped while it is not measured.
    """

    def __init__(
        self, launch: Launch, model: Path, process: psutil.Process, *, freezes: bool
    ) -> None:
        self._launch = launch
        self._model = model
        self._process = process
        self._freezes = freezes

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Send one body; give the status and the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._launch.port, timeout=30)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", self._launch.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def body(self, name: object) -> Path:
        """Give the file with a body in the server's own form."""
        return self._model / f"{self._launch.dialect}-{name}.json"

    def verify(self) -> None:
        """Check that it predicts what the model does, for many callers at once.

        Raises:
            ServerFailedError: It does not.
        """
        expected = np.array(json.loads((self._model / "expected.json").read_text()))
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            numbers = [number for number in range(SINGLES) for _ in range(2)]
            answers = list(pool.map(lambda at: self._values(f"row-{at}"), numbers))
        _check(np.concatenate(answers), expected[numbers])
        _check(self._values(len(expected)), expected)

    def _values(self, name: object) -> Any:
        try:
            status, raw = self.post(self.body(name).read_bytes())
        except (OSError, http.client.HTTPException) as error:
            raise ServerFailedError(f"it gave no answer: {type(error).__name__}") from error
        if status != 200:
            raise ServerFailedError(f"it answered {status}: {raw[:200]!r}")
        return values_of(raw)

    def measure(self, rows: int, connections: int, seconds: int) -> Measured:
        """Send one body again and again on some connections, and count.

        Raises:
            ServerFailedError: It has ended, or answered nothing.
        """
        before, busy = self._cpu(), _busy()
        client = os.times().children_user + os.times().children_system
        started = time.perf_counter()
        requests, took, errors, p50, p99 = self._wrk(rows, connections, seconds)
        wall = time.perf_counter() - started
        used = sum(now - before.get(process, 0.0) for process, now in self._cpu().items())
        client = os.times().children_user + os.times().children_system - client
        if not is_alive(self._process):
            raise ServerFailedError("it ended under load")
        if not requests:
            raise ServerFailedError(f"it answered nothing in {seconds} s of load; give it longer")
        return Measured(
            rate=requests / took,
            cpu=used / requests,
            p50=p50,
            p99=p99,
            errors=int(errors),
            others=max(0.0, _busy() - busy - used - client) / wall,
        )

    def _wrk(self, rows: int, connections: int, seconds: int) -> Sequence[float]:
        command = ["taskset", "-c", CLIENT_CPU, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s"]
        command += ["--timeout", "20s", "-s", str(HERE / "post.lua")]
        command += [f"http://127.0.0.1:{self._launch.port}{self._launch.path}"]
        environment = {**os.environ, "BODY": str(self.body(rows))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
        if line is None:
            raise ServerFailedError(f"it takes no load: {(done.stdout + done.stderr).strip()}")
        requests, micros, errors, p50, p99 = map(float, line.split()[1:])
        return requests, micros / 1e6, errors, p50 / 1e3, p99 / 1e3

    def memory(self) -> tuple[float, float]:
        """Give the resident and the proportional set size, in MiB."""
        found = []
        for process in tree(self._process):
            with _gone():
                found.append(process.memory_full_info())
        return sum(one.rss for one in found) / 2**20, sum(one.pss for one in found) / 2**20

    def idle(self, seconds: float) -> float:
        """Give how many processors it uses while nobody asks anything."""
        before = sum(self._cpu().values())
        time.sleep(seconds)
        return (sum(self._cpu().values()) - before) / seconds

    def _cpu(self) -> Mapping[int, float]:
        """Give the processor seconds of each of its processes."""
        found = {}
        for process in tree(self._process):
            with _gone():
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
        return found

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run; at all other times it is stopped, so that it takes nothing from others.

        Raises:
            ServerFailedError: It does not answer any more.
        """
        self._signal(signal.SIGCONT)
        try:
            for _ in range(5):
                self._values(1)
            yield
        finally:
            self.freeze()

    def freeze(self) -> None:
        """Stop it without ending it, if it bears that."""
        if self._freezes:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        for process in tree(self._process):
            with _gone():
                process.send_signal(number)


@contextmanager
def started(
    launch: Launch, model: Path, log: Path, *, freezes: bool
) -> Iterator[tuple[Server, float]]:
    """Start a server; give it and the seconds until its first prediction. It ends with the block.

    Raises:
        ServerFailedError: It did not answer in time.
    """
    tools = str(Path(launch.command[0]).parent)
    path = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
    begun = time.perf_counter()
    with log.open("ab") as stream:
        child = subprocess.Popen(
            ["taskset", "-c", SERVER_CPU, *launch.command],
            env={**os.environ, **QUIET, "PATH": path, **launch.environment},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    server = Server(launch, model, psutil.Process(child.pid), freezes=freezes)
    try:
        _await_answer(server, child, begun, log)
        yield server, time.perf_counter() - begun
    finally:
        _end(child)


def _await_answer(server: Server, child: subprocess.Popen[bytes], begun: float, log: Path) -> None:
    body = server.body(1).read_bytes()
    answer = ""
    while True:
        if child.poll() is not None:
            raise ServerFailedError(f"it ended at the start: {last_words(log.read_text('utf-8'))}")
        if time.perf_counter() - begun > _START:
            raise ServerFailedError(f"it gave no good answer within {_START:.0f} s{answer}")
        try:
            status, raw = server.post(body)
            if status == 200:
                return
            answer = f", but {status}: {raw[:200]!r}"
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.01)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a server and all that it has started, gently first."""
    with _gone():
        processes = tree(psutil.Process(child.pid))
        for process in processes:
            with _gone():
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in psutil.wait_procs(processes, timeout=_END)[1]:
            with _gone():
                process.kill()
    child.wait(10)


@contextmanager
def _gone() -> Iterator[None]:
    """Go on when a process has ended meanwhile."""
    try:
        yield
    except psutil.NoSuchProcess:
        return


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that nobody asks after its end (no init reaps it) does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def tree(process: psutil.Process) -> list[psutil.Process]:
    """Give a process and all that it has started."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def free_ports(first: int, count: int) -> tuple[int, ...]:
    """Find ports that nobody listens on, from the first on."""
    found: list[int] = []
    port = first
    while len(found) < count:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                found.append(port)
            except OSError:
                pass
        port += 1
    return tuple(found)


def last_words(log: str) -> str:
    """Give the last line of a log."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


def values_of(raw: bytes) -> Any:
    """Read the predictions in any server's answer.

    Raises:
        ServerFailedError: There are none.
    """
    try:
        document = json.loads(raw)
        if isinstance(document, dict):
            outputs = document.get("outputs")
            document = outputs[0]["data"] if outputs else document["predictions"]
        return np.asarray(document, float).ravel()
    except (ValueError, LookupError, TypeError) as error:
        raise ServerFailedError(f"it answered no predictions: {raw[:200]!r}") from error


def _check(found: Any, expected: Any) -> None:
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=2e-6, atol=1e-6):
        raise ServerFailedError("it does not predict what the model does")


def _busy() -> float:
    with Path("/proc/stat").open(encoding="ascii") as file:
        fields = [int(word) for word in file.readline().split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / _TICK

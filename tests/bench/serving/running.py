"""Starts a server on one processor, checks its answers, and measures what it uses under load."""

import concurrent.futures
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from peers import HERE, QUIET, Launch

SERVER_CPU, CLIENT_CPU = "0", "1"
SINGLES = 40
_TICK = os.sysconf("SC_CLK_TCK")
_START = 120.0


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
    """

    def __init__(self, launch: Launch, model: Path, process: psutil.Process) -> None:
        self._launch = launch
        self._model = model
        self._process = process

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
            ValueError: It does not.
        """
        expected = np.array(json.loads((self._model / "expected.json").read_text()))
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            numbers = [number for number in range(SINGLES) for _ in range(2)]
            answers = list(pool.map(lambda at: self._values(f"row-{at}"), numbers))
        _check(np.concatenate(answers), expected[numbers])
        _check(self._values(len(expected)), expected)

    def _values(self, name: object) -> Any:
        status, raw = self.post(self.body(name).read_bytes())
        if status != 200:
            raise ValueError(f"it answered {status}: {raw[:200]!r}")
        document = json.loads(raw)
        if "outputs" in document:
            return np.asarray(document["outputs"][0]["data"], float).ravel()
        return np.asarray(document["predictions"], float).ravel()

    def measure(self, rows: int, connections: int, seconds: int) -> Measured:
        """Send one body again and again on some connections, and count."""
        processes = self._tree()
        before, busy = _cpu(processes), _busy()
        client = os.times().children_user + os.times().children_system
        started = time.perf_counter()
        requests, took, errors, p50, p99 = self._wrk(rows, connections, seconds)
        wall = time.perf_counter() - started
        used = _cpu(processes) - before
        client = os.times().children_user + os.times().children_system - client
        return Measured(
            rate=requests / took,
            cpu=used / max(requests, 1),
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
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        requests, micros, errors, p50, p99 = map(float, line.split()[1:])
        return requests, micros / 1e6, errors, p50 / 1e3, p99 / 1e3

    def memory(self) -> tuple[float, float]:
        """Give the resident and the proportional set size, in MiB."""
        found = [process.memory_full_info() for process in self._tree()]
        return sum(one.rss for one in found) / 2**20, sum(one.pss for one in found) / 2**20

    def idle(self, seconds: float) -> float:
        """Give how many processors it uses while nobody asks anything."""
        processes = self._tree()
        before = _cpu(processes)
        time.sleep(seconds)
        return (_cpu(processes) - before) / seconds

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run; at all other times it is stopped, so that it takes nothing from others."""
        self._signal(signal.SIGCONT)
        try:
            for _ in range(5):
                self.post(self.body(1).read_bytes())
            yield
        finally:
            self.freeze()

    def freeze(self) -> None:
        """Stop it without ending it."""
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._tree():
            process.send_signal(number)

    def _tree(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]


@contextmanager
def started(launch: Launch, model: Path, log: Path) -> Iterator[tuple[Server, float]]:
    """Start a server; give it and the seconds until its first prediction. It ends with the block.

    Raises:
        ValueError: It did not answer in time.
    """
    environment = {**os.environ, **QUIET, **launch.environment}
    begun = time.perf_counter()
    with log.open("ab") as stream:
        child = subprocess.Popen(
            ["taskset", "-c", SERVER_CPU, *launch.command],
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    server = Server(launch, model, psutil.Process(child.pid))
    try:
        _await_answer(server, child, begun, log)
        yield server, time.perf_counter() - begun
    finally:
        os.killpg(child.pid, signal.SIGCONT)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(10)


def _await_answer(server: Server, child: subprocess.Popen[bytes], begun: float, log: Path) -> None:
    body = server.body(1).read_bytes()
    while True:
        if child.poll() is not None or time.perf_counter() - begun > _START:
            raise ValueError(f"it did not start; {log} says why")
        try:
            if server.post(body)[0] == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.01)


def _check(found: Any, expected: Any) -> None:
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=2e-6, atol=1e-6):
        raise ValueError("it does not predict what the model does")


def _cpu(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def _busy() -> float:
    with Path("/proc/stat").open(encoding="ascii") as file:
        fields = [int(word) for word in file.readline().split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / _TICK

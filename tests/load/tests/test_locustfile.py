"""Locust over a gateway that misbehaves as it is told: what a run counts, and when it fails."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

LOCUSTFILE = Path(__file__).parent.parent / "locustfile.py"
Answer = tuple[int, dict[str, str], Any]
GOOD = {"x-model-version": "1", "x-rollout-arm": "stable", "x-inference-id": "i1"}


class Fake(ThreadingHTTPServer):
    """A gateway, a pod and an experiments service in one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: Counter[str] = Counter()
        self.gateway: Callable[[int], Answer] = lambda _n: (200, GOOD, prediction())
        self._lock = threading.Lock()

    def answer(self, path: str) -> Answer:
        """Answer a path, by how often it was asked for."""
        with self._lock:
            self.asked[path] += 1
            number = self.asked[path]
        if path == "/v1/outcomes":
            return 200, {}, {"accepted": 1, "duplicates": 0, "rejected": []}
        return self.gateway(number) if path.startswith("/models/") else (200, {}, prediction())


class Handler(BaseHTTPRequestHandler):
    """Reads a request and answers as the server says."""

    protocol_version = "HTTP/1.1"
    server: Fake

    def do_POST(self) -> None:
        """Answer."""
        self.rfile.read(int(self.headers["content-length"]))
        status, headers, document = self.server.answer(self.path)
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def prediction() -> dict[str, Any]:
    """One flight's probabilities."""
    return {"predictions": [[0.5, 0.5]]}


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A fake that listens."""
    server = Fake()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(fake: Fake, tmp_path: Path) -> Callable[..., tuple[int, list[str]]]:
    """Runs Locust for some seconds; answers its exit code and the broken thresholds."""
    line = {"unit": "N1", "month": 7, "rows": [["UA"]], "late": [1]}
    (tmp_path / "columns.json").write_text(json.dumps({"columns": ["carrier"]}))
    (tmp_path / "requests.jsonl").write_text(f"{json.dumps(line)}\n")
    verdict = tmp_path / "verdict.json"

    def start(*options: str) -> tuple[int, list[str]]:
        command = [
            *(sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--headless"),
            *("--host", fake.url, "--direct", fake.url, "--experiments", fake.url),
            *("--data", str(tmp_path), "--verdict", str(verdict), "--outcome-delay", "0"),
            *("--users", "8", "--rate", "40", "--seconds", "3", "--max-p99-multiple", "50"),
        ]
        environment = {**os.environ, "HOME": str(tmp_path)}
        done = subprocess.run([*command, *options], env=environment, check=False, timeout=120)
        findings = json.loads(verdict.read_bytes())["findings"]
        return done.returncode, [f["threshold"] for f in findings if not f["kept"]]

    return start


# A machine under load sends too few in these seconds, or unevenly; those thresholds are `judge`'s.
SLOW = {"gateway requests", "direct requests", "p99"}


def faults(ended: tuple[int, list[str]]) -> set[str]:
    """The broken thresholds that do not depend on the machine; any one at all fails the run."""
    code, broken = ended
    assert code == (1 if broken else 0)
    return set(broken) - SLOW


def test_a_gateway_that_answers_passes(fake: Fake, run: Callable[..., Any]) -> None:
    """Requests by the gateway and past it, and outcomes, are all sent and none failed."""
    assert faults(run()) == set()
    assert set(fake.asked) == {"/models/flight-delay/invocations", "/invocations", "/v1/outcomes"}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param((503, {}, {}), id="away"),
        pytest.param((200, {}, prediction()), id="another server"),
        pytest.param((200, GOOD, {"predictions": []}), id="another answer"),
        pytest.param((500, GOOD, {"error_code": "MODEL_ERROR"}), id="the model raised"),
    ],
)
def test_one_bad_answer_fails_the_run(fake: Fake, run: Callable[..., Any], answer: Answer) -> None:
    """A status, headers or a body that are not the gateway's."""
    fake.gateway = lambda number: answer if number == 5 else (200, GOOD, prediction())

    assert faults(run()) == {"gateway errors"}


def test_an_error_of_the_model_may_be_allowed(fake: Fake, run: Callable[..., Any]) -> None:
    """Then it is none, and any other error still is one."""
    raised: Answer = (500, GOOD, {"error_code": "MODEL_ERROR"})
    fake.gateway = lambda number: raised if number % 2 else (200, GOOD, prediction())

    assert faults(run("--allow-model-errors")) == set()


def test_nothing_is_sent_past_the_gateway_once_promoted(
    fake: Fake, run: Callable[..., Any]
) -> None:
    """A quarter of the run: that version may go. A promotion that fails, fails the run."""
    ended = run("--shape", "promote", "--mlflow", "http://127.0.0.1:1", "--seconds", "8")

    assert faults(ended) == {"promotion errors", "versions"}
    assert fake.asked["/invocations"] < fake.asked["/models/flight-delay/invocations"] / 5

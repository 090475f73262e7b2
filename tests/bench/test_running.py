"""What the bench does with servers that answer, answer wrongly, or die: real processes."""

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from free_ports import free_port
from peers import Launch
from running import SINGLES, Server, ServerFailedError, free_ports, is_alive, started

SERVER = """
import json, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, factor = (500, 1) if len(rows) > 1 and sys.argv[2] == "fail" else (200, float(sys.argv[3]))
        body = json.dumps({"predictions": [row * factor for row in rows]}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

ThreadingHTTPServer.request_queue_size = 64
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def below_us() -> set[psutil.Process]:
    """All that this process has started; some of it are servers that other tests share."""
    return set(psutil.Process().children(recursive=True))


Start = Callable[..., Server]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that gives back its one number, and its bodies."""
    rows = list(range(100))
    (tmp_path / "expected.json").write_text(json.dumps(rows))
    (tmp_path / "mlflow-100.json").write_text(json.dumps(rows))
    (tmp_path / "mlflow-1.json").write_text("[0]")
    for number in range(SINGLES):
        (tmp_path / f"mlflow-row-{number}.json").write_text(json.dumps([number]))
    return tmp_path


@pytest.fixture
def start(model: Path) -> Iterator[Start]:
    """Starts a server that multiplies, or runs any other program."""
    with ExitStack() as stack:

        def begin(program: str = SERVER, *, many: str = "answer", factor: float = 1.0) -> Server:
            port = free_port()
            arguments = (str(port), many, str(factor))
            launch = Launch(
                command=(sys.executable, "-c", program, *arguments), port=port, path="/"
            )
            log = model / "log"
            return stack.enter_context(started(launch, model, log, freezes=True))[0]

        yield begin


def test_a_server_that_predicts_rightly_is_measured(start: Start) -> None:
    """It is verified before and after it was stopped."""
    server = start()

    server.verify()
    server.freeze()
    with server.awake():
        server.verify()
        assert min(server.memory()) > 1


def test_a_server_that_predicts_something_else_is_refused(start: Start) -> None:
    """A fast wrong answer is worth nothing."""
    server = start(factor=1.001)

    with pytest.raises(ServerFailedError, match="not predict what the model does"):
        server.verify()


def test_a_server_that_fails_on_many_rows_is_refused(start: Start) -> None:
    """The reason has the status."""
    server = start(many="fail")

    with pytest.raises(ServerFailedError, match="it answered 500"):
        server.verify()


def test_a_server_that_dies_at_the_start_has_its_last_words(start: Start) -> None:
    """The reason is in its log."""
    with pytest.raises(ServerFailedError, match="ended at the start: no such model"):
        start("import sys; sys.exit('no such model')")


def test_a_server_that_died_gives_no_answer(start: Start) -> None:
    """What it did before does not count."""
    others = below_us()
    server = start()
    processes = below_us() - others
    for process in processes:
        process.kill()
    deadline = time.monotonic() + 30
    while any(map(is_alive, processes)):
        assert time.monotonic() < deadline, "killed processes live on"
        time.sleep(0.01)

    with pytest.raises(ServerFailedError, match="it gave no answer"), server.awake():
        server.verify()


def test_a_server_ends_with_all_that_it_started(model: Path) -> None:
    """Stopped or not, nothing of it is left."""
    port = free_port()
    launch = Launch(
        command=(sys.executable, "-c", SERVER, str(port), "answer", "1"), port=port, path="/"
    )

    others = below_us()
    with started(launch, model, model / "log", freezes=True) as (server, seconds):
        server.freeze()
        processes = below_us() - others

    assert seconds > 0
    assert len(processes) >= 2
    assert not any(map(is_alive, processes))


def test_ports_that_are_taken_are_passed_over() -> None:
    """Two servers never get the same one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert port not in free_ports(port, 3)

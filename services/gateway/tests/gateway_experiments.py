"""An experiments service that can fail in every way."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeExperiments:
    """Takes exposures and remembers them by inference id."""

    def __init__(self) -> None:
        """Start on a free port."""
        self.seen: dict[str, dict[str, Any]] = {}
        self.times: Counter[str] = Counter()
        self.calls = 0
        self.port = 0
        self.mode = "ok"
        self.start()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, on the same port as before."""
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def stop(self) -> None:
        """Stop."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def take(self, exposures: list[dict[str, Any]]) -> None:
        """Remember exposures."""
        for exposure in exposures:
            self.times[exposure["inferenceId"]] += 1
            self.seen[exposure["inferenceId"]] = exposure

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                fake.calls += 1
                body = self.rfile.read(int(self.headers["content-length"]))
                exposures = json.loads(body)["exposures"]
                mode = fake.mode
                if mode == "fail":
                    self.send_error(503)
                    return
                if mode == "slow":
                    time.sleep(0.2)
                if mode == "refuse" and any(e["unit"] == "poison" for e in exposures):
                    self.send_error(422)
                    return
                fake.take(exposures)
                if mode == "forget":  # Taken, but the answer is lost.
                    self.close_connection = True
                    return
                rejected = [{"index": 0, "field": "unit", "reason": "x"}] if mode == "name" else []
                answer = json.dumps({"accepted": 1, "duplicates": 0, "rejected": rejected})
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler

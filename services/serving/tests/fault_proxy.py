"""A proxy before a real MLflow server that breaks answers as it is told."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

_PASSED_ON = ("content-type", "content-range", "etag", "accept-ranges")


@dataclass
class Fault:
    """What to break of an answer.

    Attributes:
        status: Answer with this code instead.
        sends: Send so many bytes of the body, then break the connection off.
        says: Send so many bytes of the body as if there were no more.
        flips: Change the first byte.
        waits: Send `sends` bytes and wait until this is set before breaking off.
    """

    status: int = 0
    sends: int | None = None
    says: int | None = None
    flips: bool = False
    waits: threading.Event | None = None


@dataclass
class Asked:
    """One request that the proxy passed on."""

    method: str
    path: str
    range: str
    sent: int


Choose = Callable[[str, str, int], Fault | None]


@dataclass
class FaultProxy:
    """The proxy.

    Attributes:
        url: Its address.
        choose: Names the fault of a request by its method, its path, and how often the two were
            asked for before.
        asked: Every request so far.
    """

    url: str = ""
    choose: Choose = lambda _method, _path, _times: None
    asked: list[Asked] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self) -> int:
        """Count the bytes of files that were sent so far."""
        return sum(one.sent for one in self.asked if "/artifacts/" in one.path)

    def note(self, method: str, path: str, wanted: str) -> tuple[Asked, Fault]:
        """Note a request, and choose its fault."""
        with self.lock:
            times = sum((one.method, one.path) == (method, path) for one in self.asked)
            asked = Asked(method, path, wanted, 0)
            self.asked.append(asked)
        return asked, self.choose(method, path, times) or Fault()


@contextmanager
def fault_proxy(url: str) -> Iterator[FaultProxy]:
    """Run a proxy before a server."""
    proxy = FaultProxy()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            asked, fault = proxy.note(self.command, self.path, self.headers.get("range", ""))
            if fault.status:
                self.send_error(fault.status)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            kept = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            real = httpx.request(
                self.command, url + self.path, headers=kept, content=body, timeout=30.0
            )
            content = real.content
            if fault.flips:
                content = bytes([content[0] ^ 1]) + content[1:]
            content = content[: fault.says]
            self.send_response(real.status_code)
            for name in _PASSED_ON:
                if name in real.headers:
                    self.send_header(name, real.headers[name])
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            part = content[: fault.sends]
            self.wfile.write(part)
            asked.sent = len(part)
            if fault.waits:
                fault.waits.wait(60)
            self.close_connection = len(part) < len(content)

        do_GET = do_POST = do_PATCH = _answer  # noqa: N815 -- the names that the server calls

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

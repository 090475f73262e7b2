"""Answers short requests for predictions as soon as their last byte is there.

An ASGI server makes for each request a scope, an event, a task and two writes, whatever the
application does with them. A prediction needs none of it: one callback reads the body and queues
the rows, a second writes head and body at once.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from fairlead_serving.domain.answers import Answer, answer_error
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.entrypoints.hot import HotPath, Route

_REFUSED = b"""HTTP/1.1 400 Bad Request\r
content-type: application/json\r
content-length: %d\r
connection: close\r
\r
"""


class _Nobody:
    """Stands for the event that wakes a task up, where there is none."""

    def set(self) -> None:
        pass


class _Call:
    """A request that is answered without ASGI; to uvicorn it looks as one of its own."""

    message_event = _Nobody()
    disconnected = False
    response_complete = False

    def __init__(
        self, route: Route, headers: list[tuple[bytes, bytes]], *, keep_alive: bool
    ) -> None:
        self.route = route
        self.headers = headers
        self.keep_alive = keep_alive
        self.parts: list[bytes] = []


class PlainProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which refuses what is not HTTP in the form of every other error."""

    def send_400_response(self, msg: str) -> None:
        """Refuse and close.

        Args:
            msg: What uvicorn would say, as plain text.
        """
        refusal = answer_error(BadInputError(msg))
        self.transport.write(_REFUSED % len(refusal.body) + refusal.body)
        self.transport.close()


class HotProtocol(PlainProtocol):
    """uvicorn's protocol, which answers the short requests of a `HotPath` itself.

    All else goes uvicorn's own way: other paths, long bodies, chunked ones, pipelined requests
    and callers who ask before they send.
    """

    cycle: Any  # uvicorn's own, or a _Call.

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app = self.config.app
        assert isinstance(app, HotPath)
        self._hot = app
        self._routes = {path.encode(): route for path, route in app.routes.items()}
        self._waiting: asyncio.Future[Any] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the lane that the caller has left.

        Args:
            exc: Why the connection ended, if that is known.
        """
        super().connection_lost(exc)
        if self._waiting is not None:
            self._waiting.cancel()

    def on_headers_complete(self) -> None:
        """Choose the way of a request."""
        route = self._routes.get(self.url)
        if route is None or not self._is_short():
            super().on_headers_complete()
            return
        self.cycle = _Call(route, self.headers, keep_alive=self.parser.should_keep_alive())

    def _is_short(self) -> bool:
        parser = self.parser
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            return False
        is_free = self.cycle is None or self.cycle.response_complete
        if not is_free or self.flow.write_paused or self.expect_100_continue:
            return False
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        return 0 < int(length) <= self._hot.short and not parser.should_upgrade()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body.

        Args:
            body: The part.
        """
        if isinstance(self.cycle, _Call):
            self.cycle.parts.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Answer a request that is whole."""
        call = self.cycle
        if not isinstance(call, _Call):
            super().on_message_complete()
            return
        self._waiting = self._hot.answer_short(
            call.route, call.headers, b"".join(call.parts), lambda answer: self._send(call, answer)
        )

    def _send(self, call: _Call, answer: Answer) -> None:
        self._waiting = None
        if self.transport.is_closing():
            return
        headers = [*self.server_state.default_headers, *self._hot.head(answer)]
        if (b"connection", b"close") in headers:
            call.keep_alive = False
        elif not call.keep_alive:
            headers.append((b"connection", b"close"))
        lines = [part for name, value in headers for part in (name, b": ", value, b"\r\n")]
        self.transport.write(b"".join((STATUS_LINE[answer.status], *lines, b"\r\n", answer.body)))
        call.response_complete = True
        self.on_response_complete()
        if not call.keep_alive:
            self.transport.close()

"""Answers short requests for predictions as soon as their last byte is there.

An ASGI server makes for each request a scope, an event, a task and two writes, whatever the
application does with them. A prediction needs none of it: one callback reads the body and queues
the rows, a second writes head and body at once.
"""

import asyncio
from enum import Enum, auto
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from fairlead_serving.app.lane import Told
from fairlead_serving.domain.answers import Answer, answer_error, answer_v2_error
from fairlead_serving.domain.errors import (
    BadInputError,
    ClientLeftError,
    RequestError,
    TooSlowError,
)
from fairlead_serving.entrypoints.hot import REFUSED, HotPath, Route

_REFUSED = b"""%scontent-type: application/json\r
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


class _Stage(Enum):
    """What a caller is sending."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()


class PlainProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which refuses what is not HTTP in the form of every other error.

    It also sets callers a time to send a request in, which uvicorn does not: else whoever sends a
    byte now and then, or none, holds a connection for good.

    Args:
        args: uvicorn's own.
        receive_seconds: How long a request may take to arrive.
        kwargs: uvicorn's own.
    """

    cycle: Any  # uvicorn's own, or a _Call.

    def __init__(self, *args: Any, receive_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receive_seconds = receive_seconds
        self._stage = _Stage.NOTHING
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request.

        Args:
            transport: The connection.
        """
        super().connection_made(transport)
        self._set_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer.

        Args:
            exc: Why the connection ended, if that is known.
        """
        super().connection_lost(exc)
        self._unset_alarm()

    def data_received(self, data: bytes) -> None:
        """Read on; wait for the rest, if there has to be one.

        Args:
            data: What has come.
        """
        super().data_received(data)
        if self._alarm is None and self._is_owed():
            self._set_alarm()

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        super().on_message_begin()
        self._stage = _Stage.HEAD

    def on_headers_complete(self) -> None:
        """Note that its head is there."""
        super().on_headers_complete()
        self._stage = _Stage.BODY

    def on_message_complete(self) -> None:
        """Note that all of it is there."""
        super().on_message_complete()
        self._arrived()

    def _arrived(self) -> None:
        self._stage = _Stage.NOTHING
        if self._alarm is not None:
            self._unset_alarm()

    def _is_owed(self) -> bool:
        """Tell whether the caller is to send something that uvicorn's own timer does not wait for.

        That timer ends with the first byte after an answer, even if no request begins with it.
        """
        if self._stage is not _Stage.NOTHING:
            return True
        return not self._is_answering() and self.timeout_keep_alive_task is None

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _set_alarm(self) -> None:
        self._alarm = self.loop.call_later(self._receive_seconds, self._give_up)

    def _unset_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _give_up(self) -> None:
        """Free the connection of a caller who is too slow, unless it is us who do not read."""
        self._alarm = None
        has_head = self._stage is _Stage.BODY
        if self.flow.read_paused or (self._is_answering() and not has_head):
            self._set_alarm()
        elif self._stage is _Stage.NOTHING or (
            has_head and getattr(self.cycle, "response_started", False)
        ):
            self.transport.close()
        else:
            self._refuse(TooSlowError(self._receive_seconds))

    def send_400_response(self, msg: str) -> None:
        """Refuse and close.

        Args:
            msg: What uvicorn would say, as plain text.
        """
        self._refuse(BadInputError(msg))

    def _refuse(self, error: RequestError) -> None:
        is_v2 = self._stage is not _Stage.NOTHING and self.url.startswith(b"/v2")
        refusal = answer_v2_error(error) if is_v2 else answer_error(error)
        if self._stage is _Stage.BODY:
            cast("dict[str, Any]", self.scope)[REFUSED] = error
        head = _REFUSED % (STATUS_LINE[refusal.status], len(refusal.body))
        self.transport.write(head + refusal.body)
        self.transport.close()


class HotProtocol(PlainProtocol):
    """uvicorn's protocol, which answers the short requests of a `HotPath` itself.

    All else goes uvicorn's own way: other paths, long bodies, chunked ones, pipelined requests
    and callers who ask before they send.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app = self.config.app
        assert isinstance(app, HotPath)
        self._hot = app
        self._routes = {path.encode(): route for path, route in app.routes.items()}
        self._waiting: Told | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the lane that the caller has left.

        Args:
            exc: Why the connection ended, if that is known.
        """
        super().connection_lost(exc)
        if self._waiting is not None:
            self._waiting.set_exception(ClientLeftError())

    def on_headers_complete(self) -> None:
        """Choose the way of a request."""
        route = self._routes.get(self.url)
        if route is None or not self._is_short():
            super().on_headers_complete()
            return
        self._stage = _Stage.BODY
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
        self._arrived()
        self._waiting = self._hot.answer_short(
            call.route, call.headers, b"".join(call.parts), lambda answer: self._send(call, answer)
        )

    def _refuse(self, error: RequestError) -> None:
        super()._refuse(error)
        if self._stage is _Stage.BODY and isinstance(self.cycle, _Call):
            self._hot.count_refused(self.cycle.route, self.cycle.headers, error)

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

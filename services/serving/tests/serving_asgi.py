"""Calls the web application of a model that answers what it is told, without a socket."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import uvicorn
import uvloop

from fairlead_serving.adapters.arrays import Arrays
from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.app.lane import Lane, Limits
from fairlead_serving.app.ports import ModelFolder, Predictor
from fairlead_serving.app.serving import Served
from fairlead_serving.domain.data import Data
from fairlead_serving.domain.signature import Column, Kind, Param, Signature
from fairlead_serving.entrypoints.hot import HotPath
from fairlead_serving.entrypoints.http import create_app
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.state import State
from fairlead_serving.entrypoints.transport import HotProtocol
from fairlead_serving.entrypoints.watches import open_watches

JSON = {"content-type": "application/json"}
COLUMNS = Signature(
    columns=(Column("hour", Kind.DOUBLE), Column("gate", Kind.STRING, required=False)),
    params=(Param("factor", Kind.DOUBLE, 1.0, is_list=False),),
    outputs=(Column(None, Kind.DOUBLE),),
)
EXAMPLE = {"dataframe_records": [{"hour": 1.5, "gate": "B"}]}


class Fake:
    """Answers with what it was made with; raises it when it is an exception."""

    predictor = Predictor.OWN
    is_rowwise = True

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def predict(self, data: Data, params: Mapping[str, object]) -> object:
        """Answer."""
        del params
        Arrays().build(data)  # As every real model does.
        if isinstance(self._answer, BaseException):
            raise self._answer
        return [0.0] * data.rows if self._answer is None else self._answer


class Client:
    """Calls an application without a socket."""

    def __init__(
        self,
        answer: object = None,
        signature: Signature = COLUMNS,
        *,
        limits: Limits = Limits(rows=50),  # noqa: B008  # Frozen.
        example: object = EXAMPLE,
        state: Mapping[str, Any] = MappingProxyType({}),
        **settings: Any,
    ) -> None:
        self._limits = limits
        self.signature = signature
        folder = ModelFolder(path=Path(), flavors={}, signature=signature, example=example)
        self.state = State(**{"served": Served(Fake(answer), folder), **state})
        given = {"name": "flights", "version": "4", "max_body_bytes": 1000, **settings}
        self._settings = Settings(model="x", **given)

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send one request."""

        async def call() -> httpx.Response:
            async with self.connected() as client:
                return await client.request(method, path, **request)

        return asyncio.run(call())

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[httpx.AsyncClient]:
        """Give a client for several requests."""
        with self._app() as app:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                yield client

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Serve on a socket, from a thread; give the address."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ended = threading.Event()
            thread = threading.Thread(target=self._listen, args=(listener, ended))
            thread.start()
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                ended.set()
                thread.join()

    def _listen(self, listener: socket.socket, ended: threading.Event) -> None:
        # As the command does: asyncio's own loop would hold back each answer for 40 ms.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve(listener, ended))

    async def _serve(self, listener: socket.socket, ended: threading.Event) -> None:
        with self._app() as app:
            config = uvicorn.Config(
                app,
                proxy_headers=False,
                http=partial(HotProtocol, receive_seconds=60.0),  # type: ignore[arg-type]
                log_config=None,
                lifespan="off",
            )
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve([listener]))
            await asyncio.to_thread(ended.wait)
            server.should_exit = True
            await serving

    @contextmanager
    def _app(self) -> Iterator[HotPath]:
        metrics, served = Metrics(self._settings.name, "4"), self.state.served
        with (
            open_watches(self._settings, metrics) as watches,
            ThreadPoolExecutor(1) as worker,
        ):
            if served:
                self.state.lane = Lane(served.predict, worker, self._limits, metrics, served.pace)
            yield create_app(self._settings, self.state, metrics, watches)

    def post(
        self, body: object, headers: Mapping[str, str] = JSON, path: str = "/invocations"
    ) -> httpx.Response:
        """Send a body; what is not bytes yet becomes JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", path, content=content, headers=headers)

"""A gRPC server of a model of the test's, on a real port, in the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from echoing import LIMIT

from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.app.lane import Lane, Limits, Pace
from fairlead_serving.app.ports import Model, ModelFolder
from fairlead_serving.app.serving import Served
from fairlead_serving.domain.signature import Signature
from fairlead_serving.entrypoints.rpc import create_rpc_server
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.state import State
from fairlead_serving.entrypoints.watches import open_watches
from fairlead_serving.protocol import open_inference_pb2 as pb

INFER = "/inference.GRPCInferenceService/ModelInfer"


class RpcServer:
    """The server, what it counts, and a way to ask it."""

    def __init__(
        self,
        port: int,
        model: Model,
        signature: Signature,
        *,
        limits: Limits | None = None,
        pace: Pace | None = None,
        is_loaded: bool = True,
        **settings: Any,
    ) -> None:
        self._limits = limits or Limits()
        given = {"name": "flights", "version": "4", "grpc_port": port, **settings}
        self._settings = Settings(model="x", limits=self._limits, **given)
        folder = ModelFolder(path=Path(), flavors={}, signature=signature)
        self._served = Served(model, folder, pace or Pace())
        self._is_loaded = is_loaded
        self.state = State()
        self.metrics = Metrics("flights", "4")
        self.address = f"127.0.0.1:{port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator["RpcServer"]:
        """Serve."""
        with (
            ThreadPoolExecutor(1) as worker,
            open_watches(self._settings, self.metrics) as watches,
        ):
            if self._is_loaded:
                self.state.served = self._served
                self.state.lane = Lane(
                    self._served.predict, worker, self._limits, self.metrics, self._served.pace
                )
            server = create_rpc_server(self._settings, self.state, self.metrics, watches)
            await server.start()
            try:
                yield self
            finally:
                await server.stop(LIMIT)

    @asynccontextmanager
    async def callers(self, count: int) -> AsyncIterator[Sequence[Callable[..., Any]]]:
        """Give so many ways to call `ModelInfer`, each on a connection of its own."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        async with AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(self.address, options))
                for _ in range(count)
            ]
            yield [
                channel.unary_unary(
                    INFER, lambda one: one.SerializeToString(), pb.ModelInferResponse.FromString
                )
                for channel in channels
            ]


def run_rpc(server: RpcServer, test: Callable[[RpcServer], Awaitable[Any]]) -> Any:
    """Run a test against a server."""

    async def go() -> Any:
        async with server.running():
            return await test(server)

    return asyncio.run(go())


def ask_once(server: RpcServer, request: Any, **options: Any) -> Any:
    """Send one request; give the answer, or the error."""

    async def ask(running: RpcServer) -> Any:
        async with running.callers(1) as (call,):
            try:
                return await call(request, timeout=LIMIT, **options)
            except grpc.aio.AioRpcError as error:
                return error

    return run_rpc(server, ask)

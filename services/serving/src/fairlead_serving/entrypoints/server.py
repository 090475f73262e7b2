"""Runs the server of one model: loads beside the probes, drains on SIGTERM."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.app.lane import Lane, Limits
from fairlead_serving.app.serving import Served
from fairlead_serving.domain.errors import CannotFetchError, CannotLoadError, CannotStartError
from fairlead_serving.entrypoints.hot import HotPath
from fairlead_serving.entrypoints.http import create_app
from fairlead_serving.entrypoints.settings import KEEP_ALIVE_SECONDS, Settings
from fairlead_serving.entrypoints.state import State
from fairlead_serving.entrypoints.transport import HotProtocol, PlainProtocol
from fairlead_serving.entrypoints.watches import Watch, open_watches
from fairlead_serving.entrypoints.wiring import LayerNeededError, fetch_and_load

if TYPE_CHECKING:  # An extra.
    from fairlead_serving.adapters.tracing import Tracing

UNEXPECTED = 1
CANNOT_LOAD = 3
CANNOT_FETCH = 4

_RPC_GRACE_SECONDS = 5.0

_log = logging.getLogger(__name__)


class RestartNeededError(Exception):
    """The command has to be started again, with a layer on its import path.

    Attributes:
        layer: The folder of the packages.
        listener: The socket, which goes on listening.
    """

    def __init__(self, layer: Path, listener: socket.socket) -> None:
        super().__init__(f"The model needs the layer '{layer}'.")
        self.layer = layer
        self.listener = listener


class _Server(uvicorn.Server):
    """Keeps answering for a while after SIGTERM, where uvicorn would stop listening at once."""

    def __init__(
        self,
        config: uvicorn.Config,
        state: State,
        drain_seconds: float,
        listener: socket.socket,
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._state = state
        self._drain_seconds = drain_seconds

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        yield

    def _on_signal(self, number: int) -> None:
        if self._state.draining:
            os._exit(128 + number)
        self._state.draining = True
        # Nobody sends requests to a model that was never ready.
        delay = self._drain_seconds if self._state.served else 0.0
        _log.info("Draining for %g s", delay)
        asyncio.get_running_loop().call_later(delay, self._stop)

    def make_way(self, layer: Path) -> RestartNeededError:
        """Stop, but leave the socket open: callers wait until the command has started again."""
        self._stop()
        return RestartNeededError(layer, self._listener.dup())

    def _stop(self) -> None:
        self.should_exit = True


def run(settings: Settings, listener: socket.socket) -> int:
    """Serve until a signal comes or the model turns out not to load.

    Args:
        settings: The settings of the process.
        listener: A bound socket.

    Returns:
        The exit code: 0 after a signal, 3 and 4 as in the contract, 1 for anything else.

    Raises:
        RestartNeededError: The model needs a layer; no signal came.
    """
    state = State()
    with contextlib.ExitStack() as stack:
        worker = ThreadPoolExecutor(1, "model")
        stack.callback(worker.shutdown, wait=False)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                code = runner.run(_serve(settings, listener, state, worker))
            except RestartNeededError:
                if not state.draining:
                    raise
                code = 0
    if code == 0 and state.served is None:
        os._exit(0)  # The thread that still fetches or loads cannot be told to stop.
    return code


async def _serve(
    settings: Settings, listener: socket.socket, state: State, worker: ThreadPoolExecutor
) -> int:
    metrics = Metrics(settings.name, settings.version, settings.latency_buckets)
    try:
        with open_watches(settings, metrics) as watches, _tracing(settings) as tracing:
            app = create_app(settings, state, metrics, watches)
            config = _config(settings, app, tracing)
            server = _Server(config, state, settings.drain_seconds, listener)
            async with _rpc(settings, state, metrics, watches, tracing):
                loading = asyncio.create_task(_load(settings, state, worker, metrics, server))
                await server.serve([listener])
    except CannotStartError as error:
        report(settings, str(error))
        return UNEXPECTED
    return await loading if loading.done() else 0


def _config(settings: Settings, app: HotPath, tracing: "Tracing | None") -> uvicorn.Config:
    # A span is made around an ASGI application, so that all goes through it then.
    protocol = PlainProtocol if tracing else HotProtocol
    return uvicorn.Config(
        tracing.around(app) if tracing else app,
        access_log=False,
        http=partial(protocol, receive_seconds=settings.receive_seconds),  # type: ignore[arg-type]
        proxy_headers=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


@contextlib.contextmanager
def _tracing(settings: Settings) -> "Iterator[Tracing | None]":
    """Put requests into spans, if the settings ask for it; what is left is sent at the end."""
    if not settings.tracing:
        yield None
        return
    try:
        # An extra, and slow to import.
        from fairlead_serving.adapters.tracing import Tracing  # noqa: PLC0415
    except ImportError as error:
        raise CannotStartError(
            "--tracing needs OpenTelemetry, which is not installed; "
            "install fairlead-serving[tracing]."
        ) from error
    tracing = Tracing(settings.name, settings.version)
    try:
        yield tracing
    finally:
        tracing.close()


@contextlib.asynccontextmanager
async def _rpc(
    settings: Settings,
    state: State,
    metrics: Metrics,
    watches: Sequence[Watch],
    tracing: "Tracing | None",
) -> AsyncIterator[None]:
    """Answer gRPC too, if there is a port for it; what is under way at the end is finished."""
    if settings.grpc_port is None:
        yield
        return
    try:
        # An extra, and slow to import.
        from fairlead_serving.entrypoints.rpc import create_rpc_server  # noqa: PLC0415

        server = create_rpc_server(
            settings, state, metrics, watches, tracing.interceptors() if tracing else ()
        )
    except ImportError as error:
        raise CannotStartError(
            "--grpc-port needs grpcio, which is not installed; install fairlead-serving[grpc]."
        ) from error
    except OSError as error:
        raise CannotStartError(
            f"Cannot listen on {settings.host}:{settings.grpc_port}: {error.strerror}."
        ) from error
    await server.start()
    try:
        yield
    finally:
        await server.stop(_RPC_GRACE_SECONDS)


async def _load(
    settings: Settings,
    state: State,
    worker: ThreadPoolExecutor,
    metrics: Metrics,
    server: _Server,
) -> int:
    loop = asyncio.get_running_loop()
    gc.disable()  # Until it is settled: what libraries bring is no garbage, and is much.
    try:
        served = await loop.run_in_executor(worker, fetch_and_load, settings)
    except (CannotLoadError, CannotFetchError) as error:
        _log.debug("The model is not served", exc_info=True)
        report(settings, str(error))
        server.should_exit = True
        return CANNOT_LOAD if isinstance(error, CannotLoadError) else CANNOT_FETCH
    except LayerNeededError as needed:
        raise server.make_way(needed.layer) from needed
    except Exception as error:  # noqa: BLE001  # Else the process would stay, never ready.
        _log.debug("The model is not served", exc_info=True)
        report(settings, f"The model cannot be served: {type(error).__name__}.")
        server.should_exit = True
        return UNEXPECTED
    _settle()
    state.served = served
    lane = state.lane = Lane(
        served.predict, worker, _limits(settings, served), metrics, served.pace
    )
    metrics.waiting, metrics.predictor = lambda: lane.waiting, lambda: served.model.predictor
    _log.info("Ready: %s %s", settings.name, settings.version)
    return 0


def _limits(settings: Settings, served: Served) -> Limits:
    merges = served.signature.has_rows and (served.model.is_rowwise or settings.merge == "on")
    if merges and settings.merge != "off":
        return settings.limits
    return replace(settings.limits, merged_rows=0)


def _settle() -> None:
    """Make what was loaded a part of the furniture.

    Collecting garbage would look through the hundreds of thousands of objects that libraries
    brought, again and again, for as long as a slow prediction takes. Not even once before: that
    took 0.1 s, a twelfth of a start, and found some hundred objects. What loading needed only for
    a while is given back to the system.
    """
    gc.freeze()
    gc.enable()
    with contextlib.suppress(OSError, AttributeError):  # The C library of GNU alone has it.
        ctypes.CDLL(None).malloc_trim(0)


def report(settings: Settings, sentence: str) -> None:
    """Say in one line why the process ends: to people, and to Kubernetes.

    Args:
        settings: Names the termination log, if there is one.
        sentence: The reason.
    """
    line = " ".join(sentence.split())
    _log.error("%s", line)
    if settings.termination_log is None:
        return
    try:
        settings.termination_log.write_text(f"{line}\n", encoding="utf-8")
    except OSError as error:
        _log.warning("The termination log cannot be written: %s", error.strerror)

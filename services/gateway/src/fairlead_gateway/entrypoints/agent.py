"""The agent: three loops beside a web application."""

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from fairlead_gateway.adapters.clock import SystemClock
from fairlead_gateway.adapters.envoy import EnvoyAdmin, EnvoyValidator
from fairlead_gateway.adapters.experiments import HttpExperiments
from fairlead_gateway.adapters.files import FolderSource, Home, PlanMemory, XdsFiles
from fairlead_gateway.adapters.log import LogTail, Position, Rotation, decode_line
from fairlead_gateway.adapters.metrics import PrometheusMeter
from fairlead_gateway.app.apply import Applier, ApplierPorts, ApplierSettings, Report
from fairlead_gateway.app.drain import DrainSettings, drain
from fairlead_gateway.app.ports import Source
from fairlead_gateway.app.ship import IDLE, Counter, Shipper
from fairlead_gateway.domain.render.listener import ListenerSettings, render_certificate
from fairlead_gateway.entrypoints.http import create_app

if TYPE_CHECKING:
    from fairlead_gateway.adapters.kubernetes import KubernetesSource

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How the agent runs.

    Attributes:
        home: The folder shared with the other processes.
        namespaces: Where to read ServedModels and EndpointSlices; none to read the folder.
        host: Where the agent answers.
        port: The port it answers at.
        envoy_admin_port: The port of Envoy's administration interface.
        experiments_url: The experiments service; empty to keep the log unshipped.
        listen_host: Where Envoy listens.
        listen_port: The port Envoy listens at; None to take what `fairlead-gateway envoy` noted.
        tls_folder: Where Envoy finds its certificate; None to listen without TLS.
        log_limit: The size in bytes at which the access log is rotated.
        log_most: The bytes of the log that are kept while they cannot be shipped.
        grace: Seconds an unused cluster is kept.
        drain: How long a drain takes.
        last_words: Seconds for the rest of the log once told to stop; the folder of local mode
            outlives the agent, and its rest is shipped by the next one.
    """

    home: Path
    namespaces: tuple[str, ...]
    host: str
    port: int
    envoy_admin_port: int
    experiments_url: str
    listen_host: str
    listen_port: int | None
    tls_folder: Path | None
    log_limit: int
    log_most: int
    grace: float
    drain: DrainSettings
    last_words: float


def run_agent(settings: AgentSettings) -> None:
    """Run the agent until it is told to stop."""
    # The web server hands the signal on when it has ended; what is open here is then closed, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    home = Home(settings.home)
    home.prepare()
    stop = threading.Event()
    meter = PrometheusMeter()
    with ExitStack() as stack:
        admin = EnvoyAdmin(settings.envoy_admin_port)
        stack.callback(admin.close)
        source = stack.enter_context(_source(settings, home))
        applier = _Late(lambda: _applier(settings, home, admin, source))
        stack.enter_context(_looping("apply", applier.step, stop))
        stack.enter_context(_looping("count", _counter(home, meter).step, stop))
        if settings.experiments_url:
            shipping = _shipping(settings, home, admin, meter)
            stack.callback(_finish, shipping, settings.last_words)
            stack.enter_context(_looping("ship", shipping, stop))
        else:
            stack.enter_context(_looping("keep", _keeping(settings, home, admin), stop))
        app = create_app(
            report=applier.report,
            envoy=admin,
            meter=meter,
            drain=lambda: drain(admin, SystemClock(), time.sleep, settings.drain),
        )
        stack.callback(stop.set)
        uvicorn.run(
            app, host=settings.host, port=settings.port, log_level="warning", access_log=False
        )


class _Late:
    """The applier, once it is known where Envoy listens."""

    def __init__(self, build: Callable[[], Applier | None]) -> None:
        self._build = build
        self._applier: Applier | None = None

    def step(self) -> float:
        if self._applier is None:
            self._applier = self._build()
        return 0.05 if self._applier is None else self._applier.step()

    def report(self) -> Report:
        return Report() if self._applier is None else self._applier.report


@contextmanager
def _source(settings: AgentSettings, home: Home) -> Iterator[Source]:
    if not settings.namespaces:
        yield FolderSource(home)
        return
    source = _kubernetes(settings.namespaces)
    try:
        yield source
    finally:
        source.close()


def _kubernetes(namespaces: tuple[str, ...]) -> "KubernetesSource":
    """Start to read the cluster; imported here, as local mode does not install the client."""
    try:
        from fairlead_gateway.adapters import kubernetes  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; install fairlead-gateway[kubernetes]") from error
    source = kubernetes.KubernetesSource(namespaces)
    try:
        source.start()
    except kubernetes.ClusterAddressError as error:
        raise SystemExit(str(error)) from error
    return source


def _applier(
    settings: AgentSettings, home: Home, admin: EnvoyAdmin, source: Source
) -> Applier | None:
    listener = _listener(settings, home)
    if listener is None:
        return None
    files = XdsFiles(home)
    if settings.tls_folder is not None:
        files.write_certificate(render_certificate(str(settings.tls_folder)))
        listener = replace(listener, certificate=str(home.certificate))
    ports = ApplierPorts(
        source=source,
        files=files,
        envoy=admin,
        validator=EnvoyValidator(home.gateway),
        memory=PlanMemory(home.memory),
        clock=SystemClock(),
    )
    return Applier(
        ApplierSettings(
            listener=listener,
            scopes=str(home.scopes),
            rollouts=str(home.rollouts),
            grace=settings.grace,
        ),
        ports,
    )


def _listener(settings: AgentSettings, home: Home) -> ListenerSettings | None:
    log = str(home.access_log)
    if settings.listen_port is not None:
        return ListenerSettings(
            host=settings.listen_host, port=settings.listen_port, access_log=log
        )
    try:
        noted = json.loads(home.listen.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return ListenerSettings(host=noted["host"], port=noted["port"], access_log=log)


def _counter(home: Home, meter: PrometheusMeter) -> Counter:
    return Counter(log=LogTail(home.access_log, None), decode=decode_line, meter=meter)


def _shipping(
    settings: AgentSettings, home: Home, admin: EnvoyAdmin, meter: PrometheusMeter
) -> Callable[[], float]:
    tail = LogTail(home.access_log, Position(home.position))
    experiments = HttpExperiments(settings.experiments_url)
    shipper = Shipper(log=tail, decode=decode_line, experiments=experiments, meter=meter)

    def drop(lines: int) -> None:
        _log.error("The log is full; its older part is dropped", extra={"lines": lines})
        meter.dropped("full", lines)

    rotation = Rotation(home.access_log, tail, settings.log_limit, settings.log_most, drop)
    # The last words begin although the loop may still wait for an answer.
    turn = threading.Lock()

    def step() -> float:
        with turn:
            wait = shipper.step()
            if rotation.step():
                admin.reopen_logs()
            return wait

    return step


def _keeping(settings: AgentSettings, home: Home, admin: EnvoyAdmin) -> Callable[[], float]:
    """Keep the log within its room where nobody is told of exposures, nor misses one."""
    tail = LogTail(home.access_log, Position(home.position))
    rotation = Rotation(home.access_log, tail, settings.log_limit, settings.log_most)

    def step() -> float:
        tail.open()
        if rotation.step():
            admin.reopen_logs()
        return IDLE

    return step


def _finish(step: Callable[[], float], seconds: float) -> None:
    """Ship the rest of the log, within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        wait = step()
        if wait == IDLE:
            return
        time.sleep(min(wait, max(end - time.monotonic(), 0.0)))


@contextmanager
def _looping(name: str, step: Callable[[], float], stop: threading.Event) -> Iterator[None]:
    """Call a step again and again, in a thread of its own, until the block is left."""

    def loop() -> None:
        while not stop.is_set():
            try:
                wait = step()
            except Exception:  # noqa: BLE001 - see below.
                # Whatever it is, the next step may fare better; to stop would be worse.
                _log.exception("A step failed", extra={"loop": name})
                wait = 1.0
            stop.wait(wait)

    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)

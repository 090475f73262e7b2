"""Whatever order things happen in, and wherever the agent is killed: no line of the log is lost."""

import errno
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

from gateway_log import line
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fairlead_gateway.adapters.log import LogTail, Position, Rotation, decode_line
from fairlead_gateway.adapters.metrics import PrometheusMeter
from fairlead_gateway.app.ports import Delivery
from fairlead_gateway.app.ship import Shipper
from fairlead_gateway.domain.exposure import Exposure

LIMIT = 700
"""Bytes after which the log is rotated: three lines."""


class Killed(BaseException):
    """The agent is killed: nothing in it handles this."""


class Changes:
    """What the agent changes outside itself, and before which of these changes it is killed."""

    def __init__(self) -> None:
        """Let it live, and have room."""
        self.left: int | None = None
        self.is_full = False

    def happen(self) -> None:
        """Note a change that is about to be made."""
        if self.left is None:
            return
        if self.left == 0:
            raise Killed
        self.left -= 1

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note each change of a file."""
        with ExitStack() as patched:
            for name in ("rename", "replace", "unlink", "open"):
                method = self._noted(getattr(Path, name))
                patched.enter_context(mock.patch.object(Path, name, method))
            yield

    def _noted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, *given: Any, **named: Any) -> Any:
            self.happen()
            if self.is_full and "wb" in given:
                raise OSError(errno.ENOSPC, "No space left on device")
            return method(path, *given, **named)

        return call


class EnvoyLog:
    """Writes as Envoy does: a log that it is to open anew it opens before its next line."""

    def __init__(self, path: Path) -> None:
        """Open the log."""
        self._path = path
        self._file: BinaryIO = path.open("ab", buffering=0)
        self._reopens = False

    def write(self, line: bytes) -> None:
        """Write a line."""
        if self._reopens:
            self.restart()
        self._file.write(line)

    def reopen(self) -> None:
        """Take note that the log is to be opened anew."""
        self._reopens = True

    def restart(self) -> None:
        """Open the log anew."""
        self._file.close()
        self._file, self._reopens = self._path.open("ab", buffering=0), False

    def close(self) -> None:
        """Close the log."""
        self._file.close()


class Service:
    """Takes exposures while it is up."""

    def __init__(self) -> None:
        """Start."""
        self.is_up = True
        self.seen: set[str] = set()

    def send(self, batch: Sequence[Exposure]) -> Delivery:
        """Take a batch."""
        if self.is_up:
            self.seen |= {exposure.inference_id for exposure in batch}
        return Delivery(taken=self.is_up)


class KilledAnywhere(RuleBasedStateMachine):
    """Envoy writes, the agent ships and rotates, the service comes and goes, as room does, each may restart."""

    def __init__(self) -> None:
        """Start all of them over an empty folder."""
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "access.log"
        self.envoy = EnvoyLog(self.path)
        self.service = Service()
        self.changes = Changes()
        self.written: set[str] = set()
        self.start_agent()

    def start_agent(self) -> None:
        """Start an agent that knows only what lies in the folder."""
        self.tail = LogTail(self.path, Position(self.path.with_name("position.json")), most=2)
        self.shipper = Shipper(
            log=self.tail, decode=decode_line, experiments=self.service, meter=PrometheusMeter()
        )
        self.rotation = Rotation(self.path, self.tail, LIMIT, most=1 << 30)

    def step_agent(self) -> None:
        """Do what the agent does again and again."""
        with self.changes.watched():
            self.shipper.step()
            if self.rotation.step():
                self.changes.happen()
                self.envoy.reopen()

    @rule(lines=st.integers(1, 4))
    def write(self, lines: int) -> None:
        """Envoy writes lines."""
        for _ in range(lines):
            number = len(self.written)
            self.written.add(f"i{number}")
            self.envoy.write(line(number))

    @rule(times=st.integers(1, 4))
    def ship(self, times: int) -> None:
        """The agent goes on."""
        for _ in range(times):
            self.step_agent()

    @rule(after=st.integers(0, 6))
    def kill(self, after: int) -> None:
        """The agent is killed before one of its next changes, and started again."""
        self.changes.left = after
        with suppress(Killed):
            self.step_agent()
        self.changes.left = None
        self.tail.close()
        self.start_agent()

    @rule()
    def toggle_service(self) -> None:
        """The service goes, or comes back."""
        self.service.is_up = not self.service.is_up

    @rule()
    def toggle_room(self) -> None:
        """The volume is full, or has room again."""
        self.changes.is_full = not self.changes.is_full

    @rule()
    def restart_envoy(self) -> None:
        """Envoy is replaced."""
        self.envoy.restart()

    @invariant()
    def has_invented_nothing(self) -> None:
        """Nothing arrives that was not written."""
        assert self.service.seen <= self.written

    def teardown(self) -> None:
        """In the end all that was written arrives, and what was moved away goes."""
        self.service.is_up, self.changes.is_full = True, False
        try:
            self._heal()
            moved = []
            for _ in range(4):
                self.write(1)
                self._heal()
                moved.append(self.path.with_name("access.log.1").exists())
            assert not all(moved)
        finally:
            self.tail.close()
            self.envoy.close()
            self.folder.cleanup()

    def _heal(self) -> None:
        for _ in range(10 + len(self.written)):
            self.step_agent()
        assert self.service.seen == self.written


KilledAnywhere.TestCase.settings = settings(stateful_step_count=30)
TestKilledAnywhere = KilledAnywhere.TestCase

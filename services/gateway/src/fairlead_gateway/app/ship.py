"""Carry exposures from Envoy's log to the experiments service, each at least once.

The log's position moves only after the service has taken what lies before it. Whatever is killed,
and whenever: the rest of the log is read again, and the service counts an inference id once.
"""

import logging
from collections.abc import Callable, Sequence

from fairlead_gateway.app.ports import Experiments, Log, Meter
from fairlead_gateway.domain.exposure import Exposure, LogLine, exposure_of

_log = logging.getLogger(__name__)

_SHORTEST_WAIT = 0.1
_LONGEST_WAIT = 5.0


class Shipper:
    """Sends the exposures in a log.

    Args:
        log: The log.
        decode: Reads one line; None if it is malformed.
        experiments: Where they go.
        meter: What counts them.
    """

    def __init__(
        self,
        *,
        log: Log,
        decode: Callable[[bytes], LogLine | None],
        experiments: Experiments,
        meter: Meter,
    ) -> None:
        self._log = log
        self._decode = decode
        self._experiments = experiments
        self._meter = meter
        self._batch: list[Exposure] = []
        self._wait = _SHORTEST_WAIT
        self._holding = False

    def step(self) -> float:
        """Send the next batch, or the last one again.

        Returns:
            Seconds to wait: 0 while there is more, longer and longer while it cannot be sent.
        """
        if not self._holding:
            lines = self._log.read()
            if not lines:
                self._meter.backlog(self._log.backlog())
                return IDLE
            self._batch = self._exposures(lines)
            self._holding = True
        if not self._send(self._batch):
            self._meter.backlog(self._log.backlog())
            self._wait = min(self._wait * 2, _LONGEST_WAIT)
            return self._wait
        self._log.commit()
        self._wait, self._holding, self._batch = _SHORTEST_WAIT, False, []
        self._meter.backlog(self._log.backlog())
        return 0.0

    def _exposures(self, lines: Sequence[bytes]) -> list[Exposure]:
        decoded = [line for line in map(self._decode, lines) if line is not None]
        self._meter.dropped("malformed", len(lines) - len(decoded))
        return [found for found in map(exposure_of, decoded) if found is not None]

    def _send(self, batch: Sequence[Exposure]) -> bool:
        """Send a batch; halve one the service will not have, down to the item at fault."""
        if not batch:
            return True
        delivery = self._experiments.send(batch)
        if delivery.taken:
            rejected = sum(delivery.rejected.values())
            self._meter.shipped(len(batch) - rejected)
            self._meter.dropped("rejected", rejected)
            if rejected:
                _log.error("Exposures were rejected", extra={"fields": dict(delivery.rejected)})
            return True
        if not delivery.refused:
            _log.warning("Exposures wait", extra={"reason": delivery.reason})
            return False
        if len(batch) == 1:
            self._meter.dropped("refused", 1)
            _log.error("An exposure was refused", extra={"reason": delivery.reason})
            return True
        middle = len(batch) // 2
        return self._send(batch[:middle]) and self._send(batch[middle:])


IDLE = 0.5
"""Seconds exposures may gather before they are sent: what a step returns that found none."""


class Counter:
    """Counts the requests in a log.

    Args:
        log: The log; nothing is committed, as counters start from zero with the agent.
        decode: Reads one line; None if it is malformed.
        meter: What counts them.
    """

    def __init__(
        self, *, log: Log, decode: Callable[[bytes], LogLine | None], meter: Meter
    ) -> None:
        self._log = log
        self._decode = decode
        self._meter = meter

    def step(self) -> float:
        """Count the next lines; return seconds to wait."""
        lines = self._log.read()
        for line in map(self._decode, lines):
            if line is not None and line.model is not None:
                self._meter.request(line)
        return 0.0 if lines else IDLE

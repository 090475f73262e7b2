"""A model that gives back what it is asked about, and is slow, held or failing as a test wants."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping

from fairlead_serving.app.lane import Pace
from fairlead_serving.app.ports import Predictor
from fairlead_serving.domain.data import Data

LIMIT = 60.0
GUILTY = -1.0  # The model raises when a row holds it.


class Echo:
    """Predicts the hour it is asked about; waits while it is held, and takes its time."""

    is_rowwise = True
    predictor = Predictor.OWN

    def __init__(self, seconds: float = 0.0) -> None:
        self.free = threading.Event()
        self.free.set()
        self.calls: list[int] = []
        self.threads: set[int] = set()
        self._seconds = seconds

    def predict(self, data: Data, params: Mapping[str, object]) -> object:
        """Give the column back."""
        self.calls.append(data.rows)
        self.threads.add(threading.get_ident())
        self.free.wait(LIMIT)
        time.sleep(self._seconds)
        hours = list(data.by_column()[0])
        if GUILTY in hours:
            raise ValueError("a guilty row")
        return hours


class Fixed(Pace):
    """Expects the same of every call, and learns nothing."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._fixed = seconds

    def expect(self, rows: int) -> float:
        """Give the seconds."""
        return self._fixed


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, with a limit."""
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110  # Nobody sets an event for it.
            await asyncio.sleep(0.001)

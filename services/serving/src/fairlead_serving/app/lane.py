"""The lane of a model: one call at a time, and what queued meanwhile is the next one.

Nearly all of a prediction's price is paid per call, not per row, so requests that come while the
model is busy are merged. None ever waits for company: an idle model is called at once.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextvars import Context, copy_context
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from fairlead_serving.domain.data import Request, can_merge, merge
from fairlead_serving.domain.errors import OverloadedError, TooLargeError

_log = logging.getLogger(__name__)

Predict = Callable[[Request], object]
Outcome = tuple[object, Exception | None]

_LOOKS = 2  # More let no more in; none misses half of sixteen callers.
_NEWS = 0.2  # The share of the last call in what is expected of the next one.


class Pace:
    """Learns how long a call takes, for each order of magnitude of its rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def expect(self, rows: int) -> float:
        """Give the seconds that a call is likely to take; infinity where nothing is known."""
        size = rows.bit_length()
        if size in self._seconds:
            return self._seconds[size]
        # Twice the rows take at most twice as long.
        smaller = [2.0 ** max(size - known, 0) * taken for known, taken in self._seconds.items()]
        return min(smaller, default=math.inf)

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a call; what was long ago counts ever less."""
        size = rows.bit_length()
        before = self._seconds.get(size, seconds)
        self._seconds[size] = before + _NEWS * (seconds - before)


class Observer(Protocol):
    """Is told of each call of the model."""

    def observe_call(self, requests: int, rows: int, seconds: float) -> None:
        """Note a call: how many requests and rows it held, and how long it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a lane takes.

    Attributes:
        rows: The most rows of one request.
        merged_rows: The most rows of a call that holds several requests; 0 merges nothing.
        queue: The most requests that wait.
        timeout: How many seconds a request may take, its wait included.
        quick: The seconds up to which a call is made in the event loop itself: the way to a
            thread and back costs more than it would hold the others up.
    """

    rows: int = 100_000
    merged_rows: int = 128
    queue: int = 1000
    timeout: float = 30.0
    quick: float = 0.001


class Answer(Protocol):
    """Takes what comes of a request, once: a future, or a `Told`."""

    def done(self) -> bool:
        """Tell whether it has been given, or the caller has left."""

    def set_result(self, result: Any, /) -> None:
        """Give the predictions."""

    def set_exception(self, exception: Exception, /) -> None:
        """Give what the request fails with."""


class Told:
    """Tells the caller at once, where a future would in the next turn of the loop.

    Args:
        tell: Is called once, with the predictions or with what the request fails with.
    """

    __slots__ = ("_is_done", "_tell")

    def __init__(self, tell: Callable[[Any, Exception | None], None]) -> None:
        self._tell = tell
        self._is_done = False

    def done(self) -> bool:
        """Tell whether the caller has been told."""
        return self._is_done

    def set_result(self, result: Any, /) -> None:
        """Tell the predictions."""
        self._answer(result, None)

    def set_exception(self, exception: Exception, /) -> None:
        """Tell what the request fails with."""
        self._answer(None, exception)

    def _answer(self, result: Any, exception: Exception | None) -> None:
        self._is_done = True
        try:
            self._tell(result, exception)
        except Exception as error:  # noqa: BLE001  # The others of a call have to be told too.
            _log.error("A caller could not be told: %s", type(error).__name__)
            _log.debug("The traceback", exc_info=error)


class _Waiting(NamedTuple):
    request: Request
    context: Context
    answer: Answer
    deadline: float


class Lane:
    """Calls one model from one event loop.

    Args:
        predict: Calls the model; raises what the request fails with.
        worker: A single thread, for calls that would hold the loop up.
        limits: What the lane takes.
        observer: Is told of each call.
        pace: What is known of the model's calls so far.
    """

    def __init__(
        self,
        predict: Predict,
        worker: Executor,
        limits: Limits,
        observer: Observer,
        pace: "Pace",
    ) -> None:
        self._predict = predict
        self._worker = worker
        self._limits = limits
        self._observer = observer
        self._pace = pace
        self._queue: deque[_Waiting] = deque()
        self._running: list[_Waiting] = []
        self._is_busy = False
        self._looks = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    def submit(self, request: Request) -> asyncio.Future[Any]:
        """Queue a request.

        Args:
            request: The checked request.

        Returns:
            Its predictions, or what its own call raised; `OverloadedError` after the timeout.

        Raises:
            TooLargeError: It has more rows than are allowed.
            OverloadedError: The queue is full.
        """
        answer = self._loop.create_future()
        self.queue(request, answer)
        return answer

    def queue(self, request: Request, answer: Answer) -> None:
        """Queue a request.

        Args:
            request: The checked request.
            answer: Is given what comes of it, as what `submit` returns.

        Raises:
            TooLargeError: It has more rows than are allowed.
            OverloadedError: The queue is full.
        """
        if request.data.rows > self._limits.rows:
            words = f"The request has {request.data.rows} rows; {self._limits.rows} are allowed."
            raise TooLargeError(words)
        if len(self._queue) >= self._limits.queue and not self._forget():
            raise OverloadedError("Too many requests wait for the model.")
        deadline = self._loop.time() + self._limits.timeout
        self._queue.append(_Waiting(request, copy_context(), answer, deadline))
        if self._alarm is None:
            self._set_alarm(self._queue[0].deadline)
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_soon(self._look_round, self._looks)

    def _look_round(self, times: int) -> None:
        """Let the loop read what has come to the other connections, and only then call.

        That is no wait: with nothing to read, a turn of the loop takes no time. But it takes the
        system a call, which a caller who has been alone lately need not pay for.
        """
        if times > 0:
            self._loop.call_soon(self._look_round, times - 1)
        else:
            self._turn()

    def _turn(self) -> None:
        """Make the next call, with all that may be in it."""
        self._running = batch = self._take()
        if not batch:
            self._is_busy = False
            return
        rows = sum(waiting.request.data.rows for waiting in batch)
        if self._pace.expect(rows) <= self._limits.quick:
            self._finish(_call(self._predict, batch))
            return
        work = self._loop.run_in_executor(self._worker, _call, self._predict, batch)
        work.add_done_callback(lambda done: self._finish(done.result()))

    def _take(self) -> list[_Waiting]:
        """Take the first request that still has a caller, and those that can be one call with it."""
        batch: list[_Waiting] = []
        rows = 0
        while self._queue:
            waiting = self._queue[0]
            if waiting.answer.done():
                self._queue.popleft()
                continue
            rows += waiting.request.data.rows
            if batch and (
                rows > self._limits.merged_rows or not can_merge(batch[0].request, waiting.request)
            ):
                break
            batch.append(self._queue.popleft())
        return batch

    def _forget(self) -> bool:
        """Make room by dropping what nobody waits for any more; say whether that helped."""
        before = len(self._queue)
        self._queue = deque(waiting for waiting in self._queue if not waiting.answer.done())
        return len(self._queue) < before

    def _finish(self, call: "_Call") -> None:
        batch, self._running = self._running, []
        self._pace.note(call.rows, call.seconds)
        self._observer.observe_call(len(batch), call.rows, call.seconds)
        self._looks = _LOOKS if self._queue or len(batch) > 1 else max(self._looks - 1, 0)
        if self._queue:
            self._loop.call_soon(self._look_round, self._looks)
        else:
            self._is_busy = False
        for waiting, (prediction, error) in zip(batch, call.outcomes, strict=True):
            if waiting.answer.done():  # Its caller has left, or has been told to.
                continue
            if error is None:
                waiting.answer.set_result(prediction)
            else:
                waiting.answer.set_exception(error)

    def _set_alarm(self, deadline: float) -> None:
        self._alarm = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        """Tell the callers whose time is up. One timer serves all, as all have the same limit."""
        self._alarm = None
        now = self._loop.time()
        for waiting in (*self._running, *self._queue):
            if waiting.answer.done():
                continue
            if waiting.deadline > now:
                self._set_alarm(waiting.deadline)
                return
            waiting.answer.set_exception(OverloadedError("The model took too long."))


class _Call(NamedTuple):
    outcomes: Sequence[Outcome]
    rows: int
    seconds: float


def _call(predict: Predict, batch: Sequence[_Waiting]) -> _Call:
    """Predict on requests, as one if there are several; if that fails, on each alone."""
    started = time.perf_counter()
    if len(batch) == 1:
        outcomes: Sequence[Outcome] = [_alone(predict, batch[0])]
    else:
        try:
            outcomes = _together(predict, [waiting.request for waiting in batch])
        except Exception:  # noqa: BLE001  # Whatever it is, it is one caller's alone.
            outcomes = [_alone(predict, waiting) for waiting in batch]
    seconds = time.perf_counter() - started
    return _Call(outcomes, sum(waiting.request.data.rows for waiting in batch), seconds)


def _together(predict: Predict, requests: Sequence[Request]) -> Sequence[Outcome]:
    predictions: Any = predict(merge(requests))
    rows = [request.data.rows for request in requests]
    outputs = predictions.values() if isinstance(predictions, dict) else [predictions]
    if any(len(output) != sum(rows) for output in outputs):
        raise ValueError("The model did not give one prediction for each row.")
    ends = accumulate(rows)
    return [
        (_cut(predictions, end - count, end), None) for count, end in zip(rows, ends, strict=True)
    ]


def _cut(predictions: Any, start: int, end: int) -> object:
    """Give the predictions of some rows; of each output, where there are several by name."""
    if isinstance(predictions, dict):
        return {name: output[start:end] for name, output in predictions.items()}
    return predictions[start:end]


def _alone(predict: Predict, waiting: _Waiting) -> Outcome:
    """Predict in the context of the request, so that a model that calls others is in its trace."""
    try:
        return waiting.context.run(predict, waiting.request), None
    except Exception as error:  # noqa: BLE001  # It is handed to the caller.
        return None, error

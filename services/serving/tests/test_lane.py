"""The lane: what is merged, whose answer is whose, what happens when the model fails."""

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from echoing import Fixed

from fairlead_serving.app.lane import Lane, Limits, OverloadedError, Pace, Told
from fairlead_serving.domain.data import Columns, Layout, Raw, Records, Request
from fairlead_serving.domain.signature import Kind

LAYOUT = Layout(("id",), (Kind.LONG,))
BAD = -1


@dataclass
class _Model:
    """Answers each row with its number; fails when a row is bad."""

    calls: list[int] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    gate: threading.Event | None = None
    begun: threading.Event = field(default_factory=threading.Event)
    answer: Callable[[list[int]], Any] = np.array

    def predict(self, request: Request) -> Any:
        self.begun.set()
        if self.gate:
            assert self.gate.wait(10)
        assert isinstance(request.data, Records)
        numbers = [row[0] for row in request.data.cells]
        self.threads.append(threading.current_thread())
        self.calls.append(len(numbers))
        if BAD in numbers:
            raise ValueError("a bad row")
        return self.answer(numbers)


@dataclass
class _Seen:
    requests: list[int] = field(default_factory=list)

    def observe_call(self, requests: int, rows: int, seconds: float) -> None:
        assert rows >= requests
        assert seconds >= 0
        self.requests.append(requests)


def _request(*numbers: int, **params: object) -> Request:
    return Request(Records(LAYOUT, [(number,) for number in numbers]), params)


def _quick() -> Pace:
    return Fixed(0.0)


def _run(
    model: _Model,
    body: Callable[[Lane], Coroutine[Any, Any, None]],
    *,
    limits: Limits | None = None,
    pace: Pace | None = None,
) -> _Seen:
    seen = _Seen()

    async def run() -> None:
        with ThreadPoolExecutor(1) as worker:
            lane = Lane(model.predict, worker, limits or Limits(), seen, pace or Pace())
            try:
                await asyncio.wait_for(body(lane), 30)
            finally:
                if model.gate:
                    model.gate.set()

    asyncio.run(run())
    return seen


@pytest.mark.parametrize("pace", [_quick, Pace], ids=["in the loop", "in the thread"])
def test_requests_at_once_are_one_call(pace: Callable[[], Pace]) -> None:
    """What comes in one turn of the loop is merged, and each caller gets its own rows."""
    model = _Model()

    async def body(lane: Lane) -> None:
        answers = [lane.submit(_request(number, number + 100)) for number in range(5)]
        for number, answer in enumerate(answers):
            assert list(await answer) == [number, number + 100]

    assert _run(model, body, pace=pace()).requests == [5]
    assert model.calls == [10]


@pytest.mark.parametrize(
    ("seconds", "in_loop"),
    [(0.0, True), (0.00099, True), (0.00101, False), (0.2, False)],
    ids=["at once", "just below", "just above", "slow"],
)
def test_calls_below_a_millisecond_are_made_in_the_loop(seconds: float, in_loop: bool) -> None:
    """What is expected to take longer is made in a thread, lest it hold the loop up."""
    model = _Model()

    async def body(lane: Lane) -> None:
        await lane.submit(_request(1))
        (thread,) = model.threads
        assert (thread is threading.current_thread()) is in_loop

    _run(model, body, pace=Fixed(seconds))


def test_slow_calls_share_one_thread() -> None:
    """There is one worker, so a model is never called twice at a time."""
    model = _Model()

    async def body(lane: Lane) -> None:
        for number in range(20):
            await lane.submit(_request(number))
        assert len(set(model.threads)) == 1
        assert model.threads[0] is not threading.current_thread()

    _run(model, body, pace=Fixed(0.002))


def test_calls_move_to_where_their_pace_says() -> None:
    """An unknown model begins in the thread; once it turns out quick, the loop calls it itself."""
    model = _Model()

    async def body(lane: Lane) -> None:
        await lane.submit(_request(1))
        assert model.threads[0] is not threading.current_thread()
        async with asyncio.timeout(10):  # A busy machine makes a quick call look slow.
            while model.threads[-1] is not threading.current_thread():
                await lane.submit(_request(1))
        model.gate = threading.Event()
        threading.Timer(0.01, model.gate.set).start()
        await lane.submit(_request(1))  # It takes ten milliseconds.
        await lane.submit(_request(1))
        assert model.threads[-1] is not threading.current_thread()

    _run(model, body)


def test_what_queues_during_a_call_is_the_next_one() -> None:
    """Nothing waits for company; all that came while the model was busy goes together."""
    model = _Model(gate=threading.Event())

    async def body(lane: Lane) -> None:
        first = lane.submit(_request(1))
        await asyncio.to_thread(model.begun.wait, 10)
        others = [lane.submit(_request(number)) for number in (2, 3, 4)]
        assert model.gate
        model.gate.set()
        assert [list(await answer) for answer in (first, *others)] == [[1], [2], [3], [4]]

    assert _run(model, body).requests == [1, 3]


def test_callers_who_cannot_be_told_keep_no_answer_from_others() -> None:
    """Whoever is told at once is told in the turn of the call, and may raise for himself alone."""
    model, told = _Model(), []

    def tell(prediction: Any, error: Exception | None) -> None:
        told.append((list(prediction), error))
        if list(prediction) == [1]:
            raise OSError

    async def body(lane: Lane) -> None:
        for number in range(3):
            lane.queue(_request(number), Told(tell))
        last = lane.submit(_request(3))
        assert list(await last) == [3]
        assert told == [([number], None) for number in range(3)]

    assert _run(model, body, pace=_quick()).requests == [4]


def test_lane_looks_round_only_where_it_had_company() -> None:
    """A caller who is alone does not pay for looking; after two at once the loop is read again."""
    model = _Model()

    async def turns(lane: Lane) -> int:
        answer, count = lane.submit(_request(1)), 0
        while not answer.done():
            await asyncio.sleep(0)
            count += 1
        return count

    async def body(lane: Lane) -> None:
        alone = await turns(lane)
        await asyncio.gather(lane.submit(_request(1)), lane.submit(_request(2)))
        after = [await turns(lane) for _ in range(4)]
        assert (alone, after) == (1, [3, 2, 1, 1])

    _run(model, body, pace=_quick())


def test_rows_of_a_merged_call_are_limited() -> None:
    """A call takes no more rows than the limit, unless a single request has more."""
    model = _Model()

    async def body(lane: Lane) -> None:
        sizes = (2, 2, 2, 9, 1)
        await asyncio.gather(*(lane.submit(_request(*range(size))) for size in sizes))

    _run(model, body, limits=Limits(merged_rows=4))
    assert model.calls == [4, 2, 9, 1]


def test_nothing_is_merged_where_it_is_switched_off() -> None:
    """A model that may look at all rows at once gets one request at a time."""
    model = _Model()

    async def body(lane: Lane) -> None:
        await asyncio.gather(*(lane.submit(_request(number)) for number in range(4)))

    _run(model, body, limits=Limits(merged_rows=0))
    assert model.calls == [1] * 4


def test_other_columns_or_parameters_are_other_calls() -> None:
    """Only requests that the model would treat alike are merged, in their order."""
    calls: list[object] = []

    def predict(request: Request) -> Any:
        calls.append((type(request.data), request.params, request.data.rows))
        return list(range(request.data.rows))

    other = Layout(("id",), (Kind.DOUBLE,))
    requests = [
        _request(1),
        _request(2),
        _request(3, factor=2),
        Request(Records(other, [(1.0,)])),
        Request(Columns(LAYOUT, [[1]])),
        Request(Columns(LAYOUT, [[2]])),
        Request(Raw([1], 1)),
        Request(Raw([1], 1)),
    ]

    async def body(lane: Lane) -> None:
        await asyncio.gather(*map(lane.submit, requests))

    model = _Model()
    model.predict = predict  # type: ignore[method-assign]
    _run(model, body)
    assert [rows for *_, rows in calls] == [2, 1, 1, 2, 1, 1]


def test_bad_row_hurts_only_its_sender() -> None:
    """When a merged call fails, each of its requests is predicted on alone."""
    model = _Model()

    async def body(lane: Lane) -> None:
        answers = [lane.submit(_request(number)) for number in (1, BAD, 3)]
        found = await asyncio.gather(*answers, return_exceptions=True)
        assert list(found[0]) == [1]
        assert isinstance(found[1], ValueError)
        assert list(found[2]) == [3]

    _run(model, body)
    assert model.calls == [3, 1, 1, 1]


@pytest.mark.parametrize(
    "answer",
    [lambda numbers: np.array(numbers).sum(), lambda numbers: {"sum": sum(numbers)}, lambda _: "x"],
    ids=["a number", "an object", "a string"],
)
def test_answer_that_is_not_by_row_is_not_cut(answer: Callable[[list[int]], Any]) -> None:
    """A model that gives one thing for all rows is called for each request alone."""
    model = _Model(answer=answer)

    async def body(lane: Lane) -> None:
        found = await asyncio.gather(*(lane.submit(_request(number)) for number in (1, 2, 3)))
        assert found == [answer([number]) for number in (1, 2, 3)]

    _run(model, body)


def test_outputs_by_name_are_cut() -> None:
    """A model that gives several outputs, each with an item for each row, is merged too."""
    model = _Model(answer=lambda numbers: {"same": list(numbers), "double": np.array(numbers) * 2})

    async def body(lane: Lane) -> None:
        found = await asyncio.gather(*(lane.submit(_request(at, at + 10)) for at in range(3)))
        for at, answer in enumerate(found):
            assert answer["same"] == [at, at + 10]
            assert answer["double"].tolist() == [2 * at, 2 * at + 20]

    _run(model, body)
    assert model.calls == [6]


def test_full_queue_refuses() -> None:
    """More than the queue holds is refused at once; what was queued is answered."""
    model = _Model(gate=threading.Event())

    async def body(lane: Lane) -> None:
        first = lane.submit(_request(0))
        await asyncio.to_thread(model.begun.wait, 10)
        queued = [lane.submit(_request(number)) for number in (1, 2)]
        with pytest.raises(OverloadedError):
            lane.submit(_request(3))
        queued[0].cancel()  # A caller who leaves makes room.
        last = lane.submit(_request(4))
        assert model.gate
        model.gate.set()
        assert [list(await answer) for answer in (first, queued[1], last)] == [[0], [2], [4]]

    _run(model, body, limits=Limits(queue=2))


def test_caller_is_told_when_it_takes_too_long() -> None:
    """After the timeout a caller gets an error, whether its call runs or it still waits."""
    model = _Model(gate=threading.Event())

    async def body(lane: Lane) -> None:
        running = lane.submit(_request(1))
        await asyncio.to_thread(model.begun.wait, 10)
        queued = lane.submit(_request(2))
        found = await asyncio.gather(running, queued, return_exceptions=True)
        assert all(isinstance(error, OverloadedError) for error in found)
        assert model.gate
        model.gate.set()
        # The lane goes on; what nobody waits for is not predicted on.
        assert list(await lane.submit(_request(3))) == [3]

    _run(model, body, limits=Limits(timeout=0.05))
    assert model.calls == [1, 1]


def test_no_answer_ever_goes_to_another_caller() -> None:
    """Thousands of callers with rows of their own, bad rows and callers who leave among them."""
    model = _Model()
    chance = random.Random(5)

    async def call(lane: Lane, number: int) -> None:
        rows = [number * 10 + at for at in range(chance.randrange(1, 4))]
        if number % 17 == 0:
            rows[-1] = BAD
        await asyncio.sleep(chance.random() * 0.2)
        answer = lane.submit(_request(*rows, **({"odd": 1} if number % 3 else {})))
        if number % 11 == 0:
            await asyncio.sleep(0)
            answer.cancel()
            return
        if number % 17 == 0:
            with pytest.raises(ValueError, match="bad"):
                await answer
            return
        assert list(await answer) == rows

    async def body(lane: Lane) -> None:
        await asyncio.gather(*(call(lane, number) for number in range(4000)))
        assert lane.waiting == 0

    seen = _run(model, body, limits=Limits(queue=5000))
    assert max(seen.requests) > 1


def test_pace_is_learnt_by_size() -> None:
    """Nothing known is slow; what is known of few rows bounds what many may take."""
    pace = Pace()
    assert pace.expect(1) == float("inf")
    pace.note(1, 0.001)
    assert pace.expect(1) == 0.001
    assert pace.expect(8) == pytest.approx(0.008)
    pace.note(8, 0.002)
    assert pace.expect(9) == 0.002
    assert pace.expect(1) == 0.001
    for _ in range(50):
        pace.note(1, 0.1)
    assert pace.expect(1) == pytest.approx(0.1, rel=0.01)

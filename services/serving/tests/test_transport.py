"""The way of short requests, byte by byte over real sockets, beside uvicorn's own way."""

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from echoing import GUILTY, LIMIT, Echo, Fixed, until
from prometheus_client.parser import text_string_to_metric_families
from serving_asgi import COLUMNS

from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.app.lane import Lane, Limits, Pace
from fairlead_serving.app.ports import ModelFolder
from fairlead_serving.app.serving import Served
from fairlead_serving.entrypoints.http import create_app
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.state import State
from fairlead_serving.entrypoints.transport import HotProtocol, PlainProtocol
from fairlead_serving.entrypoints.watches import Seen

Protocol = type[HotProtocol] | type[PlainProtocol]
PATHS = ("/invocations", "/invocations?a=1")  # By the short way, and by uvicorn's.


class Stack:
    """A server on a port of its own."""

    def __init__(
        self, protocol: Protocol, pace: Pace, limits: Limits, receive_seconds: float
    ) -> None:
        self.model = Echo()
        self.seen: list[Seen] = []
        self.metrics = Metrics("flights", "4")
        served = Served(self.model, ModelFolder(path=Path(), flavors={}, signature=COLUMNS), pace)
        self.state = State(served=served)
        self._settings = Settings(model="x", name="flights", version="4", max_body_bytes=600_000)
        self._protocol = partial(protocol, receive_seconds=receive_seconds)
        self._limits = limits
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Stack"]:
        """Serve on a port that the system chooses."""
        app = create_app(self._settings, self.state, self.metrics, [self.seen.append])
        config = uvicorn.Config(
            app,
            http=self._protocol,  # type: ignore[arg-type]
            port=0,
            proxy_headers=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            date_header=False,
            server_header=False,
        )
        self.server = uvicorn.Server(config)
        with ThreadPoolExecutor(1) as worker:
            served = self.state.served
            assert served is not None
            self.state.lane = Lane(served.predict, worker, self._limits, self.metrics, served.pace)
            self.metrics.waiting = lambda: self.state.lane.waiting
            serving = asyncio.create_task(self.server.serve())
            await until(lambda: self.server.started)
            self.port = self.server.servers[0].sockets[0].getsockname()[1]
            try:
                yield self
            finally:
                self.model.free.set()
                self.server.should_exit = True
                await serving


def _post(hour: object, *more: str, path: str = "/invocations", version: str = "1.1") -> bytes:
    body = json.dumps({"inputs": {"hour": [hour]}}).encode()
    head = [f"POST {path} HTTP/{version}", "Host: x", "Content-Type: application/json", *more]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def _chunked(hour: object) -> bytes:
    body = json.dumps({"inputs": {"hour": [hour]}}).encode()
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk


async def _answers(stack: Stack, parts: Sequence[bytes], count: int) -> list[bytes]:
    """Send parts on one connection, and read so many answers, or until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    found = []
    async with asyncio.timeout(LIMIT):
        for _ in range(count):
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            found.append(head + await reader.readexactly(int(length or b"0")))
        if b"connection: close" in found[-1]:
            assert await reader.read() == b""
    writer.close()
    return found


def _run(
    protocol: Protocol,
    test: Callable[[Stack], Awaitable[Any]],
    *,
    pace: Pace | None = None,
    limits: Limits | None = None,
    receive_seconds: float = LIMIT,
) -> Any:
    async def go() -> Any:
        stack = Stack(protocol, pace or Pace(), limits or Limits(), receive_seconds)
        async with stack.running():
            return await test(stack)

    return asyncio.run(go())


GOOD = _post(7)
HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
PADDED = b'{"inputs": {"hour": [7]}}'.ljust(300_000)
CASES: dict[str, tuple[list[bytes], list[int]]] = {
    "one": ([GOOD], [200]),
    "several one after the other": ([_post(1), _post(2), _post(3)], [200] * 3),
    "all pipelined in one packet": ([_post(1) + _post(2) + _chunked(3) + _post(4)], [200] * 4),
    "other paths between": ([b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + GOOD], [200, 200]),
    "byte by byte": ([GOOD[at : at + 1] for at in range(len(GOOD))], [200]),
    "chunked": ([_chunked(7)], [200]),
    "HTTP/1.0": ([_post(7, version="1.0")], [200]),
    "HTTP/1.0 that stays": ([_post(7, "Connection: keep-alive", version="1.0")], [200]),
    "to be closed": ([_post(7, "Connection: close")], [200]),
    "an upgrade that is not known": ([_post(7, "Connection: upgrade", "Upgrade: h2c")], [400]),
    "a query": ([_post(7, path="/invocations?a=1")], [200]),
    "an escaped path": ([_post(7, path="/invoc%61tions")], [200]),
    "a bad value": ([_post("x"), GOOD], [400, 200]),
    "no JSON": ([GOOD.replace(b"{", b"[", 1), GOOD], [400, 200]),
    "an unknown content type": ([GOOD.replace(b"/json", b"/jsom"), GOOD], [415, 200]),
    "an empty body": ([HEAD + b"Content-Length: 0\r\n\r\n"], [400]),
    "another method": ([GOOD.replace(b"POST", b"PUT")], [405]),
    "the other protocol": (
        [
            _post(7, path="/v2/models/flights/infer"),
            _post(7, path="/v2/models/flights/versions/4/infer"),
            _post(7, path="/v2/models/other/infer"),
        ],
        [400, 400, 404],
    ),
    "a long body": ([HEAD + b"Content-Length: 300000\r\n\r\n" + PADDED], [200]),
    "too long a body": ([HEAD + b"Content-Length: 700000\r\n\r\n" + b" " * 700_000], [413]),
    "no HTTP": ([b"hello\r\n\r\n"], [400]),
    "two lengths": ([GOOD.replace(b"Host: x", b"Content-Length: 3")], [400]),
}


@pytest.mark.parametrize("case", CASES)
def test_short_way_answers_as_uvicorn_does(case: str) -> None:
    """Whatever is sent, and however it is cut, the bytes that come back are uvicorn's own."""
    parts, statuses = CASES[case]

    async def ask(stack: Stack) -> list[bytes]:
        return await _answers(stack, parts, len(statuses))

    ours, theirs = _run(HotProtocol, ask), _run(PlainProtocol, ask)
    assert [int(answer.split()[1]) for answer in ours] == statuses
    assert _sorted_heads(ours) == _sorted_heads(theirs)


def _sorted_heads(found: list[bytes]) -> list[tuple[list[bytes], bytes]]:
    """Headers have no order."""
    parts = [answer.partition(b"\r\n\r\n") for answer in found]
    return [(sorted(head.split(b"\r\n")), body) for head, _, body in parts]


@pytest.mark.parametrize("send", [GOOD, _chunked(7)], ids=["short", "chunked"])
def test_rows_of_callers_who_left_are_not_predicted_on(send: bytes) -> None:
    """A caller who closes the connection while others are served costs the model nothing."""

    async def leave(stack: Stack) -> tuple[int, bytes]:
        stack.model.free.clear()
        first = asyncio.create_task(_answers(stack, [GOOD], 1))
        await until(lambda: stack.model.calls)
        leavers = [await asyncio.open_connection("127.0.0.1", stack.port) for _ in range(5)]
        for _, writer in leavers:
            writer.write(send)
        assert stack.state.lane is not None
        await until(lambda: stack.state.lane.waiting == 5)
        for _, writer in leavers:
            writer.transport.abort()
        await until(lambda: stack.metrics.in_flight == 1)
        stack.model.free.set()
        await first
        await _answers(stack, [GOOD], 1)
        return sum(stack.model.calls), stack.metrics.render()

    rows, metrics = _run(HotProtocol, leave)
    assert rows == 2
    assert b'duration_seconds_count{code="4xx",model="flights",version="4"} 5.0' in metrics


async def _silence(stack: Stack, parts: Sequence[bytes]) -> tuple[bytes, float]:
    """Send parts and then no more; give what comes back before the server closes, and how many wait."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    reading = asyncio.create_task(reader.read())
    for part in parts:
        if not reading.done():
            writer.write(part)
            await asyncio.sleep(0.01)
    try:
        async with asyncio.timeout(LIMIT):
            answer = await reading
    except ConnectionError:  # A byte and the end have crossed.
        answer = b""
    writer.close()
    await until(lambda: not stack.server.server_state.connections)
    return answer, stack.metrics.in_flight


V2 = b"POST /v2/models/flights/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
SLOW: dict[str, tuple[list[bytes], bool | None]] = {
    "half a head": ([GOOD[:30]], True),
    "half a body": ([GOOD[:-1]], True),
    "a byte now and then": ([GOOD[at : at + 1] for at in range(len(GOOD) - 9)], None),
    "half a body, chunked": ([_chunked(7)[:-4]], True),
    "half a long body": ([HEAD + b"Content-Length: 300000\r\n\r\n" + PADDED[:-1]], True),
    "half of the other protocol": ([V2 + b"{"], True),
    "nothing at all": ([], False),
    "an empty line": ([b"\r\n"], False),
    "half a body that nobody reads": (
        [b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"],
        False,
    ),
}


@pytest.mark.parametrize("protocol", [HotProtocol, PlainProtocol], ids=["ours", "uvicorn's"])
@pytest.mark.parametrize("case", SLOW)
def test_slow_sender_does_not_keep_a_connection(case: str, protocol: Protocol) -> None:
    """Whoever does not send a whole request in time is told so, and the connection is free again."""
    parts, is_told = SLOW[case]
    answer, in_flight = _run(protocol, lambda stack: _silence(stack, parts), receive_seconds=0.2)
    assert in_flight == 0
    if not is_told:
        assert is_told is None or b" 408 " not in answer
        return
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 Request Timeout")
    assert b"connection: close" in head
    told = json.loads(body)
    assert told.get("error_code", "v2") == ("v2" if parts[0] == V2 + b"{" else "REQUEST_TIMEOUT")
    assert (
        told.get("message", told.get("error")) == "The request did not arrive within 0.2 seconds."
    )


BODIES = ("half a body", "half a body, chunked", "half a long body", "half of the other protocol")


@pytest.mark.parametrize("protocol", [HotProtocol, PlainProtocol], ids=["ours", "uvicorn's"])
@pytest.mark.parametrize("case", BODIES)
def test_slow_body_is_counted_as_what_its_sender_is_told(case: str, protocol: Protocol) -> None:
    """Metrics and watches see one 408, with the answer that was sent."""

    async def ask(stack: Stack) -> bytes:
        answer, _ = await _silence(stack, SLOW[case][0])
        await until(lambda: stack.seen)
        (seen,) = stack.seen
        assert (seen.status, seen.response) == (408, answer.partition(b"\r\n\r\n")[2])
        return stack.metrics.render()

    metrics = _run(protocol, ask, receive_seconds=0.2)
    assert b'duration_seconds_count{code="4xx",model="flights",version="4"} 1.0' in metrics


@pytest.mark.parametrize("case", ["half a body, chunked", "half a long body"])
def test_sender_who_leaves_amid_a_body_is_counted_as_one_who_left(case: str) -> None:
    """It is nobody's mistake, so no 400."""

    async def leave(stack: Stack) -> list[int]:
        _, writer = await asyncio.open_connection("127.0.0.1", stack.port)
        writer.write(SLOW[case][0][0])
        await until(lambda: stack.metrics.in_flight)
        writer.transport.abort()
        await until(lambda: stack.seen)
        return [seen.status for seen in stack.seen]

    assert _run(HotProtocol, leave) == [499]


@pytest.mark.parametrize("between", [b"", b"\r\n", b"POST /inv"], ids=["none", "a line", "half"])
def test_slow_sender_of_a_second_request_gets_the_first_answer(between: bytes) -> None:
    """An answer that takes longer than a request may take to arrive still comes."""

    async def ask(stack: Stack) -> bytes:
        stack.model.free.clear()
        asked = asyncio.create_task(_silence(stack, [GOOD + between]))
        await until(lambda: stack.model.calls)
        await asyncio.sleep(0.4)  # Twice the time to arrive.
        stack.model.free.set()
        if not between:
            await until(lambda: not stack.metrics.in_flight)
            stack.server.should_exit = True  # The connection would be kept alive for a minute.
        return (await asked)[0]

    answer = _run(HotProtocol, ask, receive_seconds=0.2)
    assert answer.startswith(b"HTTP/1.1 200")
    assert (b"HTTP/1.1 408" in answer) is (between == b"POST /inv")


@pytest.mark.parametrize("path", PATHS, ids=["short", "by uvicorn"])
def test_slow_model_frees_its_callers(path: str) -> None:
    """After the time for an answer callers get a 503 that says when to come back, and no slot is held."""

    async def ask(stack: Stack) -> tuple[list[bytes], bytes]:
        stack.model.free.clear()
        running = asyncio.create_task(_answers(stack, [_post(1, path=path)], 1))
        await until(lambda: stack.model.calls)
        waiting = [
            asyncio.create_task(_answers(stack, [_post(one, path=path)], 1)) for one in (2, 3)
        ]
        told = [one for (one,) in await asyncio.gather(running, *waiting)]
        assert stack.metrics.in_flight == 0
        stack.model.free.set()
        (after,) = await _answers(stack, [_post(4, path=path)], 1)
        assert stack.state.lane.waiting == 0
        return told, after

    told, after = _run(HotProtocol, ask, limits=Limits(queue=2, timeout=0.2))
    for answer in told:
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1\r\n" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error_code"] == "OVERLOADED"
    assert after.endswith(b'{"predictions":[4.0]}')


def test_metrics_show_the_queue_and_the_calls() -> None:
    """What waits, what is answered, how long a call took and how many requests it held."""

    async def ask(stack: Stack) -> tuple[dict[str, float], dict[str, float]]:
        stack.model.free.clear()
        asked = [asyncio.create_task(_answers(stack, [_post(1)], 1))]
        await until(lambda: stack.model.calls)
        asked += [asyncio.create_task(_answers(stack, [_post(one)], 1)) for one in range(5)]
        await until(lambda: stack.state.lane.waiting == 5)
        during = await _metrics(stack)
        stack.state.draining = True
        await asyncio.sleep(0.05)
        stack.model.free.set()
        await asyncio.gather(*asked)
        return during, await _metrics(stack)

    during, after = _run(HotProtocol, ask)
    assert (during["requests_waiting"], during["requests_in_flight"]) == (5, 6)
    assert (after["requests_waiting"], after["requests_in_flight"]) == (0, 0)
    assert (during["ready"], after["ready"]) == (1, 0)
    assert (during["predict_seconds_count"], after["predict_seconds_count"]) == (0, 2)
    assert after["predict_seconds_sum"] >= 0.05
    assert after["predict_seconds_bucket 0.025"] <= 1
    found = [after[f"merged_requests_bucket {edge}"] for edge in ("1.0", "4.0", "8.0", "+Inf")]
    assert found == [1, 1, 2, 2]
    assert after["merged_requests_sum"] == after["rows_total"] == 6


async def _metrics(stack: Stack) -> dict[str, float]:
    """Read `/metrics`; a bucket's name has its edge behind it."""
    (answer,) = await _answers(stack, [b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"], 1)
    text = answer.partition(b"\r\n\r\n")[2].decode()
    return {
        " ".join([sample.name.removeprefix("fairlead_serving_"), *edge]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for edge in [[sample.labels["le"]] if "le" in sample.labels else []]
    }


def test_answers_under_way_are_finished_before_the_server_ends() -> None:
    """A server that is told to end still answers what it has taken, and says that it closes."""

    async def end(stack: Stack) -> bytes:
        stack.model.free.clear()
        asked = asyncio.create_task(_answers(stack, [GOOD], 1))
        await until(lambda: stack.model.calls)
        stack.server.should_exit = True
        await until(lambda: not stack.server.servers[0].is_serving())
        stack.model.free.set()
        (answer,) = await asked
        return answer

    answer = _run(HotProtocol, end)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer


@pytest.mark.parametrize("path", PATHS, ids=["short", "by uvicorn"])
def test_guilty_row_fails_its_sender_alone(path: str) -> None:
    """When a call of several callers' rows raises, one gets a 500 and the others their answers."""

    async def ask(stack: Stack) -> tuple[list[bytes], list[int]]:
        stack.model.free.clear()
        first = asyncio.create_task(_answers(stack, [GOOD], 1))
        await until(lambda: stack.model.calls)
        hours = [1.0, 2.0, GUILTY, 4.0, 5.0]
        sent = [asyncio.create_task(_answers(stack, [_post(hour, path=path)], 1)) for hour in hours]
        await until(lambda: stack.state.lane.waiting == len(hours))
        stack.model.free.set()
        found = [answer for (answer,) in await asyncio.gather(first, *sent)]
        return found[1:], stack.model.calls

    answers, calls = _run(HotProtocol, ask)
    assert calls == [1, 5, 1, 1, 1, 1, 1]
    assert [int(answer.split()[1]) for answer in answers] == [200, 200, 500, 200, 200]
    bodies = [json.loads(answer.partition(b"\r\n\r\n")[2]) for answer in answers]
    assert [body.get("predictions") for body in bodies] == [[1.0], [2.0], None, [4.0], [5.0]]
    assert bodies[2]["message"] == "The model raised ValueError."


async def _call_many(stack: Stack, caller: int, times: int) -> int:
    """Send rows that nobody else sends, some of them wrong or guilty; leave now and then."""
    chance, answered = random.Random(caller), 0
    for number in range(times):
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
        rows = [
            chance.choice(["x", GUILTY])
            if chance.random() < 0.1
            else caller * 1000.0 + number * 10 + at
            for at in range(chance.randint(1, 4))
        ]
        for row in rows:
            writer.write(_post(row, path=chance.choice(PATHS)))
        for row in rows:
            if chance.random() < 0.1:
                writer.transport.abort()
                break
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            answer = json.loads(await reader.readexactly(int(length)))
            assert answer.get("predictions") == (None if row in {"x", GUILTY} else [row])
            assert int(head.split()[1]) == {"x": 400, GUILTY: 500}.get(row, 200)
            answered += 1
        writer.close()
    return answered


@pytest.mark.parametrize("seconds", [0.0, 0.002], ids=["in the loop", "in a thread"])
def test_no_answer_goes_to_another_caller(seconds: float) -> None:
    """With thousands of requests, failures and callers who leave, each gets its own row's answer."""

    async def call(stack: Stack) -> int:
        stack.model.seconds = seconds
        answered = sum(await asyncio.gather(*(_call_many(stack, one, 20) for one in range(64))))
        await until(lambda: stack.metrics.in_flight == 0)
        assert stack.state.lane.waiting == 0
        calls, threads = stack.model.calls, stack.model.threads
        assert len(calls) < sum(calls), "no call held several requests"
        assert len(threads) == 1
        assert (threading.get_ident() in threads) is not bool(seconds)
        return answered

    assert _run(HotProtocol, call, pace=Fixed(seconds)) > 2_000

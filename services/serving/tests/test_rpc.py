"""The Open Inference Protocol over gRPC, on real connections."""

import asyncio
import json
import logging
import random
import struct
import threading
from base64 import b64decode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from echoing import GUILTY, LIMIT, Echo, Fixed, until
from free_ports import free_port
from half_calls import HALVES, send_half, take_no_answer
from serving_asgi import COLUMNS
from serving_rpc import INFER, RpcServer, ask_once, run_rpc

from fairlead_serving.adapters.arrays import Arrays
from fairlead_serving.app.lane import Limits
from fairlead_serving.domain.data import Data, Tensors
from fairlead_serving.domain.sampling import is_sampled
from fairlead_serving.domain.signature import Signature
from fairlead_serving.domain.v2 import to_request
from fairlead_serving.entrypoints import rpc
from fairlead_serving.protocol import open_inference_pb2 as pb


def _row(hour: float) -> Any:
    tensor = {
        "name": "hour",
        "datatype": "FP64",
        "shape": [1],
        "contents": {"fp64_contents": [hour]},
    }
    return pb.ModelInferRequest(model_name="flights", inputs=[tensor])


def _hours(answer: Any) -> list[float]:
    (output,) = answer.outputs
    return list(output.contents.fp64_contents)


@pytest.mark.parametrize("share", [1.0, 1e-9], ids=["all", "failures"])
def test_access_log_names_the_call_and_not_its_values(
    share: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A logged call has its method, HTTP's status, time, sizes and id; failures always are logged."""

    async def ask(server: RpcServer) -> list[int]:
        requests = [_row(1.5), pb.ModelInferRequest(model_name="flights"), _row(GUILTY)]
        async with server.callers(1) as (call,):
            for request in requests:
                metadata = [("x-inference-id", "i-1"), ("x-some-bin", b"\xff")]
                await asyncio.gather(call(request, metadata=metadata), return_exceptions=True)
        return [request.ByteSize() for request in requests]

    server = RpcServer(free_port(), Echo(), COLUMNS, access_log=share)
    with caplog.at_level(logging.INFO, "fairlead_serving.access"):
        sizes = run_rpc(server, ask)
    logged = [one for one in caplog.records if one.name == "fairlead_serving.access"]
    fields = [vars(one) for one in logged]
    everything = [(200, sizes[0]), (400, sizes[1]), (500, sizes[2])]
    wanted = everything if share == 1 else everything[2:]
    assert [(one["status"], one["request_bytes"]) for one in fields] == wanted
    for one in fields:
        assert (one["path"], one["inference_id"]) == (INFER, "i-1")
        assert one["seconds"] > 0
        assert (one["response_bytes"] > 0) is (one["status"] == 200)
    assert "1.5" not in "".join(one.getMessage() for one in logged)


def test_payloads_of_a_unit_are_all_kept_or_none(tmp_path: Path) -> None:
    """What is kept of a unit's calls are the messages themselves, the refused ones too."""
    units = [f"u{number}" for number in range(20)]
    words = pb.ModelInferRequest(model_name="flights", id="only text")

    async def ask(server: RpcServer) -> None:
        async with server.callers(1) as (call,):
            for unit in units:
                for request in (_row(2.5), words):
                    metadata = [("x-unit-id", unit)]
                    await asyncio.gather(call(request, metadata=metadata), return_exceptions=True)

    settings = {"payload_folder": tmp_path, "payload_share": 0.5}
    run_rpc(RpcServer(free_port(), Echo(), COLUMNS, **settings), ask)
    (file,) = tmp_path.iterdir()
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    chosen = [unit for unit in units if is_sampled(unit, 0.5)]
    assert 0 < len(chosen) < len(units)
    assert [one["unit"] for one in kept] == [unit for unit in chosen for _ in range(2)]
    good, bad = kept[:2]
    assert (good["status"], good["path"], good["contentType"]) == (200, INFER, "application/grpc")
    assert pb.ModelInferRequest.FromString(b64decode(good["requestBase64"])) == _row(2.5)
    assert _hours(pb.ModelInferResponse.FromString(b64decode(good["responseBase64"]))) == [2.5]
    assert pb.ModelInferRequest.FromString(b64decode(bad["requestBase64"])) == words
    assert (bad["status"], bad["responseBase64"]) == (400, "")


def test_guilty_row_fails_its_sender_alone() -> None:
    """When a call of several callers' rows raises, one gets INTERNAL and the others their answers."""
    model = Echo()
    hours = [1.0, 2.0, GUILTY, 4.0]

    async def ask(server: RpcServer) -> list[Any]:
        async with server.callers(1) as (call,):
            model.free.clear()
            first = asyncio.ensure_future(call(_row(7.0)))
            await until(lambda: model.calls)
            others = [asyncio.ensure_future(call(_row(hour))) for hour in hours]
            await until(lambda: server.state.lane.waiting == len(hours))
            model.free.set()
            assert _hours(await first) == [7.0]
            return await asyncio.gather(*others, return_exceptions=True)

    found = run_rpc(RpcServer(free_port(), model, COLUMNS), ask)
    assert model.calls == [1, 4, 1, 1, 1, 1]
    assert [_hours(found[at]) for at in (0, 1, 3)] == [[1.0], [2.0], [4.0]]
    assert (found[2].code(), found[2].details()) == (
        grpc.StatusCode.INTERNAL,
        "The model raised ValueError.",
    )


def test_rows_of_cancelled_calls_are_not_predicted_on() -> None:
    """A caller who cancels while others are served costs the model nothing, and counts as 499."""
    model = Echo()

    async def cancel(server: RpcServer) -> bytes:
        async with server.callers(1) as (call,):
            model.free.clear()
            first = asyncio.ensure_future(call(_row(7.0)))
            await until(lambda: model.calls)
            leavers = [call(_row(float(hour))) for hour in range(5)]
            await until(lambda: server.state.lane.waiting == 5)
            for one in leavers:
                one.cancel()
            await until(lambda: server.metrics.in_flight == 1)
            model.free.set()
            assert _hours(await first) == [7.0]
            assert _hours(await call(_row(8.0))) == [8.0]
            assert all(one.cancelled() for one in leavers)
            return server.metrics.render()

    metrics = run_rpc(RpcServer(free_port(), model, COLUMNS), cancel)
    assert sum(model.calls) == 2
    assert b'duration_seconds_count{code="4xx",model="flights",version="4"} 5.0' in metrics


async def _call_many(call: Callable[..., Any], caller: int) -> int:
    """Send rows that nobody else sends, some of them guilty; cancel now and then."""
    chance, answered = random.Random(caller), 0
    for number in range(20):
        sent = [
            (hour, call(_row(hour), timeout=LIMIT))
            for at in range(chance.randint(1, 4))
            for hour in [GUILTY if chance.random() < 0.1 else caller * 1000.0 + number * 10 + at]
        ]
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.005)
            sent.pop()[1].cancel()
        for hour, answer in sent:
            if hour == GUILTY:
                with pytest.raises(grpc.aio.AioRpcError, match="The model raised ValueError"):
                    await answer
            else:
                assert _hours(await answer) == [hour]
            answered += 1
    return answered


@pytest.mark.parametrize("seconds", [0.0, 0.002], ids=["in the loop", "in a thread"])
def test_no_answer_goes_to_another_caller(seconds: float) -> None:
    """With thousands of calls on many connections, failures and cancellations, each gets its own."""
    model = Echo(seconds)

    async def call(server: RpcServer) -> int:
        async with server.callers(48) as callers:
            asked = (_call_many(one, number) for number, one in enumerate(callers))
            answered = sum(await asyncio.gather(*asked))
        await until(lambda: server.metrics.in_flight == 0)
        assert server.state.lane.waiting == 0
        return answered

    server = RpcServer(free_port(), model, COLUMNS, pace=Fixed(seconds))
    assert run_rpc(server, call) > 2_000
    assert len(model.calls) < sum(model.calls), "no call held several requests"
    assert len(model.threads) == 1
    assert (threading.get_ident() in model.threads) is not bool(seconds)


class Kept:
    """Gives back the arrays it gets, and keeps what else came."""

    is_rowwise = False
    is_compiled = False

    def __init__(self, answer: object = None) -> None:
        self.dtypes: list[str] = []
        self.params: list[Mapping[str, object]] = []
        self._answer = answer

    def predict(self, data: Data, params: Mapping[str, object]) -> object:
        """Give the input back, or what was to be answered."""
        self.params.append(params)
        if self._answer is not None:
            return self._answer
        assert isinstance(data, Tensors)
        self.dtypes.append(data.arrays[None].dtype)
        return Arrays().build(data)


DATATYPES: Mapping[str, tuple[str, str, str, list[Any]]] = {
    "BOOL": ("bool_contents", "?", "bool", [True, False]),
    "INT8": ("int_contents", "b", "int8", [-(2**7), 2**7 - 1]),
    "INT16": ("int_contents", "h", "int16", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", "i", "int32", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", "q", "int64", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", "B", "uint8", [0, 2**8 - 1]),
    "UINT16": ("uint_contents", "H", "uint16", [0, 2**16 - 1]),
    "UINT32": ("uint_contents", "I", "uint32", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", "Q", "uint64", [0, 2**64 - 1]),
    "FP16": ("", "e", "float16", [0.5, -65504.0]),
    "FP32": ("fp32_contents", "f", "float32", [0.5, -(2.0**100)]),
    "FP64": ("fp64_contents", "d", "float64", [0.1, -1e300]),
    "BYTES": ("bytes_contents", "", "object", ["é", ""]),
}


def _pack(code: str, values: list[Any]) -> bytes:
    if code:
        return struct.pack(f"<{len(values)}{code}", *values)
    words = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(word)) + word for word in words)


@pytest.mark.parametrize("form", ["raw", "contents"])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_comes_and_goes(datatype: str, form: str) -> None:
    """Each reaches the model as its own type, to its last value, and is answered in the same form."""
    contents, code, dtype, values = DATATYPES[datatype]
    words = [value.encode() for value in values] if datatype == "BYTES" else values
    tensor: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": [2]}
    request: dict[str, Any] = {"model_name": "flights", "inputs": [tensor]}
    if form == "raw":
        request["raw_input_contents"] = [_pack(code, values)]
    elif contents:
        tensor["contents"] = {contents: words}
    model = Kept()
    answer = ask_once(RpcServer(free_port(), model, Signature()), pb.ModelInferRequest(**request))
    if form == "contents" and not contents:
        assert answer.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "raw_input_contents" in answer.details()
        return
    assert model.dtypes == [dtype]
    (output,) = answer.outputs
    assert (output.datatype, list(output.shape)) == (datatype, [2, 1])
    if form == "raw":
        assert list(answer.raw_output_contents) == [_pack(code, values)]
    else:
        assert list(getattr(output.contents, contents)) == words


def test_outputs_are_chosen() -> None:
    """Some outputs only, in the order asked for; the id comes back; an unknown one is refused."""
    model = Kept({"a": np.array([1.5]), "b": ["é"], "c": np.array([2])})
    request = _row(1.0)
    request.id = "7"
    request.outputs.add(name="b")
    request.outputs.add(name="a")

    async def ask(server: RpcServer) -> tuple[Any, Any, Any]:
        async with server.callers(1) as (call,):
            some, whole = await call(request), await call(_row(1.0))
            request.outputs.add(name="d")
            (refused,) = await asyncio.gather(call(request), return_exceptions=True)
            return some, whole, refused

    some, whole, refused = run_rpc(RpcServer(free_port(), model, COLUMNS), ask)
    assert (some.id, some.model_name, some.model_version) == ("7", "flights", "4")
    assert [(one.name, one.datatype) for one in some.outputs] == [("b", "BYTES"), ("a", "FP64")]
    assert list(some.outputs[0].contents.bytes_contents) == ["é".encode()]
    assert ([one.name for one in whole.outputs], whole.id) == (["a", "b", "c"], "")
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.details() == "The model's outputs are a, b, c."


@pytest.mark.parametrize(
    ("parameter", "factor"),
    [
        ({"double_param": 2.5}, 2.5),
        ({"int64_param": 3}, 3.0),
        ({"string_param": "c4n4ry"}, None),
        ({"bool_param": True}, None),
    ],
)
def test_parameters_are_checked(parameter: dict[str, Any], factor: float | None) -> None:
    """Those of the signature reach the model as their type; others are the protocol's business."""
    model = Kept([1.0])
    request = _row(1.0)
    request.parameters["factor"].CopyFrom(pb.InferParameter(**parameter))
    request.parameters["priority"].int64_param = 1
    answer = ask_once(RpcServer(free_port(), model, COLUMNS), request)
    if factor is not None:
        assert model.params == [{"factor": factor}]
        return
    assert answer.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "factor" in answer.details()
    assert "c4n4ry" not in answer.details()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        pytest.param({"is_loaded": False}, "UNAVAILABLE", "still being loaded", id="loading"),
        pytest.param({"limits": Limits(queue=0)}, "UNAVAILABLE", "Too many", id="full"),
        pytest.param({"limits": Limits(timeout=0.05)}, "UNAVAILABLE", "too long", id="slow"),
        pytest.param({"limits": Limits(rows=1)}, "INVALID_ARGUMENT", "2 rows", id="rows"),
        pytest.param({"max_body_bytes": 20}, "RESOURCE_EXHAUSTED", "larger than max", id="long"),
    ],
)
def test_refusals_have_codes_of_their_own(options: dict[str, Any], code: str, words: str) -> None:
    """Whether to try again, and with what, is told by gRPC's own codes; no slot is held."""
    tensor = {"name": "hour", "datatype": "FP64", "shape": [2]}
    tensor["contents"] = {"fp64_contents": [1.0, 2.0]}
    request = pb.ModelInferRequest(model_name="flights", inputs=[tensor])
    server = RpcServer(free_port(), Echo(0.2), COLUMNS, **options)
    error = ask_once(server, request)
    assert error.code().name == code
    assert words in error.details()
    assert server.metrics.in_flight == 0


def test_long_requests_are_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As over HTTP, to read megabytes does not hold the probes up; short ones are read in the loop."""
    threads: list[int] = []

    def read(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return to_request(*arguments)

    monkeypatch.setattr(rpc, "to_request", read)

    async def ask(server: RpcServer) -> list[int]:
        async with server.callers(1) as (call,):
            counts = []
            for count in (1, 100_000):
                tensor = {"name": "hour", "datatype": "FP64", "shape": [count]}
                raw = [struct.pack("<d", 1.5) * count]
                answer = await call(
                    pb.ModelInferRequest(
                        model_name="flights", inputs=[tensor], raw_input_contents=raw
                    )
                )
                counts.append(len(answer.raw_output_contents[0]) // 8)
            return counts

    assert run_rpc(RpcServer(free_port(), Echo(), COLUMNS), ask) == [1, 100_000]
    assert threads[0] == threading.get_ident()
    assert threads[1] != threading.get_ident()


TOLD = {"no message", "half a message", "half a frame", "a message byte by byte"}


@pytest.mark.parametrize("half", HALVES)
def test_slow_sender_does_not_keep_a_connection(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops amid a call is told so in time, then the connection is closed; others are served."""
    monkeypatch.setattr(rpc, "KEEP_ALIVE_SECONDS", 0.2)
    port = free_port()

    async def stay(server: RpcServer) -> bytes:
        staying = asyncio.create_task(send_half(port, half))
        async with server.callers(1) as (call,):
            while not staying.done():
                assert _hours(await call(_row(1.5))) == [1.5]
            assert _hours(await call(_row(2.5))) == [2.5]
        assert server.metrics.in_flight == 0
        return await staying + server.metrics.render()

    found = run_rpc(RpcServer(port, Echo(), COLUMNS, receive_seconds=0.3), stay)
    is_told = half in TOLD
    assert (b"did not arrive within 0.3 seconds" in found) is is_told
    assert (b"grpc-status\x014" in found) is is_told  # DEADLINE_EXCEEDED
    counted = b'duration_seconds_count{code="4xx",model="flights",version="4"} %.1f' % is_told
    assert counted in found


def test_calls_at_a_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half messages are held up to a number, one more is refused; after their time there is room."""
    monkeypatch.setattr(rpc, "_MOST_CALLS", 1)
    port, model = free_port(), Echo()
    admitted = []
    arrived = rpc._Service.arrived

    async def admit(service: Any, context: Any) -> Any:
        admitted.append(context)
        return await arrived(service, context)

    monkeypatch.setattr(rpc._Service, "arrived", admit)

    async def ask(server: RpcServer) -> None:
        async with server.callers(3) as callers:
            model.free.clear()
            first = asyncio.ensure_future(callers[0](_row(7.0)))
            await until(lambda: model.calls)
            halves = asyncio.create_task(send_half(port, "half a message"))
            await until(lambda: len(admitted) == 2)
            with pytest.raises(grpc.aio.AioRpcError, match="limit exceeded") as told:
                await callers[1](_row(1.0), timeout=LIMIT)
            assert told.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            model.free.set()
            assert _hours(await first) == [7.0]
            assert b"did not arrive" in await halves
            assert _hours(await callers[1](_row(2.0))) == [2.0]

    monkeypatch.setattr(rpc, "KEEP_ALIVE_SECONDS", 0.2)
    limits = Limits(queue=1)
    run_rpc(RpcServer(port, model, COLUMNS, limits=limits, receive_seconds=2.0), ask)


def test_caller_who_takes_no_answer_does_not_keep_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer that lives and has no room for its answer is left with the connection's age."""
    monkeypatch.setattr(rpc, "_AGE_SECONDS", 0.2)
    port = free_port()

    async def stay(server: RpcServer) -> None:
        await take_no_answer(port, _row(1.5).SerializeToString())
        assert b'count{code="2xx",model="flights",version="4"} 1.0' in server.metrics.render()

    limits = Limits(timeout=0.1)
    run_rpc(RpcServer(port, Echo(), COLUMNS, limits=limits, receive_seconds=0.1), stay)


def test_connection_that_ends_by_its_age_fails_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server asks for another connection now and then, and a caller notices nothing."""
    monkeypatch.setattr(rpc, "_AGE_SECONDS", 0.05)
    arrived, peers = rpc._Service.arrived, set()

    async def note(self: Any, context: Any) -> Any:
        peers.add(context.peer())
        return await arrived(self, context)

    monkeypatch.setattr(rpc._Service, "arrived", note)

    async def go_on(call: Callable[..., Any]) -> None:
        for number in range(200):
            assert _hours(await call(_row(float(number)), timeout=LIMIT)) == [float(number)]

    async def ask(server: RpcServer) -> None:
        async with server.callers(8) as callers:
            await asyncio.gather(*map(go_on, callers))

    run_rpc(RpcServer(free_port(), Echo(0.001), COLUMNS, pace=Fixed(0.001)), ask)
    assert len(peers) > 2 * 8

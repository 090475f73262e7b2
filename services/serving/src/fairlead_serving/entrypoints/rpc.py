"""The Open Inference Protocol over gRPC, beside HTTP, in the same event loop."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.adapters.outputs import Output, chosen_outputs, to_outputs
from fairlead_serving.app.serving import Served
from fairlead_serving.domain.errors import (
    BadInputError,
    ClientLeftError,
    RequestError,
    TooSlowError,
)
from fairlead_serving.domain.v2 import Infer, Input, Wanted, to_request, unpack
from fairlead_serving.entrypoints.hot import LONG, to_request_error
from fairlead_serving.entrypoints.settings import KEEP_ALIVE_SECONDS, Settings
from fairlead_serving.entrypoints.state import State
from fairlead_serving.entrypoints.v2 import (
    check_model,
    model_metadata,
    server_metadata,
)
from fairlead_serving.entrypoints.watches import Seen, Watch
from fairlead_serving.protocol import open_inference_pb2 as pb

_SERVICE = "inference.GRPCInferenceService"
_CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_PING_SECONDS = 30.0
"""How long a connection on which nothing comes is thought to be alive, and then how long it may
take to answer."""

_AGE_SECONDS = 3600.0
"""When a connection is asked to end. Its calls are finished first: a caller notices nothing, and
finds the replicas that have come since. It is what ends one that takes no answer."""

_MOST_CALLS = 1000
"""The most calls of one connection at a time, whose caller's library keeps the others back; and
the most of all connections, besides those that may wait for the model. Each may hold a message."""


def create_rpc_server(
    settings: Settings,
    state: State,
    metrics: Metrics,
    watches: Sequence[Watch] = (),
    interceptors: Sequence[Any] = (),
) -> grpc.aio.Server:
    """Make the gRPC server of one model; it listens once it is started.

    Args:
        settings: The settings of the process.
        state: Holds the model as soon as it is loaded.
        metrics: Counts what is answered, as HTTP's status codes.
        watches: Look at each answered inference.
        interceptors: Stand around each call.

    Returns:
        The server, bound to its port.

    Raises:
        OSError: The address is taken.
    """
    service = _Service(settings, state, metrics, watches)
    handlers = {
        # A stream of one message: a unary call is the same to the caller, but its message is read
        # before we are asked, however long that takes.
        name: grpc.stream_unary_rpc_method_handler(
            call,
            request_deserializer=request.FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )
        for name, call, request in (
            ("ServerLive", service.server_live, pb.ServerLiveRequest),
            ("ServerReady", service.server_ready, pb.ServerReadyRequest),
            ("ModelReady", service.model_ready, pb.ModelReadyRequest),
            ("ServerMetadata", service.server_metadata, pb.ServerMetadataRequest),
            ("ModelMetadata", service.model_metadata, pb.ModelMetadataRequest),
            ("ModelInfer", service.model_infer, pb.ModelInferRequest),
        )
    }
    server = grpc.aio.server(
        interceptors=interceptors,
        options=_options(settings),
        maximum_concurrent_rpcs=settings.limits.queue + _MOST_CALLS,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    address = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        server.add_insecure_port(f"{address}:{settings.grpc_port}")
    except RuntimeError as error:
        raise OSError(None, "the address is taken or not this machine's") from error
    return server


def _options(settings: Settings) -> list[tuple[str, int]]:
    """Bound what a connection may take and how long; seconds are told as whole milliseconds."""
    seconds = {
        "grpc.server_handshake_timeout_ms": settings.receive_seconds,
        "grpc.max_connection_idle_ms": KEEP_ALIVE_SECONDS,
        "grpc.keepalive_time_ms": _PING_SECONDS,
        "grpc.keepalive_timeout_ms": _PING_SECONDS,
        "grpc.max_connection_age_ms": _AGE_SECONDS,
        # What is under way then may still arrive, wait and be answered.
        "grpc.max_connection_age_grace_ms": settings.receive_seconds + settings.limits.timeout,
    }
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", _MOST_CALLS),
        ("grpc.so_reuseport", 0),
        *((name, math.ceil(1000 * value)) for name, value in seconds.items()),
    ]


@asynccontextmanager
async def _refusing(context: Any) -> AsyncIterator[None]:
    """End a call with the code of the error that it raises."""
    try:
        yield
    except RequestError as error:
        await context.abort(_CODES[error.status], error.message)


def _whole(call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Call a method with the message, once that is there."""

    async def answer(self: "_Service", _: Any, context: Any) -> Any:
        async with _refusing(context):
            return await call(self, await self.arrived(context))

    return answer


class _Service:
    def __init__(
        self, settings: Settings, state: State, metrics: Metrics, watches: Sequence[Watch]
    ) -> None:
        self._settings = settings
        self._state = state
        self._metrics = metrics
        self._watches = watches

    @_whole
    async def server_live(self, _: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    @_whole
    async def server_ready(self, _: Any) -> Any:
        return pb.ServerReadyResponse(ready=self._state.is_ready)

    @_whole
    async def model_ready(self, request: Any) -> Any:
        check_model(self._settings, request.name, request.version)
        return pb.ModelReadyResponse(ready=self._state.is_ready)

    @_whole
    async def server_metadata(self, _: Any) -> Any:
        return pb.ServerMetadataResponse(**server_metadata())

    @_whole
    async def model_metadata(self, request: Any) -> Any:
        check_model(self._settings, request.name, request.version)
        return pb.ModelMetadataResponse(**model_metadata(self._settings, self._state))

    async def model_infer(self, _: Any, context: Any) -> Any:
        async with _refusing(context):
            try:
                request = await self.arrived(context)
            except TooSlowError as error:
                self._metrics.observe(error.status, self._settings.receive_seconds)
                raise
            check_model(self._settings, request.model_name, request.model_version)
            return await self._counted(request, context)

    async def arrived(self, context: Any) -> Any:
        """Wait for the message of a call, but not for ever."""
        try:
            async with asyncio.timeout(self._settings.receive_seconds):
                message = await context.read()
        except TimeoutError as error:
            raise TooSlowError(self._settings.receive_seconds) from error
        if message is grpc.aio.EOF:
            raise BadInputError("The call holds no message.")
        return message

    async def _counted(self, request: Any, context: Any) -> Any:
        started, status, answer = time.perf_counter(), 200, None
        self._metrics.in_flight += 1
        try:
            answer = await self._infer(request)
        except asyncio.CancelledError:
            status = ClientLeftError.status
            raise
        except Exception as error:
            told = to_request_error(error)
            status = told.status
            raise told from error
        finally:
            self._metrics.in_flight -= 1
            seconds = time.perf_counter() - started
            self._metrics.observe(status, seconds)
            if self._watches:
                seen = _seen(request, context, status, answer, seconds)
                for watch in self._watches:
                    watch(seen)
        return answer

    async def _infer(self, request: Any) -> Any:
        served, lane = self._state.loaded()
        is_long = request.ByteSize() > LONG
        infer = (
            await asyncio.to_thread(_read, request, served) if is_long else _read(request, served)
        )
        predictions = await lane.submit(infer.request)
        outputs = to_outputs(predictions, infer.request.data.rows, served.signature.outputs)
        return _answer(self._settings, infer, outputs)


def _seen(request: Any, context: Any, status: int, answer: Any, seconds: float) -> Seen:
    metadata = context.invocation_metadata() or ()
    headers = [
        (name.encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in metadata
    ]
    response = answer.SerializeToString() if answer is not None else b""
    path = f"/{_SERVICE}/ModelInfer"
    headers.append((b"content-type", b"application/grpc"))
    return Seen(path, headers, request.SerializeToString(), status, response, seconds)


def _read(request: Any, served: Served) -> Infer:
    parameters = _parameters(request.parameters)
    return Infer(
        to_request(_inputs(request), parameters, served.signature),
        request.id or None,
        [Wanted(output.name, _parameters(output.parameters)) for output in request.outputs],
        bool(request.raw_input_contents),
    )


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in given.items()}
    return {name: getattr(given[name], choice) for name, choice in chosen.items() if choice}


def _inputs(request: Any) -> list[Input]:
    """Read the tensors: all from raw bytes, or each from the list for its datatype."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadInputError("raw_input_contents must hold the bytes of each input.", "inputs")
    inputs = []
    for number, tensor in enumerate(request.inputs):
        field = f"inputs[{number}]"
        if raw:
            values = unpack(field, tensor.datatype, raw[number])
        elif tensor.datatype == "FP16":
            raise BadInputError(f"'{field}' is of FP16, which only raw_input_contents hold.", field)
        else:
            # An unknown datatype is refused with the words that name those there are.
            contents = _CONTENTS.get(tensor.datatype)
            values = list(getattr(tensor.contents, contents)) if contents else []
        kind = str(_parameters(tensor.parameters).get("content_type"))
        shape = tuple(tensor.shape)
        inputs.append(Input(field, tensor.name, shape, tensor.datatype, values, kind))
    return inputs


def _answer(settings: Settings, infer: Infer, outputs: Sequence[Output]) -> Any:
    answer = pb.ModelInferResponse(
        model_name=settings.name, model_version=settings.v2_version, id=infer.id or ""
    )
    chosen = [output for output, _ in chosen_outputs(infer, outputs)]
    # Half floats have no list of their own in the protocol.
    is_raw = infer.is_binary or any(output.datatype not in _CONTENTS for output in chosen)
    for output in chosen:
        tensor = answer.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        tensor.parameters["content_type"].string_param = output.content_type
        if is_raw:
            answer.raw_output_contents.append(output.pack())
        else:
            getattr(tensor.contents, _CONTENTS[output.datatype]).extend(output.as_list())
    return answer

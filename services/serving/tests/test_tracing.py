"""Spans, seen by a collector of our own that speaks OpenTelemetry's protocol."""

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from free_ports import free_port
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fairlead_serving.protocol import open_inference_pb2 as pb

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Collector(ThreadingHTTPServer):
    """Takes spans as a collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[ExportTraceServiceRequest] = []

    @property
    def spans(self) -> list[tuple[str, str, str]]:
        """Give the service, the name and the trace of each span."""
        return [
            (
                next(
                    one.value.string_value
                    for one in resource.resource.attributes
                    if one.key == "service.name"
                ),
                span.name,
                span.trace_id.hex(),
            )
            for taken in self.taken
            for resource in taken.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        """Take an export."""
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.taken.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on a port of its own."""
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _ask(url: str) -> httpx.Response:
    row = {"hour": 1.0, "day": 1, "late": 1}
    with httpx.Client(base_url=url, headers={"traceparent": PARENT}) as client:
        client.get("/livez")
        return client.post("/invocations", json={"dataframe_records": [row]})


def _ask_by_rpc(port: int) -> str:
    values = {"hour": ("FP64", "fp64_contents"), "day": ("INT64", "int64_contents")}
    values["late"] = values["day"]
    request = pb.ModelInferRequest(model_name="calling")
    for name, (datatype, contents) in values.items():
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
        getattr(tensor.contents, contents).append(1)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        answer = infer(request, metadata=(("traceparent", PARENT),), timeout=10)
    return str(answer.outputs[0].contents.bytes_contents[0].decode())


def test_trace_of_the_caller_reaches_the_model_and_the_collector(
    models: Path,
    serve: Callable[..., Any],
    collector: Collector,
    wait: Callable[[Callable[[], bool]], None],
) -> None:
    """The model calls others in its caller's trace, and each request is a span; probes are none."""
    to = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
    port = free_port()
    options = ("--tracing", "--grpc-port", str(port), "--environment", "ignore")
    with serve(models / "calling", *options, environment=to) as server:
        server.wait_ready()
        (seen,) = _ask(server.url).json()["predictions"]
        seen_by_rpc = _ask_by_rpc(port)
        server.process.terminate()
        server.process.wait(timeout=10)
    assert seen.split("-")[1] == TRACE
    assert seen_by_rpc.split("-")[1] == TRACE
    assert seen != PARENT
    wait(lambda: len(collector.spans) > 1)
    services, names, traces = zip(*collector.spans, strict=True)
    assert set(services) == {"calling"}
    assert sorted(names) == ["/inference.GRPCInferenceService/ModelInfer", "POST /invocations"]
    assert set(traces) == {TRACE}


def test_collector_that_is_away_costs_no_request(models: Path, serve: Callable[..., Any]) -> None:
    """Spans that cannot be sent are lost, and nothing else."""
    to = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    with serve(models / "calling", "--tracing", environment=to) as server:
        server.wait_ready()
        assert _ask(server.url).status_code == 200

"""What a serving process is told on its command line."""

from dataclasses import dataclass, field
from pathlib import Path

from fairlead_serving.adapters.metrics import SECONDS
from fairlead_serving.app.lane import Limits

KEEP_ALIVE_SECONDS = 75
"""How long a connection without a request is kept, over HTTP and gRPC: longer than the gateway keeps
idle ones, so that it is the gateway that closes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one process.

    Attributes:
        model: A folder, or `models:/NAME/VERSION`.
        name: The name in metrics and in the OpenAPI document.
        version: The version in the same places; empty for a folder.
        host: The address to listen on.
        port: The port; 0 lets the system choose.
        grpc_port: The port for gRPC; None speaks none.
        cache: Where fetched models, and packages, are kept.
        tracking_uri: The MLflow server to fetch from.
        drain_seconds: How long requests are still taken after SIGTERM.
        termination_log: The file for the one sentence on why the process ended.
        environment: When what is installed does not meet the model's requirements: `image`
            stops, `resolve` installs the difference, `ignore` only warns.
        threads: How many threads one prediction may use.
        predictor: `auto` to compile a faster predict where it gives the same, `exact`, or
            `onnx` to convert it.
        trusted_types: Types that a skops file may hold besides those of known packages.
        max_body_bytes: The largest body taken.
        receive_seconds: How long a request may take to arrive.
        merge: `auto` to merge the requests for models that are known to predict row by row, or
            `on` or `off` for any model.
        access_log: The share of the requests that are logged, from 0 to 1.
        payload_folder: Where sampled payloads are kept; None keeps none.
        payload_share: The share of the units whose payloads are kept, from 0 to 1.
        payload_key: The header that names the unit.
        payload_bytes: What all kept payloads together may hold.
        experiments: The experiments service that hears of compared requests; empty for none.
        tracing: Whether requests are put into OpenTelemetry's spans.
        limits: What the model takes, what waits for it, and for how long.
        latency_buckets: The upper edges of the latency histogram in seconds.
    """

    model: str
    name: str = "model"
    version: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    grpc_port: int | None = None
    cache: Path = Path(".cache/models")
    tracking_uri: str = ""
    drain_seconds: float = 2.0
    termination_log: Path | None = None
    environment: str = "image"
    threads: int = 1
    predictor: str = "auto"
    trusted_types: tuple[str, ...] = ()
    max_body_bytes: int = 10 * 1024 * 1024
    receive_seconds: float = 60.0
    merge: str = "auto"
    latency_buckets: tuple[float, ...] = SECONDS
    access_log: float = 0.0
    payload_folder: Path | None = None
    payload_share: float = 1.0
    payload_key: str = "x-unit-id"
    payload_bytes: int = 512 * 1024 * 1024
    experiments: str = ""
    tracing: bool = False
    limits: Limits = field(default_factory=Limits)

    @property
    def v2_version(self) -> str:
        """The version in the Open Inference Protocol, which knows no model without one."""
        return self.version or "1"

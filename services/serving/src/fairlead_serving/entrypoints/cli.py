"""The `fairlead-serving` command."""

import argparse
import math
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from fairlead_serving.adapters.cgroup import count_processors, read_limits
from fairlead_serving.adapters.metrics import SECONDS
from fairlead_serving.app.lane import Limits
from fairlead_serving.domain.source import ModelVersion, parse_model
from fairlead_serving.domain.threads import threads_for
from fairlead_serving.entrypoints.logs import configure_logging
from fairlead_serving.entrypoints.settings import Settings

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_BACKLOG = 2048
_OPTIONS = "FAIRLEAD_SERVING_OPTIONS"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve one model until a signal comes.

    Args:
        argv: The arguments; those of the process if None.

    Returns:
        0 after a signal; 1 when the address is taken; 2 for wrong arguments; 3 when the model
        can never load; 4 when it could not be fetched just now.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["check"]:
        return _check(arguments[1:])
    settings, log_level, log_format = _parse(arguments)
    configure_logging(log_level, log_format)
    # Before numpy is imported, which reads them once: a pool of threads as wide as the machine
    # slows a small prediction down, and its neighbours too.
    for variable in _THREAD_VARIABLES:
        os.environ.setdefault(variable, str(settings.threads))
    # Else threads without work spin, and use the limit up that they follow.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from fairlead_serving.entrypoints.restart import inherited_listener, start_again  # noqa: PLC0415
    from fairlead_serving.entrypoints.server import RestartNeededError, report, run  # noqa: PLC0415

    try:
        listener = inherited_listener() or _listen(settings.host, settings.port)
    except OSError as error:
        report(settings, f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.")
        return 1
    with listener:
        try:
            return run(settings, listener)
        except RestartNeededError as needed:
            start_again(needed.layer, needed.listener)


def _check(argv: Sequence[str]) -> int:
    """Tell whether a model could be served; see `entrypoints.check`."""
    parser = _check_parser()
    given = parser.parse_args(argv)
    _source(parser, given)
    configure_logging("warning", "text")
    # The server's modules are slow to import, and wrong arguments need none.
    from fairlead_serving.entrypoints.check import check  # noqa: PLC0415

    settings = Settings(
        model=given.model,
        cache=given.cache,
        tracking_uri=given.tracking_uri,
        environment=given.environment,
    )
    return check(settings, as_json=given.json)


def _listen(host: str, port: int) -> socket.socket:
    """Bind with TCP named as the protocol: asyncio sets TCP_NODELAY only then."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(_BACKLOG)
    return listener


def _source(parser: argparse.ArgumentParser, given: argparse.Namespace) -> ModelVersion | None:
    """Tell where the model comes from; end with a usage error if that cannot be told."""
    try:
        version = parse_model(given.model)
    except ValueError as error:
        parser.error(str(error))
    if version is not None and not given.tracking_uri:
        parser.error("models:/ needs --tracking-uri or MLFLOW_TRACKING_URI")
    return version


def _parse(argv: Sequence[str]) -> tuple[Settings, str, str]:
    parser = _parser()
    given = parser.parse_args([*_more_options(parser), *argv])
    version = _source(parser, given)
    fields = dict(vars(given))
    log_level, log_format = fields.pop("log_level"), fields.pop("log_format")
    fields["limits"] = Limits(
        rows=fields.pop("max_rows"),
        merged_rows=fields.pop("max_merged_rows"),
        queue=fields.pop("max_queue"),
        timeout=fields.pop("timeout_seconds"),
    )
    fields["name"] = given.name or (version and version.name) or Path(given.model).resolve().name
    fields["version"] = given.version or (version.version if version else "")
    return Settings(**fields), log_level, log_format


def _more_options(parser: argparse.ArgumentParser) -> list[str]:
    """Read the options of the environment, for those who do not write the command line.

    In a cluster it is the controller's. What stands there wins.
    """
    try:
        return shlex.split(os.environ.get(_OPTIONS, ""))
    except ValueError as error:
        parser.error(f"{_OPTIONS} cannot be read: {str(error).lower()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairlead-serving",
        description="Serve one version of an MLflow model.",
        epilog=f"Options may stand in the variable {_OPTIONS} too; the command line's win. "
        "`fairlead-serving check --help`: tell whether a model could be served.",
    )
    _add_model(parser.add_argument_group("the model"))
    _add_listening(parser.add_argument_group("where it listens"))
    _add_predicting(parser.add_argument_group("how it predicts"))
    _add_limits(parser.add_argument_group("what it takes"))
    _add_telling(parser.add_argument_group("what it tells"))
    return parser


_Group = argparse._ArgumentGroup  # noqa: SLF001  # The type has no public name.


def _add_model(group: _Group) -> None:
    _add_source(group)
    add = group.add_argument
    add("--name", help="the name in metrics and documents; the model's own if left out")
    add("--version", default="", help="the version in the same places; that of the URI if left out")
    add(
        "--trusted-types",
        type=_names,
        default=(),
        help="types a skops file may hold besides scikit-learn's, with commas between them",
    )


def _add_listening(group: _Group) -> None:
    add = group.add_argument
    add("--host", default="127.0.0.1", help="the address to listen on (%(default)s)")
    add("--port", type=int, required=True, help="the port to listen on")
    add("--grpc-port", type=int, help="the port for the Open Inference Protocol over gRPC")
    add("--drain-seconds", type=float, default=2.0, help="requests are taken so long after SIGTERM")


def _add_predicting(group: _Group) -> None:
    add = group.add_argument
    add(
        "--threads",
        type=_threads,
        default="auto",
        help="how many threads one prediction may use; auto: the whole cores of the CPU limit",
    )
    add(
        "--predictor",
        choices=("auto", "exact", "onnx"),
        default="auto",
        help="compile a faster predict where it gives the same, use the model's own, or convert it",
    )
    add(
        "--merge",
        choices=("auto", "on", "off"),
        default="auto",
        help="call the model with all requests that queued, if it is known to predict row by row",
    )
    merged = Limits().merged_rows
    add("--max-merged-rows", type=_count, default=merged, help="the most rows of a merged call")


def _add_limits(group: _Group) -> None:
    add, limits = group.add_argument, Limits()
    add("--max-body-bytes", type=_count, default=10 * 1024 * 1024, help="the largest body taken")
    add(
        "--receive-seconds",
        type=_seconds,
        default=60.0,
        help="how long a request may take to arrive",
    )
    add("--max-rows", type=_count, default=limits.rows, help="the most rows of one request")
    add("--max-queue", type=_count, default=limits.queue, help="how many requests may wait")
    add(
        "--timeout-seconds",
        type=_seconds,
        default=limits.timeout,
        help="how long a request may take, its wait included",
    )


def _add_telling(group: _Group) -> None:
    add = group.add_argument
    add("--termination-log", type=Path, help="the file for the reason why the process ended")
    add(
        "--latency-buckets",
        type=_edges,
        default=SECONDS,
        help="the upper edges of the latency histogram in seconds, with commas between them",
    )
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    add(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="lines for people, or one JSON object a line",
    )
    add(
        "--access-log",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="log this share of the requests, and every 5xx; 0 logs none",
    )
    add("--payload-folder", type=Path, help="keep sampled requests and answers here")
    add(
        "--payload-share",
        type=_share,
        default=1.0,
        metavar="SHARE",
        help="keep those of this share of the units",
    )
    add("--payload-key", default="x-unit-id", help="the header that names the unit")
    add(
        "--payload-bytes",
        type=_count,
        default=512 * 1024 * 1024,
        help="delete the oldest above so many bytes",
    )
    add(
        "--experiments",
        type=_address,
        default=os.environ.get("FAIRLEAD_EXPERIMENTS_URL", ""),
        metavar="URL",
        help="where to report what is predicted for requests that are compared with a shadow's "
        "(FAIRLEAD_EXPERIMENTS_URL)",
    )
    add(
        "--tracing",
        action="store_true",
        help="a span for each request, sent as OTEL_EXPORTER_OTLP_ENDPOINT says",
    )


def _check_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairlead-serving check",
        description="Fetch a model and tell whether it could be served here, without loading it.",
    )
    _add_source(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _add_source(group: argparse.ArgumentParser | _Group) -> None:
    add = group.add_argument
    add("--model", required=True, help="a model folder, or models:/NAME/VERSION")
    add("--cache", type=Path, default=_default_cache(), help="where what was fetched is kept")
    add(
        "--tracking-uri",
        default=os.environ.get("MLFLOW_TRACKING_URI", ""),
        help="the MLflow server to fetch from (MLFLOW_TRACKING_URI)",
    )
    add(
        "--environment",
        choices=("image", "resolve", "ignore"),
        default="image",
        help="when what is installed does not meet the model's requirements: stop, install "
        "the difference, or only warn",
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _address(text: str) -> str:
    if text and not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"'{text}' is not an address that begins with http://")
    return text


def _threads(text: str) -> int:
    if text == "auto":
        return threads_for(read_limits(), count_processors())
    return _count(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")
    return number


def _share(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share between 0 and 1")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # Which is in no range.


def _edges(text: str) -> tuple[float, ...]:
    edges = tuple(_seconds(part) for part in text.split(","))
    if list(edges) != sorted(set(edges)):
        raise argparse.ArgumentTypeError(f"'{text}' is not in ascending order")
    return edges


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fairlead" / "models"


if __name__ == "__main__":
    sys.exit(main())

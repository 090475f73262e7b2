"""The command `fairlead-gateway`."""

import argparse
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from fairlead_gateway.adapters.envoy import become_envoy
from fairlead_gateway.adapters.files import Home, write_atomically
from fairlead_gateway.app.drain import DrainSettings
from fairlead_gateway.domain.bootstrap import render_bootstrap

_LOG_LIMIT = 64 << 20
_LAST_WORDS = 10.0
_UNITS = {
    **{unit: 1000**power for power, unit in enumerate(["", "k", "M", "G", "T", "P"])},
    **{unit: 1024**power for power, unit in enumerate(["Ki", "Mi", "Gi", "Ti", "Pi"], 1)},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parser().parse_args(arguments)
    options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairlead-gateway", description="Envoy, and the agent that tells it what to do."
    )
    commands = parser.add_subparsers(required=True)
    _add_agent(commands.add_parser("agent", help="keep Envoy's files right and ship exposures"))
    _add_bootstrap(commands.add_parser("bootstrap", help="write the file Envoy starts with"))
    _add_envoy(commands.add_parser("envoy", help="write it, and become Envoy"))
    return parser


def _add_agent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", type=Path, required=True, help="the shared folder")
    parser.add_argument(
        "--source",
        choices=["folder", "kubernetes"],
        default="folder",
        help="where plans and endpoints come from (%(default)s)",
    )
    parser.add_argument(
        "--namespace",
        action="append",
        default=[],
        help="where to read ServedModels and EndpointSlices; may be given several times",
    )
    parser.add_argument("--host", default="127.0.0.1", help="where to answer (%(default)s)")
    parser.add_argument("--port", type=int, required=True, help="the port to answer at")
    parser.add_argument("--envoy-admin-port", type=int, required=True)
    parser.add_argument("--experiments-url", default="", help="where exposures go")
    parser.add_argument("--listen-host", default="127.0.0.1", help="where Envoy listens")
    parser.add_argument("--listen-port", type=int, help="as noted by the envoy command if absent")
    parser.add_argument(
        "--tls-folder", type=Path, help="where Envoy finds tls.crt and tls.key; TLS if given"
    )
    parser.add_argument("--log-limit", type=int, default=_LOG_LIMIT, help="bytes until rotation")
    parser.add_argument(
        "--log-volume",
        type=_size,
        default="1Gi",
        help="room for the log and Envoy's files, such as 500Mi; the oldest exposures are dropped "
        "when the log takes three quarters of it (%(default)s)",
    )
    parser.add_argument("--grace", type=float, default=5.0, help="seconds to keep unused clusters")
    parser.add_argument(
        "--drain-at-least",
        type=float,
        default=3.0,
        help="seconds of a drain in which new connections may still arrive (%(default)s)",
    )
    parser.add_argument(
        "--drain-at-most",
        type=float,
        default=25.0,
        help="seconds after which a drain ends with requests under way (%(default)s)",
    )
    parser.set_defaults(run=_run_agent)


def _size(text: str) -> int:
    """Read a size as Kubernetes writes it; argparse names the option."""
    found = re.fullmatch(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)", text)
    try:
        if found is not None and (size := int(float(found[1]) * _UNITS[found[2]])) > 0:
            return size
    except (KeyError, ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no size; give one such as 500Mi or 1Gi")


def _add_bootstrap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", type=Path, required=True, help="the shared folder")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--listen-port", type=int, required=True)
    parser.add_argument("--admin-port", type=int, required=True, help="always on loopback")
    parser.add_argument(
        "--memory-limit",
        type=_size,
        help="what Envoy may use, such as 512Mi; it refuses requests rather than reach it "
        "(no limit if absent)",
    )
    parser.set_defaults(run=_write_bootstrap)


def _add_envoy(parser: argparse.ArgumentParser) -> None:
    _add_bootstrap(parser)
    parser.add_argument("--concurrency", type=int, default=1, help="worker threads (%(default)s)")
    parser.add_argument("--log-level", default="warning", help="Envoy's own log (%(default)s)")
    parser.set_defaults(run=_run_envoy)


def _run_agent(options: argparse.Namespace) -> None:
    if (options.source == "kubernetes") != bool(options.namespace):
        raise SystemExit("--source kubernetes and at least one --namespace belong together")
    # Imported here, so that Envoy starts without waiting for a web framework it does not need.
    from fairlead_gateway.entrypoints.agent import AgentSettings, run_agent  # noqa: PLC0415

    _log_as_json()
    run_agent(
        AgentSettings(
            home=options.home.absolute(),
            namespaces=tuple(dict.fromkeys(options.namespace)),
            host=options.host,
            port=options.port,
            envoy_admin_port=options.envoy_admin_port,
            experiments_url=options.experiments_url,
            listen_host=options.listen_host,
            listen_port=options.listen_port,
            tls_folder=options.tls_folder and options.tls_folder.absolute(),
            log_limit=options.log_limit,
            log_most=options.log_volume * 3 // 4,
            grace=options.grace,
            drain=DrainSettings(at_least=options.drain_at_least, at_most=options.drain_at_most),
            last_words=_LAST_WORDS if options.source == "kubernetes" else 0.0,
        )
    )


def _write_bootstrap(options: argparse.Namespace) -> Home:
    home = Home(options.home.absolute())
    home.prepare()
    listen = {"host": options.host, "port": options.listen_port}
    write_atomically(home.listen, json.dumps(listen).encode())
    bootstrap = render_bootstrap(
        admin_port=options.admin_port,
        listeners=str(home.listeners),
        clusters=str(home.clusters),
        memory_limit=options.memory_limit,
    )
    write_atomically(home.bootstrap, json.dumps(bootstrap, indent=1).encode())
    return home


def _run_envoy(options: argparse.Namespace) -> None:
    home = _write_bootstrap(options)
    become_envoy(home.bootstrap, concurrency=options.concurrency, log_level=options.log_level)


class _JsonFormatter(logging.Formatter):
    """One JSON object for each record, with what was given as `extra`."""

    _own = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        more = {key: value for key, value in vars(record).items() if key not in self._own}
        fields: dict[str, Any] = {
            "at": self.formatTime(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **more,
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=str).decode()


def _log_as_json() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # It would log every look at Envoy.

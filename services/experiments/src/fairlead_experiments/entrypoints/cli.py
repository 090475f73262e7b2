"""The command `fairlead-experiments`."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import uvicorn
from sqlalchemy import Engine
from sqlalchemy.exc import ArgumentError

from fairlead_experiments.adapters.database import is_server, open_engine
from fairlead_experiments.adapters.preparation import REST, Preparation
from fairlead_experiments.adapters.retention import SqlArchive
from fairlead_experiments.adapters.sql import SqlStore
from fairlead_experiments.app.errors import StoreUnavailableError
from fairlead_experiments.app.retention import Retention
from fairlead_experiments.app.service import Experiments
from fairlead_experiments.entrypoints.http import create_app
from fairlead_experiments.entrypoints.periodic import Periodic

URL_VARIABLE = "FAIRLEAD_DATABASE_URL"
KEEP = timedelta(days=90)
_LONGEST = 36_500  # days


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; answer its exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "openapi":
        print(openapi())
        return 0
    url = options.database_url or os.environ.get(URL_VARIABLE)
    if not url:
        return _fail(f"no database: give --database-url or set {URL_VARIABLE}")
    try:
        engine = open_engine(url)
    except ArgumentError as error:
        return _fail(f"the database URL cannot be used: {error}")
    _log_to_stderr()
    run = _remove if options.command == "retention" else _serve
    return run(engine, options)


def _serve(engine: Engine, options: argparse.Namespace) -> int:
    """Serve; a database that is a server may come later, a file must be there."""
    preparation = Preparation(engine)
    if not is_server(engine):
        try:
            preparation.run_once()
        except StoreUnavailableError as error:
            return _fail(f"{error}: {error.reason}")
    preparation.start()
    store = SqlStore(engine, preparation.check)
    experiments = Experiments(store, clock=_now)
    periodic = None
    if options.keep is not None:
        archive = SqlArchive(engine, preparation.check)
        periodic = Periodic(
            lambda is_over: Retention(archive, experiments, _now, is_over), options.keep
        )
        periodic.start()
    app = create_app(experiments)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", access_log=False)
    if periodic:
        periodic.stop()
    preparation.stop()
    engine.dispose()
    return 0


def _remove(engine: Engine, options: argparse.Namespace) -> int:
    """Make one pass over old rows; a service may be running beside it."""
    try:
        Preparation(engine).run_once()
        experiments = Experiments(SqlStore(engine), clock=_now)
        removed = Retention(SqlArchive(engine), experiments, _now, _rest).run(options.keep)
    except StoreUnavailableError as error:
        return _fail(f"{error}: {error.reason}", code=1)
    print(
        f"closed {removed.closed} rollouts, dropped {removed.partitions} partitions, "
        f"removed {removed.rows} rows"
    )
    engine.dispose()
    return 0


def _rest() -> bool:
    """Let a service's batches in between two steps."""
    time.sleep(REST)
    return False


def _now() -> datetime:
    return datetime.now(UTC)


def _log_to_stderr() -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def openapi() -> str:
    """Write the OpenAPI document; the same code gives the same text."""
    app = create_app(Experiments(SqlStore(open_engine("sqlite://")), _now))
    return json.dumps(app.openapi(), indent=2, sort_keys=True, ensure_ascii=False)


def _fail(message: str, code: int = 2) -> int:
    print(f"fairlead-experiments: {message}", file=sys.stderr)
    return code


def _days(given: str) -> timedelta:
    """Read a number of days.

    Raises:
        argparse.ArgumentTypeError: It is none from 1 to 36,500.
    """
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= _LONGEST:
        message = f"must be a whole number of days from 1 to {_LONGEST:,}"
        raise argparse.ArgumentTypeError(message)
    return timedelta(days=int(given))


def _days_or_forever(given: str) -> timedelta | None:
    """Read a number of days, or None for `forever`.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    if given == "forever":
        return None
    try:
        return _days(given)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or the word forever") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairlead-experiments",
        description="Takes exposures and outcomes, computes the analysis of a rollout.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve the HTTP interface")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, required=True)
    retention = commands.add_parser(
        "retention", help="remove old rows now, as serve does by itself"
    )
    for command, read, more in ((serve, _days_or_forever, ", or forever"), (retention, _days, "")):
        command.add_argument(
            "--database-url",
            metavar="URL",
            help=(
                "postgresql://USER@HOST/DATABASE or sqlite:///FILE; without it, "
                f"{URL_VARIABLE} is read (keep passwords there, or in PGPASSWORD)"
            ),
        )
        command.add_argument(
            "--keep",
            metavar="DAYS",
            type=read,
            default=KEEP,
            help=f"days that rows stay after their rollout's decision{more} (default: 90)",
        )
    commands.add_parser("openapi", help="print the OpenAPI document")
    return parser

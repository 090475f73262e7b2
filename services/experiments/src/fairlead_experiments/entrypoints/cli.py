"""The command `fairlead-experiments`."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import uvicorn
from sqlalchemy import Engine
from sqlalchemy.exc import ArgumentError

from fairlead_experiments.adapters.database import is_server, open_engine
from fairlead_experiments.adapters.preparation import Preparation
from fairlead_experiments.adapters.sql import SqlStore
from fairlead_experiments.app.errors import StoreUnavailableError
from fairlead_experiments.app.service import Experiments
from fairlead_experiments.entrypoints.http import create_app

URL_VARIABLE = "FAIRLEAD_DATABASE_URL"


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
    return _serve(engine, options)


def _serve(engine: Engine, options: argparse.Namespace) -> int:
    """Serve; a database that is a server may come later, a file must be there."""
    preparation = Preparation(engine)
    if is_server(engine):
        preparation.start()
    else:
        try:
            preparation.run_once()
        except StoreUnavailableError as error:
            return _fail(f"{error}: {error.reason}")
    store = SqlStore(engine, preparation.check)
    app = create_app(Experiments(store, clock=lambda: datetime.now(UTC)))
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", access_log=False)
    preparation.stop()
    engine.dispose()
    return 0


def _log_to_stderr() -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def openapi() -> str:
    """Write the OpenAPI document; the same code gives the same text."""
    app = create_app(Experiments(SqlStore(open_engine("sqlite://")), lambda: datetime.now(UTC)))
    return json.dumps(app.openapi(), indent=2, sort_keys=True, ensure_ascii=False)


def _fail(message: str) -> int:
    print(f"fairlead-experiments: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairlead-experiments",
        description="Takes exposures and outcomes, computes the analysis of a rollout.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve the HTTP interface")
    serve.add_argument(
        "--database-url",
        metavar="URL",
        help=(
            "postgresql://USER@HOST/DATABASE or sqlite:///FILE; without it, "
            f"{URL_VARIABLE} is read (keep passwords there, or in PGPASSWORD)"
        ),
    )
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, required=True)
    commands.add_parser("openapi", help="print the OpenAPI document")
    return parser

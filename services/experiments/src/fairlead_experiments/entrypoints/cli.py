"""The command `fairlead-experiments`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import ArgumentError

from fairlead_experiments.adapters.database import migrate, open_engine
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
        app = build_app(url)
    except (ArgumentError, ImportError):
        return _fail("the database URL is not one that can be opened here")
    except StoreUnavailableError as error:
        return _fail(f"{error}: {type(error.__cause__).__name__}")
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", access_log=False)
    return 0


def build_app(url: str) -> FastAPI:
    """Open the database, bring its tables up to date, and build the application."""
    engine = open_engine(url)
    migrate(engine)
    return create_app(Experiments(SqlStore(engine), clock=lambda: datetime.now(UTC)))


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
        help=f"SQLAlchemy URL; without it, {URL_VARIABLE} is read (keep passwords there)",
    )
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, required=True)
    commands.add_parser("openapi", help="print the OpenAPI document")
    return parser

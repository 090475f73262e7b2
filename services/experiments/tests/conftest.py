"""Builders and fixtures: databases of both kinds, a clock that stands still, a client.

What asks for `engine`, `store` or `client` runs twice: on SQLite and on a real PostgreSQL.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine

from fairlead_experiments.adapters.database import migrate, open_engine
from fairlead_experiments.adapters.sql import SqlStore
from fairlead_experiments.app.service import Experiments
from fairlead_experiments.entrypoints.http import create_app

# Test folders are no packages; the helpers have names no other folder uses.
sys.path.insert(0, str(Path(__file__).parent))

from experiments_postgresql import NamedServer, shared_server

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Client:
    """Calls the application in this process, as HTTP would."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._loop = asyncio.new_event_loop()

    def request(self, method: str, path: str, **given: Any) -> httpx.Response:
        """Send one request."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **given)

        return self._loop.run_until_complete(send())

    def get(self, path: str, **given: Any) -> httpx.Response:
        """Send a GET."""
        return self.request("GET", path, **given)

    def put(self, path: str, **given: Any) -> httpx.Response:
        """Send a PUT."""
        return self.request("PUT", path, **given)

    def post(self, path: str, **given: Any) -> httpx.Response:
        """Send a POST."""
        return self.request("POST", path, **given)

    def close(self) -> None:
        """Close the loop."""
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[NamedServer]:
    """The PostgreSQL server of all tests; each has databases of its own."""
    server = shared_server()
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture(scope="session")
def prepared_url(postgres: NamedServer) -> str:
    """A PostgreSQL database whose tables are up to date, to be copied: that is quicker."""
    url = postgres.create_database()
    engine = open_engine(url)
    migrate(engine)
    engine.dispose()
    return url


@pytest.fixture
def postgres_url(postgres: NamedServer) -> Iterator[str]:
    """An empty PostgreSQL database's address."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def new_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    """Makes databases of either kind, their tables up to date."""
    made: list[Engine] = []
    is_sqlite = request.param == "sqlite"
    server: NamedServer | None = None if is_sqlite else request.getfixturevalue("postgres")

    def create() -> Engine:
        if server is None:
            made.append(open_engine(f"sqlite:///{tmp_path / f'experiments-{len(made)}.db'}"))
            migrate(made[-1])
        else:
            template: str = request.getfixturevalue("prepared_url")
            made.append(open_engine(server.create_database(template)))
        return made[-1]

    yield create
    for engine in made:
        engine.dispose()
        if server is not None:
            server.drop_database(str(engine.url.database))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'experiments.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def engine(new_engine: Callable[[], Engine]) -> Engine:
    """A new database, its tables up to date."""
    return new_engine()


@pytest.fixture
def store(engine: Engine) -> SqlStore:
    """The store over that database."""
    return SqlStore(engine)


@pytest.fixture(scope="session")
def new_client() -> Callable[[FastAPI], Client]:
    """Makes clients of an application; whoever makes one closes it."""
    return Client


@pytest.fixture
def client(store: SqlStore) -> Iterator[Client]:
    """The application over that store, at noon of 1 January 2026."""
    client = Client(create_app(Experiments(store, clock=lambda: NOW)))
    yield client
    client.close()


@pytest.fixture
def exposure() -> Callable[..., dict[str, Any]]:
    """Builds the exposure of contracts.md, with what is given changed."""

    def build(**changed: Any) -> dict[str, Any]:
        return {
            "inferenceId": "i1",
            "rollout": "r1",
            "step": 0,
            "arm": "candidate",
            "version": "3" if changed.get("arm") == "stable" else "4",
            "unit": "N14228",
            "at": "2026-01-01T00:00:00.123Z",
            "code": 200,
            "attempts": 1,
            "durationMs": 12.3,
            **changed,
        }

    return build


@pytest.fixture
def outcome() -> Callable[..., dict[str, Any]]:
    """Builds the outcome of contracts.md, with what is given changed."""

    def build(**changed: Any) -> dict[str, Any]:
        return {
            "inferenceId": "i1",
            "outcome": "squared_error",
            "value": 0.04,
            "observedAt": "2026-01-01T00:05:00Z",
            **changed,
        }

    return build


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """Builds the rollout record of contracts.md, with what is given changed."""

    def build(**changed: Any) -> dict[str, Any]:
        return {
            "model": "flight-delay",
            "stable": "3",
            "candidate": "4",
            "registeredModel": "Flight Delay (EU)",
            "startedAt": "2026-01-01T00:00:00Z",
            "decidedAt": None,
            "state": "running",
            "reason": "",
            "steps": [
                {"index": 0, "weight": 100},
                {"index": 1, "weight": 1000},
                {"index": 2, "weight": 5000},
            ],
            "objective": {
                "outcome": "squared_error",
                "kind": "mean",
                "denominator": None,
                "better": "lower",
                "minimumEffect": 0.01,
                "alpha": 0.05,
                "cap": None,
                "window": None,
                "missing": "ignore",
                "covariate": None,
            },
            "guardrails": {
                "errors": {"margin": 0.25},
                "latency": {"slowerThan": 0.2, "margin": 0.25},
                "shadow": None,
            },
            **changed,
        }

    return build

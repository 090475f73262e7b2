"""Wait until the setup Job has brought the database to this image's schema and made the accounts.

Many pods may wait; only the Job changes anything. A database that is newer than the image ends the
wait with an error, since no waiting helps there.
"""

# ruff: noqa: INP001, T201 - a script by itself, whose output is the pod's log.

import importlib.util
import os
import sys
import time
from pathlib import Path

import psycopg2
from alembic.script import ScriptDirectory
from alembic.util import CommandError

MLFLOW = Path(importlib.util.find_spec("mlflow").origin).parent
SCHEMAS = {"alembic_version": MLFLOW / "store" / "db_migrations"}
if os.environ.get("AUTH") == "true":
    SCHEMAS["alembic_version_auth"] = MLFLOW / "server" / "auth" / "db" / "migrations"


def missing(cursor, scripts):
    """Return what is not there yet, or nothing."""
    for table, script in scripts.items():
        cursor.execute("SELECT to_regclass(%s)", (table,))
        if cursor.fetchone()[0] is None:
            return f"the table {table}"
        cursor.execute(f"SELECT version_num FROM {table}")  # noqa: S608 - one of the two names above.
        current = next(iter(cursor.fetchall()), (None,))[0]
        if current != script.get_current_head():
            refuse_newer(script, table, current)
            return f"revision {script.get_current_head()} in {table}, which is at {current}"
    if "alembic_version_auth" in scripts:
        cursor.execute("SELECT 1 FROM users WHERE is_admin")
        if cursor.fetchone() is None:
            return "the administrator's account"
    return ""


def refuse_newer(script, table, current):
    """End the process where the database has a revision that this image does not know."""
    try:
        if current:
            script.get_revision(current)
    except CommandError:
        message = (
            f"The database's schema ({table} {current}) is newer than this image's "
            f"({script.get_current_head()}), and MLflow cannot take it back: use the newer image "
            "again, or restore a backup from before the upgrade."
        )
        Path("/dev/termination-log").write_text(message)
        sys.exit(message)


def look(scripts):
    """Connect once and say what is missing."""
    url = os.environ["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg2", "")
    try:
        connection = psycopg2.connect(url, connect_timeout=5)
    except psycopg2.OperationalError as error:
        return f"PostgreSQL: {str(error).strip().splitlines()[-1]}"
    with connection, connection.cursor() as cursor:
        return missing(cursor, scripts)


def main():
    """Look until nothing is missing."""
    scripts = {table: ScriptDirectory(str(path)) for table, path in SCHEMAS.items()}
    said = ""
    while lacking := look(scripts):
        if lacking != said:
            print(f"waiting for {lacking}", flush=True)
            said = lacking
        time.sleep(2)
    print("the database is ready", flush=True)


main()

"""Is this pod ready: does the server answer, and does its database?

A readiness probe cannot ask MLflow itself about its database: the one path that needs no password,
/health, does not look. So the probe asks both; a probe by header would show a password in the pod.
"""

# ruff: noqa: INP001 - a script by itself, whose output is the pod's log.

import http
import http.client
import os
import sys

import psycopg2

try:
    server = http.client.HTTPConnection("127.0.0.1", 5000, timeout=3)
    server.request("GET", "/health")
    status = server.getresponse().status
    if status != http.HTTPStatus.OK:
        sys.exit(f"MLflow: /health answers {status}")
    url = os.environ["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg2", "")
    with psycopg2.connect(url, connect_timeout=3) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
except OSError as error:
    sys.exit(f"MLflow: {error}")
except psycopg2.Error as error:
    sys.exit(f"PostgreSQL: {str(error).strip()}")

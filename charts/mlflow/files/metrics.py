"""Show the metrics that the server writes to the folder METRICS.

MLflow's own /metrics asks for the administrator's password, which Prometheus should not have.
"""

# ruff: noqa: INP001 - a script by itself, whose output is the pod's log.

import os
import threading

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

registry = CollectorRegistry()
MultiProcessCollector(registry, os.environ["METRICS"])
start_http_server(9090, registry=registry)
threading.Event().wait()

"""Envoy: its administration interface, its validation, its command line."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

from fairlead_gateway.app.ports import EnvoyStatus, Requests
from fairlead_gateway.domain.render.shared import JSON, LISTENER, ROLLOUTS, SCOPES

_log = logging.getLogger(__name__)

_PREFIXES = {
    "listeners": "listener_manager.lds",
    "clusters": "cluster_manager.cds",
    "rollouts": f"http.{LISTENER}.rds.{ROLLOUTS}",
    "scopes": f"http.{LISTENER}.scoped_rds.{SCOPES}",
}
_REQUESTS = rf"^http\.{LISTENER}\.downstream_rq_(active|completed)$"
_VERSIONS = {"type": "TextReadouts", "filter": r"\.version_text$"}
_REJECTIONS = {
    "type": "Counters",
    "filter": r"^(listener_manager\.|cluster_manager\.|http\.).*\.update_rejected$",
}


class EnvoyAdmin:
    """A running Envoy's administration interface.

    Args:
        port: Its port on loopback.
    """

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=2.0, trust_env=False
        )
        self._said: EnvoyStatus | None = None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def status(self) -> EnvoyStatus | None:
        """Return what it has taken, or None while it is not there.

        One that does not answer in time is busy taking something: what it said last still holds.
        """
        try:
            self._said = self._status()
        except httpx.ConnectError:
            self._said = None
        except httpx.HTTPError:
            _log.warning("Envoy is slow to tell what it follows")
        return self._said

    def _status(self) -> EnvoyStatus:
        # Of the texts alone: there are few, and Envoy does the rest of its work meanwhile.
        texts = _read_stats(self._client.get("/stats", params=_VERSIONS).text)
        return EnvoyStatus(
            versions={
                kind: texts.get(f"{prefix}.version_text", "").strip('"')
                for kind, prefix in _PREFIXES.items()
            }
        )

    def rejections(self) -> Mapping[str, int] | None:
        """Return how often it has refused each kind of file, or None if it does not say.

        A file that is no JSON counts as a failure instead.
        """
        try:
            counters = _read_stats(self._client.get("/stats", params=_REJECTIONS).text)
        except httpx.HTTPError:
            return None
        return {
            kind: int(counters.get(f"{prefix}.update_rejected", 0))
            for kind, prefix in _PREFIXES.items()
        }

    def healthy(self) -> Mapping[str, int]:
        """Return how many endpoints of its own each cluster can use; empty if not reached."""
        try:
            answer = self._client.get("/clusters", params={"format": "json"})
            clusters = answer.json().get("cluster_statuses", [])
        except (httpx.HTTPError, ValueError):
            return {}
        return {
            cluster["name"]: sum(_is_own_and_healthy(h) for h in cluster.get("host_statuses", []))
            for cluster in clusters
        }

    def reopen_logs(self) -> bool:
        """Make it open its log anew; False if it cannot be reached."""
        return self._post("/reopen_logs")

    def start_draining(self) -> bool:
        """Make it unready, and make it close each connection after the request under way.

        It goes on listening: those who send requests here learn late that they should not.
        False if it cannot be reached.
        """
        unready = self._post("/healthcheck/fail")
        return unready and self._post("/drain_listeners?graceful&skip_exit")

    def requests(self) -> Requests | None:
        """Return what its clients have asked, or None while it cannot be reached.

        Envoy completes no request it answers itself as to its readiness.
        """
        try:
            answer = self._client.get("/stats", params={"filter": _REQUESTS})
        except httpx.HTTPError:
            return None
        stats = _read_stats(answer.text)
        prefix = f"http.{LISTENER}.downstream_rq"
        return Requests(
            active=int(stats.get(f"{prefix}_active", 0)),
            answered=int(stats.get(f"{prefix}_completed", 0)),
        )

    def _post(self, path: str) -> bool:
        try:
            return self._client.post(path).is_success
        except httpx.HTTPError:
            return False


def _read_stats(text: str) -> Mapping[str, str]:
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def _is_own_and_healthy(host: JSON) -> bool:
    """Tell whether an endpoint belongs to the version itself and may get requests."""
    health = host.get("health_status", {})
    failed = any(value is True for key, value in health.items() if key.startswith("failed_"))
    return host.get("priority", 0) == 0 and not failed


_ENDED = (signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
"""Signals from outside, as where memory is short: they say nothing about what was checked."""

CHECKED = "checked.json"
"""The file to check: always the same one, so that checks that are killed leave no more than it."""


class EnvoyValidator:
    """Lets Envoy itself check a configuration, in a process of its own.

    Args:
        folder: Where the file to check may lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self, static: JSON) -> str | None:
        """Return why Envoy would refuse it, or None; None, too, where there is no Envoy to ask."""
        binary = find_envoy()
        if binary is None:
            return None
        file = self._folder / CHECKED
        file.write_text(json.dumps(static))
        command = [binary, "--mode", "validate", "-c", str(file), "-l", "error"]
        try:
            done = subprocess.run(  # noqa: S603 - no shell, no user's words.
                command, capture_output=True, text=True, check=False, timeout=30
            )
        except subprocess.TimeoutExpired:
            _log.warning("Envoy did not validate a configuration in time; it goes unchecked")
            return None
        finally:
            file.unlink()
        if -done.returncode in _ENDED:
            _log.warning("The check of a configuration was ended; it goes unchecked")
            return None
        return None if done.returncode == 0 else _reason(done.stderr, str(file))


def _reason(stderr: str, name: str) -> str:
    lines = stderr.strip().splitlines() or ["no reason given"]
    return lines[-1].rpartition("] ")[2].replace(f"'{name}'", "it")


def find_envoy() -> str | None:
    """Find Envoy's binary on the path, else beside the interpreter."""
    return shutil.which("envoy") or shutil.which("envoy", path=str(Path(sys.executable).parent))


def envoy_arguments(bootstrap: Path, *, concurrency: int, log_level: str) -> list[str]:
    """Return how Envoy is started: here, and word for word by the chart.

    Args:
        bootstrap: The configuration to start with.
        concurrency: How many worker threads.
        log_level: The level of Envoy's own log.
    """
    return [
        *("--config-path", str(bootstrap)),
        *("--concurrency", str(concurrency)),
        *("--log-level", log_level),
        # A new unit changes the listener. Connections from before are asked to close at their next
        # answer, and only cut after the longest time a plan may let a request take.
        *("--drain-strategy", "immediate"),
        *("--drain-time-s", "3600"),
        # A kill loses at most this much of the access log.
        *("--file-flush-interval-msec", "200"),
        "--reject-unknown-dynamic-fields",
        "--disable-hot-restart",  # It would let one Envoy per machine and user run only.
    ]


def become_envoy(bootstrap: Path, *, concurrency: int, log_level: str) -> None:
    """Replace this process by Envoy; the arguments are those of `envoy_arguments`."""
    binary = find_envoy()
    if binary is None:
        raise FileNotFoundError("no envoy on PATH; install fairlead-gateway[envoy]")
    arguments = envoy_arguments(bootstrap, concurrency=concurrency, log_level=log_level)
    os.execv(binary, [binary, *arguments])  # noqa: S606 - no shell on purpose.

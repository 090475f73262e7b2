"""A door before the API server that counts who asks for what.

TLS on both sides, as without it: the controller pays what it always pays. Requests are counted by
their first line and passed on as they are, watches included.
"""

import asyncio
import contextlib
import datetime as dt
import re
import ssl
import threading
from collections import Counter
from collections.abc import Coroutine
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubernetes.client import Configuration

HOST = "127.0.0.1"
WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_REQUEST = re.compile(rb"^(GET|POST|PUT|PATCH|DELETE) (\S+) HTTP/1.1\r\n")
_KIND = re.compile(r"/namespaces/[^/]+/([a-z]+)(?:/[^/]+(/status)?)?$")
_CHUNK = 65_536


class CountingDoor:
    """Passes requests on to the API server with the bench's own account."""

    def __init__(self, upstream: Configuration, folder: Path):
        self._upstream = upstream
        self._certificate = folder / "door.pem"
        self._loop = asyncio.new_event_loop()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.url = ""

    def start(self) -> None:
        """Listen, in a thread of its own."""
        _write_certificate(self._certificate)
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(timeout=10)

    def kubeconfig(self) -> dict[str, Any]:
        """Return what a client needs to come through this door."""
        bearer = str(self._upstream.api_key.get("BearerToken", ""))
        user = {"token": bearer.removeprefix("Bearer ")} if bearer else {}
        cluster = {"server": self.url, "certificate-authority": str(self._certificate)}
        context = {"cluster": "door", "user": "door"}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "door",
            "clusters": [{"name": "door", "cluster": cluster}],
            "users": [{"name": "door", "user": user}],
            "contexts": [{"name": "door", "context": context}],
        }

    def writes(self) -> int:
        """Return how many requests so far changed something."""
        return sum(n for (verb, _), n in list(self.counts.items()) if verb in WRITES)

    async def _listen(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate)
        server = await asyncio.start_server(self._serve, HOST, 0, ssl=context)
        self.url = f"https://{HOST}:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = urlsplit(str(self._upstream.host))
        context = ssl.create_default_context(cafile=self._upstream.ssl_ca_cert)
        if self._upstream.cert_file:
            context.load_cert_chain(self._upstream.cert_file, self._upstream.key_file)
        there, onward = await asyncio.open_connection(target.hostname, target.port, ssl=context)
        await _both(self._pass(reader, onward, counted=True), self._pass(there, writer))
        for side in (onward, writer):
            side.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool = False
    ) -> None:
        with contextlib.suppress(OSError):  # either side may leave at any time
            while data := await reader.read(_CHUNK):
                if counted and (line := _REQUEST.match(data)):
                    self.counts[_named(line[1].decode(), line[2].decode())] += 1
                writer.write(data)
                await writer.drain()


async def _both(*ways: Coroutine[Any, Any, None]) -> None:
    """Run both directions until one of them ends."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _named(verb: str, url: str) -> tuple[str, str]:
    """Sum a request up as verb and kind."""
    path, _, query = url.partition("?")
    kind = _KIND.search(path)
    name = kind[1] + (kind[2] or "") if kind else path
    return ("WATCH" if "watch=true" in query else verb), name


def _write_certificate(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fairlead bench")])
    now = dt.datetime.now(dt.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.touch(mode=0o600)
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))

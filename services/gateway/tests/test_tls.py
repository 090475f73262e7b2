"""TLS at the gateway: the certificate is read from a mounted Secret, and read again when it changes."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from gateway_certificates import write_certificate
from gateway_client import Load
from gateway_lab import Gateway, answered, plan, running, wait_for


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Give a folder with a certificate, as kubelet mounts a Secret."""
    folder = tmp_path / "tls"
    folder.mkdir()
    mount(folder, "first")
    return folder


@pytest.fixture
def secured(tmp_path: Path, secret: Path) -> Iterator[Gateway]:
    """Give a gateway that listens with TLS."""
    home = tmp_path / "home"
    home.mkdir()
    with running(home, "--tls-folder", str(secret)) as made:
        made.upstream("3")
        made.upstream("4")
        made.apply(plan())
        yield made


def mount(folder: Path, name: str) -> None:
    """Put a certificate into a folder as kubelet does: all files change with one link."""
    data = folder / f"..{name}"
    data.mkdir()
    write_certificate(data, name)
    link = folder / "..data_tmp"
    link.symlink_to(data.name)
    link.rename(folder / "..data")
    for file in ("tls.crt", "tls.key"):
        if not (folder / file).is_symlink():
            (folder / file).symlink_to(f"..data/{file}")


def trusting(*protocols: str) -> ssl.SSLContext:
    """Make a client's context that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def shake_hands(port: int, context: ssl.SSLContext) -> tuple[str, str | None]:
    """Return whose certificate is shown, and the protocol agreed on."""
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as tls:
        shown = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
        return shown.subject.rfc4514_string(), tls.selected_alpn_protocol()


def test_the_listener_speaks_tls(secured: Gateway) -> None:
    """Predictions and the readiness are answered over TLS, over either HTTP version."""
    assert secured.post().status_code == 200
    assert secured.ready() == 200
    assert shake_hands(secured.port, trusting("h2", "http/1.1")) == ("CN=first", "h2")
    assert shake_hands(secured.port, trusting("http/1.1")) == ("CN=first", "http/1.1")


def test_old_versions_and_plain_text_are_refused(secured: Gateway) -> None:
    """Nothing below TLS 1.2 is spoken, and no plain HTTP."""
    old = trusting()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="deprecated"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="deprecated"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        shake_hands(secured.port, old)
    with socket.create_connection(("127.0.0.1", secured.port)) as plain:
        plain.sendall(b"GET /-/ready HTTP/1.1\r\nhost: x\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP/")


def test_a_certificate_that_is_exchanged_under_load(secured: Gateway, secret: Path) -> None:
    """New connections meet the new certificate; no request fails, no process starts again."""
    load = Load(secured.port, fresh=8, tls=trusting())
    envoy = secured.processes["envoy"].pid

    def happening() -> None:
        answered(load)
        for name in ("second", "third"):
            mount(secret, name)
            shown = (f"CN={name}", None)
            wait_for(lambda now=shown: shake_hands(secured.port, trusting()) == now)
            answered(load)

    load.during(happening)
    assert load.failures == []
    assert secured.processes["envoy"].pid == envoy
    assert secured.processes["envoy"].poll() is None


def test_a_broken_certificate_keeps_the_last_one(secured: Gateway, secret: Path) -> None:
    """A key that does not fit is not taken; the next good pair is."""
    broken = secret / "..broken"
    broken.mkdir()
    certificate, _ = write_certificate(broken, "broken")
    certificate.write_text("no certificate", "utf-8")
    link = secret / "..data_tmp"
    link.symlink_to(broken.name)
    link.rename(secret / "..data")
    wait_for(lambda: "Failed to reload certificates" in (secured.home / "envoy.out").read_text())
    assert shake_hands(secured.port, trusting())[0] == "CN=first"
    mount(secret, "second")
    wait_for(lambda: shake_hands(secured.port, trusting())[0] == "CN=second")
    assert secured.post().status_code == 200

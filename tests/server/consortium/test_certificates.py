"""TLS with the consortium's own authority: real handshakes, and who is refused."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from protocol.errors import FoedusError
from server.consortium.certificates import (
    LOOPBACK_NAMES,
    Certified,
    days_left,
    make_authority,
    make_server_certificate,
    names_of,
)

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
AUTHORITY = make_authority("Test League", NOW)


@contextlib.contextmanager
def serving(server: Certified, folder: Path, issuers: bytes = b"") -> Iterator[int]:
    """A TLS server on loopback that answers every request with 200; gives its port.

    issuers: certificates that it shows beside its own.
    """
    (folder / "key").write_bytes(server.key_pem())
    (folder / "certificate").write_bytes(server.certificate_pem + issuers)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "certificate", folder / "key")
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with (
                    contextlib.suppress(OSError),
                    context.wrap_socket(connection, server_side=True) as secure,
                ):
                    secure.recv(65536)
                    secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=30)


def ask(port: int, authority: Certified, host: str = "127.0.0.1") -> int:
    context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return httpx.get(f"https://{host}:{port}/", verify=context, trust_env=False).status_code


def test_members_reach_the_coordinator_and_trust_no_other_authority(tmp_path: Path) -> None:
    server = make_server_certificate(AUTHORITY, LOOPBACK_NAMES, 30, NOW)
    with serving(server, tmp_path) as port:
        assert ask(port, AUTHORITY) == 200
        assert ask(port, AUTHORITY, "localhost") == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(port, make_authority("Test League", NOW))


def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    server = make_server_certificate(AUTHORITY, ["foedus.example.org"], 30, NOW)
    with (
        serving(server, tmp_path) as port,
        pytest.raises(httpx.ConnectError, match="not valid for"),
    ):
        ask(port, AUTHORITY)


def test_a_certificate_that_has_ended_is_refused(tmp_path: Path) -> None:
    past = NOW - datetime.timedelta(days=40)
    old = make_authority("Test League", past)
    server = make_server_certificate(old, LOOPBACK_NAMES, 30, past)
    assert days_left(server.certificate, NOW) == -10
    with serving(server, tmp_path) as port, pytest.raises(httpx.ConnectError, match="expired"):
        ask(port, old)


def test_a_server_certificate_cannot_certify_others(tmp_path: Path) -> None:
    server = make_server_certificate(AUTHORITY, LOOPBACK_NAMES, 30, NOW)
    below = make_server_certificate(server, LOOPBACK_NAMES, 10, NOW)
    with (
        serving(below, tmp_path, server.certificate_pem) as port,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        ask(port, AUTHORITY)


def test_the_authority_may_do_nothing_but_certify_servers_directly() -> None:
    extensions = AUTHORITY.certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value.ca and constraints.value.path_length == 0
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature


def test_openssl_accepts_the_chain_strictly(tmp_path: Path) -> None:
    server = make_server_certificate(AUTHORITY, ["foedus.example.org", "::1"], 30, NOW)
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.certificate_pem)
    (tmp_path / "server.pem").write_bytes(server.certificate_pem)
    words = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname"]
    words += ["foedus.example.org", "-CAfile", "ca.pem", "server.pem"]
    try:
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs the openssl command")
    assert done.returncode == 0, done.stderr


def test_names_are_kept_once_and_in_order() -> None:
    server = make_server_certificate(AUTHORITY, ["localhost", *LOOPBACK_NAMES, "::1"], 30, NOW)
    assert names_of(server.certificate) == list(LOOPBACK_NAMES)
    with pytest.raises(FoedusError, match="xn--"):
        make_server_certificate(AUTHORITY, ["zürich.example"], 30, NOW)


def test_no_certificate_outlives_its_authority() -> None:
    with pytest.raises(FoedusError, match="found the consortium anew"):
        make_server_certificate(AUTHORITY, LOOPBACK_NAMES, 30, NOW + datetime.timedelta(days=3640))


def test_the_authoritys_key_opens_with_its_passphrase_and_fits_its_certificate() -> None:
    key = AUTHORITY.key_pem(b"correct horse")
    opened = Certified.from_pem(key, AUTHORITY.certificate_pem, b"correct horse")
    assert opened.certificate == AUTHORITY.certificate
    for passphrase in (None, b"wrong"):
        with pytest.raises(FoedusError, match="passphrase"):
            Certified.from_pem(key, AUTHORITY.certificate_pem, passphrase)
    other = make_authority("Other", NOW)
    with pytest.raises(FoedusError, match="that of its certificate"):
        Certified.from_pem(other.key_pem(), AUTHORITY.certificate_pem, None)

"""Why a site is not let in, as far as it can be told from outside, in words."""

from __future__ import annotations

import datetime
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from client.runner.launch import free_port
from client.runner.outage import NotReached, Reached, ask_coordinator, explain_end
from server.consortium.certificates import make_authority, make_server_certificate


@contextmanager
def coordinator(
    folder: Path, clock_ahead_seconds: float, num_body_bytes: int = 0
) -> Iterator[tuple[str, Path]]:
    """Its address and its authority. The clock is the one its answers show; of their bodies nothing
    comes."""
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority("trial", now)
    server_pair = make_server_certificate(authority, ("127.0.0.1",), 30, now)
    certificate, key, ca = folder / "server.pem", folder / "server.key", folder / "ca.pem"
    certificate.write_bytes(server_pair.certificate_pem)
    key.write_bytes(server_pair.key_pem())
    ca.write_bytes(authority.certificate_pem)

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", formatdate(time.time() + clock_ahead_seconds, usegmt=True))
            self.send_header("Content-Length", str(num_body_bytes))
            self.end_headers()
            if num_body_bytes:
                self.rfile.read(1)

    server = HTTPServer(("127.0.0.1", 0), Health)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", ca
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("theirs", [0.0, 600.0, -600.0])
def test_the_difference_of_the_clocks_is_seen(tmp_path: Path, theirs: float) -> None:
    with coordinator(tmp_path, theirs) as (address, ca):
        answer = ask_coordinator(address, ca)
    assert isinstance(answer, Reached)
    assert answer.clock_ahead_seconds == pytest.approx(-theirs, abs=30.0)


def test_the_body_of_the_answer_is_not_waited_for(tmp_path: Path) -> None:
    with coordinator(tmp_path, 600.0, num_body_bytes=1 << 40) as (address, ca):
        answer = ask_coordinator(address, ca)
    assert isinstance(answer, Reached)


def test_a_clock_that_is_off_is_the_first_thing_to_set() -> None:
    assert "is 600 s ahead of" in explain_end(True, Reached(600.0))
    assert "is 600 s behind" in explain_end(True, Reached(-600.0))
    assert "does not accept this site's key" in explain_end(True, Reached(3.0))
    assert "up.log" in explain_end(False, Reached(3.0))


def test_somebody_in_between_is_named_as_such(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    other = tmp_path / "other.pem"
    other.write_bytes(make_authority("other", now).certificate_pem)
    with coordinator(tmp_path, 0.0) as (address, _):
        answer = ask_coordinator(address, other)
    assert isinstance(answer, NotReached)
    assert "does not show a certificate of the consortium's" in explain_end(False, answer)


def test_silence_is_named_as_such(tmp_path: Path) -> None:
    with coordinator(tmp_path, 0.0) as (_, ca):
        answer = ask_coordinator(f"127.0.0.1:{free_port()}", ca)
    assert isinstance(answer, NotReached) and "does not answer (ConnectError)" in answer.why

"""Bytes over TLS, as no client library would send them."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

from tests.server.gateway.little_coordinator import Coordinator

PATIENCE_SECONDS = 60.0


def tcp(coordinator: Coordinator, from_address: str = "127.0.0.1") -> socket.socket:
    """A TCP connection to the firms' port, without TLS."""
    host, _, port = coordinator.state.public_address.rpartition(":")
    return socket.create_connection(
        (host, int(port)), timeout=PATIENCE_SECONDS, source_address=(from_address, 0)
    )


@contextlib.contextmanager
def tls(coordinator: Coordinator) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to the firms' port."""
    context = ssl.create_default_context(cafile=coordinator.ca)
    context.check_hostname = False
    with tcp(coordinator) as plain, context.wrap_socket(plain) as secured:
        yield secured


def read_until_closed(connection: socket.socket) -> bytes:
    """Everything that comes before the other side closes, in whatever way."""
    received = bytearray()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while part := connection.recv(1 << 16):
            received += part
    return bytes(received)


def exchange(coordinator: Coordinator, request: bytes) -> bytes:
    """What comes back for these bytes until the connection is closed."""
    with tls(coordinator) as connection:
        connection.sendall(request)
        return read_until_closed(connection)


def statuses(answer: bytes) -> list[int]:
    """The status of each HTTP response in what came back."""
    return [
        int(line.split(b" ")[1]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")
    ]

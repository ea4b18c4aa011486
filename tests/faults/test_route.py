"""A way that can be cut behaves as a cable does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.route import Route

_SHORT_SECONDS = 0.3


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""

    def answer(near: socket.socket) -> None:
        with near:
            while data := near.recv(1024):
                near.sendall(data)

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(near,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]


@pytest.fixture
def route(echo: int) -> Iterator[Route]:
    made = Route(echo)
    yield made
    made.close()


def connected(route: Route) -> socket.socket:
    near = socket.create_connection(("127.0.0.1", route.port), 5.0)
    near.settimeout(5.0)
    return near


def test_what_was_sent_into_a_cut_arrives_after_the_repair(route: Route) -> None:
    with connected(route) as near:
        near.sendall(b"before")
        assert near.recv(16) == b"before"
        route.cut()
        near.sendall(b"during")
        near.settimeout(_SHORT_SECONDS)
        with pytest.raises(TimeoutError):
            near.recv(16)
        near.settimeout(5.0)
        route.heal()
        assert near.recv(16) == b"during"


def test_a_slowed_way_passes_everything_in_order(route: Route) -> None:
    route.bytes_per_second = 200_000
    sent = bytes(range(256)) * 100
    with connected(route) as near:
        near.sendall(sent)
        got = b""
        while len(got) < len(sent):
            got += near.recv(65536)
    assert got == sent
    assert route.bytes_up == len(sent)


def test_where_answers_are_cut_what_is_sent_still_arrives(route: Route) -> None:
    with connected(route) as near:
        route.cut_answers()
        near.sendall(b"question")
        near.settimeout(_SHORT_SECONDS)
        with pytest.raises(TimeoutError):
            near.recv(16)
        assert route.bytes_up == len(b"question")
        near.settimeout(5.0)
        route.heal()
        assert near.recv(16) == b"question"


def test_a_slowed_way_that_is_cut_has_passed_on_a_part(route: Route) -> None:
    route.bytes_per_second = 4_000
    with connected(route) as near:
        near.sendall(bytes(80_000))
        assert near.recv(16)
        route.cut()
        assert 0 < route.bytes_up < 80_000


def test_connections_that_are_broken_off_end_at_both_ends(route: Route) -> None:
    with connected(route) as near:
        near.sendall(b"before")
        near.recv(16)
        route.break_off()
        assert near.recv(16) == b""


def test_a_way_to_a_closed_port_refuses() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        route = Route(unused.getsockname()[1])
        with pytest.raises(ConnectionError), connected(route) as near:
            time.sleep(_SHORT_SECONDS)
            near.sendall(b"hello")
            assert near.recv(16), "an orderly end"
        route.close()

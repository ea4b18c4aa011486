"""Whoever sends too much, too slowly, or nothing sensible at all costs the others nothing.

Each test ends with a good member's work, from message to reply.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree

from protocol.consortium.signed_request import sign_request
from server.gateway.limits import Limits
from tests.server.gateway.little_coordinator import Coordinator, Firm, FirmNode, PlayedRun, wait_for
from tests.server.gateway.raw_requests import exchange, read_until_closed, statuses, tcp, tls
from tests.server.gateway.signed_headers import headers

pytestmark = pytest.mark.slow

MIB = 1 << 20
PUSH = "/v1/fleet/push-object"
ROSTER = "/v1/foedus/roster"


@pytest.fixture(autouse=True)
def _others_go_on(coordinator: Coordinator, run: PlayedRun, cedar: Firm) -> Iterator[None]:
    yield
    run.serves(coordinator, cedar)


def head(firm: Firm | None, extra: str) -> bytes:
    """Request line and headers of a push, signed by the firm if there is one."""
    lines = [f"POST {PUSH} HTTP/1.1", "host: x", extra]
    if firm is not None:
        lines += [f"{name}: {value}" for name, value in headers(firm).items()]
    else:
        lines.append("content-type: application/protobuf")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_a_body_announced_too_large_is_refused_unread(coordinator: Coordinator, ash: Firm) -> None:
    answer = exchange(coordinator, head(ash, f"content-length: {1 << 40}"))
    assert statuses(answer) == [413]
    assert answer.endswith(b'{"refused": "body_too_large"}')


def test_a_body_that_grows_too_large_is_cut_off(coordinator: Coordinator, ash: Firm) -> None:
    chunk = b"%x\r\n" % MIB + os.urandom(MIB) + b"\r\n"
    with tls(coordinator) as connection:
        connection.sendall(head(ash, "transfer-encoding: chunked"))
        with contextlib.suppress(OSError):
            for _ in range(200):
                connection.sendall(chunk)
        assert statuses(read_until_closed(connection)) in ([413], [])
    assert wait_for(lambda: coordinator.metric('foedus_refused_total{reason="body_too_large"}'))


def test_a_body_with_two_lengths_is_refused(coordinator: Coordinator, ash: Firm) -> None:
    both = "content-length: 1\r\ntransfer-encoding: chunked"
    answer = exchange(coordinator, head(ash, both) + b"5\r\nhello\r\n0\r\n\r\n")
    assert statuses(answer) == [400]
    assert b"connection: close" in answer.lower()
    assert answer.endswith(b'{"refused": "malformed"}')


@pytest.mark.parametrize(
    ("path", "least", "most"),
    [("pull-messages", 1 << 10, 64 << 10), ("push-messages", 8192 * 72, MIB)],
)
def test_a_request_without_an_object_has_a_smaller_bound(
    coordinator: Coordinator, ash: Firm, path: str, least: int, most: int
) -> None:
    """least: what an honest one may need; it is read, and refused as no message."""
    with coordinator.outside() as client:
        for size, status in ((least, 400), (most + 1, 413)):
            body = b"\xff" * size
            answer = client.post(f"/v1/fleet/{path}", headers=headers(ash), content=body)
            assert answer.status_code == status, size


def test_the_largest_announcement_that_is_allowed_fits_its_bound(coordinator: Coordinator) -> None:
    limits = Limits.of(coordinator.folder.settings())
    tree = ObjectTree(object_id="0" * 64)
    for _ in range(limits.max_tree_objects - 1):
        tree.children.add(object_id="0" * 64)
    request = PushMessagesRequest(message_object_trees=[tree])
    assert request.ByteSize() + limits.small_body_bytes <= limits.max_announcement_bytes


def test_whoever_is_unknown_is_refused_before_its_body_is_read(coordinator: Coordinator) -> None:
    before = coordinator.metric('foedus_bytes_total{direction="in"}')
    for firm in (None, Firm("Stranger")):
        with tls(coordinator) as connection:
            connection.sendall(head(firm, f"content-length: {4 * MIB}"))
            assert connection.recv(64).startswith(b"HTTP/1.1 401")
    assert coordinator.metric('foedus_bytes_total{direction="in"}') == before


def test_headers_that_do_not_come_are_not_waited_for(coordinator: Coordinator) -> None:
    with tls(coordinator) as silent, tls(coordinator) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\n")
        trickle(slow, b"x: y\r\n")
        assert read_until_closed(slow) == b""
        assert read_until_closed(silent) == b""
    assert coordinator.metric('foedus_connections_refused_total{reason="slow_headers"}') >= 2


def test_a_second_request_must_come_in_time_too(coordinator: Coordinator, ash: Firm) -> None:
    with tls(coordinator) as connection:
        signed = sign_request(ash.identity, "little", "GET", ROSTER, b"", time.time())
        lines = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
        connection.sendall(f"GET {ROSTER} HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
        connection.sendall(f"GET {ROSTER} HT".encode())
        trickle(connection, b"T")
        assert statuses(read_until_closed(connection)) == [200]


def trickle(connection: socket.socket, part: bytes) -> None:
    """A byte or two every half a second, until the other side has had enough."""
    with contextlib.suppress(OSError):
        for _ in range(60):
            connection.sendall(part)
            time.sleep(0.5)


def test_a_body_that_pauses_is_not_waited_for(coordinator: Coordinator, ash: Firm) -> None:
    with tls(coordinator) as connection:
        connection.sendall(head(ash, "content-length: 1000") + b"begun")
        answer = read_until_closed(connection)
    assert statuses(answer) == [408]
    assert answer.endswith(b'{"refused": "body_too_slow"}')


def test_headers_without_end_are_cut_off(coordinator: Coordinator) -> None:
    with tls(coordinator) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"POST / HTTP/1.1\r\nx: ")
            for _ in range(100):
                connection.sendall(b"y" * 4096)
        assert statuses(read_until_closed(connection)) in ([400], [])


@pytest.mark.parametrize(
    "noise",
    [b"GET /v1/foedus/health HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" * 100, b""],
    ids=["plain HTTP", "half a handshake", "nothing"],
)
def test_what_is_no_tls_ends_soon(coordinator: Coordinator, noise: bytes) -> None:
    with tcp(coordinator) as connection:
        connection.sendall(noise)
        answer = read_until_closed(connection)
    assert b"HTTP" not in answer


def test_random_bytes_end_soon(coordinator: Coordinator) -> None:
    for seed in range(20):
        noise = bytes((seed * 31 + i * i) % 256 for i in range(500))
        with tcp(coordinator) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(noise)
            assert b"HTTP" not in read_until_closed(connection)
        assert statuses(exchange(coordinator, noise + b"\r\n\r\n")) in ([400], [])


@pytest.mark.parametrize(
    "body", [b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x02" * 60, os.urandom(5000)]
)
def test_what_is_no_message_is_refused(coordinator: Coordinator, ash: Firm, body: bytes) -> None:
    with coordinator.outside() as client:
        for path in ("/v1/fleet/push-messages", "/v1/fleet/pull-messages", PUSH):
            answer = client.post(path, headers=headers(ash), content=body)
            # Some noise is a message, of nobody or without what the path needs.
            assert answer.status_code in (400, 409), path


def test_a_message_nested_without_end_is_refused(coordinator: Coordinator, ash: Firm) -> None:
    nested = b""
    for _ in range(2000):
        nested = b"\x12" + varint(len(nested)) + nested
    body = b"\x1a" + varint(len(nested)) + nested
    with coordinator.outside() as client:
        answer = client.post("/v1/fleet/push-messages", headers=headers(ash), content=body)
    assert (answer.status_code, answer.json()) == (400, {"refused": "malformed"})


def varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number % 128 + 128)
        number //= 128
    return bytes([*parts, number])


def test_json_is_refused_where_protobuf_is_expected(coordinator: Coordinator, ash: Firm) -> None:
    wrong = {**headers(ash), "content-type": "application/json"}
    with coordinator.outside() as client:
        assert client.post(PUSH, headers=wrong, content=b"{}").status_code == 415


def test_connections_of_one_address_are_bounded(coordinator: Coordinator) -> None:
    """Refused before TLS; those that stay idle are closed after their two seconds here."""
    refused = 'foedus_connections_refused_total{reason="too_many_of_one_address"}'
    before = coordinator.metric(refused)

    def flooded() -> bool:
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(tcp(coordinator))
            assert coordinator.metric("foedus_connections") <= 40
            return coordinator.metric(refused) > before

    assert wait_for(flooded)


def test_connections_of_all_addresses_together_are_bounded(coordinator: Coordinator) -> None:
    """35 of each of two addresses are too many here, and of neither too many for one."""
    refused = 'foedus_connections_refused_total{reason="too_many_connections"}'
    before = coordinator.metric(refused)

    def flooded() -> bool:
        with contextlib.ExitStack() as stack:
            for number in range(70):
                from_address = f"127.0.0.{71 + number % 2}"
                stack.enter_context(tcp(coordinator, from_address))
            assert coordinator.metric("foedus_connections") <= 60
            return coordinator.metric(refused) > before

    assert wait_for(flooded)


def test_an_object_of_the_largest_size_flower_makes_passes(
    coordinator: Coordinator, run: PlayedRun, ash: Firm
) -> None:
    """5 MiB, and what protobuf adds: below the bound of 6 MiB here."""
    node = FirmNode.activate(coordinator, ash)
    (sent,) = run.tell(node.node_id)
    told = node.pull()
    assert told is not None
    values = np.arange(6 * MIB // 4, dtype=np.float32)
    reply = node.reply(told, RecordDict({"a": ArrayRecord({"w": Array(values)})}))
    assert max(len(content) for content in reply.objects.values()) >= 5 * MIB
    node.confirm(told)
    node.push(told, reply)
    (heard,) = wait_for(lambda: list(run.grid.pull_messages([sent])))
    assert (heard.content.array_records["a"]["w"].numpy() == values).all()
    node.leave()


def test_strangers_neither_keep_connections_nor_fill_the_log(coordinator: Coordinator) -> None:
    """Health answers, noise in TLS and upgrades, many of them from one address."""
    log = coordinator.folder.state / "gateway.log"
    health = b"GET /v1/foedus/health HTTP/1.1\r\nhost: x\r\n"
    answered = 'foedus_requests_total{path="/v1/foedus/health",status="200"}'
    noise = 'foedus_connections_refused_total{reason="no_http"}'
    before = coordinator.metric(answered), coordinator.metric(noise)
    lines = len(log.read_text().splitlines())
    for _ in range(20):
        for request in (health, health + b"connection: upgrade\r\nupgrade: websocket\r\n"):
            answer = exchange(coordinator, request + b"\r\n")
            assert statuses(answer) == [200]
            assert b"connection: close" in answer.lower()
        assert statuses(exchange(coordinator, b"no HTTP\r\n\r\n")) == [400]
    wait_for(lambda: coordinator.metric(answered) == before[0] + 40)
    assert coordinator.metric(noise) == before[1] + 20
    new = log.read_text().splitlines()[lines:]
    assert not [line for line in new if "uvicorn" in line or "/v1/foedus/health" in line]
    assert len([line for line in new if "no_http" in line]) <= 1


def test_a_client_that_goes_away_frees_what_it_held(coordinator: Coordinator, ash: Firm) -> None:
    node = FirmNode.activate(coordinator, ash)
    body = PullMessagesRequest(node=node.node).SerializeToString()
    signed = "\r\n".join(f"{name}: {value}" for name, value in headers(ash).items())
    request = (
        f"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n{signed}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    with tls(coordinator) as connection:
        connection.sendall(request.encode() + body)
        wait_for(lambda: coordinator.metric("foedus_held_polls") == 1)
    wait_for(lambda: coordinator.metric("foedus_held_polls") == 0)
    assert wait_for(lambda: coordinator.metric('foedus_refused_total{reason="client_gone"}'))
    node.leave()


def test_requests_beyond_what_is_offered_are_answered_by_kind_only(
    coordinator: Coordinator,
) -> None:
    """What strangers ask for reaches neither the metrics' labels nor the log."""
    log = coordinator.folder.state / "gateway.log"
    # Of its own: lines about an address whose last refusal is fresh are left out.
    with coordinator.outside(from_address="127.0.0.77") as client:
        client.get("/secret-looking-path?token=hunter2", headers={"x-secret": "hunter3"})
    # The line is written after the answer.
    wait_for(lambda: "127.0.0.77" in log.read_text())
    logged = log.read_text()
    metrics = httpx.get(f"http://{coordinator.state.metrics_address}/metrics").text
    for text in (logged, metrics):
        assert "secret-looking" not in text and "hunter" not in text
    (line,) = [line for line in logged.splitlines() if "127.0.0.77" in line]
    assert json.loads(line)["path"] == "other"

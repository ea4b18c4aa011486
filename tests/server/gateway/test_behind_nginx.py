"""deploy/nginx/foedus.conf in front of a coordinator that listens on loopback alone."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from server.consortium.folder import ConsortiumFolder
from server.consortium.founding import renew_server_certificate, server_certificate
from server.gateway.allowed_paths import FLEET_REQUESTS
from tests.server.gateway.little_coordinator import (
    OUTSIDE,
    Coordinator,
    Firm,
    FirmNode,
    PlayedRun,
    found,
    free_port,
    little_app,
    up,
    wait_for,
)
from tests.server.gateway.raw_requests import exchange, read_until_closed, statuses, tls
from tests.server.gateway.signed_headers import headers
from tests.server.gateway.test_bounds import trickle
from tests.server.gateway.test_nodes_own import admitted, is_refused

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
CONFIGURATION = Path(__file__).parents[3] / "deploy" / "nginx" / "foedus.conf"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)"),
]

ASH = Firm("Ash")


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """Its public address is nginx's."""
    place = tmp_path_factory.mktemp("nginx")
    folder = found(
        place / "oak", [ASH.entry()],
        public_host="127.0.0.1", public_port=free_port(), max_connections_per_address=512,
        long_poll_seconds=4.0,
    )  # fmt: skip
    with up(folder) as behind:
        address = f"{OUTSIDE}:{free_port(OUTSIDE)}"
        with proxy(place, behind, address):
            yield replace(behind, state=replace(behind.state, public_address=address))


@contextlib.contextmanager
def proxy(place: Path, behind: Coordinator, address: str) -> Iterator[None]:
    """nginx with the deployed file, in front of a coordinator that is up."""
    here = {"127.0.0.1:9446": behind.state.public_address}
    with nginx(place, behind.folder, address, here) as process:
        wait_for(lambda: answers(process, behind, address))
        yield


@contextlib.contextmanager
def nginx(
    place: Path, folder: ConsortiumFolder, address: str, changes: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The deployed file, with the ports and paths of this test and what else is to be changed."""
    text = CONFIGURATION.read_text()
    for written, here in {
        "listen 9443 ssl": f"listen {address} ssl",
        "/var/lib/foedus/consortium": str(folder.path),
        "/var/log/nginx/foedus.log": str(place / "access.log"),
        **changes,
    }.items():
        assert written in text
        text = text.replace(written, here)
    (place / "foedus.conf").write_text(text)
    (place / "nginx.conf").write_text(
        f"daemon off; pid {place}/nginx.pid; error_log {place}/error.log;\n"
        f"events {{}}\nhttp {{ client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;\n"
        f"fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;\n"
        f"include {place}/foedus.conf; }}\n"
    )
    command = [str(NGINX), "-c", str(place / "nginx.conf"), "-p", str(place)]
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(process: subprocess.Popen[bytes], behind: Coordinator, address: str) -> bool:
    assert process.poll() is None
    try:
        health = httpx.get(f"https://{address}/v1/foedus/health", verify=behind.ca)
    except httpx.ConnectError:
        return False
    return health.status_code == 200


@pytest.fixture(scope="module")
def run(coordinator: Coordinator, tmp_path_factory: pytest.TempPathFactory) -> PlayedRun:
    return PlayedRun(coordinator, little_app(tmp_path_factory.mktemp("app") / "little"))


def test_a_member_works_through_nginx(coordinator: Coordinator, run: PlayedRun) -> None:
    run.serves(coordinator, ASH)


def test_a_held_question_is_not_cut_off(coordinator: Coordinator, run: PlayedRun) -> None:
    node = FirmNode.activate(coordinator, ASH)
    assert node.pull() is None
    node.leave()


def test_the_lists_of_nginx_and_of_the_guard_are_one() -> None:
    text = CONFIGURATION.read_text()
    listed = {line.split()[0] for line in text.splitlines() if line.strip().startswith("/v1/fleet")}
    assert listed == set(FLEET_REQUESTS)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet//pull-messages",
        "/v1/fleet/pull%2dmessages",
        "/v1/fleet/pull-messages?x",
        "/v1/foedus/roster?after=1&x=/v1/control",
        "/health",
        "/docs",
    ],
)
def test_other_paths_end_at_nginx(coordinator: Coordinator, target: str) -> None:
    request = f"POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    answer = exchange(coordinator, request.encode())
    assert statuses(answer) == [404]
    assert b"nginx" in answer


def test_too_large_a_body_ends_at_nginx(coordinator: Coordinator) -> None:
    with coordinator.outside() as client:
        answer = client.post("/v1/fleet/push-object", headers=headers(ASH), content=bytes(17 << 20))
    assert answer.status_code == 413
    assert "nginx" in answer.text


def test_a_signature_is_still_good_for_one_use(coordinator: Coordinator) -> None:
    node = FirmNode.activate(coordinator, ASH)
    once = headers(ASH)
    with coordinator.outside() as client:
        # Node 0 is not this firm's: refused, and the signature is used up.
        for status in (409, 401):
            answer = client.post("/v1/fleet/send-node-heartbeat", headers=once, content=b"")
            assert answer.status_code == status
    node.leave()


@pytest.fixture
def _the_member_goes_on(coordinator: Coordinator, run: PlayedRun) -> Iterator[None]:
    yield
    run.serves(coordinator, ASH)


@pytest.mark.usefixtures("_the_member_goes_on")
def test_a_key_of_no_member_is_refused(coordinator: Coordinator) -> None:
    assert admitted(coordinator, Firm("Stranger")) is None


@pytest.mark.usefixtures("_the_member_goes_on")
def test_an_expelled_member_is_refused_within_seconds(coordinator: Coordinator) -> None:
    expelled = Firm("Birch")
    coordinator.set_members([ASH.entry(), expelled.entry()])
    node = wait_for(lambda: admitted(coordinator, expelled))
    coordinator.set_members([ASH.entry()])
    wait_for(lambda: is_refused(node))


@pytest.mark.usefixtures("_the_member_goes_on")
@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f"])
def test_what_is_no_message_is_refused(coordinator: Coordinator, body: bytes) -> None:
    with coordinator.outside() as client:
        for path in ("push-messages", "pull-messages", "push-object"):
            answer = client.post(f"/v1/fleet/{path}", headers=headers(ASH), content=body)
            assert (answer.status_code, answer.json()) == (400, {"refused": "malformed"})


@pytest.mark.usefixtures("_the_member_goes_on")
def test_headers_that_do_not_come_are_not_waited_for(coordinator: Coordinator) -> None:
    with tls(coordinator) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\n")
        trickle(slow, b"x: y\r\n")
        assert statuses(read_until_closed(slow)) in ([408], [])


def test_a_renewed_certificate_is_served_once_nginx_reloads(coordinator: Coordinator) -> None:
    folder = coordinator.folder
    before = server_certificate(folder).serial_number
    now = datetime.datetime.now(datetime.UTC)
    renewed = renew_server_certificate(folder, (), None, now).serial_number
    assert coordinator.served_serial() == before != renewed
    place = folder.path.parent
    reload = [str(NGINX), "-c", str(place / "nginx.conf"), "-p", str(place), "-s", "reload"]
    subprocess.run(reload, check=True)
    wait_for(lambda: coordinator.served_serial() == renewed)
    for page in (CONFIGURATION, CONFIGURATION.parents[2] / "docs" / "coordinator.md"):
        assert "`nginx -s reload`" in page.read_text(encoding="utf-8")


def test_nginx_opens_a_key_that_has_a_passphrase(tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse\n", encoding="utf-8")
    folder = found(tmp_path / "oak", [], passphrase_file=str(passphrase))
    assert b"ENCRYPTED PRIVATE KEY" in folder.server_key.read_bytes()
    host, port = OUTSIDE, free_port(OUTSIDE)
    line = "ssl_password_file /etc/foedus/passphrase;"
    changes = {f"# {line}": line.replace("/etc/foedus/passphrase", str(passphrase))}
    context = ssl.create_default_context(cafile=folder.ca)
    with nginx(tmp_path, folder, f"{host}:{port}", changes) as process:

        def served() -> bool:
            assert process.poll() is None
            try:
                connection = socket.create_connection((host, port))
            except ConnectionRefusedError:
                return False
            with connection, context.wrap_socket(connection, server_hostname=host) as secure:
                return secure.version() is not None

        wait_for(served)

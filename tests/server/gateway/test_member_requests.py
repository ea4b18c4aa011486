"""foedus' own requests on the firms' port."""

from __future__ import annotations

import email.utils
import time

import httpx
import pytest

from protocol.consortium.chain import verify_chain
from protocol.consortium.signed_request import sign_request
from tests.server.gateway.little_coordinator import Coordinator, Firm, wait_for

pytestmark = pytest.mark.slow


def ask(
    coordinator: Coordinator,
    firm: Firm,
    path: str = "/v1/foedus/roster",
    *,
    method: str = "GET",
    signed_path: str = "",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    made = sign_request(firm.identity, "little", method, signed_path or path, body, time.time())
    with coordinator.outside() as client:
        return client.request(method, path, headers=headers or made, content=body)


def test_anyone_can_ask_whether_it_is_up_and_what_time_it_is(coordinator: Coordinator) -> None:
    with coordinator.outside() as client:
        answer = client.get("/v1/foedus/health")
    assert answer.json() == {"status": "ok"}
    theirs = email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp()
    assert abs(theirs - time.time()) < 60
    assert "server" not in answer.headers


def test_a_member_gets_the_versions_it_lacks(coordinator: Coordinator, cedar: Firm) -> None:
    everything = ask(coordinator, cedar).json()["lines"]
    chain = verify_chain(everything, coordinator.folder.read_invitation().coordinator_key)
    assert [version.version for version in chain] == list(range(1, len(everything) + 1))
    path = f"/v1/foedus/roster?after={len(chain) - 1}"
    assert ask(coordinator, cedar, path).json()["lines"] == everything[-1:]
    path = f"/v1/foedus/roster?after={len(chain)}"
    assert ask(coordinator, cedar, path).json()["lines"] == []


@pytest.mark.parametrize("after", ["-1", "x", "1e3", "٣", "9" * 40])
def test_a_version_that_is_none_is_refused(
    coordinator: Coordinator, cedar: Firm, after: str
) -> None:
    path = str(httpx.URL("/v1/foedus/roster", params={"after": after}))
    assert ask(coordinator, cedar, path).status_code == 400


def test_whoever_is_no_member_is_told_nothing(coordinator: Coordinator, cedar: Firm) -> None:
    unsigned = httpx.get(
        f"https://{coordinator.state.public_address}/v1/foedus/roster", verify=coordinator.ca
    )
    strangers = ask(coordinator, Firm("Stranger"))
    for other in ("/v1/foedus/health", "/v1/foedus/roster?after=1"):
        answer = ask(coordinator, cedar, signed_path=other)
        assert (answer.status_code, answer.content) == (401, b"")
    for answer in (unsigned, strangers):
        assert (answer.status_code, answer.content) == (401, b"")


def test_a_members_request_is_good_for_one_use(coordinator: Coordinator, cedar: Firm) -> None:
    once = sign_request(cedar.identity, "little", "GET", "/v1/foedus/roster", b"", time.time())
    assert ask(coordinator, cedar, headers=once).status_code == 200
    assert ask(coordinator, cedar, headers=once).status_code == 401


def test_receipts_come_back_as_the_coordinator_has_them(
    coordinator: Coordinator, cedar: Firm
) -> None:
    answer = ask(coordinator, cedar, "/v1/foedus/receipts?after=0")
    assert answer.json() == {"countersigned": [], "total": 0}
    pushed = ask(coordinator, cedar, "/v1/foedus/receipts", method="POST", body=b'{"receipts": []}')
    assert pushed.json() == {"countersigned": [], "unknown": []}


@pytest.mark.parametrize("body", [b"no json", b"[]", b'{"receipts": [1]}', b"[" * 100_000])
def test_a_body_of_another_form_is_refused(
    coordinator: Coordinator, cedar: Firm, body: bytes
) -> None:
    answer = ask(coordinator, cedar, "/v1/foedus/receipts", method="POST", body=body)
    assert (answer.status_code, answer.json()) == (400, {"refused": "malformed"})


def test_a_members_body_over_a_mebibyte_is_refused(coordinator: Coordinator, cedar: Firm) -> None:
    body = b" " * ((1 << 20) + 1)
    answer = ask(coordinator, cedar, "/v1/foedus/receipts", method="POST", body=body)
    assert answer.status_code == 413


def test_a_damaged_file_of_ours_is_no_fault_of_the_member(coordinator: Coordinator) -> None:
    """The log names the file once, however often the member asks; the member may ask again."""
    log, nodes = coordinator.folder.state / "gateway.log", coordinator.folder.nodes
    elm = Firm("Elm")
    before = coordinator.folder.chain()[-1].members
    coordinator.set_members([*before, elm.entry()])
    wait_for(lambda: ask(coordinator, elm).status_code == 200)
    damaged = coordinator.folder.receipts / f"{elm.entry().member_id}.jsonl"
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_text("no receipt\n")
    for _ in range(3):
        answer = ask(coordinator, elm, "/v1/foedus/receipts?after=0")
        assert (answer.status_code, answer.json()) == (503, {"refused": "unavailable"})
    assert log.read_text().count(f"{damaged.name}, line 1 is no receipt") == 1
    assert ask(coordinator, elm, "/v1/foedus/receipts?after=x").status_code == 400
    damaged.unlink()
    assert ask(coordinator, elm, "/v1/foedus/receipts?after=0").status_code == 200
    # Written once SuperLink has taken the new node, which may be after the member is answered.
    wait_for(lambda: elm.entry().member_id in nodes.read_text())
    sound = nodes.read_bytes()
    nodes.write_text("{")
    push = {"method": "POST", "body": b'{"receipts": []}'}
    assert ask(coordinator, elm, "/v1/foedus/receipts", **push).status_code == 503  # type: ignore[arg-type]
    assert "nodes.json, got a damaged file" in log.read_text()
    nodes.write_bytes(sound)
    assert ask(coordinator, elm, "/v1/foedus/receipts", **push).status_code == 200  # type: ignore[arg-type]
    coordinator.set_members(before)

"""What is reached by the firms' address: the fleet's paths, and nothing of the control plane."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    PullArtifactsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest, UnregisterNodeFleetRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from server.gateway.allowed_paths import FLEET_REQUESTS
from tests.server.gateway.little_coordinator import OUTSIDE, Coordinator, Firm, PlayedRun
from tests.server.gateway.raw_requests import exchange, statuses
from tests.server.gateway.signed_headers import headers

pytestmark = pytest.mark.slow

Call = Callable[[Any], Any]

CONTROL_CALLS: dict[str, Call] = {
    "RegisterNode": lambda c: c.RegisterNode(RegisterNodeRequest(public_key=b"key")),
    "UnregisterNode": lambda c: c.UnregisterNode(UnregisterNodeRequest(node_id=1)),
    "ListNodes": lambda c: c.ListNodes(ListNodesRequest()),
    "StartRun": lambda c: c.StartRun(StartRunRequest()),
    "StopRun": lambda c: c.StopRun(StopRunRequest(run_id=1)),
    "ListRuns": lambda c: c.ListRuns(ListRunsRequest()),
    "StreamLogs": lambda c: list(c.StreamLogs(StreamLogsRequest(run_id=1))),
    "PullArtifacts": lambda c: c.PullArtifacts(PullArtifactsRequest(run_id=1)),
}
RUNTIME_CALLS: dict[str, Call] = {
    "AcquireTask": lambda r: r.AcquireTask(AcquireTaskRequest()),
    "PullTaskInput": lambda r: r.PullTaskInput(PullTaskInputRequest()),
}


@pytest.mark.parametrize("call", CONTROL_CALLS.values(), ids=CONTROL_CALLS.keys())
def test_the_control_api_does_not_exist_for_firms(coordinator: Coordinator, call: Call) -> None:
    with (
        coordinator.control(coordinator.state.public_address) as control,
        pytest.raises(httpx.HTTPStatusError) as refusal,
    ):
        call(control)
    assert refusal.value.response.status_code == 404
    assert refusal.value.response.content == b""


@pytest.mark.parametrize("call", RUNTIME_CALLS.values(), ids=RUNTIME_CALLS.keys())
def test_the_runtime_api_does_not_exist_for_firms(coordinator: Coordinator, call: Call) -> None:
    with (
        coordinator.runtime(address=coordinator.state.public_address) as runtime,
        pytest.raises(httpx.HTTPStatusError) as refusal,
    ):
        call(runtime)
    assert refusal.value.response.status_code == 404


def test_of_all_of_flowers_paths_firms_reach_those_of_the_list(
    coordinator: Coordinator, cedar: Firm
) -> None:
    """Every path that this Flower knows is asked for with a member's good signature."""
    reached = set()
    with coordinator.outside() as client:
        for method, path in PROTOBUF_REQUEST_TYPES:
            answer = client.request(method, path, headers=headers(cedar))
            if answer.status_code != 404:
                reached.add(path)
        assert client.get("/docs").status_code == 404
        assert client.get("/openapi.json").status_code == 404
        assert client.get("/health").status_code == 404
    assert reached == set(FLEET_REQUESTS)


def test_a_member_cannot_register_a_node_or_remove_one(
    coordinator: Coordinator, cedar: Firm
) -> None:
    with coordinator.fleet(cedar) as fleet:
        for call in (
            lambda: fleet.RegisterNode(RegisterNodeFleetRequest(public_key=b"key")),
            lambda: fleet.UnregisterNode(UnregisterNodeFleetRequest(node_id=1)),
        ):
            with pytest.raises(httpx.HTTPStatusError) as refusal:
                call()
            assert refusal.value.response.status_code == 404


@pytest.mark.parametrize(
    "first_line",
    [
        b"POST /v1/control/list-runs HTTP/1.1",
        b"POST //v1/control/list-runs HTTP/1.1",
        b"POST /v1//control/list-runs HTTP/1.1",
        b"POST /v1/control/list-runs/ HTTP/1.1",
        b"POST /v1/fleet/../control/list-runs HTTP/1.1",
        b"POST /v1/fleet/%2e%2e/control/list-runs HTTP/1.1",
        b"POST /v1/fleet/..%2fcontrol/list-runs HTTP/1.1",
        b"POST /v1%2fcontrol%2flist-runs HTTP/1.1",
        b"POST /%76%31/control/list-runs HTTP/1.1",
        b"POST /v1\\control\\list-runs HTTP/1.1",
        b"POST /V1/CONTROL/LIST-RUNS HTTP/1.1",
        b"POST /v1/control/list-runs;x=/v1/fleet/pull-messages HTTP/1.1",
        b"POST /v1/control/list-runs?/v1/fleet/pull-messages HTTP/1.1",
        b"POST /v1/fleet/pull-messages?/../control/list-runs HTTP/1.1",
        b"POST /v1/fleet/pull-messages#/../control/list-runs HTTP/1.1",
        b"POST /v1/fleet/pull-messages/../../control/list-runs HTTP/1.1",
        b"POST /v1/fleet/pull-messages%00 HTTP/1.1",
        b"POST https://127.0.0.1/v1/control/list-runs HTTP/1.1",
        b"POST https://127.0.0.1/v1/fleet/pull-messages HTTP/1.1",
        b"POST v1/control/list-runs HTTP/1.1",
        b"POST * HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT 127.0.0.1:9444 HTTP/1.1",
        b"GET /v1/control/list-runs HTTP/1.1",
        b"post /v1/control/list-runs HTTP/1.1",
        b"PUT /v1/fleet/pull-messages HTTP/1.1",
        b"POST /v1/control/list-runs HTTP/1.0",
        b"POST /v1/fleet/pull-messages HTTP/1.0",
        b"POST /v1/control/list-runs HTTP/2.0",
        b"POST /v1/control/list-runs",
        b"PRI * HTTP/2.0",
    ],
)
def test_no_way_of_writing_a_path_leads_to_the_control_api(
    coordinator: Coordinator, first_line: bytes
) -> None:
    request = (
        first_line + b"\r\nhost: 127.0.0.1\r\ncontent-type: application/protobuf\r\n"
        b"content-length: 0\r\nconnection: close\r\n\r\n"
    )
    assert statuses(exchange(coordinator, request)) in ([404], [400])


@pytest.mark.parametrize(
    "extra",
    [
        b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
        b"x-http-method-override: GET\r\n",
        b"x-original-url: /v1/control/list-runs\r\nx-rewrite-url: /v1/control/list-runs\r\n",
        b"x-forwarded-prefix: /v1/control\r\nx-forwarded-host: 127.0.0.1:9444\r\n",
    ],
    ids=["websocket", "method", "url", "prefix"],
)
def test_no_header_changes_what_is_asked_for(coordinator: Coordinator, extra: bytes) -> None:
    ending = b"host: x\r\ncontent-length: 0\r\n\r\n"
    answer = exchange(coordinator, b"GET /v1/control/list-runs HTTP/1.1\r\n" + extra + ending)
    assert statuses(answer) == [404]


def test_a_request_hidden_in_the_body_of_another_is_not_carried_out(
    coordinator: Coordinator,
) -> None:
    """Two ways of stating one length: whichever counts, the hidden one is refused as any other."""
    hidden = (
        b"POST /v1/control/list-runs HTTP/1.1\r\nhost: x\r\n"
        b"content-type: application/protobuf\r\ncontent-length: 0\r\n\r\n"
    )
    outer = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n"
    for lengths in (
        b"content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"content-length: 0\r\ncontent-length: %d\r\n\r\n" % len(hidden),
        b"transfer-encoding: chunked, identity\r\ncontent-length: 4\r\n\r\n",
        b"content-length: +0\r\n\r\n",
    ):
        answered = statuses(exchange(coordinator, outer + lengths + hidden))
        assert answered and set(answered) <= {400, 401, 404, 415, 501}


@pytest.mark.parametrize("which", ["control_address", "metrics_address"])
def test_the_other_ports_are_not_open_at_the_firms_address(
    coordinator: Coordinator, which: str
) -> None:
    port = int(getattr(coordinator.state, which).rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((OUTSIDE, port), timeout=10)


def test_nothing_that_was_tried_changed_the_control_plane(
    coordinator: Coordinator, run: PlayedRun, cedar: Firm
) -> None:
    with coordinator.control() as control:
        nodes = control.ListNodes(ListNodesRequest()).nodes_info
        runs = control.ListRuns(ListRunsRequest()).run_dict
    assert {node.public_key for node in nodes} == {
        entry.supernode_key for version in coordinator.folder.chain() for entry in version.members
    }
    assert set(runs) == {run.run_id}
    run.serves(coordinator, cedar)

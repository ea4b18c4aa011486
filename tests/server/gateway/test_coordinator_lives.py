"""`foedus server up`: one at a time, back after a crash, nothing left behind after a stop."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest
from flwr.app import MetricRecord, RecordDict
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest

from server.consortium.founding import renew_server_certificate
from server.gateway.state_file import GatewayState, read_gateway_state
from tests.server.gateway.little_coordinator import (
    OUTSIDE,
    Coordinator,
    Firm,
    FirmNode,
    PlayedRun,
    executor_of,
    found,
    little_app,
    up,
    wait_for,
)
from tests.server.gateway.signed_headers import headers

pytestmark = [pytest.mark.slow, pytest.mark.faults]

ASH = Firm("Ash")


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    with up(found(tmp_path / "oak", [ASH.entry()])) as running:
        yield running


def killed_and_back(coordinator: Coordinator) -> Coordinator:
    """SIGKILL to the process that listens; the coordinator once it is up again."""
    before = coordinator.state.pid
    os.kill(before, signal.SIGKILL)

    def again() -> GatewayState | None:
        state = read_gateway_state(coordinator.folder.gateway_state)
        return state if state is not None and state.pid != before else None

    return Coordinator(coordinator.folder, wait_for(again), coordinator.process)


def test_a_coordinator_that_is_killed_comes_back_and_work_goes_on(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    """A message is pulled before the crash and answered after it."""
    run = PlayedRun(coordinator, little_app(tmp_path / "little"))
    node = FirmNode.activate(coordinator, ASH)
    (sent,) = run.tell(node.node_id)
    told = node.pull()
    assert told is not None
    used = headers(ASH)
    with coordinator.outside() as client:
        assert client.post("/v1/fleet/pull-messages", headers=used).status_code == 409
    back = killed_and_back(coordinator)
    with back.outside() as client:
        again = client.post("/v1/fleet/pull-messages", headers=used)
    assert (again.status_code, again.json()) == (503, {"refused": "unavailable"})
    assert all(node.read(told, part).object_available for part in told.object_ids)
    node.confirm(told)
    node.push(told, node.reply(told, RecordDict({"m": MetricRecord({"loss": 0.5})})))
    (heard,) = wait_for(lambda: list(run.grid.pull_messages([sent])))
    assert heard.content["m"]["loss"] == 0.5


def test_a_key_that_was_registered_by_hand_is_refused_at_once(coordinator: Coordinator) -> None:
    """SuperLink would let it in until the watch has removed it, a minute later at most."""
    stranger = Firm("Stranger")
    activate = ActivateNodeRequest(public_key=stranger.public_key, heartbeat_interval=30.0)
    with coordinator.control() as control:
        node_id = control.RegisterNode(RegisterNodeRequest(public_key=stranger.public_key)).node_id
    with coordinator.fleet(stranger) as fleet:
        with pytest.raises(httpx.HTTPStatusError) as refused:
            fleet.ActivateNode(activate)
        assert refused.value.response.status_code == 401
    with coordinator.fleet(stranger, coordinator.state.control_address) as fleet:
        assert fleet.ActivateNode(activate).node_id == node_id


def test_an_executor_that_ends_is_started_again(coordinator: Coordinator) -> None:
    before = wait_for(lambda: executor_of(coordinator))
    before.kill()
    wait_for(lambda: now if (now := executor_of(coordinator)) and now.pid != before.pid else None)


def test_a_stop_ends_every_process_and_removes_the_state_file(coordinator: Coordinator) -> None:
    below = psutil.Process(coordinator.process.pid).children(recursive=True)
    assert any("superexec" in " ".join(process.cmdline()) for process in below)
    coordinator.process.terminate()
    assert coordinator.process.wait(timeout=60) == 0
    assert not any(process.is_running() for process in below)
    assert read_gateway_state(coordinator.folder.gateway_state) is None
    assert not coordinator.folder.gateway_state.exists()


def test_a_supervisor_that_is_killed_takes_the_coordinator_along(
    coordinator: Coordinator,
) -> None:
    below = psutil.Process(coordinator.process.pid).children(recursive=True)
    coordinator.process.kill()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive


def test_a_second_coordinator_of_one_consortium_is_refused(coordinator: Coordinator) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "foedus", "server", "up", "--consortium",
         str(coordinator.folder.path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert second.returncode == 2
    assert "up already" in second.stderr
    with coordinator.outside() as client:
        assert client.get("/v1/foedus/health").status_code == 200


def test_a_port_that_is_taken_is_said_once_and_not_tried_again(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    port = int(coordinator.state.control_address.rpartition(":")[2])
    other = found(tmp_path / "elm", [], control_port=port)
    second = subprocess.run(
        [sys.executable, "-m", "foedus", "server", "up", "--consortium", str(other.path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert second.returncode == 2
    assert second.stderr.count("control_port in consortium.yaml") == 1
    assert "Traceback" not in second.stderr


def test_a_folder_without_a_consortium_is_refused(tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "foedus", "server", "up", "--consortium", str(tmp_path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "Expected a consortium's folder" in refused.stderr


def test_held_questions_do_not_delay_a_stop(coordinator: Coordinator) -> None:
    node = FirmNode.activate(coordinator, ASH)
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(node.pull()))
    asking.start()
    wait_for(lambda: coordinator.metric("foedus_held_polls") == 1)
    coordinator.process.terminate()
    assert coordinator.process.wait(timeout=60) == 0
    asking.join(timeout=60)
    assert answers == [None]


def test_a_renewed_certificate_is_used_without_a_restart(coordinator: Coordinator) -> None:
    host, _, port = coordinator.state.public_address.rpartition(":")
    before = ssl.get_server_certificate((host, int(port)))
    renew_server_certificate(coordinator.folder, (OUTSIDE,), None, datetime.now(UTC))
    wait_for(lambda: ssl.get_server_certificate((host, int(port))) != before)
    with coordinator.outside() as client:
        assert client.get("/v1/foedus/health").status_code == 200
    assert (
        wait_for(lambda: read_gateway_state(coordinator.folder.gateway_state)) == coordinator.state
    )

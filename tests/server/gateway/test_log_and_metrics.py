"""What the operator sees: lines with fixed keys, counts, and a word on the coordinator's health."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from server.gateway.event_log import configure_logging, log_connection_refused
from server.gateway.metrics import Metrics
from server.gateway.observing import CLIENT_GONE, Served
from server.gateway.refusal_log import QUIET_SECONDS, RefusalLog
from server.gateway.run_gauges import RunGauges
from server.runs.folder import RunFolder, RunRecord, RunStatus
from tests.server.gateway.little_coordinator import Coordinator, Firm, PlayedRun

REQUEST_KEYS = {
    "time", "level", "logger", "text", "event", "method", "path", "status", "reason", "who",
    "address", "bytes_in", "bytes_out", "seconds", "left_out",
}  # fmt: skip


def served(reason: str = "", text: str = "") -> Served:
    return Served("POST", "/v1/fleet/get-run", 200, reason, text, "7", "192.0.2.1", 10, 20, 0.01)


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The kept log, and what is shown."""
    kept, shown = tmp_path / "gateway.log", tmp_path / "stderr"
    root = logging.getLogger()
    before, level = root.handlers, root.level
    flower = logging.getLogger("flwr")
    flowers = flower.handlers, flower.propagate, flower.level
    with shown.open("w") as stderr:
        configure_logging(kept, "text", stderr)
        yield kept, shown
        for handler in root.handlers:
            handler.flush()
    root.handlers, root.level = before, level
    flower.handlers, flower.propagate, flower.level = flowers


def test_every_request_is_a_line_of_json_with_the_same_keys(logged: tuple[Path, Path]) -> None:
    metrics = Metrics()
    metrics.served(served())
    metrics.served(served("not_yours", "Node 7 asked for\nanother's."))
    lines = [json.loads(line) for line in logged[0].read_text().splitlines()]
    assert [set(line) for line in lines] == [REQUEST_KEYS, REQUEST_KEYS]
    assert [line["reason"] for line in lines] == ["", "not_yours"]
    assert [line["level"] for line in lines] == ["INFO", "WARNING"]


def test_what_nobody_signed_is_counted_and_not_written(logged: tuple[Path, Path]) -> None:
    metrics = Metrics()
    for reason in ("", CLIENT_GONE):
        metrics.served(replace(served(reason), path="/v1/foedus/health", who=""))
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert logged[0].read_text() == ""
    assert 'path="/v1/foedus/health",status="200"} 2.0' in metrics.text().decode()


def test_words_are_shown_of_refusals_only(logged: tuple[Path, Path]) -> None:
    metrics = Metrics()
    metrics.served(served())
    metrics.served(served(CLIENT_GONE))
    metrics.served(served("replayed", "A signature came again."))
    shown = logged[1].read_text().splitlines()
    assert len(shown) == 1 and shown[0].endswith("A signature came again.")


def test_a_flood_of_refusals_is_one_line_and_a_count(logged: tuple[Path, Path]) -> None:
    now = [0.0]
    refusals = RefusalLog(lambda: now[0])
    for _ in range(1000):
        refusals.note("no_tls", "a", lambda n: log_connection_refused("a", "no_tls", n))
    refusals.note("no_tls", "b", lambda n: log_connection_refused("b", "no_tls", n))
    now[0] = QUIET_SECONDS
    refusals.note("no_tls", "a", lambda n: log_connection_refused("a", "no_tls", n))
    lines = [json.loads(line) for line in logged[0].read_text().splitlines()]
    assert [(line["address"], line["left_out"]) for line in lines] == [
        ("a", 0), ("b", 0), ("a", 999),
    ]  # fmt: skip


def test_the_log_of_refusals_keeps_a_bounded_number_of_addresses() -> None:
    written: list[int] = []
    refusals = RefusalLog(lambda: 0.0)
    for number in range(20_000):
        refusals.note("no_tls", str(number), written.append)
    assert len(refusals._written) == 10_000
    assert written == [0] * 20_000


@pytest.mark.slow
def test_a_coordinator_that_is_well_says_so_with_figures(
    coordinator: Coordinator, run: PlayedRun, cedar: Firm
) -> None:
    run.serves(coordinator, cedar)
    answer = httpx.get(f"http://{coordinator.state.metrics_address}/health")
    health = answer.json()
    assert (answer.status_code, health["problems"]) == (200, [])
    assert health["roster_version"] == len(coordinator.folder.chain())
    assert health["members"] >= 3
    assert 390 < health["certificate_days"] <= 397
    assert health["free_bytes"] > 0
    assert coordinator.metric("foedus_healthy") == 1.0
    assert coordinator.metric("foedus_roster_version") == health["roster_version"]
    activated = 'foedus_requests_total{path="/v1/fleet/activate-node",status="200"}'
    assert coordinator.metric(activated) >= 1.0
    assert coordinator.metric('foedus_bytes_total{direction="in"}') > 0


@pytest.mark.slow
def test_the_metrics_port_answers_nothing_else(coordinator: Coordinator) -> None:
    for path in ("/", "/health/", "/v1/control/list-runs"):
        address = f"http://{coordinator.state.metrics_address}{path}"
        assert httpx.get(address).status_code == 404
    assert httpx.post(f"http://{coordinator.state.metrics_address}/health").status_code == 404


def test_runs_are_told_by_where_they_stand_and_how_far_they_are(tmp_path: Path) -> None:
    run, metrics = RunFolder(tmp_path / "first"), Metrics()
    run.create(RunRecord("first", (), 0.0, status=RunStatus.RUNNING))
    gauges = RunGauges(tmp_path, metrics)
    for round_, seconds in ((1, 3.5), (2, 4.5)):
        line = {"event": "round_finished", "time": "", "round": round_, "seconds": seconds}
        with run.progress.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        gauges.look()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    gauges.look()
    text = metrics.text().decode()
    assert 'foedus_run_status{run="first",status="running"} 1.0' in text
    assert 'foedus_run_status{run="first",status="finished"} 0.0' in text
    assert 'foedus_run_rounds{run="first"} 2.0' in text
    assert 'foedus_run_last_round_seconds{run="first"} 4.5' in text
    assert "damaged" not in text

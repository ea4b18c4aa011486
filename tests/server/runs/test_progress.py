"""The progress log: what is written is read, whole lines only, and a full disk ends no run."""

from __future__ import annotations

import logging
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import SettingsError
from server.records import RoundRecord
from server.runs.folder import Occupied
from server.runs.follow import words_of
from server.runs.progress import ProgressLog, ProgressReader, read_events
from server.runs.reported import reported
from server.runs.standing import rounds_done

ROUND = RoundRecord(
    round=2,
    seconds=1.5,
    cohort=("Ash", "Birch", "Cedar"),
    admitted=("Ash", "Birch"),
    silent=("Cedar",),
    rejected=({"site": "Cedar", "reason": "not_finite", "detail": ""},),
    aggregated=True,
    bytes_up=1,
    bytes_down=2,
    bytes_evaluation=0,
    train_seconds=0.5,
    aggregate_seconds=0.1,
    metrics={"central_accuracy": 0.75, "central_num_examples": 9.0, "train_loss": 1.0},
)
NAMES = {1: "Ash", 2: "Birch"}


def test_every_event_is_read_back_with_firm_names(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    log = ProgressLog(path, NAMES)
    log.started(2**64 - 1, 4)
    log.waiting_for(["Cedar"])
    log.round_started(2, 4, 3)
    log.phase_started(2, 1, "advertise", 3)
    log.reply_handled(2, 1, "train", True)
    log.reply_handled(2, 99, "train", False)
    log.checkpoint_started(2)
    log.round_finished(ROUND)
    log.finished(4)
    events = read_events(path)
    assert [event.kind for event in events] == [
        "started", "waiting", "round_started", "phase_started", "reply", "reply",
        "checkpoint_started", "round_finished", "finished",
    ]  # fmt: skip
    assert events[0].values["flower_run_id"] == str(2**64 - 1)
    assert [event.values.get("site") for event in events[4:6]] == ["Ash", "99"]
    assert words_of(events[1]) == "waiting a moment for Cedar: not online"
    assert RoundRecord.from_json(dict(events[7].values)) == ROUND
    assert rounds_done(events) == 2


@given(st.binary(max_size=40))
def test_a_half_written_line_is_left_out_and_swallows_nothing(half: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "progress.jsonl"
        log = ProgressLog(path, {})
        log.round_started(1, 2, 3)
        with path.open("ab") as stream:
            stream.write(half.replace(b"\n", b""))
        log.checkpoint_started(1)
        assert [event.kind for event in read_events(path)] == [
            "round_started",
            "checkpoint_started",
        ]


def test_a_reader_gets_each_event_once_and_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    reader = ProgressReader(path)
    assert list(reader.new_events()) == []
    ProgressLog(path, {}).round_started(1, 2, 3)
    assert len(list(reader.new_events())) == 1
    whole = path.read_bytes()
    with path.open("ab") as stream:
        stream.write(whole[:20])
    assert list(reader.new_events()) == []
    with path.open("ab") as stream:
        stream.write(whole[20:])
    assert len(list(reader.new_events())) == 1


def test_a_full_disk_costs_lines_and_not_the_run(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    log = ProgressLog(path, {})
    log.round_started(1, 2, 3)
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))
        log.checkpoint_started(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    log.finished(2)
    assert [event.kind for event in read_events(path)] == ["round_started", "finished"]


def test_a_run_in_its_folder_tells_how_it_ended(tmp_path: Path) -> None:
    for number, error in enumerate((None, SettingsError("x", ["y"]), OSError("disk full")), 1):
        try:
            with reported(tmp_path, number, 2, {}):
                if error:
                    raise error
        except (SettingsError, OSError) as raised:
            assert raised is error
    started, finished, _, settings, _, disk = read_events(tmp_path / "progress.jsonl")
    assert started.values == {"flower_run_id": "1", "rounds": 2, "pid": os.getpid()}
    assert finished.kind == "finished"
    assert settings.values == {"message": "1 problem in x:\n  - y", "resumable": False}
    assert disk.values == {"message": "OSError: disk full", "resumable": True}


def test_what_a_run_logs_stays_in_its_folder_and_what_others_log_does_not(tmp_path: Path) -> None:
    log = logging.getLogger("foedus.server")
    log.info("before")
    with reported(tmp_path, 1, 2, {}):
        log.info("Round %d of 2", 1)
    log.info("after")
    with reported(tmp_path, 2, 2, {}):
        log.warning("Round 2 of 2")
    lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert [line.partition("Z ")[2] for line in lines] == [
        "INFO Round 1 of 2",
        "WARNING Round 2 of 2",
    ]


def test_a_second_process_is_kept_out_and_writes_nothing(tmp_path: Path) -> None:
    with reported(tmp_path, 1, 2, {}):
        try:
            with reported(tmp_path, 2, 2, {}):
                raise AssertionError("two at once")
        except Occupied:
            pass
    assert [event.kind for event in read_events(tmp_path / "progress.jsonl")] == [
        "started",
        "finished",
    ]


def test_a_round_is_told_in_one_line_for_people(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    ProgressLog(path, {}).round_finished(ROUND)
    (event,) = read_events(path)
    assert words_of(event) == (
        "round 2 done: 2 of 3 sites, set aside Cedar (not_finite), silent Cedar, 1.5 s, "
        "central_accuracy 0.750"
    )
    ProgressLog(path, {}).round_finished(replace(ROUND, aggregated=False))
    assert "the adapter stays as it was" in words_of(read_events(path)[1])

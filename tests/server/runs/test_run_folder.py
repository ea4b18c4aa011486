"""A run's record: whole or absent, changed by one at a time, and never lost with a process."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.errors import FoedusError
from server.runs.folder import (
    Occupied,
    RunFolder,
    RunRecord,
    RunStatus,
    next_name,
    occupy,
    run_folder,
    run_folders,
)

RECORD = RunRecord(
    "spring",
    ("task.labels=[a,'b c']", "federation.rounds=3"),
    1700000000.5,
    (2**64 - 1, 7),
    RunStatus.INTERRUPTED,
    "the power went",
    2,
    1,
    1700000009.0,
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "spring")
    run.create(RECORD)
    assert run.read() == RECORD
    # Numbers of 64 bits are text, so that no reader of JSON rounds them.
    assert json.loads((run.path / "run.json").read_text())["flower_run_ids"][0] == str(2**64 - 1)


def test_a_run_is_not_made_over_another(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "spring")
    run.create(RECORD)
    with pytest.raises(FoedusError, match=r"exists.*foedus server resume spring"):
        run.create(replace(RECORD, message="other"))
    assert run.read() == RECORD


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "x" * 65, "-x", "a\nb"])
def test_a_name_cannot_leave_the_folder_of_runs(tmp_path: Path, name: str) -> None:
    with pytest.raises(FoedusError, match="name"):
        run_folder(tmp_path, name)


def test_a_missing_and_a_damaged_record_are_told_apart(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "spring")
    with pytest.raises(FoedusError, match="got none"):
        run.read()
    run.create(RECORD)
    (run.path / "run.json").write_text('{"name": "spring"')
    with pytest.raises(FoedusError, match="damaged"):
        run.read()


def _count_up(path: Path, times: int) -> None:
    for _ in range(times):
        RunFolder(path).change(lambda record: replace(record, resumes=record.resumes + 1))


def test_changes_by_several_processes_are_none_of_them_lost(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "spring")
    run.create(replace(RECORD, resumes=0))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count_up, args=(run.path, 20)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert run.read().resumes == 60


def test_only_one_process_works_on_a_run_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "spring")
    script = (
        "import sys, time; from pathlib import Path; from server.runs.folder import occupy\n"
        "with occupy(Path(sys.argv[1])):\n    print('holds', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "holds\n"
    assert run.is_occupied
    with pytest.raises(Occupied, match="Another process"), occupy(run.path):
        pytest.fail("held twice")
    other.kill()
    other.wait()
    give_up = time.monotonic() + 60
    while run.is_occupied:
        assert time.monotonic() < give_up
    with occupy(run.path):
        assert run.is_occupied
    assert not run.is_occupied


def test_a_folder_that_nobody_holds_is_not_written_to_by_looking(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "spring")
    assert not run.is_occupied and not run.is_launching
    assert not run.path.exists()


def test_runs_are_listed_by_age_and_new_names_are_free(tmp_path: Path) -> None:
    assert next_name(tmp_path) == "run-1"
    for name, created in (("run-1", 30.0), ("zeta", 10.0), ("run-2", 20.0)):
        RunFolder(tmp_path / name).create(replace(RECORD, name=name, created=created))
    assert [run.name for run in run_folders(tmp_path)] == ["zeta", "run-2", "run-1"]
    assert next_name(tmp_path) == "run-3"


def test_a_damaged_record_hides_no_other_run(tmp_path: Path) -> None:
    for name, created in (("second", 2.0), ("first", 1.0), ("damaged", 0.0)):
        RunFolder(tmp_path / name).create(RunRecord(name, (), created))
    (tmp_path / "damaged" / "run.json").write_text("{")
    assert [run.name for run in run_folders(tmp_path)] == ["first", "second", "damaged"]

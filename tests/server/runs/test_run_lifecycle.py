"""Runs over Flower's own SuperLink: started, stopped, resumed, killed and kept going.

Where no release is awaited, no site takes part: rounds pass without anybody and leave the adapter
as it was, which is all that these promises need.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.audit_policy import audited_settings_digest
from protocol.errors import FoedusError, SettingsError
from server.app import compose_settings
from server.release import verify_release
from server.runs.control import CoordinatorDown
from server.runs.folder import RunFolder, RunStatus
from server.runs.keeper import Keeper
from server.runs.lifecycle import Runs
from server.runs.progress import Event, read_events
from server.runs.report import report
from tests.server.runs.little_consortium import BIN, PATIENCE_SECONDS, found, log_of, superlink
from tests.server.runs.little_site import answering_site
from tests.server.test_release_gate import audit_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = (
    "task.labels=[fees,'governing law']",
    "federation.deadline_seconds=0.3",
    "adapter.last_layers=1",
    "adapter.rank=2",
    "model.max_tokens=16",
)
# Rounds that end when the one site has answered.
SHORT = (*SMALL, "federation.rounds=2", "federation.deadline_seconds=60")
LONG = (*SMALL, "federation.rounds=400")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """A consortium whose SuperLink is up."""
    made = found(tmp_path_factory.mktemp("with space") / "oak")
    with superlink(made):
        yield made


def keep_until(runs: Runs, run: RunFolder, done: Callable[[], bool], attempts: int = 3) -> None:
    """Let a keeper do its work until `done`."""
    keeper = Keeper(runs.folder, replace(runs.settings, resume_attempts=attempts))
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < give_up, f"{run.read()}\n{events(run)[-3:]}\n{log_of(runs)}"
        keeper.step()
        time.sleep(0.5)


def events(run: RunFolder, kind: str = "") -> list[Event]:
    return [event for event in read_events(run.progress) if kind in ("", event.kind)]


def rounds(run: RunFolder) -> list[int]:
    return [event.values["round"] for event in events(run, "round_finished")]


def test_a_run_ends_in_a_release_and_is_not_started_twice(runs: Runs) -> None:
    with answering_site(runs):
        run = runs.start("spring", SHORT)
        keep_until(runs, run, lambda: not run.read().status.is_open)
    assert run.read().status is RunStatus.FINISHED, run.read().message
    assert verify_release(run.adapter)["aggregated_rounds"] == 2
    with pytest.raises(FoedusError, match="has finished"):
        runs.resume("spring")
    with pytest.raises(FoedusError, match="exists"):
        runs.start("spring", SMALL)
    with pytest.raises(FoedusError, match="not at work"):
        runs.stop("spring")


def test_a_run_that_no_site_answered_fails_and_releases_nothing(runs: Runs) -> None:
    run = runs.start("lonely", [*SMALL, "federation.rounds=1"])
    keep_until(runs, run, lambda: not run.read().status.is_open)
    assert run.read().status is RunStatus.FAILED
    assert "none of 1 rounds" in run.read().message and not run.adapter.exists()


def test_all_wrong_settings_are_told_before_anything_is_made(runs: Runs) -> None:
    with pytest.raises(SettingsError) as caught:
        runs.start("wrong", ["task.labels=[a,b]", "federation.rounds=0", "adapter.rank=-1"])
    assert {problem.split(":")[0] for problem in caught.value.problems} == {
        "federation.rounds",
        "adapter.rank",
    }
    with pytest.raises(SettingsError, match="at most 2, the members"):
        runs.start("wrong", [*SMALL, "federation.min_cohort=3"])
    with pytest.raises(SettingsError, match="aggregator"):
        runs.start(
            "wrong",
            [
                *SMALL,
                "secure_aggregation=on",
                "federation.aggregator=flwr.serverapp.strategy.FedMedian",
            ],
        )
    assert not runs.run("wrong").path.exists()


def test_a_stopped_run_stays_stopped_and_goes_on_where_it_was(runs: Runs) -> None:
    run = runs.start("pause", LONG)
    keep_until(runs, run, lambda: len(rounds(run)) >= 2)
    with pytest.raises(FoedusError, match="at work"):
        runs.resume("pause")
    runs.stop("pause")
    done = rounds(run)
    keeper = Keeper(runs.folder, runs.settings)
    for _ in range(5):
        keeper.step()
    assert run.read().status is RunStatus.STOPPED and not run.is_occupied
    assert rounds(run) == done
    runs.resume("pause")
    keep_until(runs, run, lambda: len(rounds(run)) >= len(done) + 2)
    assert rounds(run) == list(range(1, len(rounds(run)) + 1))
    runs.stop("pause")


def test_a_killed_serverapp_is_resumed_and_no_round_is_done_twice(runs: Runs) -> None:
    run = runs.start("killed", LONG)
    keep_until(runs, run, lambda: len(rounds(run)) >= 2)
    for starts in (1, 2):
        os.kill(int(events(run, "started")[-1].values["pid"]), signal.SIGKILL)
        before = len(rounds(run))

        def goes_on(starts: int = starts, before: int = before) -> bool:
            return len(events(run, "started")) > starts and len(rounds(run)) > before

        keep_until(runs, run, goes_on)
    # A round may have been kept and not told of when a kill came; none is done twice.
    told = rounds(run)
    assert told == sorted(set(told)) and told[-1] - len(told) <= 2
    assert len(run.read().flower_run_ids) == 3
    runs.stop("killed")


def test_a_run_that_cannot_get_on_is_given_up_with_its_reason(runs: Runs) -> None:
    run = runs.start("stuck", LONG)
    keep_until(runs, run, lambda: len(rounds(run)) >= 1)
    runs.stop("stuck")
    checkpoints = run.path / "checkpoints"
    checkpoints.rename(run.path / "elsewhere")
    checkpoints.write_text("no folder")
    runs.resume("stuck")
    keep_until(runs, run, lambda: not run.read().status.is_open, attempts=1)
    assert run.read().status is RunStatus.FAILED
    assert run.read().message.startswith("Given up after 1 resumes without a finished round.")
    assert "NotADirectoryError" in run.read().message or "FileExistsError" in run.read().message
    assert len(events(run, "failed")) == 2


def test_damaged_checkpoints_fail_the_run_in_words_and_are_not_tried_again(runs: Runs) -> None:
    run = runs.start("damaged", LONG)
    keep_until(runs, run, lambda: len(rounds(run)) >= 1)
    runs.stop("damaged")
    for path in (run.path / "checkpoints").glob("*.checkpoint"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    runs.resume("damaged")
    keep_until(runs, run, lambda: not run.read().status.is_open)
    assert run.read().status is RunStatus.FAILED
    assert "Restore the folder from a backup" in run.read().message
    (told,) = report(runs, "damaged").runs
    assert "Restore the folder from a backup" in told.message


def foedus(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "foedus"), *words], capture_output=True, text=True, check=False
    )


def test_the_commands_watch_a_run_to_its_end_and_tell_it_by_their_status(runs: Runs) -> None:
    where = ["--consortium", str(runs.folder.path)]
    with answering_site(runs):
        done = foedus("server", "run", *where, "--name", "told", "--json", *SHORT)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [line["round"] for line in lines if line["event"] == "round_finished"] == [1, 2]
    assert lines[-1] == {"event": "status", "status": "finished", "message": ""}
    refused = foedus("server", "run", *where, "federation.rounds=0")
    assert refused.returncode == 2 and "task.labels" not in refused.stdout
    assert "federation.rounds" in refused.stderr and "Traceback" not in refused.stderr
    told = json.loads(foedus("server", "status", "told", *where, "--json").stdout)
    assert told["coordinator_answers"]
    assert told["runs"][0]["status"] == "finished" and told["runs"][0]["rounds_done"] == 2
    assert [site["name"] for site in told["sites"]] == ["Ash", "Birch"]
    assert foedus("server", "stop", "nobody", *where).returncode == 2


def test_ctrl_c_ends_the_watching_and_not_the_run(runs: Runs) -> None:
    run = runs.start("left", LONG)
    keep_until(runs, run, lambda: len(rounds(run)) >= 1)
    command = ["server", "status", "left", "--follow", "--json"]
    watching = subprocess.Popen(
        [str(BIN / "foedus"), *command, "--consortium", str(runs.folder.path)],
        stdout=subprocess.PIPE, text=True,
        # Whoever runs the tests in the background has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["event"] == "started"
    watching.send_signal(signal.SIGINT)
    assert watching.wait(PATIENCE_SECONDS) == 130
    before = len(rounds(run))
    keep_until(runs, run, lambda: len(rounds(run)) > before)
    runs.stop("left")


def test_a_shut_release_gate_fails_the_run_until_its_audit_passes(
    runs: Runs, tmp_path: Path
) -> None:
    with answering_site(runs):
        run = runs.start("audited", [*SHORT, "coordinator.require_audit=true"])
        keep_until(runs, run, lambda: not run.read().status.is_open)
    assert run.read().status is RunStatus.FAILED
    assert "requires a leakage audit" in run.read().message
    assert len(run.read().flower_run_ids) == 1 and not run.adapter.exists()
    digest = audited_settings_digest(compose_settings(list(SHORT)))
    audit = audit_file(tmp_path, settings_digest=digest, membership=None)
    where = ["--consortium", str(runs.folder.path), "--audit", audit]
    refused = foedus("server", "release", "audited", *where, "federation.rounds=1")
    assert refused.returncode == 2 and "no overrides" in refused.stderr
    released = foedus("server", "release", "audited", *where)
    assert released.returncode == 0, released.stderr
    assert verify_release(run.adapter)["audit"]["sha256"]
    assert run.read().status is RunStatus.FINISHED


def test_the_files_tell_where_runs_stand_when_the_coordinator_is_down(tmp_path: Path) -> None:
    made = found(tmp_path / "oak")
    with superlink(made):
        run = made.start("cut", LONG)
        keep_until(made, run, lambda: len(rounds(run)) >= 1)
    give_up = time.monotonic() + PATIENCE_SECONDS
    while run.is_occupied:
        assert time.monotonic() < give_up
        time.sleep(0.1)
    (made.folder.runs / "odd").mkdir()
    (made.folder.runs / "odd" / "run.json").write_text("{")
    told = report(made)
    assert not told.coordinator_answers
    assert told.runs[0].status == "interrupted" and told.runs[0].rounds_done >= 1
    # A damaged record hides no other run, from people or from the keeper.
    assert told.runs[1].status == "unknown" and "restore run.json" in told.runs[1].message
    done = foedus("server", "status", "--consortium", str(made.folder.path))
    assert done.returncode == 0 and "The coordinator does not answer" in done.stdout
    with pytest.raises(CoordinatorDown, match="foedus server up"):
        made.start("another", SMALL)
    assert not made.run("another").path.exists()
    # Up again, it goes on by itself.
    with superlink(made):
        before = len(rounds(run))
        keep_until(made, run, lambda: len(rounds(run)) > before)
        made.stop("cut")

"""What `foedus client up` tells of itself in up.json and up.log."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from client.runner.launch import Launch, free_port
from client.runner.supervisor import UP_STATE, Supervisor, is_up, only_one
from client.runner.up_log import UpLog
from client.site import Site
from protocol.errors import FoedusError
from tests.client.runner.federations import PATIENCE_SECONDS, wait_until
from tests.client.runner.test_launch import with_keys
from tests.small_runs import write_site


def written(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def test_an_explanation_that_comes_after_the_connection_is_no_problem_any_more(
    tmp_path: Path,
) -> None:
    """Nobody answers at the address, so the explanation is that the coordinator does not."""
    config, site = with_keys(tmp_path / "site", None)
    supervisor = Supervisor(Launch(config, site), site, UpLog(site.state_folder))
    supervisor._explain(refused=True)
    supervisor._report()
    assert "does not answer" in written(site.state_folder / UP_STATE)["problem"]
    supervisor._supernode_wrote("INFO :      SuperNode ID: 17")
    supervisor._explain(refused=True)
    supervisor._report()
    told = written(site.state_folder / UP_STATE)
    assert (told["node_state"], told["problem"]) == ("connected", "")
    assert (site.state_folder / "up.log").read_text().count("does not answer") == 1


def test_the_log_is_for_its_owner_alone_and_so_is_a_full_one_that_was_put_aside(
    tmp_path: Path,
) -> None:
    log = UpLog(tmp_path / "state")
    for _ in range(6):
        log.say("x" * 10**6)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in log_files(tmp_path / "state")}
    assert modes == {"up.log": 0o600, "up.log.1": 0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_line_of_any_length_leaves_room_for_others(tmp_path: Path) -> None:
    log = UpLog(tmp_path)
    log.say("Started.")
    for _ in range(10):
        log.heard("runner", "x" * 10**7, shown=False)
    assert [path.name for path in log_files(tmp_path)] == ["up.log"]
    assert "Started." in (tmp_path / "up.log").read_text()


def log_files(state: Path) -> list[Path]:
    return sorted(state.glob("up.log*"))


def test_whoever_looks_whether_it_is_up_keeps_it_not_from_starting(tmp_path: Path) -> None:
    assert not is_up(tmp_path)
    with only_one(tmp_path):
        assert is_up(tmp_path)
    assert not is_up(tmp_path)
    with (tmp_path / "up.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with only_one(tmp_path), pytest.raises(FoedusError, match="no other"), only_one(tmp_path):
            pass


@contextmanager
def up_without_coordinator(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`foedus client up`; nobody listens where it connects to."""
    words = ["--config", str(config), "--insecure", "--superlink", f"127.0.0.1:{free_port()}"]
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "foedus"), "client", "up", *words],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)


@pytest.mark.slow
@pytest.mark.faults
def test_what_could_not_be_written_is_written_later_and_hides_no_problem(tmp_path: Path) -> None:
    config = write_site(tmp_path, 1)
    state = Site.from_file(config).state_folder
    obstacle = state / UP_STATE
    obstacle.mkdir(parents=True)

    def log() -> str:
        path = state / "up.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    with up_without_coordinator(config):
        wait_until(lambda: "could not be written" in log(), "the warning", log)
        wait_until(lambda: "The coordinator does not answer" in log(), "the problem", log)
        # The processes were started long ago: from here on nothing changes that would be told.
        threading.Event().wait(3.0)
        obstacle.rmdir()
        wait_until(lambda: bool(written(obstacle)), "up.json", log)
        assert "does not answer" in written(obstacle)["problem"]
        assert log().count("could not be written") == 1

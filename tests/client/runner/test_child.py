"""A child is started again whenever it ends, hears when to stop, and never outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.runner.child import Child, Command, Ended
from tests.client.runner.federations import PATIENCE_SECONDS, is_running, wait_until


def python(code: str) -> Command:
    return Command([sys.executable, "-c", code], os.environ, ())


def next_end(child: Child) -> Ended:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while (ended := child.tick()) is None:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return ended


def test_a_child_that_keeps_ending_is_started_again_with_growing_pauses() -> None:
    lines: list[str] = []
    child = Child(
        "x", lambda: python("print('here', flush=True); raise SystemExit(3)"), lines.append
    )
    first, second = next_end(child), next_end(child)
    assert (first.status, second.status, child.num_starts) == (3, 3, 2)
    assert 0.75 <= first.pause_seconds <= 1.25 and 1.5 <= second.pause_seconds <= 2.5
    assert first.how == "with status 3" and not first.asked
    wait_until(lambda: lines == ["here\n"] * 2, "both lines")


def test_a_killed_child_says_by_which_signal() -> None:
    child = Child("x", lambda: python("import time; time.sleep(600)"), print)
    child.tick()
    assert child.pid
    os.kill(child.pid, signal.SIGKILL)
    ended = next_end(child)
    assert ended.how == "by signal 9" and child.pid is None


def test_what_cannot_be_started_is_told_of_and_tried_again() -> None:
    heard: list[str] = []
    missing = Command(["/no/such/program"], os.environ, ())
    commands = iter([missing, python("import time; time.sleep(600)")])
    child = Child("x", lambda: next(commands), heard.append)
    wait_until(lambda: child.tick() or child.pid, "a start that succeeds")
    assert heard[0].startswith("ERROR: it could not be started (No such file or directory)")
    assert child.num_starts == 1 and child.stop(grace_seconds=60.0)


def test_started_anew_it_comes_back_without_a_pause() -> None:
    child = Child("x", lambda: python("import time; time.sleep(600)"), print)
    child.tick()
    child.start_anew(grace_seconds=60.0)
    ended = next_end(child)
    assert ended.asked and ended.pause_seconds == 0.0
    child.tick()
    assert child.num_starts == 2
    assert child.stop(grace_seconds=60.0) and child.pid is None


def test_started_anew_again_and_again_it_waits_longer_each_time_until_it_was_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = Child("x", lambda: python("import time; time.sleep(600)"), print)

    def pause() -> float:
        wait_until(lambda: child.tick() or child.pid, "its start")
        child.start_anew(grace_seconds=0.0)
        return next_end(child).pause_seconds

    first, second, third = pause(), pause(), pause()
    assert first == 0.0 and 0.75 <= second <= 1.25 and 1.5 <= third <= 2.5
    # Well for long enough, it is started anew at once; the next time it waits as at first.
    monkeypatch.setattr("client.runner.child.HEALTHY_SECONDS", 0.0)
    assert pause() == 0.0
    monkeypatch.undo()
    assert 0.75 <= pause() <= 1.25


def deaf_child() -> Child:
    heard: list[str] = []
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('deaf', flush=True); time.sleep(600)"
    )
    child = Child("x", lambda: python(code), heard.append)
    child.tick()
    wait_until(lambda: heard, "its first line")
    return child


def test_a_child_that_does_not_listen_is_killed_after_the_grace() -> None:
    child = deaf_child()
    pid = child.pid
    assert not child.stop(grace_seconds=0.2)
    assert not is_running(pid)


def test_a_child_that_does_not_listen_is_started_anew_all_the_same() -> None:
    child = deaf_child()
    child.start_anew(grace_seconds=0.2)
    ended = next_end(child)
    assert ended.asked and ended.how == "by signal 9"


def test_without_a_grace_a_child_is_killed_before_it_can_take_leave() -> None:
    heard: list[str] = []
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('bye', flush=True)); "
        "print('here', flush=True); time.sleep(600)"
    )
    child = Child("x", lambda: python(code), heard.append)
    child.tick()
    wait_until(lambda: heard, "its first line")
    child.start_anew(grace_seconds=0.0)
    ended = next_end(child)
    assert ended.asked and ended.how == "by signal 9" and heard == ["here\n"]
    child.tick()
    assert child.num_starts == 2
    child.stop(grace_seconds=0.2)


@pytest.mark.faults
def test_a_child_ends_when_its_parent_is_killed() -> None:
    child = "from client.runner.parent import end_with_parent as e; import os, time; e({}); " + (
        "print(os.getpid(), flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import os, subprocess, sys; code = {child!r}.format(os.getpid()); "
            "subprocess.run([sys.executable, '-c', code])",
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(pid), "the child's end")


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    code = "from client.runner.parent import end_with_parent; end_with_parent(1); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 1 and done.stdout == b""


@pytest.mark.parametrize(
    "flower_supernode",
    [
        # Its main loop ends while a thread of its own goes on.
        "threading.Thread(target=time.sleep, args=(600,)).start()",
        # Its heartbeat dies while its main loop goes on.
        "threading.Thread(target=lambda: 1 / 0).start(); time.sleep(600)",
    ],
)
def test_a_supernode_that_is_a_shell_ends(tmp_path: Path, flower_supernode: str) -> None:
    package = tmp_path / "flwr" / "supernode" / "cli"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parents[1]):
        (folder / "__init__.py").touch()
    (package / "__init__.py").write_text(
        f"import threading, time\ndef flower_supernode():\n    {flower_supernode}\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "client.runner.supernode_process", str(os.getpid())],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 1 and "ERROR: " in done.stderr

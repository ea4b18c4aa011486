"""A killed run goes on as if it had not been killed, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.small_simulations import SMALL, released_digest, simulate

ROOT = Path(__file__).parents[2]
# The longest a run may take to reach a round, on a busy machine.
PATIENCE_SECONDS = 120


def start(output_dir: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """`foedus simulate` in a process of its own."""
    words = [*SMALL, *overrides, f"output_dir={output_dir}"]
    return subprocess.Popen(
        [sys.executable, "-m", "foedus", "simulate", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_after_round(process: subprocess.Popen[bytes], output_dir: Path, round_: int) -> None:
    """SIGKILL once the round's checkpoint is there: no handler runs, nothing is flushed."""
    checkpoint = output_dir / "checkpoints" / f"round-{round_:05d}.checkpoint"
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < give_up, f"no {checkpoint.name} in {PATIENCE_SECONDS} s"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.faults
@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=fedsvd", "server_optimizer=momentum"),
        ("strategy=fedsa", "federation.cohort_fraction=0.5"),
    ],
    ids=["fedsvd with momentum", "fedsa with its factors at the sites"],
)
def test_a_run_killed_after_round_2_of_4_ends_with_the_same_bits(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    whole = simulate(tmp_path / "whole", *overrides)

    cut = tmp_path / "cut"
    kill_after_round(start(cut, *overrides), cut, 2)
    assert not (cut / "checkpoints" / "round-00004.checkpoint").exists()
    assert not (cut / "adapter").exists()

    resumed = start(cut, *overrides, "resume=true")
    output, _ = resumed.communicate(timeout=PATIENCE_SECONDS)
    assert resumed.returncode == 0, output.decode()
    assert released_digest(cut) == released_digest(tmp_path / "whole") == whole.state.digest()
    history = json.loads((cut / "history.json").read_text(encoding="utf-8"))
    assert [record["round"] for record in history["rounds"]] == [1, 2, 3, 4]
    assert [tuple(r["cohort"]) for r in history["rounds"]] == [r.cohort for r in whole.records]

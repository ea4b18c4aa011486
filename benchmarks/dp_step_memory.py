"""Peak memory of a few steps, each way in a process of its own.

A process loads the model and the batch and measures the peak of the steps: python -m
benchmarks.dp_step_memory MODEL WAY BATCH TOKENS prints it and the bytes of the rows. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dp_step_ways import one_thread, way_for, work_for
from benchmarks.peak_memory import is_glibc, peak_growth
from protocol.errors import FoedusError

STEPS = 3

_ROOT = Path(__file__).resolve().parent.parent
# A parameter of glibc's mallopt, from <malloc.h>.
_M_MMAP_THRESHOLD = -3
_MAPPED_FROM_BYTES = 64 * 1024
_TIMEOUT_SECONDS = 600
_AT_ONCE = 2


@dataclass(frozen=True)
class PeakMemory:
    """Of one model and batch. peak_bytes: by way; rows_bytes: batch x trained parameters x 4."""

    model: str
    batch_size: int
    tokens: int
    rows_bytes: int
    peak_bytes: dict[str, int]


def measure(model: str, batch_size: int, tokens: int, ways: Sequence[str]) -> PeakMemory:
    """Each way in a fresh process, two at a time: memory, unlike time, feels no neighbour.

    Errors: FoedusError with the last line of what the process said where it failed.
    """

    def run(way: str) -> tuple[int, int]:
        arguments = [model, way, str(batch_size), str(tokens)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.dp_step_memory", *arguments],
            cwd=_ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            last = (done.stderr.strip() or "nothing").splitlines()[-1]
            raise FoedusError(
                f"Expected the peak memory of {model}, {way}; its process said {last}"
            )
        peak, rows = done.stdout.split()[-2:]
        return int(peak), int(rows)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        measured = dict(zip(ways, pool.map(run, ways), strict=True))
    peaks = {way: peak for way, (peak, _) in measured.items()}
    return PeakMemory(model, batch_size, tokens, next(iter(measured.values()))[1], peaks)


def peak_of_steps(model: str, way_name: str, batch_size: int, tokens: int) -> tuple[int, int]:
    """(bytes by which this process grew at most while it took the steps, bytes of the rows)."""
    with one_thread():
        # A clip norm of its own would need a pass over the batch, whose memory could be used again.
        work = work_for(model, batch_size, tokens, clip_norm=1.0)
        way = way_for(way_name, work)
        _map_every_tensor()

        def take_steps() -> None:
            for _ in range(STEPS):
                with way.ready():
                    way.step()

        return peak_growth(take_steps), 4 * len(work.batch) * work.num_parameters


def _map_every_tensor() -> None:
    """Have glibc map each larger block alone.

    With blocks on one heap, the peak of the very same steps differs by 5% from process to process,
    by how the heap happens to be broken up; now it is the greatest sum of what lives at once.
    """
    if is_glibc():
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)


if __name__ == "__main__":
    given_model, given_way, given_batch, given_tokens = sys.argv[1:]
    print(*peak_of_steps(given_model, given_way, int(given_batch), int(given_tokens)))

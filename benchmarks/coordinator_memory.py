"""Peak memory of a coordinator as replies grow from 4 to 32, in units of one update; lower is
better.

Each cell is a process of its own that runs one round on a Grid on which all replies are ready at
once (benchmarks.coordinator_memory_grid): our coordinator with its admission, strategy and
checkpoint, plain and with masks taken off, and stock Flower's `FedAvg.start`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.command import Say, benchmark_command
from benchmarks.coordinator_memory_grid import AdapterSize
from benchmarks.coordinator_memory_round import COMPETITORS, STOCK, Peak, measure
from benchmarks.peak_memory import can_measure
from benchmarks.result import BenchmarkResult, Cell, Row
from protocol.adapter import layout_size
from protocol.errors import FoedusError

NAME = "coordinator_memory"
GOAL = 1.0


@dataclass(frozen=True)
class Workload:
    """Which cells are measured."""

    size: AdapterSize
    replies: tuple[int, ...]


# 40.4 million parameters.
FULL = Workload(AdapterSize(modules=77, rank=64, width=4096), (4, 8, 16, 32))
# Updates above what the coordinator pulls at once, so that they come one by one here too.
QUICK = Workload(AdapterSize(modules=17, rank=64, width=4096), (2, 6))


def run(quick: bool, say: Say) -> BenchmarkResult:
    """Growth of the coordinator's peak memory with the number of replies."""
    if not can_measure():
        raise FoedusError("Expected a kernel that keeps a peak that can be reset, got another.")
    workload = QUICK if quick else FULL
    peaks: list[Peak] = []
    for competitor in COMPETITORS:
        for replies in workload.replies:
            say(f"  {competitor}, {replies} replies")
            peaks.append(measure(competitor, replies, workload.size))
    return result_of(peaks, layout_size(workload.size.layout))


def growth_in_updates(peaks: Sequence[Peak]) -> float:
    """(peak at the most replies - peak at the fewest) / bytes of one update, of one coordinator."""
    ordered = sorted(peaks, key=lambda peak: peak.replies)
    grown = ordered[-1].grown_bytes - ordered[0].grown_bytes
    return grown / ordered[0].update_bytes


def result_of(peaks: Sequence[Peak], parameters: int) -> BenchmarkResult:
    """The figure: the largest growth of ours."""
    by_name = {
        name: [peak for peak in peaks if peak.competitor == name]
        for name in dict.fromkeys(peak.competitor for peak in peaks)
    }
    growth = {name: growth_in_updates(of_name) for name, of_name in by_name.items()}
    figure = max(value for name, value in growth.items() if name != STOCK)
    replies = sorted({peak.replies for peak in peaks})
    what = (
        f"growth of the coordinator's peak memory from {replies[0]} to {replies[-1]} replies of an "
        f"adapter of {parameters / 1e6:.1f} million parameters; stock Flower {growth[STOCK]:.1f}"
    )
    rows = tuple(_row(name, of_name, growth[name]) for name, of_name in by_name.items())
    return BenchmarkResult.measured(NAME, what, figure, "updates", GOAL, rows, "lower")


def _row(name: str, peaks: Sequence[Peak], growth: float) -> Row:
    """Peaks in MiB above what the process held before the round."""
    row: dict[str, Cell] = {"coordinator": name, "update_mib": peaks[0].update_bytes / 2**20}
    row |= {f"mib_at_{peak.replies}": peak.grown_bytes / 2**20 for peak in peaks}
    row["growth_in_updates"] = growth
    return row


if __name__ == "__main__":
    benchmark_command(run)

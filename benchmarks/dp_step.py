"""One private optimiser step over one plain step, by model, batch and length; lower is better.

The ways, see benchmarks.dp_step_ways, take turns on one thread in one process; Opacus' three stand
beside ours. Before anything is timed, all private ways must agree on the clipped sum.

A step is arithmetic on one thread, so CPU seconds are what it takes on a core of its own; wall
seconds, told beside, also hold what other programs took meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from benchmarks.command import Say, benchmark_command
from benchmarks.dp_step_memory import PeakMemory, measure
from benchmarks.dp_step_ways import (
    HOOKS,
    MODELS,
    OPACUS,
    OURS,
    PLAIN,
    WAYS,
    Way,
    one_thread,
    relative_distance,
    way_for,
    work_for,
)
from benchmarks.interleave import interleave, median_of_ratios, spread
from benchmarks.peak_memory import can_measure
from benchmarks.result import BenchmarkResult, Cell, Row
from protocol.errors import FoedusError

NAME = "dp_step"
GOAL = 1.10
MEMORY_GOAL = 1.05
_SAME_SUM = 1e-4


@dataclass(frozen=True)
class Workload:
    """Which cells are timed, how often. Memory is measured in the largest cell."""

    batch_sizes: tuple[int, ...] = (8, 16, 32)
    tokens: tuple[int, ...] = (128, 256)
    repetitions: int = 7
    memory_models: tuple[str, ...] = tuple(MODELS)
    memory_ways: tuple[str, ...] = (PLAIN, OURS, HOOKS)


QUICK = Workload((8,), (128,), 3, ("llama",), (PLAIN, OURS))


@dataclass(frozen=True)
class Seconds:
    """What one step took: of this process's CPU time, and by the clock on the wall."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class CellTimes:
    """All steps of one model, batch size and length, by way; why a way of Opacus' is missing."""

    model: str
    batch_size: int
    tokens: int
    steps: Mapping[str, Sequence[Seconds]]
    failures: Mapping[str, str]

    def cpu_ratios(self, way: str) -> list[float]:
        """Of each repetition: this way's CPU seconds over those of the plain step beside it."""
        return [a.cpu / b.cpu for a, b in zip(self.steps[way], self.steps[PLAIN], strict=True)]


def run(quick: bool, say: Say) -> BenchmarkResult:
    """A private optimiser step over a plain one: time, and peak memory."""
    workload = QUICK if quick else Workload()
    with one_thread():
        cells = [
            time_cell(model, batch_size, tokens, workload.repetitions, say)
            for model in MODELS
            for batch_size in workload.batch_sizes
            for tokens in workload.tokens
        ]
    if quick:
        say(f"  a full run takes about {full_run_minutes(cells):.0f} CPU minutes here")
    memory: list[PeakMemory] = []
    if not can_measure():
        say("  peak memory is not measured: this system keeps no peak that can be reset")
        return result_of(cells, memory)
    for model in workload.memory_models:
        largest = max(workload.batch_sizes), max(workload.tokens)
        say(f"  peak memory of {model}, {largest[0]} x {largest[1]} tokens")
        memory.append(measure(model, *largest, workload.memory_ways))
    return result_of(cells, memory)


def time_cell(
    model: str, batch_size: int, tokens: int, repetitions: int, say: Say = lambda line: None
) -> CellTimes:
    """Warm up, compare the private ways' sums, time all that work, in turns.

    Errors: FoedusError where ours and Opacus' hooks do not give the same clipped sum.
    """
    say(f"  {model}, {batch_size} x {tokens} tokens")
    work = work_for(model, batch_size, tokens)
    ways = {name: way_for(name, work) for name in WAYS}
    failures = warm_up(ways)
    working = {name: partial(_timed, way) for name, way in ways.items() if name not in failures}
    return CellTimes(model, batch_size, tokens, interleave(working, repetitions), failures)


def warm_up(ways: Mapping[str, Way]) -> dict[str, str]:
    """One step of each way, without noise: reasons by name of Opacus' ways that cannot take part.

    Errors: FoedusError where ours and Opacus' hooks do not give the same clipped sum.
    """
    ways[PLAIN].gradient()
    ours = ways[OURS].gradient(sigma=0.0)
    failures: dict[str, str] = {}
    for name in OPACUS:
        try:
            distance = relative_distance(ours, ways[name].gradient(sigma=0.0))
        except Exception as error:
            # What another library cannot do on a model is a finding, told in the row.
            failures[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        if not distance <= _SAME_SUM:
            failures[name] = f"its clipped sum is {distance:.2g} from ours"
            if name == HOOKS:
                raise FoedusError(
                    f"Expected ours and Opacus' hooks to give the same clipped sum to "
                    f"{_SAME_SUM:g}, got {distance:.2g} apart. Their times cannot be compared."
                )
    return failures


def _timed(way: Way) -> Seconds:
    with way.ready():
        cpu, wall = time.process_time(), time.perf_counter()
        way.step()
        return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def full_run_minutes(cells: Sequence[CellTimes], full: Workload | None = None) -> float:
    """CPU minutes of a full run's steps, if a step's time grows as its batch does in tokens."""
    full = full or Workload()
    all_tokens = sum(full.batch_sizes) * sum(full.tokens)
    seconds = 0.0
    for cell in cells:
        of_each = sum(median(step.cpu for step in steps) for steps in cell.steps.values())
        plain = median(step.cpu for step in cell.steps[PLAIN])
        # The warm-up is one more step of each way, and the clip norm takes a step's rows.
        in_cell = of_each * (full.repetitions + 1) + plain
        seconds += in_cell * all_tokens / (cell.batch_size * cell.tokens)
    return seconds / 60


def result_of(cells: Sequence[CellTimes], memory: Sequence[PeakMemory]) -> BenchmarkResult:
    """The figure: the median over all cells of each cell's median ratio of ours to plain."""
    figures = [spread(cell.cpu_ratios(OURS)).median for cell in cells]
    walls = [_wall_ratio(cell) for cell in cells]
    what = (
        f"a private step over a plain step, CPU time on one thread, median of {len(cells)} cells "
        f"({min(figures):.2f}-{max(figures):.2f}); on the wall clock {median(walls):.2f}"
    )
    if memory:
        worst = max(memory_net_of_rows(peak) for peak in memory)
        held = "held" if worst <= MEMORY_GOAL else "missed"
        what += f"; peak memory without the rows at most {worst:.2f} (goal {MEMORY_GOAL}: {held})"
    rows = (*map(time_row, cells), *map(memory_row, memory))
    return BenchmarkResult.measured(NAME, what, median(figures), "times", GOAL, rows, "lower")


def time_row(cell: CellTimes) -> Row:
    """Plain in CPU seconds, the others over it: median, and least to greatest. wall: ours over
    plain by the clock."""
    row: dict[str, Cell] = {
        "unit": "CPU s",
        "model": cell.model,
        "batch": cell.batch_size,
        "tokens": cell.tokens,
        "plain": median(step.cpu for step in cell.steps[PLAIN]),
    }
    for way in WAYS[1:]:
        if way in cell.steps:
            ratio = spread(cell.cpu_ratios(way))
            row[way] = ratio.median
            row[f"{way}_range"] = f"{ratio.lowest:.2f} - {ratio.highest:.2f}"
    row["wall"] = _wall_ratio(cell)
    if cell.failures:
        row["failed"] = "; ".join(f"{way}: {reason}" for way, reason in cell.failures.items())
    return row


def _wall_ratio(cell: CellTimes) -> float:
    ours, plain = ([step.wall for step in cell.steps[way]] for way in (OURS, PLAIN))
    return median_of_ratios(ours, plain).median


def memory_net_of_rows(memory: PeakMemory) -> float:
    """Our peak less the buffer of rows, over plain's."""
    return (memory.peak_bytes[OURS] - memory.rows_bytes) / memory.peak_bytes[PLAIN]


def memory_row(memory: PeakMemory) -> Row:
    """Plain in MiB, the others over it; rows_mib: batch x trained parameters x 4 bytes;
    net_of_rows: ours without them."""
    plain = memory.peak_bytes[PLAIN]
    row: dict[str, Cell] = {
        "unit": "MiB",
        "model": memory.model,
        "batch": memory.batch_size,
        "tokens": memory.tokens,
        "plain": plain / 2**20,
    }
    row |= {way: peak / plain for way, peak in memory.peak_bytes.items() if way != PLAIN}
    row["rows_mib"] = memory.rows_bytes / 2**20
    row["net_of_rows"] = memory_net_of_rows(memory)
    return row


if __name__ == "__main__":
    benchmark_command(run)

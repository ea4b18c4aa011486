"""Seconds of a round beyond its training, stock Flower over foedus; higher is better.

Two sites, TLS, node authentication, real processes on the loopback address. Both sides train the
same model on the same contracts with the same code. Stock is a plain app on SuperLink and
SuperNodes as Flower's documentation starts them: a process for every message, an array for every
tensor, `FedAvg.start`. Ours is `foedus server up`, two `foedus client up` and `foedus server run`.

Both stay up while runs take turns. A run's first round, which loads what later ones keep, is told
apart; its last is left out, because ours then also evaluates at the sites and writes the release.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.command import Say, benchmark_command
from benchmarks.interleave import interleave, spread
from benchmarks.processes import Processes
from benchmarks.result import BenchmarkResult, Cell, Row
from benchmarks.round_overhead_work import NUM_SITES, Round, lay_out_contracts, run_overrides

NAME = "round_overhead"
GOAL = 8.0
OURS, STOCK = "foedus", "stock Flower"


@dataclass(frozen=True)
class Workload:
    """Rounds of a run, and how often each side runs."""

    rounds: int = 5
    repetitions: int = 4


QUICK = Workload(4, 1)


def run(quick: bool, say: Say) -> BenchmarkResult:
    """What a round costs beyond the training itself."""
    # Imported here: `python -m benchmarks` must not load the whole coordinator for its other parts.
    from benchmarks.round_overhead_ours import OurFederation
    from benchmarks.round_overhead_stock import StockFlower

    workload = QUICK if quick else Workload()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        site_files, labels = lay_out_contracts(folder / "contracts")
        overrides = run_overrides(workload.rounds, labels)
        with Processes(folder / "ours") as for_ours, Processes(folder / "stock") as for_stock:
            ours = OurFederation(folder / "ours", for_ours, site_files)
            stock = StockFlower(folder / "stock", for_stock, site_files)
            for name, federation in ((OURS, ours), (STOCK, stock)):
                say(f"  starting {name}")
                federation.start()
            runs = interleave(
                {OURS: lambda: ours.run(overrides), STOCK: lambda: stock.run(overrides)},
                workload.repetitions,
                lambda name, repetition: say(f"  {name}, run {repetition}"),
            )
    return result_of(runs)


def counted(runs: Sequence[Sequence[Round]]) -> list[Round]:
    """All rounds but each run's first and last."""
    return [round_ for of_run in runs for round_ in of_run[1:-1]]


def result_of(runs: Mapping[str, Sequence[Sequence[Round]]]) -> BenchmarkResult:
    """The figure: stock's median overhead over ours."""
    overhead = {
        name: median(round_.overhead_seconds for round_ in counted(of_name))
        for name, of_name in runs.items()
    }
    what = (
        f"seconds of a round beyond training, {NUM_SITES} sites with TLS and node authentication: "
        f"stock {overhead[STOCK]:.2f}, ours {overhead[OURS]:.2f}"
    )
    rows = tuple(_row(name, of_name) for name, of_name in runs.items())
    figure = overhead[STOCK] / overhead[OURS]
    return BenchmarkResult.measured(NAME, what, figure, "times", GOAL, rows)


def _row(name: str, runs: Sequence[Sequence[Round]]) -> Row:
    rounds = counted(runs)
    overhead = spread([round_.overhead_seconds for round_ in rounds])
    row: dict[str, Cell] = {
        "side": name,
        "rounds": len(rounds),
        "overhead_seconds": overhead.median,
        "range": f"{overhead.lowest:.2f} - {overhead.highest:.2f}",
        "training_seconds": median(round_.training_seconds for round_ in rounds),
        "first_round_overhead_seconds": median(of_run[0].overhead_seconds for of_run in runs),
    }
    return row


if __name__ == "__main__":
    benchmark_command(run)

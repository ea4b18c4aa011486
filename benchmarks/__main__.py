"""Run every benchmark, write outputs/benchmarks/NAME.json, print one table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import (
    coordinator_memory,
    dp_step,
    held_polls,
    many_sites,
    round_overhead,
    secure_aggregation,
    simulation_speed,
)
from benchmarks.command import Benchmark, rows_table, say, summary_table, table_console
from benchmarks.result import BenchmarkResult

BENCHMARKS: Mapping[str, Benchmark] = {
    simulation_speed.NAME: simulation_speed.run,
    secure_aggregation.NAME: secure_aggregation.run,
    dp_step.NAME: dp_step.run,
    coordinator_memory.NAME: coordinator_memory.run,
    round_overhead.NAME: round_overhead.run,
    held_polls.NAME: held_polls.run,
    many_sites.NAME: many_sites.run,
}


def main() -> int:
    """Exit status 1 where a benchmark could not run; a missed goal is told, not punished."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller and once; a smoke test")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/benchmarks"))
    arguments = parser.parse_args()
    console = table_console()
    results: list[BenchmarkResult] = []
    failed: list[str] = []
    for name, run in BENCHMARKS.items():
        say(f"{name}:")
        try:
            result = run(arguments.quick, say)
        except Exception as error:
            # One benchmark that cannot run here (no Ray, say) must not hide the others.
            say(f"  {name} failed: {type(error).__name__}: {error}")
            failed.append(name)
            continue
        result.write(arguments.output_dir / f"{name}.json")
        console.print(rows_table(result))
        results.append(result)
    console.print(summary_table(results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Client updates per minute: foedus against a plain Flower app on stock Ray simulation.

Same base model, adapter form, data, batches, passes and optimiser; all tensors of the adapter
train on both sides (strategy=fedit). Each run has a process of its own and the whole of its time
counts: imports, the start of Ray, loading, all rounds, one evaluation at the end. foedus writes its
checkpoints, receipts and released adapter as always.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.command import Say, benchmark_command
from benchmarks.interleave import interleave, median_of_ratios, spread
from benchmarks.result import BenchmarkResult, Cell
from benchmarks.simulation_run import Job, RunRecord, composed_settings, test_contracts
from benchmarks.stock_flower_app import StockSettings
from models.base import find_model_folder
from protocol.errors import FoedusError
from simulations.data.registry import load_corpus
from simulations.partition import partition
from simulations.workspace import lay_out_sites

NAME = "simulation_speed"
GOAL = 3.0
IN_PROCESS, RAY, IN_PROCESS_FLOAT32 = "foedus in process", "foedus on Ray", "foedus, float32"
STOCK, STOCK_KEPT = "stock", "stock, model kept"
STOCK_TUNED = "stock, model kept, bfloat16"
HEADLINE = (IN_PROCESS, STOCK, RAY)
# Run once, beside the stock app: what part of the figure is due to what.
VARIANTS = (IN_PROCESS_FLOAT32, STOCK, STOCK_KEPT, STOCK_TUNED)

_ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_SECONDS = 900
# Left to the engines: each decides itself how many threads a site gets.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Workload:
    """How much is simulated, and how often."""

    firms: int = 6
    train_per_firm: int = 96
    rounds: int = 4
    test_examples: int = 64
    repetitions: int = 3

    @property
    def overrides(self) -> list[str]:
        """Of conf/simulate.yaml; what is not named here is the default of `foedus simulate`."""
        return [
            "data=synthetic",
            "strategy=fedit",
            f"data.firms={self.firms}",
            f"data.train_per_firm={self.train_per_firm}",
            f"federation.rounds={self.rounds}",
            "federation.evaluate_every=0",
        ]


QUICK = Workload(train_per_firm=48, rounds=2, test_examples=16, repetitions=1)


@dataclass(frozen=True)
class Timed:
    """One run: wall seconds from start to exit of its process, and what it reported."""

    seconds: float
    record: RunRecord

    @property
    def updates_per_minute(self) -> float:
        """Over everything."""
        return 60 * self.record.updates / self.seconds

    def steady_updates_per_minute(self, sites: int) -> float:
        """Over the rounds after the first alone: what a very long run tends to."""
        return 60 * sites / median(b - a for a, b in pairwise(self.record.round_ends))


Runs = Mapping[str, Sequence[Timed]]


def run(quick: bool, say: Say) -> BenchmarkResult:
    """Client updates per minute, foedus against a plain Flower app on stock Ray simulation."""
    workload = QUICK if quick else Workload()
    with tempfile.TemporaryDirectory(prefix="foedus-benchmark-") as scratch:
        competitors = _competitors(workload, Path(scratch))

        def measured(names: Sequence[str], repetitions: int) -> Runs:
            return interleave(
                {name: competitors[name] for name in names},
                repetitions,
                lambda name, number: say(f"  {name}, run {number} of {repetitions}"),
            )

        headline = measured(HEADLINE, workload.repetitions)
        variants = {} if quick else measured(VARIANTS, 1)
    return result_of(headline, variants, workload)


def result_of(headline: Runs, variants: Runs, workload: Workload) -> BenchmarkResult:
    """The figure: the better of our two engines against the app as tutorials write it."""
    rows = [_row(name, headline, workload) for name in headline]
    rows += [_row(name, variants, workload) for name in variants if name not in headline]
    best = max((IN_PROCESS, RAY), key=lambda name: _times_stock(name, headline))
    what = (
        f"client updates per minute, {best} / {STOCK} Flower on Ray, each by its defaults, "
        f"start-up included ({workload.firms} sites, {workload.rounds} rounds)"
    )
    if variants:
        float32 = _times_stock(IN_PROCESS_FLOAT32, variants)
        what += (
            f"; at float32 on both sides, in process: {float32:.2f}; "
            f"bfloat16 alone: {_times_stock(IN_PROCESS, headline) / float32:.2f} times"
        )
    figure = round(_times_stock(best, headline), 3)
    return BenchmarkResult.measured(NAME, what, figure, "times", GOAL, tuple(rows))


def _times_stock(name: str, runs: Runs) -> float:
    ours = [timed.updates_per_minute for timed in runs[name]]
    return median_of_ratios(ours, [timed.updates_per_minute for timed in runs[STOCK]]).median


def _row(name: str, runs: Runs, workload: Workload) -> dict[str, Cell]:
    """steady: over the rounds after the first alone, so without any start-up."""
    timed, stock = runs[name], runs[STOCK]
    speed = spread([t.updates_per_minute for t in timed])
    steady = [t.steady_updates_per_minute(workload.firms) for t in timed]
    steady_stock = [t.steady_updates_per_minute(workload.firms) for t in stock]
    return {
        "competitor": name,
        "updates_per_minute": round(speed.median, 2),
        "lowest": round(speed.lowest, 2),
        "highest": round(speed.highest, 2),
        "times_stock": round(_times_stock(name, runs), 3),
        "steady_updates_per_minute": round(spread(steady).median, 2),
        "steady_times_stock": round(median_of_ratios(steady, steady_stock).median, 3),
        "seconds": round(spread([t.seconds for t in timed]).median, 2),
        "accuracy": round(median(t.record.accuracy for t in timed), 3),
        "runs": len(timed),
    }


def _competitors(workload: Workload, scratch: Path) -> dict[str, Callable[[], Timed]]:
    """In process and on Ray by defaults, in float32; the stock app as tutorials write it, with the
    model kept by its user, and with bfloat16 on top."""
    stock = _stock_settings(workload, scratch)
    kept = replace(stock, keep_model=True)
    return {
        IN_PROCESS: _foedus(workload, scratch, "engine=in_process"),
        STOCK: _stock(stock, workload, scratch),
        RAY: _foedus(workload, scratch, "engine=ray"),
        STOCK_KEPT: _stock(kept, workload, scratch),
        IN_PROCESS_FLOAT32: _foedus(
            workload, scratch, "engine=in_process", "model.precision=float32"
        ),
        STOCK_TUNED: _stock(replace(kept, bfloat16=True), workload, scratch),
    }


def _foedus(workload: Workload, scratch: Path, *more: str) -> Callable[[], Timed]:
    def timed() -> Timed:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        overrides = [*workload.overrides, *more, f"output_dir={folder / 'run'}"]
        job = Job("foedus", str(folder / "record.json"), overrides, {}, workload.test_examples)
        return _timed(job, folder, workload)

    return timed


def _stock(settings: StockSettings, workload: Workload, scratch: Path) -> Callable[[], Timed]:
    def timed() -> Timed:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        job = Job("stock", str(folder / "record.json"), [], asdict(settings))
        return _timed(job, folder, workload)

    return timed


def _timed(job: Job, folder: Path, workload: Workload) -> Timed:
    """Errors: FoedusError with the first error in the process's output where it failed, or where
    a site's update was lost, as then the speeds could not be compared."""
    job_file = folder / "job.json"
    job_file.write_text(json.dumps(asdict(job)), encoding="utf-8")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.simulation_run", str(job_file)],
        cwd=_ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    seconds = time.monotonic() - started
    result_file = Path(job.result_file)
    output = done.stdout + done.stderr
    if done.returncode != 0 or not result_file.exists():
        raise FoedusError(
            f"A run of {job.kind} failed with status {done.returncode}: {_first_error(output)}"
        )
    record = RunRecord(**json.loads(result_file.read_text(encoding="utf-8")))
    expected = workload.firms * workload.rounds
    if record.updates != expected:
        raise FoedusError(
            f"Expected {expected} updates of {job.kind}, got {record.updates}: "
            f"{_first_error(output)}"
        )
    return Timed(seconds, record)


def _first_error(output: str) -> str:
    """From the first traceback on: what follows it is mostly Ray, falling over it."""
    start = max(0, output.find("Traceback"))
    return "\n" + output[start : start + 4000]


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in _THREAD_VARIABLES}
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    return kept | quiet


def _stock_settings(workload: Workload, scratch: Path) -> StockSettings:
    """The same run in the stock app's terms. Its files are written before the clock starts."""
    settings = composed_settings([*workload.overrides, f"output_dir={scratch / 'stock'}"])
    corpus = load_corpus(settings.data)
    partitions = partition(corpus.train, (), settings.sites)
    site_files = lay_out_sites(scratch / "stock", partitions)
    run, training = settings.run, settings.run.training
    test_file = scratch / "test.jsonl"
    test = [
        json.dumps({"text": contract.text, "label": contract.label})
        for contract in test_contracts(corpus, workload.test_examples)
    ]
    test_file.write_text("\n".join(test), encoding="utf-8")
    return StockSettings(
        model_folder=str(find_model_folder(run.model)),
        site_files=[str(path.parent / "contracts" / "clauses.jsonl") for path in site_files],
        test_file=str(test_file),
        labels=list(corpus.labels),
        rounds=run.federation.rounds,
        local_epochs=training.local_epochs,
        batch_size=training.batch_size,
        max_tokens=run.model.max_tokens,
        rank=run.adapter.rank,
        alpha=run.adapter.alpha,
        targets=list(run.adapter.targets),
        head_scale=run.model.head_scale,
        learning_rate=training.learning_rate,
        head_learning_rate=training.head_learning_rate,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
    )


if __name__ == "__main__":
    benchmark_command(run)

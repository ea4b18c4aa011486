"""One run of one competitor of `simulation_speed`, in a process of its own.

python -m benchmarks.simulation_run JOB.json: what to run is in the job, what came out goes beside
it. The parent holds the clock, so that imports and the start of Ray count for everyone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from protocol.errors import FoedusError

if TYPE_CHECKING:
    # Imported for types only: the stock run must not pay for foedus's imports.
    from client.contracts import Contract
    from simulations.data.corpus import Corpus
    from simulations.settings import SimulationSettings


@dataclass(frozen=True)
class Job:
    """overrides: of conf/simulate.yaml, for foedus; stock: fields of StockSettings, otherwise."""

    kind: Literal["foedus", "stock"]
    result_file: str
    overrides: list[str] = field(default_factory=list)
    stock: dict[str, Any] = field(default_factory=dict)
    test_examples: int = 0


@dataclass
class RunRecord:
    """round_ends: seconds on one clock at which rounds ended; updates: admitted site updates."""

    round_ends: list[float] = field(default_factory=list)
    updates: int = 0
    accuracy: float = 0.0


def run_stock(job: Job) -> RunRecord:
    """The plain Flower app on stock Ray simulation."""
    from flwr.simulation import run_simulation

    from benchmarks.stock_flower_app import StockSettings, client_app, make_server_app

    settings = StockSettings(**job.stock)
    record = RunRecord()

    def on_updates(count: int) -> None:
        record.updates += count

    def on_round(number: int) -> None:
        if number:
            record.round_ends.append(time.monotonic())

    def on_finished(accuracy: float) -> None:
        record.accuracy = accuracy

    run_simulation(
        make_server_app(settings, on_updates, on_round, on_finished),
        client_app,
        num_supernodes=len(settings.site_files),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count() or 1},
        },
    )
    return record


def run_foedus(job: Job) -> RunRecord:
    """The federation of `foedus simulate` with these overrides, without what it is compared to."""
    import torch

    from client.examples.build import build_examples
    from server.records import RoundRecord
    from simulations.data.registry import load_corpus
    from simulations.experiment import federate
    from simulations.partition import partition
    from simulations.settings import with_labels

    class Ends:
        """Notes when rounds end; see server.coordinator.Observer."""

        def round_started(self, round_: int, rounds: int, cohort_size: int) -> None:
            """Nothing to note."""

        def phase_started(self, round_: int, attempt: int, phase: str, num_sites: int) -> None:
            """Nothing to note."""

        def reply_handled(self, round_: int, node_id: int, kind: str, admitted: bool) -> None:
            """Nothing to note."""

        def checkpoint_started(self, round_: int) -> None:
            """Nothing to note."""

        def round_finished(self, record: RoundRecord) -> None:
            """A round ended now."""
            ends.append(time.monotonic())

    ends: list[float] = []
    settings = composed_settings(job.overrides)
    torch.set_num_threads(settings.engine.threads(num_arms=0))
    corpus = load_corpus(settings.data)
    partitions = partition(corpus.train, (), settings.sites)
    settings = with_labels(settings, corpus.labels)
    test = build_examples(test_contracts(corpus, job.test_examples), "classify", 0.0).train
    result = federate(settings, partitions, test, Ends())
    updates = sum(len(record.admitted) for record in result.records)
    return RunRecord(ends, updates, result.records[-1].metrics["central_accuracy"])


def test_contracts(corpus: Corpus, count: int) -> tuple[Contract, ...]:
    """`count` held-out contracts from all over the corpus: both sides are scored on them once."""
    step = max(1, len(corpus.test) // count)
    return corpus.test[::step][:count]


def composed_settings(overrides: list[str]) -> SimulationSettings:
    """The SimulationSettings that `foedus simulate` makes of these overrides."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    import conf
    from simulations.settings import simulation_settings

    folder = Path(conf.__file__ or "").resolve().parent
    with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("simulate", overrides), resolve=True)
    return simulation_settings(config)


def main(job_file: Path) -> None:
    """Run the job and write its record."""
    job = Job(**json.loads(job_file.read_text(encoding="utf-8")))
    record = run_stock(job) if job.kind == "stock" else run_foedus(job)
    Path(job.result_file).write_text(json.dumps(asdict(record)), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise FoedusError("Usage: python -m benchmarks.simulation_run JOB.json")
    main(Path(sys.argv[1]))

"""One round of one coordinator in a process of its own, and the memory it took at most.

python -m benchmarks.coordinator_memory_round COMPETITOR REPLIES MODULES RANK WIDTH prints the bytes
by which the process grew, and those of one update. Linux only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.coordinator_memory_grid import (
    AdapterSize,
    ReadyGrid,
    SecureSites,
    plain_answer,
    stock_answer,
)
from benchmarks.peak_memory import peak_growth
from protocol.adapter import AdapterState, factor_of, layout_size, subset_layout
from protocol.consortium.roster import Roster
from protocol.errors import FoedusError
from protocol.initial import derive_seed
from protocol.methods import uploaded_factors
from protocol.settings import (
    AdapterSettings,
    FederationSettings,
    ModelSettings,
    RunSettings,
    SecureAggregationSettings,
    TaskSettings,
)
from server.checkpoint import CheckpointStore
from server.coordinator import Coordinator
from server.observer import LogObserver
from strategies.registry import build_strategy

STOCK, FEDIT, FEDSVD, SECURE = "stock FedAvg", "FedIT", "FedSVD", "FedSVD, masked"
COMPETITORS = (STOCK, FEDIT, FEDSVD, SECURE)

_ROOT = Path(__file__).resolve().parent.parent
_BYTES_PER_COORDINATE = 4
_TIMEOUT_SECONDS = 1800
_METHODS = {FEDIT: "fedit", FEDSVD: "fedsvd", SECURE: "fedsvd"}


@dataclass(frozen=True)
class Peak:
    """Of a coordinator and a number of replies. update_bytes: what one reply's arrays hold."""

    competitor: str
    replies: int
    grown_bytes: int
    update_bytes: int


def measure(competitor: str, replies: int, size: AdapterSize) -> Peak:
    """One round in a fresh process. Errors: FoedusError with the last line that it said."""
    numbers = (replies, size.modules, size.rank, size.width)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.coordinator_memory_round", competitor]
        + [str(number) for number in numbers],
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
            f"Expected the peak memory of {competitor} with {replies} replies; its process said "
            f"{last}"
        )
    grown, update = done.stdout.split()[-2:]
    return Peak(competitor, replies, int(grown), int(update))


def grown_in_round(competitor: str, replies: int, size: AdapterSize) -> tuple[int, int]:
    """(bytes by which this process grew at most in a round, bytes of one update)."""
    # Flower's Message constructor asks which task runs in this process.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 1, 0
    if competitor == STOCK:
        return peak_growth(_stock_round(replies, size)), _BYTES_PER_COORDINATE * layout_size(
            size.layout
        )
    with tempfile.TemporaryDirectory() as folder:
        work = _our_round(competitor, replies, size, Path(folder))
        grown = peak_growth(work)
    uploaded = subset_layout(size.layout, uploaded_factors(_METHODS[competitor], 1))
    return grown, _BYTES_PER_COORDINATE * layout_size(uploaded)


def _stock_round(replies: int, size: AdapterSize) -> Callable[[], object]:
    grid = ReadyGrid(stock_answer(size), replies)
    arrays = {name: Array(np.zeros(s, dtype=np.float32)) for name, s in size.layout.items()}
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=replies, min_available_nodes=replies)
    initial = ArrayRecord(arrays)

    def start() -> None:
        result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=1)
        if len(result.arrays) != len(size.layout):
            raise FoedusError("Expected an aggregated adapter of stock Flower, got none.")

    return start


def _our_round(
    competitor: str, replies: int, size: AdapterSize, folder: Path
) -> Callable[[], object]:
    run = _run_settings(competitor, size, replies)
    roster: Roster | None = None
    answer = plain_answer(size)
    if competitor == SECURE:
        sites = SecureSites(size, replies)
        answer, roster = sites.answer, sites.roster
    coordinator = Coordinator(
        ReadyGrid(answer, replies),
        run,
        build_strategy(run.federation),
        CheckpointStore(folder, run),
        LogObserver(),
        roster=roster,
    )
    state = _initial_state(run, size)

    def start() -> None:
        (record,) = coordinator.run(state, resume=False).records
        if len(record.admitted) != replies or not record.aggregated:
            raise FoedusError(f"Expected {replies} admitted updates, got {record}.")

    return start


def _run_settings(competitor: str, size: AdapterSize, replies: int) -> RunSettings:
    run = RunSettings(
        task=TaskSettings(kind="classify", labels=("a", "b")),
        model=ModelSettings(id="none"),
        adapter=AdapterSettings(rank=size.rank, alpha=2.0 * size.rank),
        federation=FederationSettings(
            method=_METHODS[competitor], rounds=1, min_cohort=replies, quorum=replies
        ),
    )
    if competitor == SECURE:
        run = replace(run, secure_aggregation=SecureAggregationSettings(enabled=True))
    return run


def _initial_state(run: RunSettings, size: AdapterSize) -> AdapterState:
    """A random and B zero, as a new adapter starts."""
    rng = np.random.default_rng(derive_seed(0, "adapter"))
    tensors = {
        name: rng.standard_normal(shape, dtype=np.float32)
        if factor_of(name) == "A"
        else np.zeros(shape, dtype=np.float32)
        for name, shape in size.layout.items()
    }
    return AdapterState(
        tensors, run.adapter.rank, run.adapter.alpha, "0" * 64, run.federation.method
    )


if __name__ == "__main__":
    given_competitor, *given = sys.argv[1:]
    given_replies, *given_size = (int(number) for number in given)
    print(*grown_in_round(given_competitor, given_replies, AdapterSize(*given_size)))

"""Simulations small enough for a test: two firms of the synthetic data, one adapted layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from server.coordinator import RunResult
from simulations.experiment import Experiment, run_experiment
from simulations.progress import ExperimentProgress
from simulations.settings import simulation_settings

CONF = Path(__file__).parents[1] / "conf"

# Words for `foedus simulate`: the federation alone, without what it is compared with.
SMALL = (
    "adapter.last_layers=1",
    "adapter.rank=2",
    "model.max_tokens=16",
    "model.precision=float32",
    "data.firms=2",
    "data.train_per_firm=24",
    "data.test_per_firm=8",
    "federation.rounds=4",
    "engine.baseline_processes=0",
    "simulation.compare=[]",
)


def simulate(output_dir: Path, *overrides: str) -> RunResult:
    """What `foedus simulate` with these words runs, in this process."""
    return experiment(output_dir, *overrides).result


def experiment(output_dir: Path, *overrides: str) -> Experiment:
    """The same, with what the federation is compared with and what it cost."""
    words = [*SMALL, *overrides, f"output_dir={output_dir}"]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("simulate", words), resolve=True)
    with ExperimentProgress() as progress:
        return run_experiment(simulation_settings(values), progress)


def released_digest(output_dir: Path) -> str:
    """The digest of the adapter that a run released."""
    manifest = json.loads((output_dir / "adapter" / "manifest.json").read_text(encoding="utf-8"))
    return str(manifest["adapter_digest"])

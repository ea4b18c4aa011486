"""`foedus simulate`: a whole federation on this machine, configured by Hydra."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from protocol.errors import FoedusError
from simulations.experiment import run_experiment
from simulations.progress import ExperimentProgress
from simulations.report.console import print_scores
from simulations.report.write import write_report
from simulations.settings import simulation_settings

CONF = Path(__file__).resolve().parent.parent / "conf"

log = logging.getLogger("foedus.simulations")


@hydra.main(config_path=str(CONF), config_name="simulate", version_base="1.3")
def _simulate(config: DictConfig) -> None:
    values: Any = OmegaConf.to_container(config, resolve=True)
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        # One folder for each job of a sweep; without it they would write over each other.
        values["output_dir"] = HydraConfig.get().runtime.output_dir
    values.pop("hydra", None)
    try:
        settings = simulation_settings(values)
        with ExperimentProgress() as progress:
            experiment = run_experiment(settings, progress)
        report = write_report(experiment, Path(settings.output_dir))
    except FoedusError as error:
        print(f"foedus simulate: {error}", file=sys.stderr)
        sys.exit(2)
    print_scores(report, Path(settings.output_dir))


def main(argv: list[str]) -> None:
    """Run `foedus simulate` with these words. Exit status 2 where settings or data do not fit."""
    sys.argv = ["foedus simulate", *argv]
    _simulate()

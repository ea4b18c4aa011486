"""Settings of a simulation: what a researcher chooses beside the run itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from protocol.codec import decode, setting
from protocol.compatibility import check_compatibility
from protocol.errors import SettingsError
from protocol.settings import RunSettings
from simulations.data import DataSettings, decode_data_settings
from simulations.partition import SitesSettings

ARMS = ("centralised", "local", "tfidf")


@dataclass(frozen=True)
class EngineSettings:
    """Where sites run. Changes speed, never results beyond float tolerance."""

    name: str = setting("in_process", choices=("in_process", "ray"), doc="engine")
    torch_threads: int = setting(
        0, minimum=0, doc="threads of each process; 0 = the cores shared among those that train"
    )
    baseline_processes: int = setting(1, minimum=0, doc="processes beside the federation; 0 = none")
    cpus_per_site: float = setting(1.0, minimum=0.01, doc="ray: cores per working site")

    def threads(self, num_arms: int) -> int:
        """Torch threads of each process when `num_arms` baselines are trained beside."""
        processes = 1 + min(self.baseline_processes, num_arms)
        return self.torch_threads or max(1, (os.cpu_count() or 1) // processes)


@dataclass(frozen=True)
class AuditSettings:
    """A leakage audit beside the run."""

    mode: str = setting("none", choices=("none", "canaries"), doc="what is planted")
    canaries: int = setting(200, minimum=20, maximum=100000, doc="made; about half are planted")
    site: int = setting(0, minimum=0, doc="where they are planted, counted from 0")
    repeats: int = setting(0, minimum=0, doc="examples of each; 0 = what the unit calls for")
    control: bool = setting(True, doc="a private audit is repeated without privacy")
    membership_examples: int = setting(400, minimum=2, doc="of each side, at most")


@dataclass(frozen=True)
class SimulationSettings:
    """A whole experiment."""

    run: RunSettings
    data: DataSettings
    sites: SitesSettings
    engine: EngineSettings
    audit: AuditSettings
    compare: tuple[str, ...]
    general_text: str
    output_dir: str
    resume: bool


def simulation_settings(config: Mapping[str, Any]) -> SimulationSettings:
    """Typed settings of a composed conf/simulate.yaml.

    Errors: one SettingsError with the problems of every part.
    """
    problems: list[str] = []
    where = "conf/simulate.yaml and its overrides"

    def part(cls: type[Any], values: Mapping[str, Any], prefix: str = "") -> Any:
        try:
            decoder = decode_data_settings if cls is DataSettings else None
            return decoder(values, where) if decoder else decode(cls, values, where)
        except SettingsError as error:
            problems.extend(f"{prefix}{problem}" for problem in error.problems)
            return None

    simulation = dict(config["simulation"])
    compare = tuple(simulation.pop("compare", ARMS))
    general_text = str(simulation.pop("general_text", ""))
    problems += [f"simulation.compare: unknown arm {a!r}; expected {ARMS}." for a in compare
                 if a not in ARMS]  # fmt: skip
    parts = (
        part(RunSettings, {f.name: config[f.name] for f in fields(RunSettings)}),
        part(DataSettings, config["data"], "data."),
        part(SitesSettings, simulation, "simulation."),
        part(EngineSettings, config["engine"], "engine."),
        part(AuditSettings, config["audit"], "audit."),
    )
    if problems:
        raise SettingsError(where, problems)
    return SimulationSettings(
        *parts,
        compare=compare,
        general_text=general_text,
        output_dir=str(config["output_dir"]),
        resume=bool(config["resume"]),
    )


def with_labels(settings: SimulationSettings, labels: tuple[str, ...]) -> SimulationSettings:
    """The settings once the data has told the label set; then combinations are checked.

    Errors: SettingsError for combinations that must not run together.
    """
    task = settings.run.task
    if task.kind == "classify" and not task.labels:
        task = replace(task, labels=labels)
    run = replace(settings.run, task=task)
    check_compatibility(run, "conf/simulate.yaml and its overrides")
    return replace(settings, run=run)

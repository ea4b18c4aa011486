"""What a benchmark says: one figure, its goal, the rows behind it, and the machine.

Nothing in it tells whose machine it was: no host name, no user, no path.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from protocol.files import write_atomically

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]

_PACKAGES = ("torch", "transformers", "peft", "flwr", "ray", "numpy")


@dataclass(frozen=True)
class BenchmarkResult:
    """The outcome of one benchmark, as its JSON file holds it.

    what: one sentence; figure and goal are in `unit`; holds: whether the figure reaches the goal.
    """

    name: str
    what: str
    figure: float
    unit: str
    goal: float
    holds: bool
    rows: tuple[Row, ...]
    machine: Mapping[str, Cell]

    @classmethod
    def measured(
        cls,
        name: str,
        what: str,
        figure: float,
        unit: str,
        goal: float,
        rows: tuple[Row, ...],
        better: Literal["higher", "lower"] = "higher",
    ) -> BenchmarkResult:
        """A result of this machine. A figure that is not a number reaches no goal."""
        holds = figure >= goal if better == "higher" else figure <= goal
        return cls(name, what, figure, unit, goal, holds, rows, machine_facts())

    def to_json(self) -> dict[str, Any]:
        """Plain values, keys in a fixed order."""
        return {**asdict(self), "rows": [dict(row) for row in self.rows]}

    def write(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(path, (text + "\n").encode())


def machine_facts() -> dict[str, Cell]:
    """What of this machine decides speed."""
    facts: dict[str, Cell] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_products": bool(torch.cpu._is_avx512_bf16_supported()),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return facts | {name: _version(name) for name in _PACKAGES}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _memory_gib() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return round(total / 2**30, 1)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

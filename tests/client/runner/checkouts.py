"""A copy of the checkout, to run from or to tamper with."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

from client.runner.bundle import BUNDLED, Release, release_in

ROOT = Path(__file__).parents[3]
ROOMS = ("protocol", "models", "client", "strategies", "server", "simulations", "conf")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "novels")


def copy_checkout(folder: Path) -> Path:
    """Packages, configuration and what `flwr build` needs; returns the folder."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=_LEFT_OUT)
    for name in ("pyproject.toml", ".gitignore", "README.md", "LICENSE", "foedus.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def release_of(folder: Path) -> Release:
    """The release in such a copy."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    return release_in({room: folder / room for room in BUNDLED}, project["project"]["version"])

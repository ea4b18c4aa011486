"""One configuration of this folder under Hydra overrides, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf


def composed(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """name: of a file here without its ending. Errors: hydra.errors.HydraException."""
    with initialize_config_dir(config_dir=str(Path(__file__).parent), version_base="1.3"):
        values: Any = OmegaConf.to_container(compose(name, list(overrides)), resolve=True)
    return dict(values)

"""A run's settings from a file, as `foedus server check --json` prints them or written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from protocol.codec import decode, flatten, unflatten
from protocol.errors import FoedusError
from protocol.settings import RunSettings


def read_run_settings(path: Path) -> RunSettings:
    """Dotted keys or nested ones. Errors: FoedusError; SettingsError with everything wrong."""
    try:
        loaded: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise FoedusError(
            f"Expected run settings at {path}, got {type(error).__name__}."
        ) from error
    return decode(RunSettings, unflatten(flatten(loaded)), str(path))

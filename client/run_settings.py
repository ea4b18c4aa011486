"""A run's settings from a file, as `foedus server check --json` prints them or written by hand."""

from __future__ import annotations

from collections.abc import Mapping
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
        # The file may be a coordinator's: never resolved, as "${oc.env:…}" would bring in secrets
        # of this machine.
        loaded: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise FoedusError(
            f"Expected run settings at {path}, got {type(error).__name__}."
        ) from error
    if not isinstance(loaded, Mapping):
        raise FoedusError(f"Expected run settings by name at {path}, got a list of them.")
    flat = flatten(loaded)
    for key, value in flat.items():
        if "${" in f"{key}{value}":
            raise FoedusError(
                f"Expected plain values in the run settings at {path}, got a reference at "
                f"{key!r}. Write out what it stands for."
            )
    return decode(RunSettings, unflatten(flat), str(path))

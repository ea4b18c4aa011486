"""Factors that never leave a site (FedSA's B), kept per run and round in the site's own state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.numpy

from protocol.adapter import FloatArray
from protocol.files import write_atomically


class PersonalFactors:
    """One run's personal factors at one site.

    Kept by round, so that a coordinator that resumes from an earlier round finds what the site
    held then, and a repeated round gives the same result as the first time.
    """

    def __init__(self, state_folder: Path, run_id: str) -> None:
        self.folder = state_folder / "personal" / run_id

    def after(self, round_: int) -> dict[str, FloatArray]:
        """The newest factors of a round <= round_; empty before the first."""
        rounds = [number for number in self._rounds() if number <= round_]
        if not rounds:
            return {}
        return safetensors.numpy.load_file(self._path(max(rounds)))

    def save(self, round_: int, tensors: Mapping[str, FloatArray]) -> None:
        """Keep the factors trained in round_."""
        write_atomically(self._path(round_), safetensors.numpy.save(dict(tensors)), mode=0o600)

    def _path(self, round_: int) -> Path:
        return self.folder / f"round-{round_:05d}.safetensors"

    def _rounds(self) -> list[int]:
        return [int(p.stem.removeprefix("round-")) for p in self.folder.glob("round-*.safetensors")]

"""Checkpoints: one file a round, whole or absent, from which a killed run goes on as if it had not
been killed."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from protocol.adapter import AdapterState
from protocol.codec import encode
from protocol.errors import FoedusError
from protocol.files import write_atomically
from protocol.settings import RunSettings
from server.records import RoundRecord

log = logging.getLogger("foedus.server")

_SCHEMA = 1
_KEPT = 3


@dataclass(frozen=True)
class Checkpoint:
    """Everything the next round depends on. `round`: the last one that was completed."""

    run_id: str
    round: int
    state: AdapterState
    optimizer: dict[str, NDArray[Any]]
    records: tuple[RoundRecord, ...]


class CheckpointStore:
    """The checkpoints of one run in one folder; the newest three are kept."""

    def __init__(self, folder: Path, settings: RunSettings) -> None:
        self.folder = folder
        self._settings_digest = settings_digest(settings)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write atomically, then drop all but the newest. Errors: OSError where the disk refuses;
        the older checkpoints are then still there."""
        path = self._path(checkpoint.round)
        write_atomically(path, _to_bytes(checkpoint, self._settings_digest))
        for old in self._paths()[:-_KEPT]:
            old.unlink(missing_ok=True)
        return path

    def refuse_to_overwrite(self) -> None:
        """Errors: FoedusError where the folder holds a run that could be gone on with."""
        paths = self._paths()
        if paths:
            raise FoedusError(
                f"{self.folder} holds a run up to {paths[-1].name}. Go on with resume=true, or "
                "choose another output_dir."
            )

    def load_newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where there is none at all.

        A damaged one is reported by name and the one before it is tried.
        Errors: FoedusError where all are damaged, or the run had other settings.
        """
        paths = self._paths()
        for path in reversed(paths):
            try:
                return self._read(path)
            except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
                log.error("Checkpoint %s is damaged (%s); trying the one before.", path.name, error)
        if paths:
            raise FoedusError(
                f"Expected a readable checkpoint in {self.folder}, got {len(paths)} damaged ones. "
                "Restore the folder from a backup, or start anew without resume."
            )
        return None

    def _read(self, path: Path) -> Checkpoint:
        data = path.read_bytes()
        body, trailer = data[:-32], data[-32:]
        if hashlib.sha256(body).digest() != trailer:
            raise ValueError("its checksum does not match")
        length = int.from_bytes(body[:8], "little")
        facts = json.loads(body[8 : 8 + length])
        if facts["schema"] != _SCHEMA:
            raise ValueError(f"schema {facts['schema']} instead of {_SCHEMA}")
        if facts["settings_digest"] != self._settings_digest:
            raise FoedusError(
                f"The checkpoint {path} belongs to a run with other settings. Resume with the "
                "settings it was started with, or choose another output_dir."
            )
        arrays = safetensors.numpy.load(body[8 + length :])
        state = AdapterState(
            {n.removeprefix("adapter/"): t for n, t in arrays.items() if n.startswith("adapter/")},
            facts["rank"],
            facts["alpha"],
            facts["base_digest"],
            facts["method"],
        )
        optimizer = {
            n.removeprefix("optimizer/"): t for n, t in arrays.items() if n.startswith("optimizer/")
        }
        records = tuple(RoundRecord.from_json(record) for record in facts["records"])
        return Checkpoint(facts["run_id"], facts["round"], state, optimizer, records)

    def _path(self, round_: int) -> Path:
        return self.folder / f"round-{round_:05d}.checkpoint"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("round-*.checkpoint"))


def settings_digest(settings: RunSettings) -> str:
    """SHA-256 of the agreed settings: equal digests mean the same run."""
    canonical = json.dumps(encode(settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _to_bytes(checkpoint: Checkpoint, digest: str) -> bytes:
    """length (8) | facts as JSON | safetensors | SHA-256 (32) of all before."""
    state = checkpoint.state
    facts = {
        "schema": _SCHEMA,
        "settings_digest": digest,
        "run_id": checkpoint.run_id,
        "round": checkpoint.round,
        "rank": state.rank,
        "alpha": state.alpha,
        "base_digest": state.base_digest,
        "method": state.method,
        "records": [record.to_json() for record in checkpoint.records],
    }
    arrays = {f"adapter/{name}": np.ascontiguousarray(t) for name, t in state.tensors.items()}
    arrays |= {f"optimizer/{n}": np.ascontiguousarray(t) for n, t in checkpoint.optimizer.items()}
    text = json.dumps(facts, sort_keys=True).encode()
    body = len(text).to_bytes(8, "little") + text + safetensors.numpy.save(arrays)
    return body + hashlib.sha256(body).digest()

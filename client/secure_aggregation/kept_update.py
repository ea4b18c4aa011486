"""The update of the newest round, kept so that another attempt masks it again.

To train again would spend privacy budget again, and two trainings of one round would be two updates
to subtract. The file lies beside the session's memory, for its owner's eyes alone (0600).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from client.secure_aggregation.memory import UPDATES
from protocol.adapter import FloatArray
from protocol.errors import FoedusError
from protocol.files import write_atomically

_OWNER_ONLY = 0o600


@dataclass(frozen=True)
class KeptUpdate:
    """A trained, clipped update, flat (n,) float32, with its whole weight and training time."""

    values: FloatArray
    weight: int
    train_seconds: float


class UpdateStore:
    """The one kept update of a run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, round_: int, task_digest: str) -> KeptUpdate | None:
        """The update of this round and task, if it was trained.

        Errors: FoedusError where the file is damaged: nothing is then sent in its place.
        """
        path = self._path(round_, task_digest)
        if not path.exists():
            return None
        try:
            arrays = safetensors.numpy.load(path.read_bytes())
            facts = arrays["facts"]
            return KeptUpdate(arrays["values"], int(facts[0]), float(facts[1]))
        except (safetensors.SafetensorError, KeyError, IndexError, ValueError) as error:
            raise FoedusError(
                f"Expected the update of round {round_} in {path}, got a damaged file. "
                "This site sits this round out."
            ) from error

    def save(self, round_: int, task_digest: str, update: KeptUpdate) -> None:
        """Keep it; whatever was kept of other rounds goes. Inside MemoryStore.locked."""
        facts = np.array([update.weight, update.train_seconds], dtype=np.float64)
        arrays: dict[str, NDArray[Any]] = {
            "values": np.ascontiguousarray(update.values),
            "facts": facts,
        }
        path = self._path(round_, task_digest)
        write_atomically(path, safetensors.numpy.save(arrays), mode=_OWNER_ONLY)
        self.forget_all_but(round_)

    def forget_all_but(self, round_: int) -> None:
        """Delete the updates of other rounds."""
        kept = f"update-{round_:05d}-"
        for path in self._folder.glob(UPDATES):
            if not path.name.startswith(kept):
                path.unlink(missing_ok=True)

    def _path(self, round_: int, task_digest: str) -> Path:
        return self._folder / f"update-{round_:05d}-{task_digest[:16]}.safetensors"

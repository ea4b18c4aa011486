"""A weighted mean of updates that never holds more than one of them.

Replies are folded as they arrive: sum += weight * update, in float64 and in place, so the memory is
one update's entries (8 bytes each) whatever the cohort. Order of arrival: a float32 times a whole
number below 2^10 has 34 bits, float64 holds 53, so additions are exact, and the mean the same bit
for bit in any order, while the terms of an entry differ by less than a factor of about 2^18; beyond
that the order changes it by about 1e-16 relative, which float32 rounding then hides.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

# Entries scaled at a time: the only temporary is one float64 block of this many entries (512 KiB).
BLOCK_ENTRIES = 65_536


class RunningSum:
    """Streaming weighted sum of updates with the same names and shapes.

    The caller checks names, shapes and finiteness first (``strategies.base`` does): a bad tensor
    must be refused before any part of its update is in the sum.
    """

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._block = np.empty(BLOCK_ENTRIES, dtype=np.float64)
        self.total_weight: float = 0.0
        self.num_updates: int = 0

    def add(self, tensors: Mapping[str, FloatArray], weight: float) -> None:
        """Add ``weight * tensors``; weight >= 0, finite. ``tensors`` is only read, and not kept."""
        for name, tensor in tensors.items():
            if name not in self._sums:
                self._sums[name] = np.zeros(tensor.shape, dtype=np.float64)
            self._add_blocks(self._sums[name].reshape(-1), np.ravel(tensor), weight)
        self.total_weight += weight
        self.num_updates += 1

    def _add_blocks(self, target: NDArray[np.float64], source: FloatArray, weight: float) -> None:
        for start in range(0, target.size, BLOCK_ENTRIES):
            part = source[start : start + BLOCK_ENTRIES]
            block = self._block[: part.size]
            np.multiply(part, weight, out=block, dtype=np.float64)
            target[start : start + part.size] += block

    def take_mean(self) -> dict[str, NDArray[np.float64]]:
        """The weighted mean, float64, or {} without any weight; the sum starts anew."""
        sums, total_weight = self._sums, self.total_weight
        self._sums, self.total_weight, self.num_updates = {}, 0.0, 0
        if total_weight == 0.0:
            return {}
        for tensor in sums.values():
            np.divide(tensor, total_weight, out=tensor)
        return sums

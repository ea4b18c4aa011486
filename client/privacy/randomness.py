"""The site's private randomness: what hides a unit of privacy must be known to nobody.

Everything comes from the ChaCha20 stream cipher under a key from the operating system. Nothing is
seeded by a run, a round or a configuration: whoever knew the seed could subtract the noise.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from torch import Tensor

_KEY_BYTES, _NONCE_BYTES, _WORD_BYTES = 32, 16, 8
_UNIT = 2.0**-53


class PrivateRandomness:
    """Uniform and Gaussian draws from one ChaCha20 key stream.

    key: 32 bytes; only tests give one. A fresh object takes its key from the operating system.
    """

    def __init__(self, key: bytes | None = None) -> None:
        cipher = Cipher(
            algorithms.ChaCha20(
                os.urandom(_KEY_BYTES) if key is None else key, bytes(_NONCE_BYTES)
            ),
            mode=None,
        )
        self._stream = cipher.encryptor()

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` draws from (0, 1], multiples of 2^-53."""
        return ((self._words(count) >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * _UNIT

    def choose(self, population: int, count: int) -> NDArray[np.int64]:
        """`count` different positions out of 0..population-1, every subset alike; sorted."""
        keys = self.uniform(population)
        return np.sort(np.argpartition(keys, count - 1)[:count]) if count else np.zeros(0, np.int64)

    def gaussian(self, count: int) -> Tensor:
        """`count` standard normal draws, float64, by the Box-Muller transform."""
        pairs = (count + 1) // 2
        uniform = torch.from_numpy(self.uniform(2 * pairs))
        radius = torch.sqrt(-2.0 * torch.log(uniform[:pairs]))
        angle = 2.0 * torch.pi * uniform[pairs:]
        return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count]

    def _words(self, count: int) -> NDArray[np.uint64]:
        # Encrypting zeros gives the key stream itself.
        return np.frombuffer(self._stream.update(bytes(count * _WORD_BYTES)), dtype=np.uint64)


def gaussian_noise(randomness: PrivateRandomness, count: int, kind: str) -> Tensor:
    """Standard normal noise (count,), float64. kind: "chacha20" or "chacha20_x4".

    Floating point has gaps that a single Box-Muller draw does not fill evenly, and the low bits of
    a noised sum can then tell the sum (Mironov 2012). "chacha20_x4" adds four independent draws
    and halves the sum: the variance stays 1 and the gaps of the four no longer line up (Holohan
    and Braghin 2021). Both are heuristics; a discrete mechanism would be a proof.
    """
    if kind == "chacha20":
        return randomness.gaussian(count)
    return randomness.gaussian(4 * count).reshape(4, count).sum(dim=0) / 2.0

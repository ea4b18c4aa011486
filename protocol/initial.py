"""Where a run's adapter starts: values that every party can derive from the run's seed alone.

NumPy's PCG64 gives the same bits on every platform, so a seeded factor never has to travel.
"""

from __future__ import annotations

import hashlib

import numpy as np

from protocol.adapter import FloatArray, Layout, factor_of


def initial_tensors(layout: Layout, seed: int) -> dict[str, FloatArray]:
    """A: uniform in +-1/sqrt(d_in), as torch starts a Linear; B and a linear head: zero.

    A zero B leaves the base model as it is; a zero head starts from the uniform prediction, so no
    site's first gradient depends on a random head. In a head of several layers zeros would stop
    every gradient, so there all matrices but biases are drawn like A.
    """
    matrices = [n for n, shape in layout.items() if factor_of(n) == "head" and len(shape) == 2]
    drawn_names = {n for n in layout if factor_of(n) == "A"}
    if len(matrices) > 1:
        drawn_names.update(matrices)
    tensors: dict[str, FloatArray] = {}
    for name, shape in layout.items():
        if name in drawn_names:
            bound = 1.0 / np.sqrt(shape[1])
            drawn = _generator(seed, name).uniform(-bound, bound, size=shape)
            tensors[name] = drawn.astype(np.float32)
        else:
            tensors[name] = np.zeros(shape, dtype=np.float32)
    return tensors


def derive_seed(seed: int, *parts: object) -> int:
    """A 63-bit seed for one purpose; another purpose gives an unrelated one."""
    text = "\x1f".join(["foedus", str(seed), *(str(part) for part in parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive_seed(seed, "initial", name)))

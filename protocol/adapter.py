"""The adapter as both sides see it: named float32 tensors plus the facts that give them meaning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from protocol.errors import WireError
from protocol.methods import Factor
from protocol.reasons import RejectionReason

FloatArray = NDArray[np.float32]
Layout = Mapping[str, tuple[int, ...]]

_A_SUFFIX = ".lora_A.weight"
_B_SUFFIX = ".lora_B.weight"


def factor_of(name: str) -> Factor:
    """Which part a tensor belongs to, read off its peft name."""
    if name.endswith(_A_SUFFIX):
        return "A"
    return "B" if name.endswith(_B_SUFFIX) else "head"


def module_of(name: str) -> str:
    """The adapted module's name; a head tensor's own name."""
    return name.removesuffix(_A_SUFFIX).removesuffix(_B_SUFFIX)


@dataclass(frozen=True)
class AdapterState:
    """Names -> tensors, with rank, alpha, the base model's digest and the method.

    Shapes: A (rank, d_in), B (d_out, rank), head tensors as they are; all float32, keys sorted.
    The same type holds an update, whose tensors are trained minus received.
    """

    tensors: Mapping[str, FloatArray]
    rank: int
    alpha: float
    base_digest: str
    method: str

    def __post_init__(self) -> None:
        ordered = {name: self.tensors[name] for name in sorted(self.tensors)}
        for name, tensor in ordered.items():
            if tensor.dtype != np.float32:
                raise TypeError(f"Expected float32 for {name}, got {tensor.dtype}.")
        object.__setattr__(self, "tensors", ordered)

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, in the order in which they are packed."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def replace_tensors(self, tensors: Mapping[str, FloatArray]) -> AdapterState:
        """The same facts around other tensors."""
        return replace(self, tensors=tensors)

    def subset(self, factors: Collection[Factor]) -> AdapterState:
        """Only the tensors of these factors."""
        kept = {n: t for n, t in self.tensors.items() if factor_of(n) in factors}
        return self.replace_tensors(kept)

    def pairs(self) -> Iterator[tuple[str, FloatArray, FloatArray]]:
        """(module, A, B) for every module that has both factors."""
        for name, a_factor in self.tensors.items():
            b_name = module_of(name) + _B_SUFFIX
            if factor_of(name) == "A" and b_name in self.tensors:
                yield module_of(name), a_factor, self.tensors[b_name]

    def digest(self) -> str:
        """SHA-256 of layout and bytes: equal digests mean bit-equal adapters."""
        total = hashlib.sha256(layout_digest(self.layout).encode())
        for tensor in self.tensors.values():
            total.update(np.ascontiguousarray(tensor).tobytes())
        return total.hexdigest()


def a_name(module: str) -> str:
    """peft's name of a module's A."""
    return module + _A_SUFFIX


def b_name(module: str) -> str:
    """peft's name of a module's B."""
    return module + _B_SUFFIX


def layout_digest(layout: Layout) -> str:
    """SHA-256 over names and shapes, in sorted order: what two sides compare before they pack."""
    canonical = json.dumps(sorted((n, list(s)) for n, s in layout.items()), separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def layout_size(layout: Layout) -> int:
    """Number of float32 coordinates."""
    return sum(int(np.prod(shape, dtype=np.int64)) for shape in layout.values())


def subset_layout(layout: Layout, factors: Collection[Factor]) -> dict[str, tuple[int, ...]]:
    """Only the names of these factors."""
    return {name: shape for name, shape in layout.items() if factor_of(name) in factors}


def pack(tensors: Mapping[str, FloatArray]) -> FloatArray:
    """All tensors, in sorted order, as one flat float32 array (n,).

    One array, because each array of a Flower message is fetched by a request of its own.
    """
    if not tensors:
        return np.zeros(0, dtype=np.float32)
    return np.concatenate([np.ravel(tensors[name]) for name in sorted(tensors)], dtype=np.float32)


def unpack(flat: FloatArray, layout: Layout) -> dict[str, FloatArray]:
    """The tensors of `layout` as views into flat (n,); inverse of `pack`.

    Errors: WireError where dtype or length differ from what the layout needs.
    """
    if flat.dtype != np.float32 or flat.ndim != 1:
        raise WireError(
            RejectionReason.WRONG_DTYPE,
            f"Expected one flat float32 array, got {flat.ndim} dimensions of {flat.dtype}.",
        )
    if flat.size != layout_size(layout):
        raise WireError(
            RejectionReason.WRONG_SHAPE,
            f"Expected {layout_size(layout)} coordinates for the layout, got {flat.size}.",
        )
    tensors: dict[str, FloatArray] = {}
    start = 0
    for name in sorted(layout):
        end = start + int(np.prod(layout[name], dtype=np.int64))
        tensors[name] = flat[start:end].reshape(layout[name])
        start = end
    return tensors


def l2_norm(tensors: Mapping[str, FloatArray]) -> float:
    """L2 norm over all tensors together, summed in float64. NaN and inf pass through."""
    squares = (float(np.vdot(t64, t64)) for t in tensors.values() for t64 in [t.astype(np.float64)])
    return float(np.sqrt(sum(squares)))

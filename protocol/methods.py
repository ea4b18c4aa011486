"""Which LoRA factors a method trains, uploads, downloads and keeps at the site, round by round.

Both sides read this one table, so a site never needs to trust the coordinator's word on what to
send. Rounds start at 1. "head" stands for every trained tensor that is not a LoRA factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Factor = Literal["A", "B", "head"]
Factors = frozenset[Factor]

_A: Factors = frozenset({"A", "head"})
_B: Factors = frozenset({"B", "head"})
_BOTH: Factors = frozenset({"A", "B", "head"})


@dataclass(frozen=True)
class MethodTraits:
    """What the compatibility rules need to know of a method.

    `odd` / `even`: factors trained in odd / even rounds. `personal`: factors that stay at the site.
    `seeded`: factors every site derives from the run's seed, so they never travel.
    """

    title: str
    source: str
    odd: Factors
    even: Factors
    personal: Factors = frozenset()
    seeded: Factors = frozenset()
    exact: bool = True

    @property
    def trains_both_factors(self) -> bool:
        """True where one round trains A and B together: their product is then not linear."""
        return {"A", "B"} <= self.odd or {"A", "B"} <= self.even


METHODS: dict[str, MethodTraits] = {
    "fedsvd": MethodTraits("FedSVD", "arXiv:2505.12805", odd=_B, even=_B),
    "ffa": MethodTraits("FFA-LoRA", "arXiv:2403.12313", odd=_B, even=_B, seeded=frozenset({"A"})),
    "rolora": MethodTraits("RoLoRA", "arXiv:2502.01755", odd=_B, even=_A),
    "fedit": MethodTraits("FedIT", "arXiv:2305.05644", odd=_BOTH, even=_BOTH, exact=False),
    "fedsa": MethodTraits(
        "FedSA-LoRA",
        "arXiv:2410.01463",
        odd=_BOTH,
        even=_BOTH,
        personal=frozenset({"B"}),
        exact=False,
    ),
}


def trained_factors(method: str, round_: int) -> Factors:
    """What a site trains in this round."""
    traits = METHODS[method]
    return traits.odd if round_ % 2 == 1 else traits.even


def personal_factors(method: str) -> Factors:
    """What a site trains and never sends."""
    return METHODS[method].personal


def uploaded_factors(method: str, round_: int) -> Factors:
    """What a site sends: everything trained that is not personal."""
    return trained_factors(method, round_) - personal_factors(method)


def downloaded_factors(method: str) -> Factors:
    """What the coordinator sends: all but what sites hold or can derive."""
    return _BOTH - personal_factors(method) - METHODS[method].seeded

"""Poisson sampling of privacy units: each takes part in a step by chance, alone of all others.

The accountant's amplification holds for exactly this draw. Shuffled batches of a fixed size would
void it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from client.privacy.randomness import PrivateRandomness
from models.tokens import Tokenised

Unit = tuple[Tokenised, ...]


def group_units(examples: Sequence[Tokenised], unit: str) -> tuple[Unit, ...]:
    """The privacy units among `examples`: each example alone, or all examples of one matter.

    unit: "example" or "matter". Examples without a matter are in no unit under "matter".
    """
    if unit == "example":
        return tuple((example,) for example in examples)
    matters: dict[str, list[Tokenised]] = {}
    for example in examples:
        if example.matter is not None:
            matters.setdefault(example.matter, []).append(example)
    return tuple(tuple(matters[name]) for name in sorted(matters))


def draw_units(
    units: Sequence[Unit],
    sampling_rate: float,
    examples_per_matter: int,
    randomness: PrivateRandomness,
) -> list[Unit]:
    """The units of one step, each with chance `sampling_rate`; possibly none.

    Of a unit with more than examples_per_matter examples, that many are drawn.
    """
    drawn = randomness.uniform(len(units)) <= sampling_rate
    chosen = [unit for unit, taken in zip(units, drawn, strict=True) if taken]
    return [_bounded(unit, examples_per_matter, randomness) for unit in chosen]


def _bounded(unit: Unit, most: int, randomness: PrivateRandomness) -> Unit:
    if len(unit) <= most:
        return unit
    return tuple(unit[position] for position in randomness.choose(len(unit), most))


def packs_of_units(units: Sequence[Unit], batch_size: int) -> Iterator[list[Unit]]:
    """Units of like length together, whole units only, about batch_size examples a pack.

    A unit with more examples than batch_size is a pack of its own.
    """
    pack: list[Unit] = []
    size = 0
    for unit in sorted(units, key=lambda u: max(e.num_tokens for e in u)):
        if pack and size + len(unit) > batch_size:
            yield pack
            pack, size = [], 0
        pack.append(unit)
        size += len(unit)
    if pack:
        yield pack

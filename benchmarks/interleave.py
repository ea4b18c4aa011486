"""Competitors in turns: whatever else the machine does then falls on all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """The middle of some measurements and how far they lie apart."""

    median: float
    lowest: float
    highest: float


def interleave(
    competitors: Mapping[str, Callable[[], T]],
    repetitions: int,
    on_run: Callable[[str, int], None] = lambda name, repetition: None,
) -> dict[str, list[T]]:
    """Run every competitor once in each repetition; results by name, one per repetition.

    Every other repetition goes backwards, so that nobody always runs after the same neighbour.
    on_run hears (name, repetition from 1) before each run.
    """
    results: dict[str, list[T]] = {name: [] for name in competitors}
    for repetition in range(1, repetitions + 1):
        order = list(competitors)[:: 1 if repetition % 2 else -1]
        for name in order:
            on_run(name, repetition)
            results[name].append(competitors[name]())
    return results


def spread(values: Sequence[float]) -> Spread:
    """Errors: ValueError on no values."""
    if not values:
        raise ValueError("Expected at least one measurement, got none.")
    return Spread(statistics.median(values), min(values), max(values))


def median_of_ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """ours[i] / theirs[i] over the repetitions i: runs near in time, so a slow minute cancels out.

    Errors: ValueError where the two were not measured equally often.
    """
    return spread([our / their for our, their in zip(ours, theirs, strict=True)])

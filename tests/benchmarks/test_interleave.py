from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.interleave import interleave, median_of_ratios, spread


def test_competitors_run_in_turns_and_every_other_repetition_backwards() -> None:
    order: list[str] = []

    def competitor(name: str) -> Callable[[], int]:
        def run() -> int:
            order.append(name)
            return len(order)

        return run

    competitors = {name: competitor(name) for name in "abc"}
    results = interleave(competitors, 3)
    assert order == list("abccbaabc")
    assert results == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_every_run_is_announced_before_it_starts() -> None:
    heard: list[tuple[str, int]] = []
    interleave({"a": lambda: heard.append(("ran", 0))}, 2, lambda *run: heard.append(run))
    assert heard == [("a", 1), ("ran", 0), ("a", 2), ("ran", 0)]


def test_a_minute_that_is_slow_for_both_leaves_the_ratio_as_it_was() -> None:
    quiet = median_of_ratios([30.0, 30.0, 30.0], [10.0, 10.0, 10.0])
    disturbed = median_of_ratios([30.0, 6.0, 30.0], [10.0, 2.0, 10.0])
    assert quiet == disturbed
    assert disturbed.median == 3.0


def test_the_spread_names_middle_and_ends() -> None:
    measured = spread([3.0, 1.0, 2.0, 10.0])
    assert (measured.median, measured.lowest, measured.highest) == (2.5, 1.0, 10.0)


def test_no_measurement_and_unpaired_measurements_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one measurement"):
        spread([])
    with pytest.raises(ValueError):
        median_of_ratios([1.0, 2.0], [1.0])

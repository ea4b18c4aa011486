"""The update: a difference, clipped, in a visible order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.update import UpdateStep, clip_update, difference, plain_update_steps, run_steps
from protocol.adapter import FloatArray, l2_norm
from protocol.errors import Refusal
from protocol.reasons import RefusalReason

ARRAYS = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=2, max_side=4),
    elements=st.floats(-(2.0**60), 2.0**60, width=32),
)
TENSORS = st.dictionaries(st.sampled_from("abc"), ARRAYS, min_size=1)


@given(TENSORS, st.floats(1e-6, 1e6))
def test_a_clipped_norm_is_within_the_bound_even_when_recomputed(
    update: dict[str, FloatArray], bound: float
) -> None:
    clipped = clip_update(update, bound)
    assert l2_norm(clipped) <= bound
    if l2_norm(update) <= bound:
        assert clipped is update


def test_clipping_keeps_the_direction_over_all_tensors_together() -> None:
    update = {"a": np.full((2, 3), 3.0, np.float32), "b": np.full(5, -4.0, np.float32)}
    clipped = clip_update(update, 1.0)
    assert l2_norm(clipped) == pytest.approx(1.0, rel=1e-5)
    ratios = np.concatenate([(clipped[n] / update[n]).ravel() for n in update])
    assert np.ptp(ratios) < 1e-7
    assert all(tensor.dtype == np.float32 for tensor in clipped.values())


def test_a_zero_update_stays_zero() -> None:
    update = {"a": np.zeros((2, 3), np.float32)}
    assert not clip_update(update, 1.0)["a"].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(Refusal) as caught:
        clip_update({"a": np.array([1.0, value], np.float32)}, 1.0)
    assert caught.value.code == RefusalReason.TRAINING_DIVERGED


def test_the_difference_is_trained_minus_received() -> None:
    trained = {"a": np.array([3.0, 1.0], np.float32)}
    received = {"a": np.array([1.0, 1.5], np.float32), "unsent": np.ones(2, np.float32)}
    assert difference(trained, received).keys() == {"a"}
    np.testing.assert_array_equal(difference(trained, received)["a"], [2.0, -0.5])


def test_the_plain_steps_are_delta_then_clip() -> None:
    received = {"a": np.array([1.0, 1.0], np.float32)}
    steps = plain_update_steps(received, 5.0)
    assert [step.name for step in steps] == ["delta", "clip"]
    update = run_steps(steps, {"a": np.array([31.0, 41.0], np.float32)})
    np.testing.assert_allclose(update["a"], [3.0, 4.0], rtol=1e-5)
    assert l2_norm(update) <= 5.0


def test_steps_run_in_their_order() -> None:
    steps = [
        UpdateStep("add one", lambda t: {n: v + np.float32(1) for n, v in t.items()}),
        UpdateStep("double", lambda t: {n: v * np.float32(2) for n, v in t.items()}),
    ]
    assert run_steps(steps, {"a": np.zeros(1, np.float32)})["a"][0] == 2.0
    assert run_steps(steps[::-1], {"a": np.zeros(1, np.float32)})["a"][0] == 1.0

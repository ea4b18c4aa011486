"""Initial values: the same at every party, from the seed alone."""

from __future__ import annotations

import numpy as np

from protocol.initial import derive_seed, initial_tensors

LAYOUT = {
    "m.x.lora_A.weight": (3, 100),
    "m.x.lora_B.weight": (7, 3),
    "m.y.lora_A.weight": (3, 100),
    "m.classifier.weight": (4, 50),
    "m.classifier.bias": (4,),
}


def test_the_seed_alone_fixes_every_bit() -> None:
    first, again = initial_tensors(LAYOUT, 5), initial_tensors(dict(reversed(LAYOUT.items())), 5)
    other = initial_tensors(LAYOUT, 6)
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, again[name])
        assert tensor.dtype == np.float32 and tensor.shape == LAYOUT[name]
    assert (first["m.x.lora_A.weight"] != other["m.x.lora_A.weight"]).all()


def test_pinned_values_so_that_no_release_moves_a_seeded_factor() -> None:
    drawn = initial_tensors({"m.x.lora_A.weight": (1, 4)}, 0)["m.x.lora_A.weight"]
    expected = [
        [0.39895179867744446, -0.0518706738948822, 0.031992651522159576, -0.07202388346195221]
    ]
    np.testing.assert_array_equal(drawn, np.array(expected, dtype=np.float32))
    assert derive_seed(0, "train", "site", 1) == 1746058727709915060


def test_modules_of_equal_shape_start_differently() -> None:
    tensors = initial_tensors(LAYOUT, 0)
    assert (tensors["m.x.lora_A.weight"] != tensors["m.y.lora_A.weight"]).all()


def test_a_is_drawn_within_its_bound_and_b_and_a_linear_head_are_zero() -> None:
    tensors = initial_tensors(LAYOUT, 1)
    a = tensors["m.x.lora_A.weight"]
    assert np.abs(a).max() <= 0.1 and np.abs(a).max() > 0.09
    assert abs(float(a.mean())) < 0.02
    for name in ("m.x.lora_B.weight", "m.classifier.weight", "m.classifier.bias"):
        assert not tensors[name].any()


def test_a_head_of_several_layers_does_not_start_at_zero_where_no_gradient_would_flow() -> None:
    layout = {"h.dense.weight": (6, 5), "h.dense.bias": (6,), "h.out.weight": (2, 6)}
    tensors = initial_tensors(layout, 0)
    assert tensors["h.dense.weight"].all() and tensors["h.out.weight"].all()
    assert not tensors["h.dense.bias"].any()


def test_seeds_for_different_purposes_differ_and_fit_63_bits() -> None:
    seeds = {
        derive_seed(seed, *parts)
        for seed in (0, 1)
        for parts in (("a",), ("b",), ("a", 1), ("a", 2), ("a1",), ("a", "1", ""))
    }
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)

"""The adapter's form: packed into one array and back, subsets, pairs, digests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.adapter import (
    AdapterState,
    FloatArray,
    factor_of,
    l2_norm,
    layout_digest,
    layout_size,
    module_of,
    pack,
    unpack,
)
from protocol.errors import WireError
from protocol.reasons import RejectionReason

FLOATS = st.floats(width=32, allow_nan=False)
TENSORS = st.dictionaries(
    st.text(alphabet="abc._", min_size=1, max_size=6),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5), elements=FLOATS),
    max_size=5,
)


def state(**changes: FloatArray) -> AdapterState:
    """Two modules of unequal, non-square shapes and a head; rank 2."""
    rng = np.random.default_rng(0)
    shapes = {
        "m.x.lora_A.weight": (2, 5),
        "m.x.lora_B.weight": (7, 2),
        "m.y.lora_A.weight": (2, 3),
        "m.y.lora_B.weight": (4, 2),
        "m.head.weight": (3, 6),
    }
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return AdapterState(tensors | changes, 2, 4.0, "d" * 64, "fedit")


@given(TENSORS)
def test_unpack_inverts_pack(tensors: dict[str, FloatArray]) -> None:
    layout = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    flat = pack(tensors)
    assert flat.dtype == np.float32 and flat.shape == (layout_size(layout),)
    back = unpack(flat, layout)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


@given(TENSORS)
def test_the_order_of_the_names_given_does_not_matter(tensors: dict[str, FloatArray]) -> None:
    turned = dict(reversed(tensors.items()))
    np.testing.assert_array_equal(pack(turned), pack(tensors))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert layout_digest(dict(reversed(shapes.items()))) == layout_digest(shapes)


def test_a_tensor_that_is_not_contiguous_is_packed_by_its_values() -> None:
    tensor = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(unpack(pack({"a": tensor}), {"a": (4, 3)})["a"], tensor)


@pytest.mark.parametrize(
    ("flat", "reason"),
    [
        (np.zeros(6, np.float64), RejectionReason.WRONG_DTYPE),
        (np.zeros((2, 3), np.float32), RejectionReason.WRONG_DTYPE),
        (np.zeros(5, np.float32), RejectionReason.WRONG_SHAPE),
        (np.zeros(7, np.float32), RejectionReason.WRONG_SHAPE),
        (np.zeros(0, np.float32), RejectionReason.WRONG_SHAPE),
    ],
)
def test_wrong_dtype_or_length_is_refused(flat: FloatArray, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        unpack(flat, {"a": (2, 3)})
    assert caught.value.code == reason


def test_names_tell_factor_and_module() -> None:
    assert [factor_of(name) for name in state().tensors] == ["head", "A", "B", "A", "B"]
    assert module_of("m.x.lora_A.weight") == module_of("m.x.lora_B.weight") == "m.x"
    assert [(m, a.shape, b.shape) for m, a, b in state().pairs()] == [
        ("m.x", (2, 5), (7, 2)),
        ("m.y", (2, 3), (4, 2)),
    ]


def test_a_module_without_both_factors_is_no_pair() -> None:
    assert [module for module, _, _ in state().subset({"A"}).pairs()] == []


def test_only_float32_is_an_adapter() -> None:
    with pytest.raises(TypeError, match=r"float32 for m\.head\.weight, got float64"):
        state(**{"m.head.weight": np.zeros((3, 6))})  # type: ignore[arg-type]


def test_the_digest_tells_any_bit_and_any_shape_apart() -> None:
    first = state()
    changed = first.tensors["m.head.weight"].copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(9))
    reshaped = first.tensors["m.head.weight"].reshape(6, 3)
    assert state().digest() == first.digest()
    assert state(**{"m.head.weight": changed}).digest() != first.digest()
    assert state(**{"m.head.weight": reshaped}).digest() != first.digest()
    assert replace(first, tensors=first.subset({"A", "B"}).tensors).digest() != first.digest()


def test_the_norm_is_over_all_tensors_together_and_lets_nan_through() -> None:
    ones = {"a": np.ones((3, 4), np.float32), "b": np.full(4, 3.0, np.float32)}
    assert l2_norm(ones) == pytest.approx(np.sqrt(12 + 36))
    assert l2_norm({}) == 0.0
    assert np.isnan(l2_norm({"a": np.array([np.nan], np.float32)}))
    assert np.isinf(l2_norm({"a": np.array([np.inf], np.float32)}))
    assert l2_norm({"a": np.full(4, 3e38, np.float32)}) == pytest.approx(6e38)

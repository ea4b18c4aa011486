from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FoedusError, WireError
from protocol.reasons import RefusalReason
from protocol.secure_aggregation.shares import (
    BOX_BYTES,
    SharePair,
    combine,
    decrypt_shares,
    encrypt_shares,
    split,
)
from protocol.secure_aggregation.transcript import share_box_data
from tests.protocol.secure_aggregation.contexts import CONTEXT, other_contexts


@pytest.mark.parametrize(
    ("threshold", "num_shares"), [(t, n) for n in range(1, 6) for t in range(1, n + 1)]
)
def test_exactly_the_sets_of_threshold_size_open_a_secret(threshold: int, num_shares: int) -> None:
    secret = os.urandom(16)
    shares = dict(enumerate(split(secret, threshold, num_shares), start=1))
    assert len(shares) == num_shares
    for size in range(1, num_shares + 1):
        for chosen in itertools.combinations(shares, size):
            held = {index: shares[index] for index in chosen}
            if size >= threshold:
                assert combine(held, threshold) == secret
            else:
                with pytest.raises(FoedusError, match=f"at least {threshold} shares, got {size}"):
                    combine(held, threshold)
                # Pretending that fewer were enough gives something else.
                assert combine(held, size) != secret


@given(secret=st.sampled_from([16, 32, 48]).flatmap(lambda n: st.binary(min_size=n, max_size=n)))
def test_longer_secrets_are_shared_block_by_block(secret: bytes) -> None:
    shares = split(secret, 2, 3)
    assert [len(share) for share in shares] == [len(secret)] * 3
    assert combine({3: shares[2], 1: shares[0]}, 2) == secret


def test_sharing_the_same_secret_twice_gives_other_shares() -> None:
    assert set(split(bytes(16), 2, 3)).isdisjoint(split(bytes(16), 2, 3))


def test_a_wrong_share_gives_a_wrong_secret() -> None:
    secret = os.urandom(16)
    shares = dict(enumerate(split(secret, 3, 4), start=1))
    shares[2] = bytes(16)
    assert combine(shares, 3) != secret


def test_of_more_shares_than_needed_the_lowest_open_the_secret() -> None:
    secret = os.urandom(16)
    shares = dict(enumerate(split(secret, 3, 5), start=1))
    shares[4] = bytes(16)
    assert combine(dict(reversed(shares.items())), 3) == secret


def test_impossible_thresholds_and_shapes_are_refused() -> None:
    for threshold, num_shares in ((0, 3), (4, 3), (-1, 3), (1, 0)):
        with pytest.raises(FoedusError, match="threshold"):
            split(bytes(16), threshold, num_shares)
    for size in (0, 15, 17):
        with pytest.raises(FoedusError, match="multiple of 16"):
            split(bytes(size), 2, 3)
    with pytest.raises(FoedusError, match="one length"):
        combine({1: bytes(16), 2: bytes(32)}, 2)
    with pytest.raises(FoedusError, match="indices from 1"):
        combine({0: bytes(16), 2: bytes(16)}, 2)
    with pytest.raises(FoedusError, match="multiple of 16"):
        combine({1: bytes(15), 2: bytes(15)}, 2)
    with pytest.raises(FoedusError, match="at least 0"):
        combine({}, 0)


KEY = os.urandom(32)
PAIR = SharePair(b"s" * 16, b"m" * 16)
DATA = share_box_data(CONTEXT, bytes(32), "a" * 32, "b" * 32)
BOX = encrypt_shares(KEY, PAIR, DATA)


def test_a_box_opens_to_its_shares_and_hides_them() -> None:
    assert decrypt_shares(KEY, BOX, DATA) == PAIR
    assert len(BOX) == BOX_BYTES == 60
    assert PAIR.self_mask not in BOX
    assert PAIR.masking_key not in BOX
    assert repr(PAIR) == "SharePair()"


def test_boxes_of_the_same_shares_differ() -> None:
    assert encrypt_shares(KEY, PAIR, DATA)[:12] != BOX[:12]
    assert encrypt_shares(KEY, PAIR, DATA)[12:] != BOX[12:]


@pytest.mark.parametrize("position", range(BOX_BYTES))
def test_a_box_with_any_byte_changed_is_refused(position: int) -> None:
    for difference in (1, 0x80, 0xFF):
        changed = bytearray(BOX)
        changed[position] ^= difference
        with pytest.raises(WireError) as refused:
            decrypt_shares(KEY, bytes(changed), DATA)
        assert refused.value.code == RefusalReason.BAD_SIGNATURE


def test_a_box_opens_in_its_own_session_and_for_its_own_pair_alone() -> None:
    others = [
        share_box_data(context, bytes(32), "a" * 32, "b" * 32)
        for context in other_contexts().values()
    ]
    others += [
        share_box_data(CONTEXT, b"\1" * 32, "a" * 32, "b" * 32),
        share_box_data(CONTEXT, bytes(32), "b" * 32, "a" * 32),
        share_box_data(CONTEXT, bytes(32), "a" * 32, "c" * 32),
        b"",
    ]
    for data in others:
        with pytest.raises(WireError):
            decrypt_shares(KEY, BOX, data)
    with pytest.raises(WireError):
        decrypt_shares(os.urandom(32), BOX, DATA)


@pytest.mark.parametrize("size", [0, 12, 28, BOX_BYTES - 1, BOX_BYTES + 1])
def test_a_box_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(WireError) as refused:
        decrypt_shares(KEY, bytes(size), DATA)
    assert refused.value.code == RefusalReason.MALFORMED_REQUEST


def test_shares_of_another_size_are_not_sealed() -> None:
    with pytest.raises(FoedusError, match="16 bytes"):
        encrypt_shares(KEY, SharePair(b"short", b"m" * 16), DATA)

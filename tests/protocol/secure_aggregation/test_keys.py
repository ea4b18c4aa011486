from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FoedusError, WireError
from protocol.reasons import RefusalReason
from protocol.secure_aggregation.keys import (
    ADVERTISEMENT_BYTES,
    Advertisement,
    SessionKeys,
    channel_key,
    opens_masking_key,
    opens_self_mask,
    pairwise_mask_seed,
    public_key_of,
)
from tests.protocol.secure_aggregation.contexts import CONTEXT, consortium, other_contexts

ROSTER, (ANNA, BEN, CARL) = consortium(3)
ANNAS, BENS = SessionKeys.generate(), SessionKeys.generate()
ANNAS_AD, BENS_AD = ANNAS.advertise(CONTEXT, ANNA), BENS.advertise(CONTEXT, BEN)


def test_both_sites_of_a_pair_derive_the_same_mask_and_no_other_session_or_pair_does() -> None:
    anna, ben = ANNA.member_id, BEN.member_id
    own = ANNAS.masking_private(CONTEXT, anna)
    mask = pairwise_mask_seed(own, BENS_AD.masking_key, CONTEXT, anna, ben)
    theirs = BENS.masking_private(CONTEXT, ben)
    assert mask == pairwise_mask_seed(theirs, ANNAS_AD.masking_key, CONTEXT, ben, anna)
    # With the very same key pairs, so that it is the context that makes the difference.
    others = [
        pairwise_mask_seed(own, BENS_AD.masking_key, context, anna, ben)
        for context in other_contexts().values()
    ]
    others.append(pairwise_mask_seed(own, BENS_AD.masking_key, CONTEXT, anna, CARL.member_id))
    assert len({mask, *others}) == len(others) + 1
    assert len(mask) == 32


def test_a_channel_has_one_key_a_direction_that_both_ends_derive() -> None:
    anna, ben = ANNA.member_id, BEN.member_id
    at_anna = channel_key(ANNAS.encryption_private, BENS_AD.encryption_key, CONTEXT, anna, ben)
    at_ben = channel_key(BENS.encryption_private, ANNAS_AD.encryption_key, CONTEXT, anna, ben)
    back = channel_key(ANNAS.encryption_private, BENS_AD.encryption_key, CONTEXT, ben, anna)
    assert at_anna == at_ben != back
    others = {
        channel_key(ANNAS.encryption_private, BENS_AD.encryption_key, context, anna, ben)
        for context in other_contexts().values()
    }
    assert len(others | {at_anna}) == len(other_contexts()) + 1


def test_every_secret_of_a_session_is_its_own() -> None:
    anna = ANNA.member_id
    same = SessionKeys(bytes(32), bytes(16), bytes(16))
    derived = [
        same.masking_private(CONTEXT, anna),
        same.self_mask_key(CONTEXT, anna),
        same.advertise(CONTEXT, ANNA).seed_commitment,
        same.masking_private(CONTEXT, BEN.member_id),
        same.self_mask_key(CONTEXT, BEN.member_id),
    ]
    for context in other_contexts().values():
        derived += [same.masking_private(context, anna), same.self_mask_key(context, anna)]
    assert len(set(derived)) == len(derived)


def test_new_keys_are_new_and_come_back_from_their_bytes() -> None:
    one, other = SessionKeys.generate(), SessionKeys.generate()
    assert one.encryption_private != other.encryption_private
    assert one.masking_seed != other.masking_seed
    assert one.self_mask_seed != other.self_mask_seed
    assert SessionKeys.from_bytes(one.to_bytes()) == one
    for wrong in (b"", one.to_bytes()[:-1], one.to_bytes() + b"\0"):
        with pytest.raises(FoedusError, match="64 bytes"):
            SessionKeys.from_bytes(wrong)


def test_secrets_do_not_show() -> None:
    assert repr(ANNAS) == "SessionKeys()"


def test_an_advertisement_is_good_for_its_own_session_alone() -> None:
    ANNAS_AD.verify(CONTEXT, ROSTER)
    for name, context in other_contexts().items():
        with pytest.raises(WireError) as refused:
            ANNAS_AD.verify(context, ROSTER)
        assert refused.value.code == RefusalReason.BAD_SIGNATURE, name


@given(position=st.integers(0, ADVERTISEMENT_BYTES - 1), difference=st.integers(1, 255))
def test_an_advertisement_with_any_byte_changed_is_refused(position: int, difference: int) -> None:
    data = bytearray(ANNAS_AD.to_bytes())
    assert Advertisement.from_bytes(ANNA.member_id, bytes(data)) == ANNAS_AD
    data[position] ^= difference
    with pytest.raises(WireError) as refused:
        Advertisement.from_bytes(ANNA.member_id, bytes(data)).verify(CONTEXT, ROSTER)
    assert refused.value.code == RefusalReason.BAD_SIGNATURE


def test_keys_under_another_members_name_are_refused() -> None:
    with pytest.raises(WireError) as refused:
        replace(ANNAS_AD, member_id=BEN.member_id).verify(CONTEXT, ROSTER)
    assert refused.value.code == RefusalReason.BAD_SIGNATURE
    stranger = consortium(1)[1][0]
    with pytest.raises(WireError) as refused:
        SessionKeys.generate().advertise(CONTEXT, stranger).verify(CONTEXT, ROSTER)
    assert refused.value.code == RefusalReason.UNKNOWN_MEMBER


@pytest.mark.parametrize("size", [0, ADVERTISEMENT_BYTES - 1, ADVERTISEMENT_BYTES + 1])
def test_an_advertisement_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(WireError, match="160 bytes"):
        Advertisement.from_bytes(ANNA.member_id, bytes(size))


def test_a_key_of_low_order_is_refused() -> None:
    for public in (bytes(32), bytes([1]) + bytes(31), b"short"):
        with pytest.raises(WireError) as refused:
            channel_key(ANNAS.encryption_private, public, CONTEXT, "a", "b")
        assert refused.value.code == RefusalReason.BAD_SIGNATURE


def test_reconstructed_secrets_are_checked_against_what_was_advertised() -> None:
    assert opens_self_mask(ANNAS.self_mask_seed, CONTEXT, ANNAS_AD)
    assert opens_masking_key(ANNAS.masking_seed, CONTEXT, ANNAS_AD)
    assert not opens_self_mask(ANNAS.masking_seed, CONTEXT, ANNAS_AD)
    assert not opens_masking_key(ANNAS.self_mask_seed, CONTEXT, ANNAS_AD)
    assert not opens_self_mask(ANNAS.self_mask_seed, CONTEXT, BENS_AD)
    assert not opens_masking_key(ANNAS.masking_seed, replace(CONTEXT, round=4), ANNAS_AD)
    masking = public_key_of(ANNAS.masking_private(CONTEXT, ANNA.member_id))
    assert masking == ANNAS_AD.masking_key
    with pytest.raises(FoedusError, match="16 bytes"):
        opens_self_mask(bytes(15), CONTEXT, ANNAS_AD)

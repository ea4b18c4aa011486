from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from protocol.secure_aggregation import transcript
from protocol.secure_aggregation.encoding import Field, encode_fields
from protocol.secure_aggregation.transcript import SessionContext
from tests.protocol.secure_aggregation.contexts import CONTEXT, other_contexts

fields = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.text(max_size=12),
        st.integers(),
        st.floats(allow_nan=False),
    ),
    max_size=5,
)


@given(one=fields, other=fields, labels=st.tuples(st.text(max_size=4), st.text(max_size=4)))
def test_two_different_lists_never_encode_alike(
    one: list[Field], other: list[Field], labels: tuple[str, str]
) -> None:
    def identity(label: str, values: list[Field]) -> tuple[object, ...]:
        # 1 == 1.0 and 0.0 == -0.0 in Python, not in what is signed.
        return (label, *((type(value), repr(value)) for value in values))

    same = identity(labels[0], one) == identity(labels[1], other)
    assert (encode_fields(labels[0], *one) == encode_fields(labels[1], *other)) is same


def test_shifting_bytes_between_fields_changes_the_encoding() -> None:
    assert encode_fields("x", b"ab", b"c") != encode_fields("x", b"a", b"bc")
    assert encode_fields("x", "ab") != encode_fields("x", b"ab")
    assert encode_fields("x", 1) != encode_fields("x", "1")
    assert encode_fields("x") != encode_fields("x", b"")


def test_every_encoding_names_domain_and_version() -> None:
    assert b"foedus.secure_aggregation" in encode_fields("x")
    assert transcript.VERSION == 1


def purposes(context: SessionContext, one: str = "a" * 32, other: str = "b" * 32) -> list[bytes]:
    """What is signed, bound or derived for each purpose, with fields as alike as can be."""
    cohort = bytes(32)
    return [
        transcript.advertisement_to_sign(context, one, cohort, cohort, cohort),
        transcript.share_box_data(context, cohort, one, other),
        transcript.share_box_data(context, cohort, other, one),
        transcript.survivors_to_sign(context, cohort, [one, other]),
        transcript.channel_info(context, one, other),
        transcript.channel_info(context, other, one),
        transcript.pairwise_mask_info(context, one, other),
        transcript.self_mask_info(context, one),
        transcript.seed_commitment_info(context, one),
        transcript.masking_key_info(context, one),
        transcript.graph_seed(context, cohort),
        transcript.cohort_digest(context, [(one, cohort)]),
    ]


def test_no_two_purposes_and_no_two_sessions_share_bytes() -> None:
    contexts = [CONTEXT, *other_contexts().values()]
    everything = [text for context in contexts for text in purposes(context)]
    assert len(set(everything)) == len(everything)
    for one, other in itertools.permutations(purposes(CONTEXT), 2):
        assert not other.startswith(one)


def test_every_part_of_a_context_is_in_its_digest() -> None:
    digests = {CONTEXT.digest()} | {context.digest() for context in other_contexts().values()}
    assert len(digests) == len(other_contexts()) + 1
    assert CONTEXT.digest() == replace(CONTEXT).digest()
    assert len(CONTEXT.digest()) == 32


def test_whole_and_real_bounds_of_one_value_are_one_context() -> None:
    whole = replace(CONTEXT, ring=replace(CONTEXT.ring, coordinate_bound=1))
    assert whole.digest() == CONTEXT.digest()


def test_pairs_and_lists_have_no_order_and_channels_have_a_direction() -> None:
    cohort = bytes(32)
    assert transcript.pairwise_mask_info(CONTEXT, "a", "b") == transcript.pairwise_mask_info(
        CONTEXT, "b", "a"
    )
    assert transcript.survivors_to_sign(
        CONTEXT, cohort, ["a", "b", "c"]
    ) == transcript.survivors_to_sign(CONTEXT, cohort, ["c", "a", "b"])
    assert transcript.cohort_digest(CONTEXT, [("a", b"1"), ("b", b"2")]) == (
        transcript.cohort_digest(CONTEXT, [("b", b"2"), ("a", b"1")])
    )
    assert transcript.channel_info(CONTEXT, "a", "b") != transcript.channel_info(CONTEXT, "b", "a")


@given(
    st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=2, max_size=2, unique_by=str)
)
def test_two_survivor_lists_are_never_signed_alike(lists: list[set[str]]) -> None:
    one, other = (transcript.survivors_to_sign(CONTEXT, bytes(32), sorted(x)) for x in lists)
    assert (one == other) is (lists[0] == lists[1])


def test_the_relayed_keys_are_in_the_cohorts_digest() -> None:
    base = [("a", b"1"), ("b", b"2")]
    digests = {
        transcript.cohort_digest(CONTEXT, entries)
        for entries in (base, base[:1], [("a", b"2"), ("b", b"1")], [("a", b"1"), ("c", b"2")])
    }
    assert len(digests) == 4

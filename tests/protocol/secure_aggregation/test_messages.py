"""Messages of secure aggregation: what was written is read, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import WireError
from protocol.secure_aggregation.keys import Advertisement
from protocol.secure_aggregation.messages import (
    AdvertiseReply,
    AdvertiseRequest,
    ConfirmReply,
    ConfirmRequest,
    MaskedInputReply,
    MaskedInputRequest,
    ShareReply,
    ShareRequest,
    UnmaskReply,
    UnmaskRequest,
    parse_reply,
)
from protocol.secure_aggregation.shares import BOX_BYTES, SHARE_BYTES
from protocol.secure_aggregation.wire import (
    MASKED,
    SECURE,
    Phase,
    SessionId,
    Terms,
    content_size,
    message_digest,
    read_header,
    refusal_content,
    signature_of,
    signed_statement,
    with_signature,
)

SIGNATURE = bytes(range(64))
sessions = st.builds(
    SessionId,
    st.text("0123456789abcdef", min_size=32, max_size=32),
    st.integers(1, 2**31 - 1),
    st.integers(1, 2**31 - 1),
)
ids = st.binary(min_size=16, max_size=16).map(bytes.hex)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


def fixed(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def lists(of: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(of, unique=True, max_size=6).map(lambda members: tuple(sorted(members)))


def tables(width: int) -> st.SearchStrategy[dict[str, bytes]]:
    return st.dictionaries(ids, fixed(width), max_size=6)


advertisements = st.builds(Advertisement, ids, fixed(32), fixed(32), fixed(32), fixed(64))
terms = st.builds(
    Terms, digests, digests, st.sampled_from([16, 20, 24, 32]), st.integers(2, 30),
    st.floats(1e-3, 1e3), st.integers(1, 50), st.integers(0, 30),
)  # fmt: skip
requests = st.one_of(
    st.builds(AdvertiseRequest, sessions, terms),
    st.builds(
        ShareRequest,
        sessions,
        st.lists(advertisements, max_size=5, unique_by=lambda a: a.member_id).map(
            lambda rows: tuple(sorted(rows, key=lambda a: a.member_id))
        ),
    ),
    st.builds(MaskedInputRequest, sessions, lists(ids), tables(BOX_BYTES)),
    st.builds(ConfirmRequest, sessions, lists(ids)),
    st.builds(UnmaskRequest, sessions, tables(64)),
)
replies = st.one_of(
    st.builds(AdvertiseReply, sessions, advertisements),
    st.builds(ShareReply, sessions, tables(BOX_BYTES)),
    st.builds(MaskedInputReply, sessions, st.binary(max_size=40), st.floats(0, 1e6)),
    st.builds(ConfirmReply, sessions, fixed(64)),
    st.builds(
        lambda s, both, cut: UnmaskReply(
            s, dict(list(both.items())[:cut]), dict(list(both.items())[cut:])
        ),
        sessions, tables(SHARE_BYTES), st.integers(0, 6),
    ),
)  # fmt: skip


def over_the_wire(content: RecordDict) -> RecordDict:
    """Through Flower's own serialisation and back."""
    return recorddict_from_proto(recorddict_to_proto(content))


@given(requests)
def test_a_request_is_read_as_it_was_written(request: Any) -> None:
    content = over_the_wire(request.to_content())
    assert type(request).from_content(content) == request
    assert read_header(content)[1] == request.session
    assert message_digest(content) == message_digest(request.to_content())


@given(replies)
def test_a_reply_is_read_as_it_was_written(reply: Any) -> None:
    unsigned = reply.to_content()
    content = over_the_wire(with_signature(unsigned, SIGNATURE))
    phase, session = read_header(content)
    num_bytes = len(reply.packed) if isinstance(reply, MaskedInputReply) else 0
    assert parse_reply(content, phase, session, num_bytes) == reply
    assert signature_of(content) == SIGNATURE
    # The signature is over all the rest, and not over itself.
    assert message_digest(content) == message_digest(unsigned)
    assert content_size(content) > 64


@given(replies, requests, requests)
def test_a_signed_statement_depends_on_the_reply_and_on_the_request_it_answers(
    reply: Any, request: Any, other: Any
) -> None:
    content = reply.to_content()
    statement = signed_statement(request.to_content(), content)
    if other != request:
        assert signed_statement(other.to_content(), content) != statement
    moved = replace(
        reply, session=replace(reply.session, attempt=reply.session.attempt % 100 + 101)
    )
    assert signed_statement(request.to_content(), moved.to_content()) != statement


SESSION = SessionId("ab" * 16, 3, 1)
MEMBERS = tuple(sorted((bytes([i]) * 16).hex() for i in range(1, 4)))


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(WireError) as caught:
        call()
    return str(caught.value.code)


def changed(content: RecordDict, **values: Any) -> RecordDict:
    record = {**dict(content.config_records[SECURE]), **values}
    kept = {name: value for name, value in record.items() if value is not None}
    return RecordDict({**dict(content), SECURE: ConfigRecord(kept)})


def test_members_come_once_and_in_order() -> None:
    content = ConfirmRequest(SESSION, MEMBERS).to_content()
    rows = [bytes.fromhex(m) for m in MEMBERS]
    for bad in (
        b"".join(reversed(rows)),
        b"".join([rows[0], rows[0]]),
        b"".join(rows)[:-1],
        rows[0] * 5000,
    ):
        listed = changed(content, survivors=bad)
        assert code_of(lambda listed=listed: ConfirmRequest.from_content(listed)) == "malformed"  # type: ignore[misc]


def test_unknown_and_missing_keys_and_records_are_refused() -> None:
    content = ConfirmRequest(SESSION, MEMBERS).to_content()
    for bad in (
        changed(content, note="the price is 48 thaler"),
        changed(content, survivors=None),
        changed(content, survivors="text"),
        changed(content, survivors=[b"1"]),
    ):
        assert code_of(lambda bad=bad: ConfirmRequest.from_content(bad)) == "malformed"  # type: ignore[misc]
    reply = with_signature(ConfirmReply(SESSION, bytes(64)).to_content(), SIGNATURE)
    extra = RecordDict({**dict(reply), "arrays": ArrayRecord({})})
    for bad in (extra, changed(reply, signature=b"short"), changed(reply, confirmation=b"")):
        assert code_of(lambda bad=bad: ConfirmReply.from_content(bad, SESSION)) == "malformed"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("other", "code"),
    [
        (replace(SESSION, run_id="cd" * 16), "wrong_run"),
        (replace(SESSION, round=4), "wrong_round"),
        (replace(SESSION, attempt=2), "wrong_phase"),
    ],
)
def test_a_reply_of_another_session_is_told_apart(other: SessionId, code: str) -> None:
    reply = with_signature(ConfirmReply(other, bytes(64)).to_content(), SIGNATURE)
    assert code_of(lambda: parse_reply(reply, Phase.CONFIRM, SESSION, 0)) == code


def test_a_reply_of_another_phase_is_told_apart() -> None:
    reply = with_signature(ConfirmReply(SESSION, bytes(64)).to_content(), SIGNATURE)
    for phase in set(Phase) - {Phase.CONFIRM}:
        assert code_of(lambda phase=phase: parse_reply(reply, phase, SESSION, 0)) == "wrong_phase"  # type: ignore[misc]


def test_a_refusal_holds_a_known_code_and_nothing_else() -> None:
    content = refusal_content(Phase.SHARE, SESSION, "budget_spent")
    with pytest.raises(WireError, match="budget_spent") as caught:
        parse_reply(content, Phase.SHARE, SESSION, 0)
    assert caught.value.code == "refused_by_site"
    for bad in (
        changed(content, status="the client is Acme"),
        changed(content, detail="Acme"),
        RecordDict({**dict(content), MASKED: ArrayRecord({})}),
    ):
        assert code_of(lambda bad=bad: parse_reply(bad, Phase.SHARE, SESSION, 0)) == "malformed"  # type: ignore[misc]


def test_a_masked_input_has_exactly_the_agreed_bytes() -> None:
    reply = with_signature(MaskedInputReply(SESSION, b"1234", 0.0).to_content(), SIGNATURE)
    assert code_of(lambda: parse_reply(reply, Phase.MASKED_INPUT, SESSION, 5)) == "wrong_shape"
    array = reply.array_records[MASKED][MASKED]
    for bad, code in (
        (Array("float32", array.shape, array.stype, array.data), "wrong_dtype"),
        (Array(array.dtype, array.shape, "numpy.ndarray", array.data), "wrong_dtype"),
        (Array(array.dtype, (2, 2), array.stype, array.data), "wrong_shape"),
    ):
        content = RecordDict({**dict(reply), MASKED: ArrayRecord({MASKED: bad})})
        read = lambda c=content: parse_reply(c, Phase.MASKED_INPUT, SESSION, 4)  # noqa: E731
        assert code_of(read) == code


def test_an_unmask_reply_with_both_shares_of_one_site_is_refused() -> None:
    both = UnmaskReply(SESSION, {MEMBERS[0]: bytes(16)}, {MEMBERS[0]: bytes(16)})
    content = with_signature(both.to_content(), SIGNATURE)
    assert code_of(lambda: parse_reply(content, Phase.UNMASK, SESSION, 0)) == "malformed"


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 17},
        {"num_sites_max": 1},
        {"num_sites_max": 2**20},
        {"coordinate_bound": 0.0},
        {"coordinate_bound": float("nan")},
        {"weight_cap": 0},
        {"weight_cap": 2**31},
        {"degree": -1},
        {"roster_digest": "xy"},
        {"task_digest": "A" * 64},
        {"bits": True},
    ],
)
def test_terms_that_make_no_ring_are_refused(change: dict[str, Any]) -> None:
    good = Terms("0" * 64, "1" * 64, 32, 5, 1.0, 10, 0)
    content = changed(AdvertiseRequest(SESSION, good).to_content(), **change)
    assert code_of(lambda: AdvertiseRequest.from_content(content)) == "malformed"

"""A member's request is good for one method, path, body, consortium and time, and for no other."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.consortium.signed_request import (
    MEMBER_HEADER,
    NONCE_HEADER,
    SIGNATURE_HEADER,
    TIME_HEADER,
    RequestFault,
    RequestRefused,
    sign_request,
    verify_request,
)
from tests.protocol.consortium.leagues import ANNE, BELL, COLE, LEAGUE, NOW, YEAR

MEMBERS = (ANNE.entry(), BELL.entry())
ASKED: dict[str, Any] = {
    "consortium": LEAGUE,
    "method": "POST",
    "path": "/v1/foedus/receipts?after=3",
    "body": b'{"receipts": []}',
    "now": NOW,
}
HEADERS = sign_request(ANNE.identity, **ASKED)


def fault(headers: dict[str, str] = HEADERS, **changes: Any) -> RequestFault:
    with pytest.raises(RequestRefused) as refused:
        verify_request(headers, **{**ASKED, "members": MEMBERS, **changes})
    return refused.value.fault


def test_the_member_who_signed_is_found_whatever_the_case_of_the_headers() -> None:
    for headers in (HEADERS, {name.upper(): value for name, value in HEADERS.items()}):
        assert verify_request(headers, members=MEMBERS, **ASKED) == ANNE.entry()


@pytest.mark.parametrize(
    "change",
    [
        {"consortium": "Other"},
        {"method": "GET"},
        {"path": "/v1/foedus/receipts"},
        {"path": "/v1/foedus/receipts?after=4"},
        {"body": b""},
    ],
    ids=str,
)
def test_it_is_good_for_nothing_else(change: dict[str, Any]) -> None:
    assert fault(**change) is RequestFault.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (TIME_HEADER, str(NOW + 1)),
        (NONCE_HEADER, "0" * 32),
        (SIGNATURE_HEADER, "0" * 128),
        (SIGNATURE_HEADER, "no hex"),
        (SIGNATURE_HEADER, ""),
        (MEMBER_HEADER, BELL.identity.member_id),
    ],
)
def test_no_header_can_change(name: str, value: str) -> None:
    assert fault({**HEADERS, name: value}) is RequestFault.BAD_SIGNATURE


@pytest.mark.parametrize("name", [MEMBER_HEADER, TIME_HEADER, NONCE_HEADER])
def test_no_header_can_be_left_out(name: str) -> None:
    rest = {key: value for key, value in HEADERS.items() if key != name}
    assert fault(rest) is RequestFault.INCOMPLETE


@pytest.mark.parametrize(
    ("name", "value"),
    [(TIME_HEADER, t) for t in ("-1", "1.8e9", "", "9" * 13, "\u0661")]
    + [(NONCE_HEADER, n) for n in ("", "zz" * 16, "00" * 15, "AA" * 16)],
)
def test_malformed_headers_are_refused(name: str, value: str) -> None:
    assert fault({**HEADERS, name: value}) is RequestFault.INCOMPLETE


def test_strangers_and_the_expelled_are_refused() -> None:
    assert fault(sign_request(COLE.identity, **ASKED)) is RequestFault.UNKNOWN_MEMBER
    assert fault(members=(BELL.entry(),)) is RequestFault.UNKNOWN_MEMBER


@pytest.mark.parametrize("seconds", [-300, 0, 300])
def test_clocks_may_differ_by_5_minutes(seconds: int) -> None:
    assert verify_request(HEADERS, members=MEMBERS, **{**ASKED, "now": NOW + seconds})


@pytest.mark.parametrize("seconds", [-301, 301, 3600])
def test_and_by_no_more(seconds: int) -> None:
    assert fault(now=NOW + seconds) is RequestFault.WRONG_TIME


def test_an_admission_that_has_ended_is_none() -> None:
    late = {**ASKED, "now": NOW + YEAR}
    headers = sign_request(ANNE.identity, **late)
    assert fault(headers, now=NOW + YEAR) is RequestFault.EXPIRED_MEMBER


def test_two_requests_never_have_the_same_nonce() -> None:
    nonces = {sign_request(ANNE.identity, **ASKED)[NONCE_HEADER] for _ in range(100)}
    assert len(nonces) == 100


def test_what_the_refusal_says_does_not_quote_the_request() -> None:
    with pytest.raises(RequestRefused) as refused:
        verify_request({**HEADERS, SIGNATURE_HEADER: "secret"}, members=MEMBERS, **ASKED)
    assert "secret" not in str(refused.value)

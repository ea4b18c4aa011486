"""Requests of members to the coordinator's own API, signed with the member's identity.

TLS shows the site that it speaks to the coordinator; these headers show the coordinator who asks.
A signature covers the consortium, method, path with its query, time, nonce and body, so that none
can be used for anything else. `verify_request` is pure: the caller refuses a nonce it has seen.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from enum import StrEnum

from protocol.consortium.identity import Identity, verify
from protocol.consortium.signed_roster import MemberEntry
from protocol.errors import FoedusError
from protocol.secure_aggregation.encoding import encode_fields

MEMBER_HEADER = "X-Foedus-Member"
TIME_HEADER = "X-Foedus-Time"
NONCE_HEADER = "X-Foedus-Nonce"
SIGNATURE_HEADER = "X-Foedus-Signature"

NONCE_BYTES = 16
TOLERANCE_SECONDS = 300.0


class RequestFault(StrEnum):
    """Why a member's request is not answered; for the coordinator's log, never for the wire."""

    INCOMPLETE = "incomplete"
    UNKNOWN_MEMBER = "unknown_member"
    EXPIRED_MEMBER = "expired_member"
    WRONG_TIME = "wrong_time"
    BAD_SIGNATURE = "bad_signature"


class RequestRefused(FoedusError):
    """A member's request that must be answered with 401 and nothing else."""

    def __init__(self, fault: RequestFault) -> None:
        self.fault = fault
        super().__init__(f"Expected a request signed by a member, got {fault}.")


def sign_request(
    identity: Identity, consortium: str, method: str, path: str, body: bytes, now: float
) -> dict[str, str]:
    """The headers of one request. path: with its query. now: Unix seconds."""
    seconds, nonce = str(int(now)), secrets.token_hex(NONCE_BYTES)
    signature = identity.sign(_statement(consortium, method, path, seconds, nonce, body))
    return {
        MEMBER_HEADER: identity.member_id,
        TIME_HEADER: seconds,
        NONCE_HEADER: nonce,
        SIGNATURE_HEADER: signature.hex(),
    }


def verify_request(
    headers: Mapping[str, str],
    consortium: str,
    method: str,
    path: str,
    body: bytes,
    members: Iterable[MemberEntry],
    now: float,
    tolerance_seconds: float = TOLERANCE_SECONDS,
) -> MemberEntry:
    """Who sent the request. headers: names in any case.

    Replay: the caller keeps (member id, nonce) for 2 * tolerance_seconds and refuses it again.
    Errors: RequestRefused.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    names = (MEMBER_HEADER, TIME_HEADER, NONCE_HEADER, SIGNATURE_HEADER)
    member_id, seconds, nonce, signature = (lower.get(name.lower(), "") for name in names)
    if not (member_id and _is_seconds(seconds) and _is_hex(nonce, NONCE_BYTES)):
        raise RequestRefused(RequestFault.INCOMPLETE)
    entry = next((member for member in members if member.member_id == member_id), None)
    if entry is None:
        raise RequestRefused(RequestFault.UNKNOWN_MEMBER)
    statement = _statement(consortium, method, path, seconds, nonce, body)
    if not verify(entry.public_key, statement, _bytes(signature)):
        raise RequestRefused(RequestFault.BAD_SIGNATURE)
    if abs(int(seconds) - now) > tolerance_seconds:
        raise RequestRefused(RequestFault.WRONG_TIME)
    if entry.expired(now):
        raise RequestRefused(RequestFault.EXPIRED_MEMBER)
    return entry


def _statement(
    consortium: str, method: str, path: str, seconds: str, nonce: str, body: bytes
) -> bytes:
    digest = hashlib.sha256(body).digest()
    return encode_fields("member request", consortium, method, path, seconds, nonce, digest)


def _is_seconds(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


def _is_hex(text: str, num_bytes: int) -> bool:
    return len(text) == 2 * num_bytes and _bytes(text).hex() == text


def _bytes(text: str) -> bytes:
    """Empty where the text is no hex."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""

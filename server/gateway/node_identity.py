"""Who sends a fleet request: the signed timestamp that every SuperNode's request carries.

Flower signs the time alone, neither path nor body, and checks it once the body is read. Here it is
checked on the headers, before any of the body is taken in, and a signature is good for one request.
"""

from __future__ import annotations

import binascii
import datetime
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from google.protobuf.message import Message

from server.gateway.refused import Reason, Refused
from server.gateway.replay import ReplayMemory

PUBLIC_KEY = FLEET_HTTP_PUBLIC_KEY_HEADER.encode()
SIGNATURE = FLEET_HTTP_SIGNATURE_HEADER.encode()
TIMESTAMP = TIMESTAMP_HEADER.encode()

# From the earliest moment at which a timestamp is taken to the last one.
REPLAY_WINDOW_SECONDS = TIMESTAMP_TOLERANCE + 2 * SYSTEM_TIME_TOLERANCE


@dataclass(frozen=True)
class SignedTime:
    """What the headers claim, with the signature checked."""

    public_key: bytes
    signed_at: datetime.datetime
    replay_key: bytes


class NodeGate:
    """Lets a request's headers through once.

    `is_member` says of a public key and a time, in Unix seconds, whether the roster admits it: what
    SuperLink has registered may be another's, or may have failed to be unregistered.
    `node_of` gives the node id of a registered public key, or None; it reads SuperLink's database.
    `opened_at` is when this process began, which no signature that an earlier one saw can postdate.
    """

    def __init__(
        self,
        is_member: Callable[[bytes, float], bool],
        node_of: Callable[[bytes], int | None],
        opened_at: datetime.datetime,
    ) -> None:
        self._is_member = is_member
        self._node_of = node_of
        # A node's clock may be that far ahead of ours.
        self.takes_from = opened_at + datetime.timedelta(seconds=SYSTEM_TIME_TOLERANCE)
        self._used = ReplayMemory(REPLAY_WINDOW_SECONDS)

    def admit(self, headers: Mapping[bytes, bytes], now: datetime.datetime) -> int:
        """The node's id.

        Errors: Refused: unauthenticated, replayed, or unavailable where the time that is signed
        lies before this process, so that nothing is known about its use.
        """
        signed = read_signed_time(headers, now)
        self._check_member(signed.public_key, now)
        node_id = self._node_of(signed.public_key)
        if node_id is None:
            raise Refused(Reason.UNAUTHENTICATED, "The key is not registered.")
        if signed.signed_at < self.takes_from:
            text = f"Node {node_id} signed a time before this process began."
            raise Refused(Reason.UNAVAILABLE, text)
        if not self._used.first_use(signed.replay_key, now.timestamp()):
            raise Refused(Reason.REPLAYED, f"A signature of node {node_id} came again.")
        return node_id

    def check_again(self, headers: Mapping[bytes, bytes], now: datetime.datetime) -> None:
        """For a request that was admitted and has waited since. Does not block.

        Errors: Refused UNAUTHENTICATED where its sender is no member any more.
        """
        self._check_member(b64decode(headers[PUBLIC_KEY]), now)

    def _check_member(self, public_key: bytes, now: datetime.datetime) -> None:
        if not self._is_member(public_key, now.timestamp()):
            raise Refused(Reason.UNAUTHENTICATED, "The key is no member's.")


def read_signed_time(headers: Mapping[bytes, bytes], now: datetime.datetime) -> SignedTime:
    """Check the form, the time and the signature. Errors: Refused UNAUTHENTICATED."""
    try:
        public_key = b64decode(headers[PUBLIC_KEY], validate=True)
        signature = b64decode(headers[SIGNATURE], validate=True)
        timestamp = headers[TIMESTAMP].decode("ascii")
        signed_at = datetime.datetime.fromisoformat(timestamp)
        age_seconds = (now - signed_at).total_seconds()
        key = bytes_to_public_key(public_key)
        # ECDSA signatures can be altered into another valid one; their first number cannot.
        commitment, _ = decode_dss_signature(signature)
    except (KeyError, ValueError, TypeError, binascii.Error, UnsupportedAlgorithm) as error:
        text = f"The signed time cannot be read: {type(error).__name__}."
        raise Refused(Reason.UNAUTHENTICATED, text) from error
    if not -SYSTEM_TIME_TOLERANCE < age_seconds < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
        raise Refused(Reason.UNAUTHENTICATED, f"The signed time is {age_seconds:.0f} s old.")
    if not isinstance(key, EllipticCurvePublicKey) or not verify_signature(
        key, timestamp.encode("ascii"), signature
    ):
        raise Refused(Reason.UNAUTHENTICATED, "The signature is not this key's.")
    return SignedTime(public_key, signed_at, public_key + commitment.to_bytes(72, "big"))


def claimed_node(message: Message) -> int | None:
    """The node id that a fleet request names as its sender's; activation names none."""
    names = message.DESCRIPTOR.fields_by_name
    if "node" in names:
        return int(message.node.node_id)
    return int(message.node_id) if "node_id" in names else None

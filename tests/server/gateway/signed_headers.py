"""The headers by which a SuperNode signs the time, made by hand so that tests can misuse them."""

from __future__ import annotations

import datetime
from base64 import b64encode

from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from flwr.supercore.primitives.asymmetric import sign_message

from tests.server.gateway.little_coordinator import Firm

# The order of P-384's group (FIPS 186-5): of a signature's second number its negative holds too.
P384_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)


def signature_of(firm: Firm, timestamp: str) -> bytes:
    return sign_message(firm.supernode, timestamp.encode())


def headers(firm: Firm, timestamp: str = "", signature: bytes = b"") -> dict[str, str]:
    """As Flower's interceptor makes them; the time is now unless one is given."""
    timestamp = timestamp or datetime.datetime.now(datetime.UTC).isoformat()
    return {
        "content-type": "application/protobuf",
        "flwr-public-key": b64encode(firm.public_key).decode(),
        "flwr-timestamp": timestamp,
        "flwr-signature": b64encode(signature or signature_of(firm, timestamp)).decode(),
    }


def mirrored(signature: bytes) -> bytes:
    """Another signature of the same message by the same key, made without the key."""
    first, second = decode_dss_signature(signature)
    return encode_dss_signature(first, P384_ORDER - second)

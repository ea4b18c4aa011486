"""A public key as digits that two people compare over the telephone."""

from __future__ import annotations

import hashlib

from protocol.secure_aggregation.encoding import encode_fields

GROUPS = 8
DIGITS_PER_GROUP = 5


def fingerprint(public_key: bytes) -> str:
    """8 groups of 5 decimal digits of the key's SHA-256, between spaces.

    Guarantee: who wants another key with the same digits tries about 10^40 of them. Leaving out
    groups when comparing gives away a factor 10^5 each.
    """
    digest = hashlib.sha256(encode_fields("fingerprint", public_key)).digest()
    digits = GROUPS * DIGITS_PER_GROUP
    text = str(int.from_bytes(digest, "big") % 10**digits).zfill(digits)
    groups = (text[start : start + DIGITS_PER_GROUP] for start in range(0, digits, 5))
    return " ".join(groups)

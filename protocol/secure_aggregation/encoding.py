"""Lists of fields as bytes, so that no two lists ever give the same ones.

What is hashed, signed or bound to a key must mean one thing only. Joining fields by a separator
does not do that; here each field carries its type and its length.
"""

from __future__ import annotations

import struct

DOMAIN = "foedus.secure_aggregation"
VERSION = 1

Field = bytes | str | int | float


def encode_fields(label: str, *fields: Field) -> bytes:
    """An injective encoding of a label and typed fields.

    Each of (DOMAIN, VERSION, label, number of fields, fields...) is written as one type byte, its
    length in 8 bytes big-endian, and its content. Whole numbers are decimal text; floats are
    IEEE 754 doubles, big-endian.
    """
    everything: tuple[Field, ...] = (DOMAIN, VERSION, label, len(fields), *fields)
    return b"".join(_encode(field) for field in everything)


def _encode(field: Field) -> bytes:
    if isinstance(field, bytes):
        kind, content = b"b", field
    elif isinstance(field, str):
        kind, content = b"s", field.encode()
    elif isinstance(field, float):
        kind, content = b"f", struct.pack(">d", field)
    else:
        kind, content = b"i", str(int(field)).encode()
    return kind + len(content).to_bytes(8, "big") + content

"""Member ids, and rows by member, as byte strings of exact length: each has one form only."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from protocol.errors import WireError
from protocol.reasons import RejectionReason

ID_BYTES = 16
MAX_SITES = 4096


def table(ids_name: str, rows_name: str, rows: Mapping[str, bytes]) -> dict[str, bytes]:
    """Two byte strings: the keys in ascending order, and their rows, all of one length."""
    members = sorted(rows)
    return {ids_name: pack_ids(members), rows_name: b"".join(rows[m] for m in members)}


def read_table(
    values: Mapping[str, Any], ids_name: str, rows_name: str, width: int
) -> dict[str, bytes]:
    """The rows by member. Errors: WireError."""
    members = unpack_ids(values[ids_name])
    return dict(zip(members, rows_of(values[rows_name], len(members), width), strict=True))


def pack_ids(members: Sequence[str]) -> bytes:
    """16 bytes for each member id."""
    return b"".join(bytes.fromhex(member) for member in members)


def unpack_ids(data: bytes) -> tuple[str, ...]:
    """Inverse of `pack_ids`. Errors: WireError where ids are not distinct and ascending."""
    members = tuple(row.hex() for row in rows_of(data, len(data) // ID_BYTES, ID_BYTES))
    expect_ascending(members)
    return members


def rows_of(data: bytes, count: int, width: int) -> list[bytes]:
    """A byte string cut into rows. Errors: WireError where it is longer or shorter."""
    demand(len(data) == count * width and count <= MAX_SITES, f"{count} rows of {width} bytes")
    return [data[start : start + width] for start in range(0, len(data), width)]


def expect_ascending(members: Sequence[str]) -> None:
    """Errors: WireError where members are not distinct and in ascending order."""
    ascending = all(a < b for a, b in itertools.pairwise(members))
    demand(ascending, "distinct members in ascending order")


def demand(holds: bool, what: str) -> None:
    """Errors: WireError(MALFORMED) unless it holds."""
    if not holds:
        raise WireError(RejectionReason.MALFORMED, f"Expected {what}.")

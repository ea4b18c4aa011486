"""The one array of a message: a whole adapter, flat, in NumPy's format, read without trust."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

from protocol.adapter import FloatArray, pack
from protocol.errors import WireError, shown
from protocol.reasons import RejectionReason

# The array's name in its record.
FLAT = "adapter"
MAX_ADAPTER_BYTES = 2**31
# A flat array's header has 118 characters.
_MAX_HEADER_CHARACTERS = 256


def array_record(tensors: Mapping[str, FloatArray]) -> ArrayRecord:
    """The record that carries these tensors, packed in sorted order."""
    return ArrayRecord({FLAT: Array(pack(tensors))})


def flat_array(record: ArrayRecord) -> FloatArray:
    """The one array (n,) of a record. Its declared form is checked before its bytes are parsed.

    Errors: WireError with a RejectionReason; ValueError where the bytes are not in the format.
    """
    expect_keys(record, {FLAT})
    array = record[FLAT]
    if array.stype != "numpy.ndarray" or array.dtype != "float32":
        raise WireError(
            RejectionReason.WRONG_DTYPE,
            f"Expected float32 as numpy.ndarray, got {shown(array.dtype)} as {shown(array.stype)}.",
        )
    if len(array.data) > MAX_ADAPTER_BYTES:
        raise WireError(
            RejectionReason.WRONG_SHAPE,
            f"Expected at most {MAX_ADAPTER_BYTES} bytes, got {len(array.data)}.",
        )
    return _read_npy(array.data)


def _read_npy(data: bytes) -> FloatArray:
    """The flat float32 array in NumPy's format, as a read-only view of its bytes.

    Read by hand, because NumPy's own reader allocates whatever size a header announces, follows
    nested headers down, opens zip files and ignores what comes after the array.
    """
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("Expected NumPy's format 1.0.")
    shape, _, dtype = np.lib.format.read_array_header_1_0(
        stream, max_header_size=_MAX_HEADER_CHARACTERS
    )
    if dtype != np.float32:
        raise WireError(RejectionReason.WRONG_DTYPE, f"Expected float32 data, got {dtype}.")
    num_bytes = len(data) - stream.tell()
    if len(shape) != 1 or 4 * shape[0] != num_bytes:
        raise WireError(
            RejectionReason.WRONG_SHAPE,
            f"Expected one flat array that fills the record, got {shape} in {num_bytes} bytes.",
        )
    flat: FloatArray = np.frombuffer(data, dtype=np.float32, offset=stream.tell())
    return flat


def expect_keys(mapping: Mapping[str, Any], names: set[str]) -> None:
    """Errors: WireError(MALFORMED) naming unknown and missing keys."""
    if set(mapping) != names:
        unknown, missing = sorted(set(mapping) - names), sorted(names - set(mapping))
        raise WireError(
            RejectionReason.MALFORMED,
            f"Unknown keys {shown(unknown)}, missing keys {shown(missing)}.",
        )

"""One record of a message, taken without Flower's `array_records`, `config_records` and the like.

Those properties build a view that refers to itself and to the whole message: whoever has used one
on a reply of a hundred megabytes keeps it in memory until the garbage collector happens to run.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, RecordDict


def config_of(content: RecordDict, name: str) -> ConfigRecord:
    """Errors: KeyError where there is no ConfigRecord of this name."""
    record = content[name]
    if not isinstance(record, ConfigRecord):
        raise KeyError(name)
    return record


def arrays_of(content: RecordDict, name: str) -> ArrayRecord:
    """Errors: KeyError where there is no ArrayRecord of this name."""
    record = content[name]
    if not isinstance(record, ArrayRecord):
        raise KeyError(name)
    return record

"""A run's Hydra overrides as the one text that Flower's run configuration has room for."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

OVERRIDES_KEY = "overrides"


def joined(overrides: Sequence[str]) -> str:
    """One text; `split` gives the same words back, whatever spaces and quotes they hold."""
    return shlex.join(overrides)


def split(text: str) -> list[str]:
    """The words of a text, as a shell would split it. Errors: ValueError for an open quote."""
    return shlex.split(text)

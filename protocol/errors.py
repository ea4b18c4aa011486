"""Errors: each says what was expected, what came, where, and what to do."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from pathlib import Path

_LONGEST_VALUE, _LONGEST_PROBLEM, _LONGEST_TEXT = 80, 1_000, 8_000
_MOST_PROBLEMS = 20


class FoedusError(Exception):
    """Anything foedus refuses. The message is written for the person who has to act on it."""


class SettingsError(FoedusError):
    """One or more settings are wrong; they are listed at once, the first 20 in the text.

    `problems` holds one sentence per setting.
    """

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.where = where
        self.problems = tuple(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        listed = [_cut(problem, _LONGEST_PROBLEM) for problem in self.problems[:_MOST_PROBLEMS]]
        if more := len(self.problems) - len(listed):
            listed.append(f"and {more} more")
        lines = "\n".join(f"  - {line}" for line in listed)
        super().__init__(f"{len(self.problems)} {noun} in {where}:\n{lines}")


class WireError(FoedusError):
    """A message does not follow the agreed schema.

    `code` is one of the protocol's reason codes; it alone may travel. The text stays where it was
    raised, because it may quote what came.
    """

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(text)


class Refusal(FoedusError):
    """A site declines a request. `code` travels to the coordinator; the text stays at the site."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(text)


def shown(value: object) -> str:
    """A value from elsewhere as a message quotes it: on one line, 80 characters of it at most."""
    try:
        return _cut(repr(value), _LONGEST_VALUE)
    except (ValueError, RecursionError):
        # Whole numbers of over 4300 digits, lists within lists within lists.
        return f"a {type(value).__name__} too large to show"


def text_of(error: FoedusError) -> str:
    """The message of an error about what somebody sent, cut to what a log has room for."""
    return _cut(str(error), _LONGEST_TEXT)


def _cut(text: str, most_characters: int) -> str:
    return text if len(text) <= most_characters else f"{text[:most_characters]}…"


def place_of(error: Exception) -> str:
    """Type and code location of an exception, without its message, which might quote a contract;
    of the operating system's errors also what they mean, such as "No space left on device"."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    means = f" ({os.strerror(error.errno)})" if isinstance(error, OSError) and error.errno else ""
    return f"{type(error).__name__} at {where}{means}"

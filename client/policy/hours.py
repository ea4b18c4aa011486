"""When a site works: weekly windows in local time, such as "Mon-Fri 19:00-07:00"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_FORM = 'expected days and times such as "Mon-Fri 19:00-07:00" or "Sat,Sun 00:00-24:00"'
_TIME = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])")
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True)
class Window:
    """days: 0 = Monday. start and end: minutes of the day; end <= start is on the next day."""

    days: frozenset[int]
    start: int
    end: int

    def holds(self, at: datetime) -> bool:
        """True where the wall clock shows a time within; the end itself is outside."""
        minute = at.hour * 60 + at.minute
        if self.start < self.end:
            return at.weekday() in self.days and self.start <= minute < self.end
        yesterday = (at - timedelta(days=1)).weekday()
        return (at.weekday() in self.days and minute >= self.start) or (
            yesterday in self.days and minute < self.end
        )


def parse_hours(text: str) -> Window | str:
    """The window, or what is wrong with the text."""
    words = text.split()
    if len(words) != 2 or words[1].count("-") != 1:
        return f"{_FORM}, got {text!r}."
    days = _days(words[0])
    start, end = (_minutes(part) for part in words[1].split("-"))
    if days is None or start is None or end is None or start == _DAY_MINUTES:
        return f"{_FORM}, got {text!r}."
    return Window(days, start, end)


def within_hours(hours: Sequence[str], at: datetime) -> bool:
    """True in any of the windows, or where there are none. hours: texts that parse."""
    windows = [window for text in hours if isinstance(window := parse_hours(text), Window)]
    return not hours or any(window.holds(at) for window in windows)


def _days(text: str) -> frozenset[int] | None:
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            return None
        start = DAYS.index(first)
        length = (DAYS.index(last) - start) % 7 if dash else 0
        days.update((start + step) % 7 for step in range(length + 1))
    return frozenset(days)


def _minutes(text: str) -> int | None:
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    minutes = int(match[1]) * 60 + int(match[2])
    return minutes if minutes <= _DAY_MINUTES else None

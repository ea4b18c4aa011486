"""Hours: weekly windows by the wall clock, over midnight and over the week's end."""

from __future__ import annotations

from datetime import datetime

import pytest

from client.policy.hours import parse_hours, within_hours
from client.policy.run_checks import check_hours
from client.policy.settings import PolicySettings
from protocol.errors import Refusal
from protocol.reasons import RefusalReason

# 2 November 2026 is a Monday.
MONDAY = 2


def at(day: int, time: str) -> datetime:
    hour, minute = time.split(":")
    return datetime(2026, 11, MONDAY + day, int(hour), int(minute), 30)


@pytest.mark.parametrize(
    ("window", "day", "time", "inside"),
    [
        ("Mon 09:00-17:00", 0, "08:59", False),
        ("Mon 09:00-17:00", 0, "09:00", True),
        ("Mon 09:00-17:00", 0, "16:59", True),
        ("Mon 09:00-17:00", 0, "17:00", False),
        ("Mon 09:00-17:00", 1, "12:00", False),
        ("Mon-Fri 19:00-07:00", 0, "06:59", False),  # Sunday is not among the days.
        ("Mon-Fri 19:00-07:00", 0, "19:00", True),
        ("Mon-Fri 19:00-07:00", 1, "06:59", True),
        ("Mon-Fri 19:00-07:00", 1, "07:00", False),
        ("Mon-Fri 19:00-07:00", 5, "06:59", True),  # The night that Friday began.
        ("Mon-Fri 19:00-07:00", 5, "19:00", False),
        ("Sat-Sun 00:00-24:00", 5, "00:00", True),
        ("Sat-Sun 00:00-24:00", 6, "23:59", True),
        ("Sat-Sun 00:00-24:00", 0, "00:00", False),
        ("Fri-Mon 10:00-11:00", 6, "10:30", True),
        ("Fri-Mon 10:00-11:00", 3, "10:30", False),
        ("Tue,Thu 10:00-11:00", 1, "10:30", True),
        ("Tue,Thu 10:00-11:00", 2, "10:30", False),
        ("Wed 12:00-12:00", 3, "11:59", True),  # A day and a night.
        ("Wed 12:00-12:00", 3, "12:00", False),
    ],
)
def test_a_window_holds_from_its_start_to_before_its_end(
    window: str, day: int, time: str, inside: bool
) -> None:
    assert within_hours([window], at(day, time)) is inside


def test_any_of_several_windows_will_do_and_none_means_always() -> None:
    hours = ["Mon-Fri 19:00-07:00", "Sat-Sun 00:00-24:00"]
    assert within_hours(hours, at(5, "12:00")) and within_hours(hours, at(2, "23:00"))
    assert not within_hours(hours, at(2, "12:00"))
    assert within_hours([], at(2, "12:00"))


@pytest.mark.parametrize(
    "text",
    ["", "Mon", "Mon 9:00-17:00", "Mo 09:00-17:00", "Mon 09:00", "Mon 09:00-25:00", "Mon-Fri",
     "Mon 24:00-07:00", "Mon 09:00-24:30", "Mon 09:60-10:00", "Mon- 09:00-10:00",
     "Mon 09:00-10:00 CET", ",Mon 09:00-10:00", "mon 09:00-10:00"],
)  # fmt: skip
def test_what_is_no_window_is_said_with_an_example(text: str) -> None:
    problem = parse_hours(text)
    assert isinstance(problem, str) and "Mon-Fri 19:00-07:00" in problem and repr(text) in problem


def test_outside_its_hours_a_site_declines_with_a_reason_of_its_own() -> None:
    policy = PolicySettings(hours=("Mon-Fri 19:00-07:00",))
    check_hours(policy, at(0, "20:00"))
    with pytest.raises(Refusal, match=r"Mon-Fri 19:00-07:00; it is Mon 12:00") as refused:
        check_hours(policy, at(0, "12:00"))
    assert refused.value.code == RefusalReason.OUTSIDE_HOURS

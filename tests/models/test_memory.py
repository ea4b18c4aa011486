"""The allocator's settings are taken where glibc is, and refused nowhere with an error."""

from __future__ import annotations

import platform

from models.memory import keep_freed_memory


def test_glibc_takes_every_setting_and_other_libraries_are_left_alone() -> None:
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")

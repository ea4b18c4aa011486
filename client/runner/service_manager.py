"""Telling systemd how the supervisor is (the sd_notify protocol), where systemd started it."""

from __future__ import annotations

import os
import socket
import time


class ServiceManager:
    """Does nothing where NOTIFY_SOCKET is not set, so that no caller need ask."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        # Twice as often as is asked for.
        self._beat_seconds = int(microseconds) / 2e6 if microseconds.isdigit() else 0.0
        self._next_beat = 0.0

    def ready(self) -> None:
        """Started."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """About to end."""
        self._send("STOPPING=1")

    def beat(self) -> None:
        """Alive; call it as often as you like."""
        now = time.monotonic()
        if self._beat_seconds and now >= self._next_beat:
            self._next_beat = now + self._beat_seconds
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the zero byte of an abstract socket.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            try:
                channel.sendto(text.encode(), address)
            except OSError:
                # systemd is not there any more: the site works on without it.
                return

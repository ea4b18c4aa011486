"""systemd hears that the site is ready, how it is, and that it is alive."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from client.runner.service_manager import ServiceManager


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_what_it_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@foedus-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0", 1) if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        manager = ServiceManager()
        assert "NOTIFY_SOCKET" not in os.environ and "WATCHDOG_USEC" not in os.environ
        manager.ready()
        manager.status("Connected.")
        manager.beat()
        manager.beat()
        manager.stopping()
        heard = [systemd.recv(1000).decode() for _ in range(4)]
    assert heard == ["READY=1", "STATUS=Connected.", "WATCHDOG=1", "STOPPING=1"]
    manager.beat()
    manager.status("systemd has gone")


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    manager = ServiceManager()
    manager.ready()
    manager.beat()

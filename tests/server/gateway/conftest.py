"""One coordinator with three members, and a run, for the tests that only ask it things."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.gateway.little_coordinator import (
    Coordinator,
    Firm,
    PlayedRun,
    found,
    little_app,
    up,
)

FIRMS = (Firm("Ash"), Firm("Birch"), Firm("Cedar"))


@pytest.fixture(scope="session")
def ash() -> Firm:
    return FIRMS[0]


@pytest.fixture(scope="session")
def birch() -> Firm:
    return FIRMS[1]


@pytest.fixture(scope="session")
def cedar() -> Firm:
    """The one that nobody expels."""
    return FIRMS[2]


@pytest.fixture(scope="session")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """Its limits are so small that a test can go beyond each in a second or two."""
    folder = found(
        tmp_path_factory.mktemp("coordinator") / "oak",
        [firm.entry() for firm in FIRMS],
        max_body_mib=6,
        max_connections=60,
        max_connections_per_address=40,
        header_seconds=2.0,
        body_idle_seconds=2.0,
        long_poll_seconds=4.0,
    )
    with up(folder) as running:
        yield running


@pytest.fixture(scope="session")
def run(coordinator: Coordinator, tmp_path_factory: pytest.TempPathFactory) -> PlayedRun:
    return PlayedRun(coordinator, little_app(tmp_path_factory.mktemp("app") / "little"))

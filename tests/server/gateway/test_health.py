"""/health says in words what is wrong, and that by its status."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from flwr.server.superlink.linkstate import LinkState

from protocol.errors import FoedusError
from server.consortium.registry import NodeRegistry
from server.gateway.belongings import Database
from server.gateway.health import LEAST_CERTIFICATE_DAYS, HealthApp
from server.gateway.metrics import Metrics
from server.gateway.roster_watch import RosterWatch
from server.gateway.superlink import superlink_app
from tests.server.gateway.little_coordinator import Firm, found

# Making a database of SuperLink's takes seconds.
pytestmark = pytest.mark.slow


def unreachable() -> AbstractContextManager[NodeRegistry]:
    raise FoedusError("SuperLink is down.")


class Scene:
    """A coordinator's folder, SuperLink's database, the roster's watch, and who asks for health."""

    def __init__(self, place: Path, **settings: Any) -> None:
        self.folder = found(place / "oak", [Firm("Ash").entry()], **settings)
        self.folder.state.mkdir(exist_ok=True)
        superlink = superlink_app(self.folder, self.folder.settings())
        self.state: LinkState = superlink.state.linkstate_factory.state()
        self.database = cast(Database, self.state)
        self.roster = RosterWatch(self.folder, unreachable)
        self._app = HealthApp(self.folder, self.database, self.roster, Metrics())

    def get(self, path: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.get(path)

        return asyncio.run(ask())

    def is_well(self) -> bool:
        return self.health() == (200, [])

    def health(self) -> tuple[int, list[str]]:
        answer = self.get("/health")
        body: dict[str, Any] = answer.json()
        healthy = "foedus_healthy 1.0" in self.get("/metrics").text
        assert healthy == (answer.status_code == 200)
        return answer.status_code, body["problems"]


def test_without_problems_all_is_well(tmp_path: Path) -> None:
    assert Scene(tmp_path).is_well()


def test_little_free_space_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path)
    monkeypatch.setattr("server.gateway.health.LEAST_FREE_BYTES", 1 << 80)
    status, (problem,) = scene.health()
    assert status == 503 and "are free for the consortium's folder" in problem


def test_a_certificate_that_ends_soon_is_a_problem_and_so_is_none(tmp_path: Path) -> None:
    days = int(LEAST_CERTIFICATE_DAYS) - 3
    scene = Scene(tmp_path, server_certificate_days=days)
    status, (problem,) = scene.health()
    assert status == 503
    assert problem == f"The server certificate expires in {days} days: server renew."
    scene.folder.server_certificate.unlink()
    status, (problem,) = scene.health()
    assert status == 503 and "cannot be read" in problem


def test_a_database_that_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.database.query("DROP TABLE node", {})
    status, (problem,) = scene.health()
    assert status == 503 and "database does not answer" in problem


def test_a_problem_with_the_roster_is_one_while_it_lasts(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    sound = scene.folder.roster.read_text()
    scene.folder.roster.write_text("{}\n")
    scene.roster.look(time.time())
    status, problems = scene.health()
    assert status == 503
    assert [problem.partition(":")[0] for problem in problems] == [
        "The roster is kept as it was",
        "SuperLink's nodes could not be compared with the roster",
    ]
    scene.folder.roster.write_text(sound)
    scene.roster.look(time.time())
    status, (problem,) = scene.health()
    assert status == 503 and problem.endswith("SuperLink is down.")

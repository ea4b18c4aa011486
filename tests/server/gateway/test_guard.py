"""The guard before a real SuperLink and its database, in one process and without a network."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import cast

import httpx
import pytest
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PullMessagesResponse
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate import LinkState
from google.protobuf.message import Message as ProtobufMessage
from starlette.types import Message

from protocol.consortium.signed_roster import MemberEntry
from protocol.errors import FoedusError
from server.consortium.registry import NodeRegistry
from server.gateway.asgi import post_scope
from server.gateway.belongings import Belongings, Database
from server.gateway.fleet_rules import FleetRules
from server.gateway.guard import Guard
from server.gateway.limits import Limits
from server.gateway.long_poll import ArrivalBoard
from server.gateway.member_api import MemberApi
from server.gateway.metrics import Metrics
from server.gateway.node_identity import NodeGate
from server.gateway.presence import Nodes, Presence
from server.gateway.redelivery import Redelivery
from server.gateway.reply_check import ReplyCheck
from server.gateway.reply_removal import Removing, ReplyRemoval
from server.gateway.roster_watch import RosterWatch
from server.gateway.superlink import superlink_app
from server.gateway.unread import UnreadBytes
from server.gateway.uploads import Uploads
from server.gateway.whole_replies import WholeReplies
from tests.server.gateway.little_coordinator import Firm, found, write_roster
from tests.server.gateway.signed_headers import headers

# Making a database of SuperLink's takes seconds.
pytestmark = pytest.mark.slow

ASH, BIRCH = Firm("Ash"), Firm("Birch")
PULL, ACTIVATE = "/v1/fleet/pull-messages", "/v1/fleet/activate-node"
PUSH = "/v1/fleet/push-object"
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
PATIENCE_SECONDS = 60.0


def unreachable() -> AbstractContextManager[NodeRegistry]:
    """SuperLink in the eyes of the roster's watch: its nodes stay what they are."""
    raise FoedusError("down")


class Scene:
    """SuperLink has nodes of Ash and Birch, whatever the roster says."""

    def __init__(self, place: Path) -> None:
        self.folder = found(place / "oak", [ASH.entry(), BIRCH.entry()], long_poll_seconds=1.0)
        self.folder.state.mkdir(exist_ok=True)
        settings = self.folder.settings()
        superlink = superlink_app(self.folder, settings)
        self.state: LinkState = superlink.state.linkstate_factory.state()
        self.database = cast(Database, self.state)
        self.node_id = {
            firm: self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, firm.public_key, 0)
            for firm in (ASH, BIRCH)
        }
        self.roster = RosterWatch(self.folder, unreachable)
        self.board, self.limits = ArrivalBoard(), Limits.of(settings)
        removal = ReplyRemoval(cast(Removing, self.state))
        rules = FleetRules(
            Belongings(self.database),
            Uploads(WholeReplies()),
            UnreadBytes(self.database, removal),
            ReplyCheck(self.database, self.state.object_store, removal),
            self.limits,
            Presence(cast(Nodes, self.state)),
        )
        self.guard = Guard(
            superlink,
            NodeGate(self.roster.admits, self.state.get_node_id_by_public_key, LONG_AGO),
            rules,
            Redelivery(self.database),
            self.board,
            MemberApi(lambda: self.roster.chain, {}, self.limits),
            self.limits,
            Metrics(),
        )

    async def post(self, path: str, firm: Firm) -> httpx.Response:
        """What the firm's node gets that activates itself or asks for messages."""
        requests: dict[str, ProtobufMessage] = {
            PULL: PullMessagesRequest(node=Node(node_id=self.node_id[firm])),
            ACTIVATE: ActivateNodeRequest(public_key=firm.public_key, heartbeat_interval=30.0),
        }
        body = requests[path].SerializeToString()
        transport = httpx.ASGITransport(self.guard)
        async with httpx.AsyncClient(transport=transport, base_url="https://here") as client:
            return await client.post(path, headers=headers(firm), content=body)

    def answers(self, path: str, firm: Firm) -> tuple[int, bytes]:
        answer = self.run(lambda: self.post(path, firm))
        return answer.status_code, answer.content

    def run(self, work: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        async def all_of_it() -> httpx.Response:
            return await asyncio.wait_for(work(), PATIENCE_SECONDS)

        return asyncio.run(all_of_it())

    def expel_ash(self) -> None:
        self.set_members(BIRCH.entry())

    def set_members(self, *entries: MemberEntry) -> None:
        write_roster(self.folder, entries)
        self.roster.look(time.time())

    def refuse_changes_of_nodes(self) -> None:
        """As a disk that is full would, for this table alone."""
        self.database.query(
            "CREATE TRIGGER full BEFORE UPDATE ON node BEGIN SELECT RAISE(ABORT, 'full'); END", {}
        )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


NO_MESSAGE = (200, PullMessagesResponse().SerializeToString())
UNAUTHENTICATED = (401, b"")


def test_a_key_that_superlink_knows_and_the_roster_does_not_is_refused(scene: Scene) -> None:
    assert scene.answers(PULL, ASH) == NO_MESSAGE
    scene.expel_ash()
    for path in (PULL, ACTIVATE):
        assert scene.answers(path, ASH) == UNAUTHENTICATED
    assert scene.answers(PULL, BIRCH) == NO_MESSAGE


def test_a_key_whose_admission_has_ended_is_refused_although_superlink_knows_it(
    scene: Scene,
) -> None:
    now = int(time.time())
    scene.set_members(replace(ASH.entry(), admitted=now - 100, expires=now), BIRCH.entry())
    assert scene.answers(PULL, ASH) == UNAUTHENTICATED
    assert scene.answers(PULL, BIRCH) == NO_MESSAGE


def test_a_question_that_is_held_gets_no_message_once_the_member_is_expelled(scene: Scene) -> None:
    async def work() -> httpx.Response:
        asking = asyncio.create_task(scene.post(PULL, ASH))
        while not scene.board.held:
            await asyncio.sleep(0.01)
        scene.expel_ash()
        scene.board.announce("message", scene.node_id[ASH], ())
        return await asking

    assert scene.run(work).status_code == 401


def test_of_one_firm_a_few_large_bodies_are_read_at_a_time(scene: Scene) -> None:
    """The others wait unread; what is small and what is another firm's does not wait for them."""
    reading, sent = 0, asyncio.Event()

    async def receive() -> Message:
        nonlocal reading
        reading += 1
        await sent.wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def ignore(message: Message) -> None:
        return None

    async def work() -> httpx.Response:
        most = scene.limits.bodies_at_a_time
        pushes = []
        for _ in range(most + 3):
            signed = [(name.encode(), value.encode()) for name, value in headers(ASH).items()]
            scope = post_scope(PUSH, [*signed, (b"content-length", b"1000000")], None)
            pushes.append(asyncio.create_task(scene.guard(scope, receive, ignore)))
        while reading < most:
            await asyncio.sleep(0.01)
        small = await scene.post(PULL, ASH)
        assert reading == most
        sent.set()
        await asyncio.gather(*pushes)
        assert reading == most + 3
        return small

    assert scene.run(work).status_code == 200


def test_a_question_is_answered_although_it_cannot_be_noted(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """A SuperNode whose question fails ends. The problem is told once, and noting tried again."""
    scene.refuse_changes_of_nodes()
    with caplog.at_level(logging.ERROR, "foedus.gateway"):
        assert scene.answers(PULL, ASH) == NO_MESSAGE
        assert scene.answers(PULL, ASH) == NO_MESSAGE
    assert len([r for r in caplog.records if "is not noted" in r.getMessage()]) == 1
    online = "SELECT COUNT(*) AS online FROM node WHERE status = 'online'"
    assert scene.database.query(online, {}) == [{"online": 0}]
    scene.database.query("DROP TRIGGER full", {})
    assert scene.answers(PULL, ASH) == NO_MESSAGE
    assert scene.database.query(online, {}) == [{"online": 1}]


def test_a_database_that_does_not_answer_is_told_in_a_way_that_supernodes_try_again(
    scene: Scene,
) -> None:
    assert scene.answers(ACTIVATE, ASH)[0] == 200
    scene.refuse_changes_of_nodes()
    status, body = scene.answers(ACTIVATE, ASH)
    assert (status, json.loads(body)) == (503, {"refused": "unavailable"})
    scene.database.query("DROP TABLE node", {})
    assert scene.answers(PULL, ASH)[0] == 503

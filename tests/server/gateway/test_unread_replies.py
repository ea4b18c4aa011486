"""A firm's replies that nobody has read are bounded; those that nobody will read do not count."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.proto.control_pb2 import StopRunRequest

from tests.server.gateway.little_coordinator import (
    Coordinator,
    Firm,
    FirmNode,
    PlayedRun,
    Reply,
    Told,
    found,
    little_app,
    up,
    wait_for,
)

pytestmark = pytest.mark.slow

ASH, BIRCH = Firm("Ash"), Firm("Birch")
MIB = 1 << 20
TOO_MUCH = '{"refused": "too_much_unread"}'


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    place = tmp_path_factory.mktemp("unread") / "oak"
    entries = [ASH.entry(), BIRCH.entry()]
    with up(found(place, entries, max_unread_mib=1, long_poll_seconds=1.0)) as running:
        yield running


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return little_app(tmp_path_factory.mktemp("app") / "little")


@pytest.fixture
def run(coordinator: Coordinator, app: Path) -> Iterator[PlayedRun]:
    played = PlayedRun(coordinator, app)
    yield played
    stop(coordinator, played)


@pytest.fixture
def ash(coordinator: Coordinator) -> Iterator[FirmNode]:
    node = FirmNode.activate(coordinator, ASH)
    yield node
    node.leave()


def stop(coordinator: Coordinator, run: PlayedRun) -> None:
    with coordinator.control() as control:
        control.StopRun(StopRunRequest(run_id=run.run_id))


def asked(run: PlayedRun, node: FirmNode, ttl: float | None = None) -> Told:
    """A message that the node has received."""
    (sent,) = run.tell(node.node_id, ttl=ttl)
    told = wait_for(node.pull)
    assert told.message_id == sent
    node.confirm(told)
    return told


def large(node: FirmNode, told: Told) -> Reply:
    """Two of them are too much."""
    values = np.random.default_rng().integers(0, 256, 3 * MIB // 4, dtype=np.uint8)
    return node.reply(told, RecordDict({"a": ArrayRecord({"w": Array(values)})}))


def is_refused(node: FirmNode, told: Told) -> bool:
    """True where the node has too much unread to send another large reply."""
    try:
        node.push(told, large(node, told))
    except httpx.HTTPStatusError as error:
        assert (error.response.status_code, error.response.text) == (409, TOO_MUCH)
        return True
    return False


def test_what_a_firm_sends_and_the_run_does_not_read_is_bounded_for_each_firm(
    coordinator: Coordinator, run: PlayedRun, ash: FirmNode
) -> None:
    first, second = asked(run, ash), asked(run, ash)
    assert not is_refused(ash, first)
    assert is_refused(ash, second)
    run.serves(coordinator, BIRCH)
    (heard,) = wait_for(lambda: list(run.grid.pull_messages([first.message_id])))
    assert heard.metadata.src_node_id == ash.node_id
    assert not is_refused(ash, asked(run, ash))


def test_replies_of_a_run_that_was_stopped_do_not_count_in_another(
    coordinator: Coordinator, app: Path, ash: FirmNode
) -> None:
    stopped = PlayedRun(coordinator, app)
    assert not is_refused(ash, asked(stopped, ash))
    assert is_refused(ash, asked(stopped, ash))
    stop(coordinator, stopped)
    other = PlayedRun(coordinator, app)
    assert not is_refused(ash, asked(other, ash))
    stop(coordinator, other)


@pytest.mark.parametrize("cut_off", [False, True], ids=["whole", "cut off"])
def test_a_reply_that_came_too_late_is_thrown_away_for_the_next(
    coordinator: Coordinator, run: PlayedRun, ash: FirmNode, cut_off: bool
) -> None:
    """The round is over without it: nobody will ever read it."""
    seconds = 5.0
    late, until = asked(run, ash, ttl=seconds), time.time() + seconds
    reply = large(ash, late)
    begun = ash.client.PushMessages(reply.request)
    for object_id in begun.objects_to_push[: len(begun.objects_to_push) - cut_off]:
        content = reply.objects[object_id]
        assert ash.push_object(late, begun.session_id, object_id, content)
    reply_id = reply.request.messages_list[0].metadata.message_id
    assert lies_there(coordinator, reply_id)
    wait_for(lambda: time.time() > until)
    next_one = asked(run, ash)
    assert not is_refused(ash, next_one)
    assert not lies_there(coordinator, reply_id)
    (heard,) = wait_for(lambda: list(run.grid.pull_messages([next_one.message_id])))
    assert heard.metadata.src_node_id == ash.node_id


def lies_there(coordinator: Coordinator, object_id: str) -> bool:
    database = sqlite3.connect(coordinator.folder.database, timeout=60)
    try:
        found = database.execute("SELECT 1 FROM objects WHERE object_id = ?", (object_id,))
        return found.fetchone() is not None
    finally:
        database.close()

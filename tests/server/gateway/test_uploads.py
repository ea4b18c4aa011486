"""The run hears of a reply when all of it has come, and one site's upload holds up no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import MetricRecord, RecordDict

from server.gateway.uploads import Uploads
from server.gateway.whole_replies import WholeReplies
from tests.server.gateway.little_coordinator import (
    Coordinator,
    Firm,
    FirmNode,
    PlayedRun,
    found,
    little_app,
    up,
    wait_for,
)

SCORES = RecordDict({"m": MetricRecord({"loss": 0.5})})


@pytest.fixture
def nodes(coordinator: Coordinator, ash: Firm, birch: Firm) -> Iterator[tuple[FirmNode, FirmNode]]:
    both = FirmNode.activate(coordinator, ash), FirmNode.activate(coordinator, birch)
    yield both
    for node in both:
        node.leave()


@pytest.mark.slow
def test_a_reply_is_shown_to_the_run_when_its_last_object_has_come(
    run: PlayedRun, nodes: tuple[FirmNode, FirmNode]
) -> None:
    node = nodes[0]
    (sent,) = run.tell(node.node_id)
    told = wait_for(node.pull)
    assert told is not None
    reply = node.reply(told, SCORES)
    begun = node.client.PushMessages(reply.request)
    for object_id in begun.objects_to_push:
        assert list(run.grid.pull_messages([sent])) == []
        assert node.push_object(told, begun.session_id, object_id, reply.objects[object_id])
    (heard,) = run.grid.pull_messages([sent])
    assert heard.content["m"]["loss"] == 0.5


@pytest.mark.slow
def test_a_site_cut_off_while_it_uploads_keeps_no_other_from_being_heard(
    run: PlayedRun, nodes: tuple[FirmNode, FirmNode]
) -> None:
    cut_off, good = nodes
    sent = run.tell(cut_off.node_id, good.node_id)
    told = wait_for(cut_off.pull)
    assert told is not None
    cut_off.client.PushMessages(cut_off.reply(told, SCORES).request)
    other = wait_for(good.pull)
    assert other is not None
    good.push(other, good.reply(other, SCORES))
    (heard,) = run.grid.pull_messages(sent)
    assert heard.metadata.src_node_id == good.node_id


@pytest.mark.slow
@pytest.mark.faults
def test_an_upload_goes_on_where_it_was_after_the_coordinator_restarts(tmp_path: Path) -> None:
    firm = Firm("Ash")
    folder = found(tmp_path / "oak", [firm.entry()])
    with up(folder) as first:
        run = PlayedRun(first, little_app(tmp_path / "little"))
        node = FirmNode.activate(first, firm)
        (sent,) = run.tell(node.node_id)
        told = wait_for(node.pull)
        assert told is not None
        reply = node.reply(told, SCORES)
        begun = node.client.PushMessages(reply.request)
    with up(folder):
        assert list(run.grid.pull_messages([sent])) == []
        for object_id in begun.objects_to_push:
            assert node.push_object(told, begun.session_id, object_id, reply.objects[object_id])
        (heard,) = run.grid.pull_messages([sent])
        assert heard.content["m"]["loss"] == 0.5


def test_a_reply_announced_twice_is_whole_when_the_later_upload_is() -> None:
    uploads = Uploads(WholeReplies())
    uploads.begun("first", "question", ["a", "b"])
    uploads.begun("second", "question", ["b"])
    assert not uploads.object_stored("first", "b")
    assert uploads.unfinished(["question", "other"]) == {"question"}
    assert uploads.object_stored("second", "b")
    assert uploads.unfinished(["question"]) == {"question"}
    uploads.over("second")
    assert uploads.unfinished(["question"]) == set()


def test_an_announcement_that_asks_for_nothing_does_not_complete_one_under_way() -> None:
    uploads = Uploads(WholeReplies())
    uploads.begun("first", "question", ["a"])
    uploads.begun("second", "question", [])
    assert uploads.unfinished(["question"]) == {"question"}

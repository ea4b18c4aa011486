"""One exchange: every reply is handed over as it comes, and silence has an end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from protocol.messages import train_request
from server.exchange import Exchange, exchange
from simulations.engines.in_process import InProcessGrid
from tests.little_sites import UnreliableGrid, good_reply, little_app, little_run, little_state
from tests.small_runs import RUN_ID

RUN = little_run()


def ask(
    grid: InProcessGrid, nodes: int, deadline_seconds: float
) -> tuple[Exchange, list[tuple[int, Message]]]:
    content = train_request(RUN_ID, 1, RUN, little_state(RUN)).to_content()
    messages = [Message(content, node, "train") for node in range(1, nodes + 1)]
    heard: list[tuple[int, Message]] = []
    outcome = exchange(grid, messages, deadline_seconds, lambda n, m: heard.append((n, m)))
    return outcome, heard


def test_every_reply_is_handed_over_with_the_node_that_was_asked() -> None:
    outcome, heard = ask(InProcessGrid(little_app(), 3), 3, 5.0)
    assert [node for node, _ in heard] == [1, 2, 3]
    assert all(reply.metadata.src_node_id == node for node, reply in heard)
    assert (outcome.asked, outcome.silent) == ((1, 2, 3), ())
    assert outcome.seconds < 1.0


def test_each_reply_is_handed_over_before_the_next_site_works() -> None:
    events: list[str] = []

    def respond(node: int, request: Any) -> Any:
        events.append(f"site {node}")
        return good_reply(node, request)

    content = train_request(RUN_ID, 1, RUN, little_state(RUN)).to_content()
    messages = [Message(content, node, "train") for node in (1, 2)]
    grid = InProcessGrid(little_app(respond), 2)
    exchange(grid, messages, 5.0, lambda node, _: events.append(f"reply {node}"))
    assert events == ["site 1", "reply 1", "site 2", "reply 2"]


def test_a_silent_node_is_named_once_the_deadline_has_passed() -> None:
    grid = UnreliableGrid(little_app(), 3, silent={2})
    outcome, heard = ask(grid, 3, 0.3)
    assert [node for node, _ in heard] == [1, 3]
    assert outcome.silent == (2,)
    assert 0.3 <= outcome.seconds < 1.0


def test_a_deadline_ends_an_exchange_in_which_nobody_answers() -> None:
    outcome, heard = ask(UnreliableGrid(little_app(), 2, silent={1, 2}), 2, 0.1)
    assert heard == [] and outcome.silent == (1, 2) and outcome.seconds < 1.0


def test_what_would_come_after_the_deadline_is_not_waited_for() -> None:
    def slow(node: int, request: Any) -> Any:
        time.sleep(0.2)
        return good_reply(node, request)

    outcome, heard = ask(InProcessGrid(little_app(slow), 4), 4, 0.1)
    assert [node for node, _ in heard] == [1]
    assert outcome.silent == (2, 3, 4)


class LosingGrid(InProcessGrid):
    """Answers for one node as SuperLink does where a node is offline or its reply was lost."""

    lost, code = 2, ErrorCode.NODE_UNAVAILABLE

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            if reply.metadata.src_node_id == self.lost:
                answers = reply.metadata.reply_to_message_id
                reply = Message(Error(self.code, "gone"), reply_to=reply)
                reply.metadata.__dict__.update(_src_node_id=1, _reply_to_message_id=answers)
            yield reply


@pytest.mark.parametrize(
    "code",
    [
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ],
)
def test_a_site_that_superlink_answers_for_is_silent_and_accused_of_nothing(code: int) -> None:
    grid = LosingGrid(little_app(), 3)
    grid.code = code
    outcome, heard = ask(grid, 3, 5.0)
    assert [node for node, _ in heard] == [1, 3]
    assert outcome.silent == (2,) and outcome.seconds < 1.0


def test_an_error_that_superlink_does_not_make_is_handed_over() -> None:
    grid = LosingGrid(little_app(), 3)
    grid.code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    outcome, heard = ask(grid, 3, 5.0)
    assert [node for node, _ in heard] == [1, 2, 3] and outcome.silent == ()


def test_a_reply_that_arrives_twice_is_handed_over_twice() -> None:
    outcome, heard = ask(UnreliableGrid(little_app(), 2, twice={1}), 2, 5.0)
    assert sorted(node for node, _ in heard) == [1, 1, 2]
    assert outcome.silent == ()


def test_a_client_that_raises_is_an_error_reply_as_on_a_deployed_node() -> None:
    def fail(node: int, request: Any) -> Any:
        raise RuntimeError("text of a contract")

    outcome, heard = ask(InProcessGrid(little_app(fail), 1), 1, 5.0)
    ((node, reply),) = heard
    assert node == 1 and reply.has_error() and outcome.silent == ()
    assert "contract" not in repr(reply.error)


def test_nobody_asked_is_an_exchange_that_ends_at_once() -> None:
    outcome, heard = ask(InProcessGrid(little_app(), 1), 0, 5.0)
    assert (outcome.asked, outcome.silent, heard) == ((), (), [])


class PickyGrid(InProcessGrid):
    """Takes no message to some nodes, as Flower says by an empty id, and no push of too many."""

    def __init__(self, num_sites: int, refused: set[int], most: int = 1000) -> None:
        super().__init__(little_app(), num_sites)
        self._refused, self._most = refused, most
        self.pushes: list[int] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        self.pushes.append(len(batch))
        if len(batch) > self._most:
            return []
        ids = list(super().push_messages(batch))
        nodes = [message.metadata.dst_node_id for message in batch]
        return ["" if n in self._refused else i for i, n in zip(ids, nodes, strict=True)]


def test_a_cohort_is_asked_in_a_few_pushes() -> None:
    grid = PickyGrid(45, refused=set())
    outcome, heard = ask(grid, 45, 60.0)
    assert grid.pushes == [20, 20, 5]
    assert len(heard) == 45 and outcome.silent == ()


def test_ids_and_nodes_pair_where_some_messages_are_not_taken() -> None:
    outcome, heard = ask(PickyGrid(5, refused={2, 4}), 5, 60.0)
    assert [node for node, _ in heard] == [1, 3, 5]
    assert all(reply.metadata.src_node_id == node for node, reply in heard)
    assert outcome.silent == (2, 4)


def test_whoever_is_in_a_push_that_was_not_taken_is_silent() -> None:
    outcome, heard = ask(PickyGrid(21, refused=set(), most=10), 21, 60.0)
    assert [node for node, _ in heard] == [21]
    assert outcome.silent == tuple(range(1, 21))

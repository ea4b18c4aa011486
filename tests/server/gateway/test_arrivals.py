"""Who is woken when, without any clock or network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message as ProtoMessage
from starlette.types import Message

from server.gateway.asgi import Reply
from server.gateway.body import ClientGone
from server.gateway.long_poll import ArrivalBoard, HeldPoll

EMPTY = Reply(200, (), PullMessagesResponse().SerializeToString())
FULL = Reply(200, (), PullMessagesResponse(messages_list=[ProtoMessage()]).SerializeToString())
LONG_SECONDS = 60.0


async def still_there() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("never set")


async def gone() -> Message:
    return {"type": "http.disconnect"}


class Store:
    """What SuperLink would answer, and how often it was asked."""

    def __init__(self, reply: Reply = EMPTY) -> None:
        self.reply = reply
        self.asked = 0

    async def ask(self) -> Reply:
        self.asked += 1
        return self.reply


def held(board: ArrivalBoard, store: Store, then: Callable[[], None]) -> Reply:
    """What a node gets that asks and, while it waits, sees `then` happen."""

    async def both() -> Reply:
        poll = HeldPoll(board, 7, LONG_SECONDS)
        answer = asyncio.ensure_future(poll.answer(store.ask, still_there))
        while not board.held:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert not answer.done()
        then()
        return await answer

    return asyncio.run(both())


def test_a_waiting_message_is_answered_at_once() -> None:
    store = Store(FULL)
    answer = HeldPoll(ArrivalBoard(), 7, LONG_SECONDS).answer(store.ask, still_there)
    assert asyncio.run(answer) is FULL
    assert store.asked == 1


def test_a_refusal_is_passed_on_at_once() -> None:
    refused = Reply(401, (), b"")
    answer = HeldPoll(ArrivalBoard(), 7, LONG_SECONDS).answer(Store(refused).ask, still_there)
    assert asyncio.run(answer) is refused


def test_the_last_object_wakes_the_node_and_superlink_is_asked_once_more() -> None:
    board, store = ArrivalBoard(), Store()

    def arrive() -> None:
        board.announce("m", 7, {"a", "b"})
        board.object_stored("a")
        store.reply = FULL
        board.object_stored("b")

    assert held(board, store, arrive) is FULL
    assert store.asked == 2
    assert board.held == 0


def test_a_message_that_is_complete_when_announced_wakes_the_node() -> None:
    board, store = ArrivalBoard(), Store()

    def arrive() -> None:
        store.reply = FULL
        board.announce("m", 7, ())

    assert held(board, store, arrive) is FULL


def test_superlink_is_not_asked_while_a_message_is_on_its_way() -> None:
    """It would hand the node a message whose objects are not there yet."""
    board, store = ArrivalBoard(), Store(FULL)
    board.announce("m", 7, {"a"})
    assert board.is_arriving(7) and not board.is_arriving(8)

    def arrive() -> None:
        assert store.asked == 0
        board.object_stored("a")

    assert held(board, store, arrive) is FULL
    assert not board.is_arriving(7)


def test_a_message_whose_objects_stop_coming_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = ArrivalBoard()
    board.announce("m", 7, {"a"})
    monkeypatch.setattr("server.gateway.long_poll.STALLED_SECONDS", -1.0)
    assert not board.is_arriving(7)


def test_when_time_is_up_the_empty_answer_is_given_without_asking_again() -> None:
    store = Store()
    answer = HeldPoll(ArrivalBoard(), 7, 0.05).answer(store.ask, still_there)
    assert asyncio.run(answer) is EMPTY
    assert store.asked == 1


def test_when_time_is_up_while_a_message_arrives_superlink_is_asked_once() -> None:
    board, store = ArrivalBoard(), Store()
    board.announce("m", 7, {"a"})
    assert asyncio.run(HeldPoll(board, 7, 0.05).answer(store.ask, still_there)) is EMPTY
    assert store.asked == 1


def test_for_a_client_that_has_gone_superlink_is_not_asked_again() -> None:
    """A message that is asked for counts as delivered: it would be lost."""
    board, store = ArrivalBoard(), Store()
    with pytest.raises(ClientGone):
        asyncio.run(HeldPoll(board, 7, LONG_SECONDS).answer(store.ask, gone))
    assert store.asked <= 1
    assert board.held == 0


def test_closing_answers_everyone() -> None:
    board = ArrivalBoard()
    assert held(board, Store(), board.close) is EMPTY
    late = Store()
    assert asyncio.run(HeldPoll(board, 7, LONG_SECONDS).answer(late.ask, still_there)) is EMPTY

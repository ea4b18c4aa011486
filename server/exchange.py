"""One exchange: push requests, hand over each reply as it arrives, stop at the deadline.

Flower's own loop waits for everyone, keeps every reply, and sleeps three seconds between pulls.
This one keeps nothing and ends when all have answered or the time is up.

A Grid gives back every reply that is ready of those asked for, so asking for all would bring a
whole cohort's updates into memory in a round where everyone is done. So replies are asked for in
groups that fit a fixed room: one by one where the adapter is large, all at once where it is small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

_MADE_BY_SUPERLINK = {
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
}
_SHORTEST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.2
_LONGEST_REST_SECONDS = 1.0
# Messages of one push, a single request to SuperLink that must not take the 30 s after which Flower
# gives it up.
_MESSAGES_AT_ONCE = 20
# Replies that one pull may bring, in bytes; at least one, however large.
_ROOM_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Exchange:
    """Who was asked and who stayed silent. Node ids are Flower's."""

    asked: tuple[int, ...]
    silent: tuple[int, ...]
    seconds: float


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    deadline_seconds: float,
    on_reply: Callable[[int, Message], None],
    reply_bytes: int = 0,
) -> Exchange:
    """Push `messages` and call on_reply(node id asked, reply) for every reply within the deadline.

    reply_bytes: of an honest reply's arrays; decides how many are pulled at once. A reply that
    arrives twice is handed over twice: telling duplicates apart is admission's work. One that
    nobody has pulled by the deadline is late, wherever it waits. A site for which SuperLink itself
    answers, as it is offline or its reply is lost, is silent.
    """
    started = time.monotonic()
    give_up = started + deadline_seconds
    nodes = [message.metadata.dst_node_id for message in messages]
    pending = _push(grid, messages)
    silent = [n for n in nodes if n not in pending.values()]
    at_once = max(1, _ROOM_BYTES // max(1, reply_bytes))
    pause = _SHORTEST_PAUSE_SECONDS
    while pending:
        began = time.monotonic()
        some_came = _sweep(grid, pending, silent, at_once, give_up, on_reply)
        now = time.monotonic()
        if not pending or now >= give_up:
            break
        if some_came:
            # While replies flow, none has to wait for the next.
            pause = _SHORTEST_PAUSE_SECONDS
            continue
        # One by one, asking is a request for each site and must leave the coordinator some rest. A
        # single question may have been held there until a reply could have come.
        one_by_one = len(pending) > at_once
        rest = min(now - began, _LONGEST_REST_SECONDS) if one_by_one else 0.0
        time.sleep(min(max(pause, rest), give_up - now))
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
    silent.extend(pending.values())
    return Exchange(tuple(sorted(nodes)), tuple(sorted(silent)), time.monotonic() - started)


def _sweep(
    grid: Grid,
    pending: dict[str, int],
    silent: list[int],
    at_once: int,
    give_up: float,
    on_reply: Callable[[int, Message], None],
) -> bool:
    """Ask once for every pending reply, `at_once` of them in a pull; True where any came.

    Nodes that SuperLink answers for move from `pending` to `silent`.
    """
    some_came = False
    waiting = list(pending)
    for start in range(0, len(waiting), at_once):
        for reply in _pulled(grid, waiting[start : start + at_once]):
            some_came = True
            node = pending.pop(reply.metadata.reply_to_message_id, None)
            if node is not None and _is_made_for(node, reply):
                silent.append(node)
            else:
                on_reply(reply.metadata.src_node_id if node is None else node, reply)
            # Else the name would keep it alive while the next one is pulled.
            del reply
        if time.monotonic() >= give_up:
            break
    return some_came


def _is_made_for(node: int, reply: Message) -> bool:
    """True where SuperLink answers in the node's place, which no node can bring about."""
    return (
        reply.has_error()
        and reply.metadata.src_node_id != node
        and reply.error.code in _MADE_BY_SUPERLINK
    )


def _pulled(grid: Grid, message_ids: list[str]) -> Iterator[Message]:
    """The replies that are ready, each let go of here as it is handed on."""
    replies = list(grid.pull_messages(message_ids))
    replies.reverse()
    while replies:
        yield replies.pop()


def _push(grid: Grid, messages: Sequence[Message]) -> dict[str, int]:
    """Message id -> node id, for every message that was taken."""
    pending: dict[str, int] = {}
    for start in range(0, len(messages), _MESSAGES_AT_ONCE):
        batch = messages[start : start + _MESSAGES_AT_ONCE]
        # In the messages' order, with nothing in place of one that was not taken.
        message_ids = list(grid.push_messages(batch))
        if len(message_ids) != len(batch):
            # Flower gives no ids at all where a push is too large for it, and has logged that.
            continue
        pending |= {
            message_id: message.metadata.dst_node_id
            for message_id, message in zip(message_ids, batch, strict=True)
            if message_id
        }
    return pending

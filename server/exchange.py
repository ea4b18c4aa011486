"""One exchange: push requests, hand over each reply as it arrives, stop at the deadline.

Flower's own loop waits for everyone, keeps every reply, and sleeps three seconds between pulls.
This one keeps nothing and ends when all have answered or the time is up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

_SHORTEST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.2


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
) -> Exchange:
    """Push `messages` and call on_reply(node id asked, reply) for every reply within the deadline.

    A reply that arrives twice is handed over twice: telling duplicates apart is admission's work.
    """
    started = time.monotonic()
    give_up = started + deadline_seconds
    nodes = [message.metadata.dst_node_id for message in messages]
    pending = _push(grid, messages)
    silent_at_push = [n for n in nodes if n not in pending.values()]
    pause = _SHORTEST_PAUSE_SECONDS
    while pending:
        replies = list(grid.pull_messages(list(pending)))
        for reply in replies:
            node = pending.pop(reply.metadata.reply_to_message_id, None)
            on_reply(reply.metadata.src_node_id if node is None else node, reply)
        if not pending or time.monotonic() >= give_up:
            break
        if replies:
            # While replies flow, none has to wait for the next.
            pause = _SHORTEST_PAUSE_SECONDS
            continue
        time.sleep(min(pause, max(0.0, give_up - time.monotonic())))
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
    silent = tuple(sorted([*silent_at_push, *pending.values()]))
    return Exchange(tuple(sorted(nodes)), silent, time.monotonic() - started)


def _push(grid: Grid, messages: Sequence[Message]) -> dict[str, int]:
    """Message id -> node id. One push for each message, so that ids and nodes pair for certain."""
    pending: dict[str, int] = {}
    for message in messages:
        for message_id in grid.push_messages([message]):
            if message_id:
                pending[message_id] = message.metadata.dst_node_id
    return pending

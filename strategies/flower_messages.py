"""What Flower's stock loop needs around a strategy: cohorts, requests, replies, mean metrics.

foedus's own server loop does these things itself, with fuller admission; here they let
``Strategy.start`` drive the same strategies.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from flwr.app import Message, MessageType, MetricRecord
from flwr.serverapp import Grid

from protocol.adapter import l2_norm
from protocol.errors import WireError
from protocol.initial import derive_seed
from protocol.messages import ExpectedReply, Reply, Request
from protocol.reasons import RejectionReason
from protocol.settings import FederationSettings

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_MESSAGE_TYPES: dict[Literal["train", "evaluate"], str] = {
    "train": MessageType.TRAIN,
    "evaluate": MessageType.EVALUATE,
}


def sample_cohort(grid: Grid, settings: FederationSettings, round_: int) -> list[int]:
    """Node ids asked in this round: max(min_cohort, cohort_fraction of all), drawn from the seed.

    Waits at most ``deadline_seconds`` for ``min_cohort`` nodes (Flower's own sampling waits without
    end); returns none, and says so, where they do not come.
    """
    give_up = time.monotonic() + settings.deadline_seconds
    while len(nodes := sorted(grid.get_node_ids())) < settings.min_cohort:
        if time.monotonic() >= give_up:
            logger.warning(
                "Round %d: expected %d sites or more, got %d within %.0f s. Nobody is asked.",
                round_, settings.min_cohort, len(nodes), settings.deadline_seconds,
            )  # fmt: skip
            return []
        time.sleep(_POLL_SECONDS)
    size = max(settings.min_cohort, math.ceil(settings.cohort_fraction * len(nodes)))
    draw = random.Random(derive_seed(settings.seed, "cohort", round_))
    return sorted(draw.sample(nodes, min(size, len(nodes))))


def request_messages(request: Request, node_ids: Iterable[int]) -> list[Message]:
    """One message for each node, all with the same content."""
    content = request.to_content()
    return [
        Message(
            content=content,
            message_type=_MESSAGE_TYPES[request.kind],
            dst_node_id=node_id,
            group_id=str(request.round),
        )
        for node_id in node_ids
    ]


def parsed_replies(
    replies: Iterable[Message], expected: ExpectedReply, norm_bound: float
) -> Iterator[tuple[int, Reply]]:
    """(node id, reply) for each reply that follows the schema; the others are logged with a reason.

    norm_bound: L2 over a training update's tensors together; 1e-4 of it is left for float rounding.
    """
    seen: set[int] = set()
    for message in replies:
        node_id = message.metadata.src_node_id
        try:
            if message.has_error():
                raise WireError(RejectionReason.ERROR_REPLY, "an error instead of a reply")
            if node_id in seen:
                raise WireError(RejectionReason.DUPLICATE, "a second reply")
            reply = expected.parse(message.content)
            norm = l2_norm(reply.update)
            if norm > norm_bound * (1 + 1e-4):
                raise WireError(
                    RejectionReason.NORM_OVER_BOUND,
                    f"expected an update of L2 norm {norm_bound} at most, got {norm:.4g}",
                )
        except WireError as error:
            set_aside(node_id, error)
            continue
        seen.add(node_id)
        yield node_id, reply


def set_aside(node_id: int, error: WireError) -> None:
    """Say which site's reply is not used, and why; the round goes on."""
    logger.warning("Reply of node %d set aside (%s): %s", node_id, error.code, error)


def mean_metrics(replies: Sequence[Reply]) -> MetricRecord:
    """Each metric's mean weighted by num_examples, over the sites that sent it and sent it finite.

    ``num_examples`` is summed, and ``num_sites`` counts the replies.
    """
    names = {name for reply in replies for name in reply.metrics} - {"num_examples"}
    record = MetricRecord(
        {
            "num_sites": len(replies),
            "num_examples": sum(reply.num_examples for reply in replies),
        }
    )
    for name in sorted(names):
        counted = [
            (reply.metrics[name], reply.num_examples)
            for reply in replies
            if math.isfinite(reply.metrics.get(name, math.nan))
        ]
        if counted:
            total = sum(count for _, count in counted)
            record[name] = sum(value * count for value, count in counted) / total
    return record

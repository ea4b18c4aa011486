"""A Flower Grid without Flower's processes: the ClientApp runs when its reply is pulled.

The very ServerApp and ClientApp that are deployed run here, one message at a time in one process:
the base model stays loaded, a debugger reaches everything, and a seed fixes every bit.
"""

from __future__ import annotations

import copy
import logging
import time
import uuid
from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

log = logging.getLogger("foedus.simulations")

RUN_ID = 1
_SERVER_NODE_ID = 0
_PARTITION, _PARTITIONS = "partition-id", "num-partitions"


class InProcessGrid(Grid):
    """Nodes 1..num_sites, each with a Context of its own that lasts for the run."""

    def __init__(self, client_app: ClientApp, num_sites: int) -> None:
        self._client_app = client_app
        self._run = Run.create_empty(run_id=RUN_ID)
        self._contexts = {
            node_id: Context(
                run_id=RUN_ID,
                node_id=node_id,
                node_config={_PARTITION: node_id - 1, _PARTITIONS: num_sites},
                state=RecordDict(),
                run_config={},
            )
            for node_id in range(1, num_sites + 1)
        }
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Take another run's facts."""
        self._run = run

    @property
    def run(self) -> Run:
        """A copy of the run's facts."""
        return copy.copy(self._run)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, in order."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in; nothing runs yet."""
        message_ids: list[str] = []
        for message in messages:
            message_id = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = message_id
            self._waiting[message_id] = message
            message_ids.append(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the first waiting message of those named and return its reply alone, so that the
        caller folds it before the next site trains."""
        for message_id in message_ids:
            message = self._waiting.pop(message_id, None)
            if message is not None:
                return [self._answer(message)]
        return []

    def _answer(self, message: Message) -> Message:
        """The reply, or, as on a deployed node, an error reply where the ClientApp raised."""
        node_id = message.metadata.dst_node_id
        try:
            return self._client_app(message, self._contexts[node_id])
        except Exception as error:
            log.exception("The ClientApp of node %d raised.", node_id)
            failure = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__)
            return Message(failure, reply_to=message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run all messages; stops between two of them once `timeout` seconds have passed."""
        give_up = None if timeout is None else time.monotonic() + timeout
        pending = list(self.push_messages(messages))
        replies: list[Message] = []
        while pending and (give_up is None or time.monotonic() < give_up):
            pulled = list(self.pull_messages(pending))
            replies.extend(pulled)
            pending = pending[len(pulled) :] if pulled else []
        return replies


def run_in_process(server_app: ServerApp, client_app: ClientApp, num_sites: int) -> None:
    """Run a whole federation in this process. Errors: whatever the ServerApp raises."""
    # Flower's messages read who sends them from this process-wide identity.
    TaskIdentity.task_id, TaskIdentity.run_id = 0, RUN_ID
    TaskIdentity.node_id = _SERVER_NODE_ID
    grid = InProcessGrid(client_app, num_sites)
    context = Context(
        run_id=RUN_ID,
        node_id=_SERVER_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config={},
    )
    server_app(grid=grid, context=context)

"""Tasks from the SuperNode next door. The one module that knows Flower's internals.

A SuperNode started with `--isolation process` leaves its messages to an executor that asks for them
over its Runtime API (HTTP on loopback, internal to Flower: see flower_version.py). Stock executors
start a process for each; here one process takes them all.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import httpx
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import (
    context_from_proto,
    fab_from_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullTaskInputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_and_inflate_object_from_tree,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from protocol.errors import FoedusError

_CLIENT_APP = "flwr-clientapp"
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
# Flower's own first pause is 1 s, more than a message of a secure session takes as a whole.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 0.5
_MESSAGE_PATIENCE_SECONDS = 30.0
_FAILURES = (httpx.HTTPError, ObjectPullError, ObjectPushError, RuntimeError, ValueError)


class SuperNodeSilent(FoedusError):
    """The SuperNode does not answer: not started yet, restarting, or gone."""


class TaskLost(FoedusError):
    """The SuperNode knows a task no longer, or went away with it."""


class SuperNodeTasks:
    """address: host:port of the SuperNode's Runtime API. secret: proves that we may take tasks."""

    def __init__(self, address: str, secret: bytes) -> None:
        self._address = address
        self._client = RuntimeHttpClient.from_server_address(
            address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE}),
            ],
        )

    def acquire(self) -> str | None:
        """The token of the oldest waiting task, ours from now on; None where none waits.

        Errors: SuperNodeSilent.
        """
        request = AcquireTaskRequest(supported_task_types=[_CLIENT_APP])
        try:
            response = self._client.AcquireTask(request)
        except (httpx.HTTPError, ValueError) as error:
            raise SuperNodeSilent(
                f"The SuperNode at {self._address} does not answer: {type(error).__name__}."
            ) from error
        return response.token or None

    def open(self, token: str) -> Task:
        """The task's message and bundle. Errors: TaskLost."""
        return Task(self._address, token)

    def give_up(self, note: bytes) -> None:
        """Say that there will be no reply to the message of a task that another process had open.

        note: Task.note. Errors: TaskLost.
        """
        token, _, told = note.partition(b"\n")
        message = message_from_proto(ProtoMessage.FromString(told))
        metadata = message.metadata
        task = Task(self._address, token.decode())
        task.message = message
        task.context = Context(
            metadata.run_id, metadata.dst_node_id, {}, RecordDict(), run_config={}
        )
        try:
            task.fail()
        finally:
            task.close()


class Task:
    """One message to answer. While it is open, the SuperNode hears that we are alive."""

    def __init__(self, address: str, token: str) -> None:
        self._token = token
        self._client = RuntimeHttpClient.from_server_address(
            address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
                RuntimeTokenHttpInterceptor(token),
            ],
        )
        self._heartbeat = HeartbeatSender(self._beat)
        self.context: Context
        self.bundle: Fab
        self.message: Message

    def __enter__(self) -> Self:
        try:
            task_input = self._client.PullTaskInput(PullTaskInputRequest())
            self.context = context_from_proto(task_input.context)
            self.bundle = fab_from_proto(task_input.fab)
            self._heartbeat.start()
            self.message = self._pull_message()
        except BaseException as error:
            self.close()
            if isinstance(error, _FAILURES):
                raise TaskLost(f"The message could not be fetched: {_short(error)}.") from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def note(self) -> bytes:
        """Enough for `SuperNodeTasks.give_up`: the token, and the message without its content."""
        told = message_to_proto(remove_content_from_message(self.message))
        return self._token.encode() + b"\n" + bytes(told.SerializeToString())

    def finish(self, reply: Message) -> None:
        """Hand over the reply; the task is done. Errors: TaskLost."""
        try:
            push_message(self._client, reply, self.context)
        except _FAILURES as error:
            raise TaskLost(f"The reply could not be handed over: {_short(error)}.") from error
        push_task_output(self._client, self.context, SubStatus.COMPLETED, "")

    def fail(self) -> None:
        """Say that there will be no reply. Errors: TaskLost."""
        self.finish(no_reply(self.message))

    def close(self) -> None:
        """Stop the heartbeat, let go of the connection."""
        if self._heartbeat.is_running:
            self._heartbeat.stop()
        self._client.close()

    def _pull_message(self) -> Message:
        found = self._await_message()
        tree = found.message_object_trees[0]
        node, run_id = Node(node_id=self.context.node_id), self.context.run_id
        message = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(self._client.PullObject, node, run_id),
            make_confirm_message_received_fn_protobuf(
                self._client.ConfirmMessageReceived, node, run_id
            ),
            return_type=Message,
            # The parts may still be on their way; the SuperNode ends the task where they stay out.
            max_tries_per_object=None,
            initial_backoff=_FIRST_PAUSE_SECONDS,
            backoff_cap=_LONGEST_PAUSE_SECONDS,
        )
        # A message does not carry its own id; replies refer to it.
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def _await_message(self) -> PullAppMessagesResponse:
        """The SuperNode announces a task a moment before it stores the task's message."""
        give_up = time.monotonic() + _MESSAGE_PATIENCE_SECONDS
        while time.monotonic() < give_up:
            response = self._client.PullMessages(PullAppMessagesRequest())
            if response.messages_list:
                return response
            time.sleep(_FIRST_PAUSE_SECONDS)
        raise ValueError(f"no message within {_MESSAGE_PATIENCE_SECONDS:.0f} seconds")

    def _beat(self) -> bool:
        """True where the SuperNode heard us, or wants to hear no more of the task."""
        try:
            self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPStatusError as error:
            return error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR
        except (httpx.HTTPError, RuntimeError, ValueError):
            return False
        return True


def no_reply(message: Message) -> Message:
    """The error that tells the coordinator that no reply will come, and not why."""
    error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "no reply")
    return Message(error, reply_to=message)


def _short(error: BaseException) -> str:
    """Without the addresses and tokens that an HTTP error's text has."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"the SuperNode answered {error.response.status_code}"
    return type(error).__name__

"""SuperNodes without a SuperNode's process: threads that speak Flower's Fleet API with own keys.

python -m benchmarks.many_sites_nodes JOB.json serves until the job's stop file appears and then
writes what its requests took. A node asks, pulls and pushes as `flower-supernode` does, with
Flower's own client, signatures and helpers; in place of training it sends small numbers.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.enrolment.keys import load_supernode_key
from protocol.adapter import subset_layout
from protocol.files import write_atomically
from protocol.initial import derive_seed
from protocol.messages import Reply, Request
from protocol.methods import uploaded_factors

_PULL = "PullMessages"
_SCALE = 1e-3
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class NodesJob:
    """address: the coordinator's public one. keys: a P-384 key for each node."""

    address: str
    ca_file: str
    keys: list[str]
    stop_file: str
    result_file: str
    patience_seconds: float


class RequestTimes:
    """Hears every request of a client; held questions for messages are told apart."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: list[float] = []
        self.errors: list[str] = []

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """See Flower's ProtobufClientInterceptor."""
        method = context.rpc_method.rpartition("/")[2]
        began = time.monotonic()
        try:
            response = call_next(context)
        except httpx.HTTPError as error:
            with self._lock:
                self.errors.append(f"{method}: {type(error).__name__}")
            raise
        taken = time.monotonic() - began
        with self._lock:
            if response.status_code != httpx.codes.OK:
                self.errors.append(f"{method}: {response.status_code}")
            elif method != _PULL:
                # How long a question for messages takes is up to when there is one.
                self.seconds.append(taken)
        return response


class SimulatedNode:
    """One node. number: makes its numbers differ from the others'."""

    def __init__(
        self,
        number: int,
        address: str,
        ca: bytes,
        key: ec.EllipticCurvePrivateKey,
        times: RequestTimes,
    ) -> None:
        self._number = number
        self._public_key = public_key_to_bytes(key.public_key())
        self._client = FleetHttpClient.from_server_address(
            address,
            insecure=False,
            root_certificates=ca,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
                times,
            ],
        )
        self._node = Node()
        self._known_runs: set[int] = set()

    def activate(self) -> None:
        """Come online."""
        request = ActivateNodeRequest(
            public_key=self._public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        self._node = Node(node_id=self._client.ActivateNode(request).node_id)

    def beat(self) -> None:
        """Stay online."""
        self._client.SendNodeHeartbeat(
            SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        )

    def work(self) -> None:
        """Ask for a message once, and answer it where there is one."""
        response = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if response.messages_list:
            self._push(self._answer(self._pulled(response)))

    def _pulled(self, response: PullMessagesResponse) -> Message:
        announced = message_from_proto(response.messages_list[0])
        run_id = announced.metadata.run_id
        if run_id not in self._known_runs:
            run = self._client.GetRun(GetRunRequest(node=self._node, run_id=run_id)).run
            self._client.GetFab(
                GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run_id)
            )
            self._known_runs.add(run_id)
        message = pull_and_inflate_object_from_tree(
            response.message_object_trees[0],
            make_pull_object_fn_protobuf(self._client.PullObject, self._node, run_id),
            make_confirm_message_received_fn_protobuf(
                self._client.ConfirmMessageReceived, self._node, run_id
            ),
            return_type=Message,
        )
        message.metadata.__dict__["_message_id"] = announced.metadata.message_id
        return message

    def _answer(self, message: Message) -> Message:
        kind = message.metadata.message_type
        content = answer_of(self._number, message.content, "train" if kind == "train" else kind)
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        return reply

    def _push(self, reply: Message) -> None:
        run_id = reply.metadata.run_id
        objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
        pushed = self._client.PushMessages(
            PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            )
        )
        push_objects(
            objects,
            make_push_object_fn_protobuf(
                self._client.PushObject, self._node, run_id, pushed.session_id
            ),
            object_ids_to_push=set(pushed.objects_to_push),
        )


def answer_of(number: int, content: RecordDict, kind: str) -> RecordDict:
    """A well-formed reply of small numbers, by node and round alone."""
    if kind == "evaluate":
        request = Request.from_content(content, "evaluate")
        numbers = {"num_examples": 10.0, "loss": 1.0, "accuracy": 0.5}
        return Reply(request.run_id, request.round, "ok", numbers).to_content()
    request = Request.from_content(content, "train")
    uploaded = uploaded_factors(request.settings.federation.method, request.round)
    rng = np.random.default_rng(derive_seed(number, "update", request.round))
    update = {
        name: (_SCALE * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in subset_layout(request.state.layout, uploaded).items()
    }
    numbers = {"num_examples": 10.0, "train_loss": 1.0, "train_seconds": 0.0}
    return Reply(request.run_id, request.round, "ok", numbers, update).to_content()


def serve(job: NodesJob) -> None:
    """All nodes of the job, a thread each, until the stop file is there."""
    # Flower's Message constructor asks which task runs in this process.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 1, 0
    times, ca = RequestTimes(), Path(job.ca_file).read_bytes()
    nodes = [
        SimulatedNode(number, job.address, ca, load_supernode_key(Path(key), None), times)
        for number, key in enumerate(job.keys, start=1)
    ]
    for node in nodes:
        node.activate()
        threading.Thread(target=_for_ever, args=(node.work, 0.0), daemon=True).start()
        interval = HEARTBEAT_DEFAULT_INTERVAL
        threading.Thread(target=_for_ever, args=(node.beat, interval), daemon=True).start()
    give_up = time.monotonic() + job.patience_seconds
    while not Path(job.stop_file).exists() and time.monotonic() < give_up:
        time.sleep(_LOOK_SECONDS)
    told = {"seconds": times.seconds, "errors": times.errors}
    write_atomically(Path(job.result_file), json.dumps(told).encode())


def _for_ever(work: Callable[[], None], pause_seconds: float) -> None:
    while True:
        try:
            work()
            time.sleep(pause_seconds)
        except Exception as error:
            # Counted by RequestTimes where a request failed; all is said in this process' log.
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            time.sleep(_RETRY_SECONDS)


def job_words(job: NodesJob, folder: Path, name: str) -> Sequence[str]:
    """The words that start a process for the job, which is written to the folder."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")
    return (sys.executable, "-m", "benchmarks.many_sites_nodes", str(path))


if __name__ == "__main__":
    serve(NodesJob(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))

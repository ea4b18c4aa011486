"""Flower's own SuperNode Runtime API without a coordinator: a test puts messages in and takes the
replies out."""

from __future__ import annotations

import hashlib
import threading
import time
from types import TracebackType
from typing import Self

import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from client.runner.launch import LOOPBACK, free_port

SECRET = b"shared by both processes"
RUN_ID, NODE_ID = 7, 17


class LoneSuperNode:
    """Everything below its Runtime API is Flower's; bundle: what every message comes with."""

    def __init__(self, bundle: bytes) -> None:
        store = ObjectStoreFactory()
        factory = NodeStateFactory(objectstore_factory=store)
        self.state, self.store = factory.state(), store.store()
        self.state.set_node_id(NODE_ID)
        port = free_port()
        self.address = f"{LOOPBACK}:{port}"
        app = create_app(factory, SECRET)
        config = uvicorn.Config(app, host=LOOPBACK, port=port, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._put_run(bundle)

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join()

    def put(self, content: RecordDict, message_type: str, late_seconds: float = 0.0) -> str:
        """A message of the coordinator's, with a task for it; returns its id.

        late_seconds: until the parts of the message have come too.
        """
        message = Message(content, dst_node_id=NODE_ID, message_type=message_type)
        message.metadata.__dict__.update(_run_id=RUN_ID, _src_node_id=1)
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            assert self.state.create_task(
                task_type="flwr-clientapp", run_id=RUN_ID, fab_hash=self._bundle_hash
            )
            self.store.preregister(RUN_ID, get_object_tree(message))
            self.state.store_message(message)
            parts = {i: part.deflate() for i, part in get_all_nested_objects(message).items()}
        coming = threading.Timer(late_seconds, self._put_parts, (parts,))
        coming.start()
        if not late_seconds:
            coming.join()
        return message.metadata.message_id

    def _put_parts(self, parts: dict[str, bytes]) -> None:
        for object_id, part in parts.items():
            self.store.put(object_id, part)

    def reply(self) -> Message | None:
        """The next reply, whole; None where none was handed over."""
        found = self.state.get_messages_legacy(is_reply=True, limit=1)
        if not found:
            return None
        tree: ObjectTree = self.store.get_object_tree(found[0].metadata.message_id)
        contents = {t.object_id: self.store.get(t.object_id) or b"" for t in _all(tree)}
        whole = inflate_object_from_contents(tree.object_id, contents)
        assert isinstance(whole, Message)
        return whole

    def task_results(self) -> list[str]:
        """How the tasks ended, in the order they came."""
        tasks = self.state.get_tasks(order_by="pending_at")
        return [task.status.sub_status for task in tasks]

    def give_up(self) -> None:
        """End all tasks, as where their executor was silent for too long."""
        for task in self.state.get_tasks():
            self.state.finish_task(task.task_id, "failed", "")

    def _put_run(self, bundle: bytes) -> None:
        self._bundle_hash = hashlib.sha256(bundle).hexdigest()
        run = Run.create_empty(RUN_ID)
        run.fab_hash = self._bundle_hash
        context = Context(RUN_ID, NODE_ID, {}, RecordDict(), {}, run.series_id)
        self.state.set_run_series_context(run.series_id, context)
        self.state.store_run(run)
        self.state.store_fab(Fab(self._bundle_hash, bundle, {}))


def _all(tree: ObjectTree) -> list[ObjectTree]:
    return list(iterate_object_tree(tree))

"""How soon a message reaches a SuperNode whose question is held, and what a hundred of them cost.

The benchmark is the run's process (Flower's own Grid) and all SuperNodes (threads with Flower's own
Fleet client) at once, against one `foedus server up`. Loopback only.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from statistics import median, quantiles

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from benchmarks.command import Say, benchmark_command
from benchmarks.consortium import LocalConsortium
from benchmarks.many_sites import join_members
from benchmarks.processes import Processes, cpu_seconds
from benchmarks.result import BenchmarkResult, Row
from client.enrolment.keys import load_supernode_key
from server.gateway.state_file import GatewayState

NAME = "held_polls"
# A third of what half of a stock SuperNode's pause of 3 s between two questions would take.
GOAL_MS = 500.0

_LITTLE_APP = {
    "pyproject.toml": (
        '[project]\nname = "little"\nversion = "1.0.0"\ndescription = ""\nlicense = "Apache-2.0"\n'
        '[tool.flwr.app]\npublisher = "little"\n'
        '[tool.flwr.app.components]\nserverapp = "little:server"\nclientapp = "little:client"\n'
    ),
    "little.py": (
        "from flwr.clientapp import ClientApp\nfrom flwr.serverapp import ServerApp\n"
        "server = ServerApp()\nclient = ClientApp()\n"
    ),
}


class HeldNode(threading.Thread):
    """Asks for messages as a SuperNode does, without its pauses; says when one came."""

    def __init__(self, address: str, ca: str, key_file: Path, came: Queue[tuple[str, float]]):
        super().__init__(daemon=True)
        key = load_supernode_key(key_file, None)
        public_key = key.public_key()
        self._client = FleetHttpClient.from_server_address(
            address, False, ca, [NodeAuthHttpInterceptor(key, public_key)]
        )
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(public_key), heartbeat_interval=300.0
        )
        self.node = Node(node_id=self._client.ActivateNode(request).node_id)
        self._came = came
        self.stop = False

    def run(self) -> None:
        """Until `stop`, or the coordinator is gone."""
        try:
            while not self.stop:
                answer = self._client.PullMessages(PullMessagesRequest(node=self.node))
                for message in answer.messages_list:
                    self._came.put((message.metadata.message_id, time.monotonic()))
                    self._client.ConfirmMessageReceived(
                        ConfirmMessageReceivedRequest(
                            node=self.node,
                            run_id=message.metadata.run_id,
                            message_object_id=message.metadata.message_id,
                        )
                    )
        except httpx.HTTPError:
            return


def run(quick: bool, say: Say) -> BenchmarkResult:
    """Held questions of many nodes: time to a message, and the coordinator's processor time."""
    nodes, messages, idle_seconds = (10, 10, 10.0) if quick else (100, 50, 60.0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # SuperLink's own executor must not take the run that this process plays.
        environment = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "60"}
        settings = {"max_connections": 1024, "max_connections_per_address": 1024}
        with Processes(folder, environment) as processes:
            consortium = LocalConsortium(folder, processes, settings)
            consortium.found()
            keys = join_members(consortium, folder, nodes)
            state = consortium.start()
            ca = str(consortium.folder.ca)
            came: Queue[tuple[str, float]] = Queue()
            held = [HeldNode(state.public_address, ca, key, came) for key in keys]
            with asking(held), played_run(state, ca, folder / "little") as grid:
                say(f"  {nodes} nodes ask")
                latencies = _latencies(grid, held, messages, came)
                say(f"  {idle_seconds:.0f} s of waiting")
                share = _processor_share(state.pid, idle_seconds)
    return _result(nodes, latencies, share)


@contextmanager
def asking(nodes: Sequence[HeldNode]) -> Iterator[None]:
    """All of them ask within."""
    for node in nodes:
        node.start()
    yield
    for node in nodes:
        node.stop = True


@contextmanager
def played_run(state: GatewayState, ca: str, app: Path) -> Iterator[HttpGrid]:
    """Flower's Grid of a run whose ServerApp is this process."""
    app.mkdir()
    for name, text in _LITTLE_APP.items():
        (app / name).write_text(text, encoding="utf-8")
    bundle = build_fab_from_disk(app)
    fab = fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {}))
    address = state.control_address
    with ControlHttpClient.from_server_address(address, False, ca, []) as control:
        run_id = int(control.StartRun(StartRunRequest(fab=fab)).run_id)
    with RuntimeHttpClient.from_server_address(address, False, ca, []) as runtime:
        request = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
        token = runtime.AcquireTask(request).token
    interceptors = [RuntimeTokenHttpInterceptor(token)]
    with RuntimeHttpClient.from_server_address(address, False, ca, interceptors) as runtime:
        started = runtime.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, run_id, SUPERLINK_NODE_ID
    grid = HttpGrid(address, False, Path(ca).read_bytes(), token=token)
    grid.set_run(run_from_proto(started.run))
    yield grid
    grid.close()


def _latencies(
    grid: HttpGrid, nodes: Sequence[HeldNode], messages: int, came: Queue[tuple[str, float]]
) -> list[float]:
    """Seconds from the moment the run begins to push a message to that at which its node has it."""
    seconds: list[float] = []
    for number in range(messages):
        time.sleep(0.3)
        content = RecordDict({"c": ConfigRecord({"text": os.urandom(8).hex()})})
        message = Message(content, int(nodes[number % len(nodes)].node.node_id), "train")
        began = time.monotonic()
        (sent,) = grid.push_messages([message])
        message_id, arrived = came.get(timeout=60.0)
        assert message_id == sent
        seconds.append(arrived - began)
    return seconds


def _processor_share(pid: int, seconds: float) -> float:
    """Share of one core that the coordinator takes while everybody waits."""
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - began)


def _result(nodes: int, latencies: Sequence[float], share: float) -> BenchmarkResult:
    milliseconds = [1e3 * second for second in latencies]
    rows: tuple[Row, ...] = (
        {
            "nodes held": nodes,
            "messages": len(milliseconds),
            "median ms": median(milliseconds),
            "95% ms": quantiles(milliseconds, n=20)[18],
            "coordinator's share of a core": share,
        },
    )
    what = f"from the run's push to a SuperNode whose question is held, {nodes} held, median"
    figure = median(milliseconds)
    return BenchmarkResult.measured(NAME, what, figure, "ms", GOAL_MS, rows, better="lower")


if __name__ == "__main__":
    benchmark_command(run)

"""A coordinator's real process with its two listeners, firms' nodes, and a run played by the test.

The firms' listener is on 127.0.0.2: what is on 127.0.0.1 alone cannot be reached by that address.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_pem_x509_certificate
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import (
    fab_to_proto,
    message_from_proto,
    message_to_proto,
    run_from_proto,
)
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from protocol.consortium.chain import append_version, next_version
from protocol.consortium.identity import Identity
from protocol.consortium.passphrase import read_passphrase
from protocol.consortium.signed_roster import MemberEntry
from protocol.consortium.supernode_key import public_pem
from server.consortium.folder import ConsortiumFolder
from server.consortium.founding import found_consortium
from server.consortium.settings import ConsortiumSettings
from server.gateway.state_file import GatewayState, read_gateway_state

T = TypeVar("T")

OUTSIDE = "127.0.0.2"
PATIENCE_SECONDS = 120.0
HEARTBEAT_SECONDS = 10.0


@dataclass(frozen=True)
class Firm:
    """A member's keys."""

    name: str
    identity: Identity = field(default_factory=Identity.generate)
    supernode: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1())
    )

    @property
    def public_key(self) -> bytes:
        return public_pem(self.supernode)

    def entry(self, expires_in_seconds: int = 10**6) -> MemberEntry:
        now = int(time.time())
        return MemberEntry(
            self.name, self.identity.public_key, self.public_key, now, now + expires_in_seconds
        )


@dataclass(frozen=True)
class Coordinator:
    """One that is up."""

    folder: ConsortiumFolder
    state: GatewayState
    process: subprocess.Popen[bytes]

    @property
    def ca(self) -> str:
        return str(self.folder.ca)

    def fleet(self, firm: Firm, address: str = "") -> FleetHttpClient:
        """What a SuperNode of this firm uses."""
        return FleetHttpClient.from_server_address(
            address or self.state.public_address,
            False,
            self.ca,
            [NodeAuthHttpInterceptor(firm.supernode, firm.supernode.public_key())],
        )

    def control(self, address: str = "") -> ControlHttpClient:
        return ControlHttpClient.from_server_address(
            address or self.state.control_address, False, self.ca, []
        )

    def runtime(self, *, token: str = "", address: str = "") -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            address or self.state.control_address,
            False,
            self.ca,
            [RuntimeTokenHttpInterceptor(token)] if token else [],
        )

    def outside(self, from_address: str | None = None, at: str = "") -> httpx.Client:
        """A client of nobody in particular, at the firms' address or at another one."""
        transport = httpx.HTTPTransport(verify=self.ca, local_address=from_address)
        address = at or self.state.public_address
        return httpx.Client(base_url=f"https://{address}", transport=transport)

    def metric(self, name: str) -> float:
        """The value of one line of /metrics; 0 where it is not there yet."""
        text = httpx.get(f"http://{self.state.metrics_address}/metrics").text
        for line in text.splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        return 0.0

    def served_serial(self) -> int:
        """The number of the certificate that firms get now."""
        host, _, port = self.state.public_address.rpartition(":")
        pem = ssl.get_server_certificate((host, int(port)))
        return load_pem_x509_certificate(pem.encode()).serial_number

    def set_members(self, entries: Sequence[MemberEntry]) -> None:
        write_roster(self.folder, entries)


@dataclass
class FirmNode:
    """An activated node, as a SuperNode would be."""

    client: FleetHttpClient
    node: Node

    @classmethod
    def activate(cls, coordinator: Coordinator, firm: Firm) -> FirmNode:
        client = coordinator.fleet(firm)
        request = ActivateNodeRequest(public_key=firm.public_key, heartbeat_interval=30.0)
        return cls(client, Node(node_id=client.ActivateNode(request).node_id))

    def leave(self) -> None:
        """As a SuperNode does when it stops; before that, it cannot be activated again."""
        self.client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))
        self.client.close()

    @property
    def node_id(self) -> int:
        return int(self.node.node_id)

    def pull(self) -> Told | None:
        """The next message; None where none came while the question was held."""
        answer = self.client.PullMessages(PullMessagesRequest(node=self.node))
        if not answer.messages_list:
            return None
        return Told(answer.messages_list[0], answer.message_object_trees[0])

    def read(self, told: Told, object_id: str) -> PullObjectResponse:
        return self.client.PullObject(
            PullObjectRequest(node=self.node, run_id=told.run_id, object_id=object_id)
        )

    def confirm(self, told: Told) -> None:
        self.client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self.node, run_id=told.run_id, message_object_id=told.message_id
            )
        )

    def reply(self, told: Told, content: RecordDict | None = None) -> Reply:
        """The reply to a message; not sent yet."""
        answer = Message(content or RecordDict(), reply_to=message_from_proto(told.message))
        answer.metadata.__dict__["_message_id"] = answer.object_id
        request = PushMessagesRequest(
            node=self.node,
            messages_list=[message_to_proto(remove_content_from_message(answer))],
            message_object_trees=[get_object_tree(answer)],
            clientapp_runtime_list=[0.1],
        )
        objects = {key: part.deflate() for key, part in get_all_nested_objects(answer).items()}
        return Reply(request, objects)

    def push(self, told: Told, reply: Reply) -> None:
        """Send a reply with all its objects."""
        answer = self.client.PushMessages(reply.request)
        for object_id in answer.objects_to_push:
            assert self.push_object(told, answer.session_id, object_id, reply.objects[object_id])

    def push_object(self, told: Told, session_id: str, object_id: str, content: bytes) -> bool:
        request = PushObjectRequest(
            node=self.node,
            run_id=told.run_id,
            session_id=session_id,
            object_id=object_id,
            object_content=content,
        )
        return bool(self.client.PushObject(request).stored)


@dataclass(frozen=True)
class Told:
    """A message as a node gets it: without its objects."""

    message: ProtoMessage
    tree: ObjectTree

    @property
    def message_id(self) -> str:
        return str(self.message.metadata.message_id)

    @property
    def run_id(self) -> int:
        return int(self.message.metadata.run_id)

    @property
    def object_ids(self) -> list[str]:
        return [part.object_id for part in iterate_object_tree(self.tree)]


@dataclass(frozen=True)
class Reply:
    """What a node is about to send."""

    request: PushMessagesRequest
    objects: dict[str, bytes]


class PlayedRun:
    """The test in the place of the run's ServerApp, with Flower's own Grid."""

    def __init__(self, coordinator: Coordinator, app: Path) -> None:
        bundle = build_fab_from_disk(app)
        fab = fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {}))
        with coordinator.control() as control:
            self.run_id = int(control.StartRun(StartRunRequest(fab=fab)).run_id)
        with coordinator.runtime() as runtime:
            request = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
            token = runtime.AcquireTask(request).token
        assert token, "SuperLink's own executor took the run"
        runtime = coordinator.runtime(token=token)
        started = runtime.PullTaskInput(PullTaskInputRequest())
        threading.Thread(target=keep_alive, args=(runtime,), daemon=True).start()
        address, ca = coordinator.state.control_address, coordinator.folder.ca.read_bytes()
        self.grid = HttpGrid(address, False, ca, token=token)
        self.grid.set_run(run_from_proto(started.run))

    def serves(self, coordinator: Coordinator, firm: Firm) -> None:
        """A node of this firm gets a message with all its objects, answers, and is heard."""
        node = FirmNode.activate(coordinator, firm)
        (sent,) = self.tell(node.node_id)
        told = node.pull()
        assert told is not None and told.message_id == sent
        assert all(node.read(told, part).object_available for part in told.object_ids)
        node.confirm(told)
        node.push(told, node.reply(told, RecordDict({"m": MetricRecord({"loss": 0.5})})))
        (heard,) = wait_for(lambda: list(self.grid.pull_messages([sent])))
        assert heard.content["m"]["loss"] == 0.5
        node.leave()

    def tell(self, *node_ids: int, text: str = "", ttl: float | None = None) -> list[str]:
        """Send each of these nodes a message; returns the messages' ids. ttl: seconds to answer."""
        content = RecordDict({"c": ConfigRecord({"text": text or os.urandom(8).hex()})})
        messages = [Message(content, node_id, "train", ttl=ttl) for node_id in node_ids]
        for message in messages:
            # In a ServerApp's process these come from Flower's TaskIdentity.
            message.metadata.__dict__.update(_run_id=self.run_id, _src_node_id=SUPERLINK_NODE_ID)
        return list(self.grid.push_messages(messages))


def keep_alive(runtime: RuntimeHttpClient) -> None:
    """Without it SuperLink takes the run for dead after a while. Ends with the coordinator."""
    with contextlib.suppress(httpx.HTTPError):
        while runtime.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
            time.sleep(HEARTBEAT_SECONDS)


def little_app(path: Path) -> Path:
    """The least that Flower takes as an app."""
    path.mkdir()
    (path / "pyproject.toml").write_text(
        '[project]\nname = "little"\nversion = "1.0.0"\ndescription = ""\nlicense = "Apache-2.0"\n'
        '[tool.flwr.app]\npublisher = "little"\n'
        '[tool.flwr.app.components]\nserverapp = "little:server"\nclientapp = "little:client"\n'
    )
    (path / "little.py").write_text(
        "from flwr.clientapp import ClientApp\nfrom flwr.serverapp import ServerApp\n"
        "server = ServerApp()\nclient = ClientApp()\n"
    )
    return path


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def found(
    path: Path,
    entries: Sequence[MemberEntry],
    *,
    also_known_as: Sequence[str] = (),
    **settings: object,
) -> ConsortiumFolder:
    """A consortium on paper, with ports of its own."""
    public_port = free_port(OUTSIDE)
    made = replace(
        ConsortiumSettings(
            "little",
            f"{OUTSIDE}:{public_port}",
            public_host=OUTSIDE,
            public_port=public_port,
            control_port=free_port(),
            metrics_port=free_port(),
        ),
        **settings,  # type: ignore[arg-type]
    )
    now = datetime.datetime.now(datetime.UTC)
    passphrase = read_passphrase(Path(made.passphrase_file) if made.passphrase_file else None)
    found_consortium(path, made, 0, (OUTSIDE, *also_known_as), passphrase, now)
    folder = ConsortiumFolder(path)
    write_roster(folder, entries)
    return folder


def write_roster(folder: ConsortiumFolder, entries: Sequence[MemberEntry]) -> None:
    version = replace(next_version(folder.chain()[-1], int(time.time())), members=tuple(entries))
    append_version(folder.roster, version.signed_by(folder.coordinator(folder.passphrase())))


@contextlib.contextmanager
def up(folder: ConsortiumFolder, *options: str) -> Iterator[Coordinator]:
    """`foedus server up`, ready; asked to stop at the end."""
    command = [sys.executable, "-m", "foedus", "server", "up", "--consortium", str(folder.path)]
    # SuperLink's executor asks for work once a minute, so that the test can take a run itself.
    environment = {**os.environ, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "60"}
    with (folder.path / "up.log").open("ab") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log, env=environment)
    try:
        yield Coordinator(folder, wait_until_up(folder, process), process)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_SECONDS)


def wait_until_up(folder: ConsortiumFolder, process: subprocess.Popen[bytes]) -> GatewayState:
    def state() -> GatewayState | None:
        assert process.poll() is None, (folder.path / "up.log").read_text()
        return read_gateway_state(folder.gateway_state)

    return wait_for(state)


def executor_of(coordinator: Coordinator) -> psutil.Process | None:
    below = psutil.Process(coordinator.process.pid).children(recursive=True)
    alive = [p for p in below if p.status() != psutil.STATUS_ZOMBIE]
    return next((p for p in alive if "flower-superexec" in " ".join(p.cmdline())), None)


def wait_for(ask: Callable[[], T | None]) -> T:
    """What `ask` gives once that is true."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not (answer := ask()):
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.05)
    return answer

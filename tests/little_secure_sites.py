"""Sites without contracts or models that take part in secure aggregation for real: keys, roster,
memory on disk, receipts; and a network that loses chosen messages of chosen phases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.policy import PolicySettings
from client.secure_aggregation.answer import answer_phase
from client.secure_aggregation.kept_update import KeptUpdate
from client.site import Site, SiteSettings
from protocol.adapter import Layout, pack, subset_layout
from protocol.consortium.identity import Identity, save_identity
from protocol.consortium.roster import Member, Roster
from protocol.files import write_atomically
from protocol.messages import Request
from protocol.methods import uploaded_factors
from protocol.secure_aggregation.task import weight_cap
from protocol.secure_aggregation.wire import SECURE, Phase, SessionId, read_header
from protocol.settings import RunSettings, SecureAggregationSettings
from server.checkpoint import CheckpointStore
from server.coordinator import Coordinator, RunResult
from server.observer import LogObserver
from server.receipts.received import Received
from simulations.engines.in_process import InProcessGrid
from strategies.registry import build_strategy
from tests.little_sites import good_reply, little_run, little_state, little_update
from tests.strategies.adapters import SMALL, adapter


def little_secure_run(
    method: str = "fedsvd", *, secure: Mapping[str, Any] | None = None, **federation: Any
) -> RunSettings:
    """A run over two small layers whose updates are masked; its deadline is long."""
    run = little_run(method, **{"deadline_seconds": 60.0, "update_norm_bound": 2.0, **federation})
    return replace(run, secure_aggregation=SecureAggregationSettings(True, **(secure or {})))


class LittleTrainer:
    """Trains nothing: small numbers by node and round. Counts how often it was asked."""

    def __init__(self, node: int, scale: float = 1.0) -> None:
        self.node, self.scale, self.trained = node, scale, 0

    def uploaded(self, request: Request) -> Layout:
        method = request.settings.federation.method
        layout = adapter(method, SMALL, 0).layout
        return subset_layout(layout, uploaded_factors(method, request.round))

    def train(self, request: Request) -> KeptUpdate:
        self.trained += 1
        values = self.scale * pack(little_update(self.node, request))
        weight = min(10 * self.node, weight_cap(request.settings))
        return KeptUpdate(values, weight, 0.5)


class SecureSites:
    """A consortium on disk; node n is the n-th site. `lost`: what each site has not answered."""

    def __init__(self, folder: Path, num_sites: int, **policy: Any) -> None:
        self.folder = folder
        identities = [Identity.generate() for _ in range(num_sites)]
        self.roster = Roster(
            "little",
            1,
            tuple(Member(f"firm {i}", each.public_key) for i, each in enumerate(identities)),
        )
        self.trainers = {node: LittleTrainer(node) for node in range(1, num_sites + 1)}
        self._policy = PolicySettings(**policy)
        self.members = {node: each.member_id for node, each in enumerate(identities, start=1)}
        for node, identity in enumerate(identities, start=1):
            save_identity(self._folder(node) / "identity.pem", identity)
            write_atomically(self._folder(node) / "roster.json", self.roster.to_json().encode())
        self._open: dict[int, Site] = {}

    def _folder(self, node: int) -> Path:
        return self.folder / f"site-{node}"

    def site(self, node: int) -> Site:
        if node not in self._open:
            settings = SiteSettings(
                f"site {node}", "contracts", "state",
                identity="identity.pem", roster="roster.json", policy=self._policy,
            )  # fmt: skip
            self._open[node] = Site(settings, self._folder(node))
        return self._open[node]

    def restart(self, node: int) -> None:
        """The process of this site ends; the next message finds a new one."""
        self._open.pop(node, None)
        self.trainers[node] = LittleTrainer(node, self.trainers[node].scale)

    def answer(self, node: int, content: RecordDict, *, training: bool) -> RecordDict:
        return answer_phase(
            self.site(node), content, training=training, trainer=self.trainers[node]
        )

    def app(self) -> ClientApp:
        """A ClientApp like client.app's, over these sites."""
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            content = message.content
            assert SECURE in content
            return Message(self.answer(context.node_id, content, training=True), reply_to=message)

        @app.query()
        def query(message: Message, context: Context) -> Message:
            content = self.answer(context.node_id, message.content, training=False)
            return Message(content, reply_to=message)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            request = Request.from_content(message.content, "evaluate")
            return Message(good_reply(context.node_id, request), reply_to=message)

        return app


OnMessage = Callable[[int, Phase, SessionId], bool]
OnReply = Callable[[int, Phase, RecordDict], RecordDict]


class SecureGrid(InProcessGrid):
    """lose(node, phase, session): True where a request is lost on the way. alter: what becomes of
    a reply on the way. Keeps every request and reply of sessions, in order."""

    def __init__(
        self,
        sites: SecureSites,
        num_sites: int,
        lose: OnMessage = lambda node, phase, session: False,
        alter: OnReply = lambda node, phase, content: content,
        twice: Sequence[Phase] = (),
    ) -> None:
        super().__init__(sites.app(), num_sites)
        self._lose, self._alter, self._twice = lose, alter, tuple(twice)
        self._phase_of: dict[str, Phase] = {}
        self._lost: set[str] = set()
        self.requests: list[tuple[int, Phase, SessionId, RecordDict]] = []
        self.replies: list[tuple[int, Phase, RecordDict]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        message_ids = list(super().push_messages(batch))
        for message_id, message in zip(message_ids, batch, strict=True):
            if SECURE not in message.content:
                continue
            phase, session = read_header(message.content)
            node = message.metadata.dst_node_id
            self._phase_of[message_id] = phase
            self.requests.append((node, phase, session, message.content))
            if self._lose(node, phase, session):
                self._lost.add(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(i for i in message_ids if i not in self._lost))
        for reply in replies:
            phase = self._phase_of.get(reply.metadata.reply_to_message_id)
            if phase is not None and not reply.has_error():
                node = reply.metadata.src_node_id
                self.replies.append((node, phase, reply.content))
                reply.content = self._alter(node, phase, reply.content)
                if phase in self._twice:
                    return [reply, reply]
        return replies


def coordinate_securely(
    grid: InProcessGrid,
    run: RunSettings,
    folder: Path,
    roster: Roster | None,
    *,
    resume: bool = False,
    received: Received | None = None,
) -> RunResult:
    """A whole run by the real coordinator."""
    coordinator = Coordinator(
        grid,
        run,
        build_strategy(run.federation),
        CheckpointStore(folder / "checkpoints", run),
        LogObserver(),
        roster=roster,
        received=received,
    )
    return coordinator.run(little_state(run), resume=resume)

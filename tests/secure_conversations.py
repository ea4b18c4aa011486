"""A coordinator that speaks with secure sites on disk, one message at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from protocol.messages import train_request
from protocol.secure_aggregation.messages import (
    AdvertiseReply,
    ConfirmReply,
    MaskedInputReply,
    ShareReply,
    UnmaskReply,
)
from protocol.secure_aggregation.task import ring_of, task_digest
from protocol.secure_aggregation.wire import SECURE, Phase, SessionId, Terms
from protocol.settings import RunSettings
from server.secure_aggregation.session import CoordinatorSession
from tests.little_secure_sites import LittleTrainer, SecureSites, little_secure_run
from tests.little_sites import little_state
from tests.small_runs import RUN_ID


class Conversation:
    """A coordinator that speaks with sites on disk, one message at a time."""

    def __init__(self, folder: Path, num_sites: int = 3, run: RunSettings | None = None) -> None:
        self.sites = SecureSites(folder, num_sites)
        self.run = run or little_secure_run("ffa", rounds=4)
        self.nodes = range(1, num_sites + 1)
        self.session = self.new_session()

    def new_session(self, attempt: int = 1, round_: int = 1) -> CoordinatorSession:
        state = little_state(self.run).subset({"B", "head"})
        self.request = train_request(RUN_ID, round_, self.run, state)
        ring = ring_of(self.run, len(self.nodes))
        digest = task_digest(self.request, LittleTrainer(1).uploaded(self.request))
        terms = Terms(
            self.sites.roster.digest, digest, ring.bits, ring.num_sites_max,
            ring.coordinate_bound, ring.weight_cap, 0,
        )  # fmt: skip
        size = sum(int(np.prod(s)) for s in LittleTrainer(1).uploaded(self.request).values())
        self.session = CoordinatorSession(
            SessionId(RUN_ID, round_, attempt), terms, self.sites.roster, size
        )
        return self.session

    def content(self, phase: Phase, node: int) -> RecordDict:
        """What the coordinator asks this node in this phase."""
        session, member = self.session, self.sites.members[node]
        if phase is Phase.ADVERTISE:
            return session.advertise_request().to_content()
        if phase is Phase.SHARE:
            return session.share_request().to_content()
        if phase is Phase.CONFIRM:
            return session.confirm_request().to_content()
        if phase is Phase.UNMASK:
            return session.unmask_request().to_content()
        content = session.masked_input_request(member).to_content()
        return RecordDict({**dict(content), **dict(self.request.to_content())})

    def ask(self, phase: Phase, node: int, content: RecordDict | None = None) -> RecordDict:
        sent = self.content(phase, node) if content is None else content
        return self.sites.answer(node, sent, training=phase is Phase.MASKED_INPUT)

    def take(self, phase: Phase, node: int, reply: RecordDict) -> None:
        session, member = self.session, self.sites.members[node]
        if phase is Phase.ADVERTISE:
            session.take_advertisement(AdvertiseReply.from_content(reply, session.session))
        elif phase is Phase.SHARE:
            session.take_boxes(member, ShareReply.from_content(reply, session.session))
        elif phase is Phase.MASKED_INPUT:
            size = session.num_masked_bytes
            parsed = MaskedInputReply.from_content(reply, session.session, size)
            session.take_masked_input(member, parsed)
        elif phase is Phase.CONFIRM:
            session.take_confirmation(member, ConfirmReply.from_content(reply, session.session))
        else:
            session.take_shares(member, UnmaskReply.from_content(reply, session.session))

    def close(self, phase: Phase) -> None:
        closing: dict[Phase, Callable[[], None]] = {
            Phase.ADVERTISE: self.session.close_advertising,
            Phase.SHARE: self.session.close_sharing,
            Phase.MASKED_INPUT: self.session.close_masking,
            Phase.CONFIRM: self.session.close_confirming,
        }
        closing.get(phase, lambda: None)()

    def phase(self, phase: Phase, but: int | None = None) -> None:
        """One whole phase, with all sites but one."""
        for node in self.nodes:
            if node != but:
                self.take(phase, node, self.ask(phase, node))
        self.close(phase)

    def until(self, phase: Phase) -> Conversation:
        for earlier in Phase:
            if earlier is phase:
                break
            self.phase(earlier)
        return self


def status_of(reply: RecordDict) -> str:
    return str(reply.config_records[SECURE]["status"])


def refusal(reply: RecordDict) -> str:
    """The code of a refusal, which must hold nothing else and no signature."""
    assert set(reply) == {SECURE}
    record = reply.config_records[SECURE]
    header = {"version", "phase", "run_id", "round", "attempt", "status"}
    assert set(record) - {"blamed"} == header
    assert record["status"] != "ok"
    return str(record["status"])

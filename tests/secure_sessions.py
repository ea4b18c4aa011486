"""Whole sessions of secure aggregation without files or messages: real sites and coordinator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from client.secure_aggregation.memory import RunMemory
from client.secure_aggregation.session import SitePart
from protocol.adapter import FloatArray
from protocol.consortium.identity import Identity
from protocol.consortium.roster import Member, Roster
from protocol.errors import Refusal, WireError
from protocol.secure_aggregation.messages import MaskedInputReply
from protocol.secure_aggregation.ring import RingParameters
from protocol.secure_aggregation.wire import Phase, SessionId, Terms
from server.secure_aggregation.session import CoordinatorSession
from tests.small_runs import RUN_ID

BOUND = 4.0
TASK = "7a" * 32
IDENTITIES = [Identity.generate() for _ in range(20)]
ROSTER = Roster(
    "test", 1, tuple(Member(f"firm {i}", each.public_key) for i, each in enumerate(IDENTITIES))
)
SESSION = SessionId(RUN_ID, 1, 1)


def terms_for(num_sites: int, bits: int = 32, weight_cap: int = 1, degree: int = 0) -> Terms:
    ring = RingParameters.choose(bits, num_sites, BOUND, weight_cap)
    return Terms(
        ROSTER.digest, TASK, bits, num_sites, ring.coordinate_bound, ring.weight_cap, degree
    )


@dataclass
class PureSite:
    """A site whose memory lies in a variable."""

    part: SitePart
    values: FloatArray
    weight: int = 1
    memory: RunMemory = field(default_factory=RunMemory)

    @property
    def member_id(self) -> str:
        return self.part.identity.member_id

    def advertise(self, request: Any) -> Any:
        self.memory, reply = self.part.advertise(self.memory, request)
        return reply

    def share(self, request: Any) -> Any:
        self.memory, reply = self.part.share(self.memory, request)
        return reply

    def masked_input(self, request: Any) -> MaskedInputReply:
        self.memory, _ = self.part.begin_masking(self.memory, request)
        packed = self.part.masked_input(self.memory, self.values, self.weight)
        return MaskedInputReply(request.session, packed, 0.0)

    def confirm(self, request: Any) -> Any:
        self.memory, reply = self.part.confirm(self.memory, request)
        return reply

    def unmask(self, request: Any) -> Any:
        self.memory, reply = self.part.unmask(self.memory, request)
        return reply


def make_sites(
    inputs: Sequence[FloatArray], weights: Sequence[int] | None = None, **part: Any
) -> list[PureSite]:
    chosen = weights or [1] * len(inputs)
    return [
        PureSite(SitePart(IDENTITIES[i], ROSTER, **part), values, chosen[i])
        for i, values in enumerate(inputs)
    ]


def make_coordinator(
    num_sites: int, num_values: int, session: SessionId = SESSION, **terms: Any
) -> CoordinatorSession:
    return CoordinatorSession(session, terms_for(num_sites, **terms), ROSTER, num_values)


Drops = Mapping[Phase, Collection[int]]
Tamper = Callable[[Phase, str, Any], Any]


@dataclass
class Session:
    """Runs phases one by one. drops: indices of sites that are silent from a phase on. view: all
    that the coordinator received, in order. relay: what it sends in place of a request."""

    coordinator: CoordinatorSession
    sites: Sequence[PureSite]
    drops: Drops = field(default_factory=dict)
    view: list[Any] = field(default_factory=list)
    relay: Tamper = lambda phase, member, request: request

    def _alive(self, phase: Phase, members: Collection[str] | None) -> list[PureSite]:
        gone: set[int] = set()
        for earlier in Phase:
            gone.update(self.drops.get(earlier, ()))
            if earlier is phase:
                break
        return [
            site
            for index, site in enumerate(self.sites)
            if index not in gone and (members is None or site.member_id in members)
        ]

    def advertise(self) -> None:
        request = self.coordinator.advertise_request()
        for site in self._alive(Phase.ADVERTISE, None):
            reply = site.advertise(self.relay(Phase.ADVERTISE, site.member_id, request))
            self.view.append(reply)
            self.coordinator.take_advertisement(reply)
        self.coordinator.close_advertising()

    def share(self) -> None:
        request = self.coordinator.share_request()
        for site in self._alive(Phase.SHARE, self.coordinator.members):
            reply = site.share(self.relay(Phase.SHARE, site.member_id, request))
            self.view.append(reply)
            self.coordinator.take_boxes(site.member_id, reply)
        self.coordinator.close_sharing()

    def mask(self) -> None:
        for site in self._alive(Phase.MASKED_INPUT, self.coordinator.senders):
            request = self.coordinator.masked_input_request(site.member_id)
            reply = site.masked_input(self.relay(Phase.MASKED_INPUT, site.member_id, request))
            self.view.append(reply)
            self.coordinator.take_masked_input(site.member_id, reply)
        self.coordinator.close_masking()

    def confirm(self) -> None:
        request = self.coordinator.confirm_request()
        for site in self._alive(Phase.CONFIRM, self.coordinator.survivors):
            reply = site.confirm(self.relay(Phase.CONFIRM, site.member_id, request))
            self.view.append(reply)
            self.coordinator.take_confirmation(site.member_id, reply)
        self.coordinator.close_confirming()

    def unmask(self) -> None:
        request = self.coordinator.unmask_request()
        for site in self._alive(Phase.UNMASK, self.coordinator.confirmed):
            reply = site.unmask(self.relay(Phase.UNMASK, site.member_id, request))
            self.view.append(reply)
            self.coordinator.take_shares(site.member_id, reply)

    def run(self) -> tuple[np.ndarray[Any, Any], int]:
        """All phases: the mean and the sum of weights. Errors: Abandoned."""
        for phase in (self.advertise, self.share, self.mask, self.confirm, self.unmask):
            phase()
        return self.coordinator.open_sum()


def refusal_of(call: Callable[[], Any]) -> str:
    """The code with which a site refuses; fails where it does not."""
    try:
        call()
    except (Refusal, WireError) as error:
        return str(error.code)
    raise AssertionError("Expected a refusal, got an answer.")


def other_attempt(session: SessionId, attempt: int) -> SessionId:
    return replace(session, attempt=attempt)

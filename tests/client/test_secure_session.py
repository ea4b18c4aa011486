"""What a site refuses in a session, and what it can therefore never be made to reveal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.secure_aggregation.memory import RunMemory
from client.secure_aggregation.session import SitePart
from protocol.adapter import FloatArray
from protocol.consortium.identity import Identity
from protocol.consortium.roster import Member, Roster
from protocol.errors import FoedusError
from protocol.secure_aggregation.graph import threshold
from protocol.secure_aggregation.keys import Advertisement, SessionKeys
from protocol.secure_aggregation.messages import (
    AdvertiseRequest,
    ConfirmRequest,
    MaskedInputRequest,
    ShareRequest,
    UnmaskRequest,
)
from protocol.secure_aggregation.wire import Phase, SessionId
from tests.secure_sessions import (
    IDENTITIES,
    ROSTER,
    SESSION,
    PureSite,
    Session,
    make_coordinator,
    make_sites,
    other_attempt,
    refusal_of,
    terms_for,
)

VALUES = np.array([0.5, -0.25], np.float32)


def inputs(num_sites: int) -> list[FloatArray]:
    return [(VALUES * (i + 1) / num_sites).astype(np.float32) for i in range(num_sites)]


def session_at(phase: Phase, num_sites: int = 5, **part: Any) -> Session:
    """A session in which all phases before this one are done."""
    session = Session(make_coordinator(num_sites, 2), make_sites(inputs(num_sites), **part))
    steps = [session.advertise, session.share, session.mask, session.confirm, session.unmask]
    for step in steps[: list(Phase).index(phase)]:
        step()
    return session


def unchanged(site: PureSite, call: Callable[[], Any]) -> str:
    """The code of a refusal that leaves the site's memory as it was."""
    before = site.memory
    code = refusal_of(call)
    assert site.memory == before
    return code


# --- Advertise ---


def test_a_site_under_another_roster_makes_no_keys() -> None:
    stranger = Member("stranger", Identity.generate().public_key)
    other = Roster("test", 1, (*ROSTER.members, stranger))
    site = PureSite(SitePart(IDENTITIES[0], other), VALUES)
    request = AdvertiseRequest(SESSION, terms_for(3))
    assert unchanged(site, lambda: site.advertise(request)) == "unknown_member"


def test_a_site_that_is_not_in_the_roster_makes_no_keys() -> None:
    site = PureSite(SitePart(Identity.generate(), ROSTER), VALUES)
    request = AdvertiseRequest(SESSION, terms_for(3))
    assert unchanged(site, lambda: site.advertise(request)) == "unknown_member"


@pytest.mark.parametrize(("round_", "attempt"), [(3, 2), (3, 1), (2, 9), (1, 1)])
def test_no_round_and_no_attempt_is_gone_back_to(round_: int, attempt: int) -> None:
    (site,) = make_sites([VALUES])
    site.advertise(AdvertiseRequest(replace(SESSION, round=3, attempt=2), terms_for(3)))
    old = AdvertiseRequest(replace(SESSION, round=round_, attempt=attempt), terms_for(3))
    assert unchanged(site, lambda: site.advertise(old)) == "wrong_phase"


def test_a_round_has_one_task_whatever_the_attempt() -> None:
    (site,) = make_sites([VALUES])
    site.advertise(AdvertiseRequest(SESSION, terms_for(3)))
    other = replace(terms_for(3), task_digest="0" * 64)
    again = AdvertiseRequest(other_attempt(SESSION, 2), other)
    assert unchanged(site, lambda: site.advertise(again)) == "wrong_phase"
    site.advertise(AdvertiseRequest(replace(SESSION, round=2), other))


def test_every_attempt_has_new_secrets() -> None:
    (site,) = make_sites([VALUES])
    seen: set[bytes] = set()
    for attempt in (1, 2, 3):
        site.advertise(AdvertiseRequest(other_attempt(SESSION, attempt), terms_for(3)))
        assert site.memory.current is not None
        keys = site.memory.current.keys
        seen |= {keys.encryption_private, keys.masking_seed, keys.self_mask_seed}
    assert len(seen) == 9


# --- Share ---


def with_row(session: Session, index: int, row: Advertisement | None) -> ShareRequest:
    """The share request with one site's keys replaced, or left out."""
    rows = {a.member_id: a for a in session.coordinator.share_request().advertisements}
    del rows[session.sites[index].member_id]
    if row is not None:
        rows[row.member_id] = row
    return ShareRequest(SESSION, tuple(rows[m] for m in sorted(rows)))


def test_keys_that_a_coordinator_put_in_the_place_of_a_member_s_are_refused() -> None:
    session = session_at(Phase.SHARE)
    site, victim = session.sites[0], session.sites[1]
    context = session.coordinator.terms.context(SESSION)
    genuine = next(
        a
        for a in session.coordinator.share_request().advertisements
        if a.member_id == victim.member_id
    )
    in_the_middle = SessionKeys.generate().advertise(context, Identity.generate())
    forged = [
        replace(genuine, encryption_key=in_the_middle.encryption_key),
        replace(genuine, masking_key=in_the_middle.masking_key),
        replace(genuine, seed_commitment=in_the_middle.seed_commitment),
        replace(in_the_middle, member_id=victim.member_id),
        replace(genuine, signature=bytes(64)),
    ]
    for row in forged:
        request = with_row(session, 1, row)
        assert unchanged(site, lambda request=request: site.share(request)) == "bad_signature"  # type: ignore[misc]
    stranger = with_row(session, 1, in_the_middle)
    assert unchanged(site, lambda: site.share(stranger)) == "unknown_member"


@pytest.mark.parametrize(
    "other",
    [
        replace(SESSION, attempt=2),
        replace(SESSION, round=2),
        replace(SESSION, run_id="f" * 32),
    ],
)
def test_keys_of_another_session_are_refused(other: SessionId) -> None:
    session = session_at(Phase.SHARE)
    context = session.coordinator.terms.context(other)
    replayed = SessionKeys.generate().advertise(context, IDENTITIES[1])
    request = with_row(session, 1, replayed)
    site = session.sites[0]
    assert unchanged(site, lambda: site.share(request)) == "bad_signature"


def test_keys_signed_under_other_terms_are_refused() -> None:
    session = session_at(Phase.SHARE)
    site = session.sites[0]
    for terms in (
        replace(session.coordinator.terms, task_digest="0" * 64),
        replace(session.coordinator.terms, bits=24),
        replace(session.coordinator.terms, degree=2),
    ):
        row = SessionKeys.generate().advertise(terms.context(SESSION), IDENTITIES[1])
        request = with_row(session, 1, row)
        assert unchanged(site, lambda request=request: site.share(request)) == "bad_signature"  # type: ignore[misc]


def test_a_site_s_own_keys_must_be_among_those_relayed_as_they_are() -> None:
    session = session_at(Phase.SHARE)
    site = session.sites[0]
    context = session.coordinator.terms.context(SESSION)
    assert unchanged(site, lambda: site.share(with_row(session, 0, None))) == "bad_signature"
    older = SessionKeys.generate().advertise(context, IDENTITIES[0])
    assert unchanged(site, lambda: site.share(with_row(session, 0, older))) == "bad_signature"


@pytest.mark.parametrize(("num_sites", "minimum", "enough"), [(3, 3, True), (3, 4, False)])
def test_a_cohort_under_the_policy_s_minimum_is_refused(
    num_sites: int, minimum: int, enough: bool
) -> None:
    session = session_at(Phase.SHARE, num_sites, minimum_cohort=minimum)
    site, request = session.sites[0], session.coordinator.share_request()
    if enough:
        site.share(request)
    else:
        assert unchanged(site, lambda: site.share(request)) == "cohort_too_small"


def test_a_sum_over_one_site_is_refused_under_any_policy() -> None:
    (site,) = make_sites([VALUES], minimum_cohort=0)
    reply = site.advertise(AdvertiseRequest(SESSION, terms_for(2)))
    alone = ShareRequest(SESSION, (reply.advertisement,))
    assert unchanged(site, lambda: site.share(alone)) == "cohort_too_small"


def test_more_sites_than_the_ring_was_made_for_are_refused() -> None:
    coordinator = make_coordinator(3, 2)
    session = Session(coordinator, make_sites(inputs(4)))
    session.advertise()
    site, request = session.sites[0], coordinator.share_request()
    assert unchanged(site, lambda: site.share(request)) == "malformed_request"


# --- Masked input ---


def masked_request(session: Session, index: int, **changes: Any) -> MaskedInputRequest:
    member = session.sites[index].member_id
    return replace(session.coordinator.masked_input_request(member), **changes)


def test_boxes_that_were_altered_swapped_or_left_out_are_refused() -> None:
    session = session_at(Phase.MASKED_INPUT)
    site = session.sites[0]
    genuine = masked_request(session, 0).boxes
    one, other = sorted(genuine)[:2]
    of_another_receiver = masked_request(session, 1).boxes
    bad: list[tuple[dict[str, bytes], str]] = [
        ({**genuine, one: genuine[one][:-1] + bytes([genuine[one][-1] ^ 1])}, "bad_signature"),
        ({**genuine, one: genuine[other], other: genuine[one]}, "bad_signature"),
        ({m: box for m, box in genuine.items() if m != one}, "malformed_request"),
        ({**genuine, site.member_id: genuine[one]}, "malformed_request"),
    ]
    shared = next(m for m in of_another_receiver if m in genuine)
    bad.append(({**genuine, shared: of_another_receiver[shared]}, "bad_signature"))
    for boxes, code in bad:
        request = masked_request(session, 0, boxes=boxes)
        assert unchanged(site, lambda request=request: site.masked_input(request)) == code  # type: ignore[misc]
    site.masked_input(masked_request(session, 0))


def test_the_list_of_senders_must_be_members_this_site_among_them_and_enough() -> None:
    session = session_at(Phase.MASKED_INPUT)
    site, everyone = session.sites[0], session.coordinator.senders
    others = tuple(m for m in everyone if m != site.member_id)
    stranger = tuple(sorted((*everyone[1:], IDENTITIES[9].member_id)))
    few = tuple(sorted({site.member_id, *others[:2]}))
    for senders, code in (
        (others, "unknown_member"),
        (stranger, "unknown_member"),
        (few, "cohort_too_small"),
    ):
        boxes = {m: b for m, b in masked_request(session, 0).boxes.items() if m in senders}
        request = masked_request(session, 0, senders=senders, boxes=boxes)
        assert unchanged(site, lambda request=request: site.masked_input(request)) == code  # type: ignore[misc]


def test_a_session_masks_once() -> None:
    session = session_at(Phase.MASKED_INPUT)
    site, request = session.sites[0], masked_request(session, 0)
    site.masked_input(request)
    assert unchanged(site, lambda: site.masked_input(request)) == "wrong_phase"


def test_masked_inputs_of_two_attempts_have_nothing_in_common() -> None:
    session = session_at(Phase.MASKED_INPUT)
    first = session.sites[0].masked_input(masked_request(session, 0))
    later = Session(make_coordinator(5, 2, other_attempt(SESSION, 2)), session.sites)
    later.advertise()
    later.share()
    again = masked_request(later, 0)
    second = session.sites[0].masked_input(again)
    assert first.packed[:4] != second.packed[:4] and first.packed[4:8] != second.packed[4:8]


def test_an_update_over_the_bound_is_not_masked() -> None:
    session = session_at(Phase.MASKED_INPUT)
    session.sites[0].values = np.array([0.1, 5.0], np.float32)
    with pytest.raises(FoedusError, match="Clip"):
        session.sites[0].masked_input(masked_request(session, 0))


# --- Confirm ---


def test_a_list_of_survivors_is_checked_before_it_is_signed() -> None:
    session = session_at(Phase.CONFIRM, 5)
    site, everyone = session.sites[0], session.coordinator.survivors
    others = tuple(m for m in everyone if m != site.member_id)
    for survivors, code in (
        (others, "unknown_member"),
        (tuple(sorted((*everyone, IDENTITIES[9].member_id))), "unknown_member"),
        (tuple(sorted({site.member_id, *others[:2]})), "cohort_too_small"),
    ):
        request = ConfirmRequest(SESSION, survivors)
        assert unchanged(site, lambda request=request: site.confirm(request)) == code  # type: ignore[misc]


def test_a_site_signs_one_list_a_session() -> None:
    session = session_at(Phase.CONFIRM, 5)
    site, everyone = session.sites[0], session.coordinator.survivors
    fewer = tuple(m for m in everyone if m != session.sites[4].member_id)
    site.confirm(ConfirmRequest(SESSION, everyone))
    for survivors in (everyone, fewer):
        request = ConfirmRequest(SESSION, survivors)
        assert unchanged(site, lambda request=request: site.confirm(request)) == "wrong_phase"  # type: ignore[misc]


# --- Unmask ---


def test_no_share_is_told_before_t_sites_have_signed_the_same_list() -> None:
    session = session_at(Phase.UNMASK, 5)
    site, genuine = session.sites[0], session.coordinator.unmask_request().confirmations
    needed = threshold(5)
    few = dict(itertools.islice(genuine.items(), needed - 1))
    assert unchanged(site, lambda: site.unmask(UnmaskRequest(SESSION, few))) == "cohort_too_small"
    member, signature = next(iter(genuine.items()))
    forged = {**genuine, member: signature[:-1] + bytes([signature[-1] ^ 1])}
    assert unchanged(site, lambda: site.unmask(UnmaskRequest(SESSION, forged))) == "bad_signature"
    shifted = dict(zip(genuine, [*list(genuine.values())[1:], signature], strict=True))
    assert unchanged(site, lambda: site.unmask(UnmaskRequest(SESSION, shifted))) == "bad_signature"
    stranger = {**genuine, IDENTITIES[9].member_id: IDENTITIES[9].sign(b"survivors")}
    assert unchanged(site, lambda: site.unmask(UnmaskRequest(SESSION, stranger))) == "bad_signature"
    site.unmask(UnmaskRequest(SESSION, dict(itertools.islice(genuine.items(), needed))))


def test_a_site_tells_one_kind_of_share_of_each_other_and_then_nothing_more() -> None:
    session = session_at(Phase.MASKED_INPUT, 5)
    session.drops = {Phase.MASKED_INPUT: [4]}
    session.mask()
    session.confirm()
    request = session.coordinator.unmask_request()
    site = session.sites[0]
    reply = site.unmask(request)
    dropped = session.sites[4].member_id
    assert set(reply.mask_key_shares) == {dropped}
    assert set(reply.self_mask_shares) == set(session.coordinator.survivors)
    assert site.memory.current is None
    assert unchanged(site, lambda: site.unmask(request)) == "wrong_phase"
    for call in (
        lambda: site.confirm(ConfirmRequest(SESSION, session.coordinator.survivors)),
        lambda: site.share(session.coordinator.share_request()),
        lambda: site.advertise(session.coordinator.advertise_request()),
    ):
        assert unchanged(site, call) == "wrong_phase"


@pytest.mark.parametrize("num_sites", [3, 4, 5, 6])
def test_two_lists_of_survivors_are_never_both_opened(num_sites: int) -> None:
    """However a coordinator divides the sites between two lists, at most one gathers t signatures,
    and a site tells its shares for the list it has signed alone."""
    for assignment in itertools.product((0, 1), repeat=num_sites):
        session = session_at(Phase.CONFIRM, num_sites)
        everyone = session.coordinator.survivors
        lists = (everyone, tuple(m for m in everyone if m != session.sites[-1].member_id))
        signed: tuple[dict[str, bytes], dict[str, bytes]] = ({}, {})
        for site, chosen in zip(session.sites, assignment, strict=True):
            try:
                reply = site.confirm(ConfirmRequest(SESSION, lists[chosen]))
                signed[chosen][site.member_id] = reply.confirmation
            except FoedusError:
                continue
        opened = set()
        for site, confirmations in itertools.product(session.sites, signed):
            try:
                reply = site.unmask(UnmaskRequest(SESSION, confirmations))
                opened.add(tuple(sorted(reply.self_mask_shares)))
            except FoedusError:
                continue
        assert len(opened) <= 1


@pytest.mark.parametrize("later_minimum", [2, 5])
def test_a_sum_that_was_opened_is_not_opened_for_other_sites_in_a_later_attempt(
    later_minimum: int,
) -> None:
    session = session_at(Phase.UNMASK, 5)
    session.unmask()
    fewer = session.sites[:4]
    again = Session(make_coordinator(5, 2, other_attempt(SESSION, 2)), fewer)
    again.advertise()
    again.share()
    site = fewer[0]
    request = again.coordinator.masked_input_request(site.member_id)
    assert unchanged(site, lambda: site.masked_input(request)) == "wrong_phase"
    # In the next round it takes part again.
    next_round = Session(make_coordinator(5, 2, replace(SESSION, round=2)), fewer)
    next_round.run()


def test_the_same_list_may_be_opened_again() -> None:
    session = session_at(Phase.UNMASK, 5)
    session.unmask()
    mean, _ = session.coordinator.open_sum()
    again = Session(make_coordinator(5, 2, other_attempt(SESSION, 2)), session.sites)
    second, _ = again.run()
    np.testing.assert_allclose(second, mean, atol=1e-6)


# --- Requests of other sessions ---

REQUESTS: dict[Phase, Callable[[Session, PureSite], Any]] = {
    Phase.SHARE: lambda s, site: s.coordinator.share_request(),
    Phase.MASKED_INPUT: lambda s, site: s.coordinator.masked_input_request(site.member_id),
    Phase.CONFIRM: lambda s, site: s.coordinator.confirm_request(),
    Phase.UNMASK: lambda s, site: s.coordinator.unmask_request(),
}
OTHERS = [
    replace(SESSION, attempt=2),
    replace(SESSION, round=2),
    replace(SESSION, run_id="f" * 32),
]


@pytest.mark.parametrize("phase", REQUESTS)
@pytest.mark.parametrize("other", OTHERS)
def test_a_request_of_another_run_round_or_attempt_is_refused(
    phase: Phase, other: SessionId
) -> None:
    session = session_at(phase)
    site = session.sites[0]
    request = replace(REQUESTS[phase](session, site), session=other)
    assert unchanged(site, lambda: getattr(site, phase)(request)) == "wrong_phase"


@pytest.mark.parametrize("phase", REQUESTS)
def test_a_request_before_its_turn_is_refused(phase: Phase) -> None:
    done = session_at(phase)
    request = REQUESTS[phase](done, done.sites[0])
    for earlier in _before(phase):
        site = session_at(earlier).sites[0]
        assert unchanged(site, lambda site=site: getattr(site, phase)(request)) == "wrong_phase"  # type: ignore[misc]
    fresh = PureSite(SitePart(IDENTITIES[0], ROSTER), VALUES, memory=RunMemory())
    assert unchanged(fresh, lambda: getattr(fresh, phase)(request)) == "wrong_phase"


def _before(phase: Phase) -> Sequence[Phase]:
    order = list(Phase)
    return order[1 : order.index(phase)]

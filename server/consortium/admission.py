"""Which requests may change the roster, and how. Pure: from versions and requests to members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from protocol.consortium.chain import MemberEntry, SignedRoster, coordinator_keys, next_version
from protocol.consortium.enrolment import EnrolmentRequest
from protocol.consortium.names import name_key
from protocol.errors import FoedusError

DAY_SECONDS = 86_400
# A request that lay about for longer may no longer be what the firm wants.
MOST_REQUEST_DAYS = 30


def admit(
    versions: Sequence[SignedRoster],
    requests: Sequence[EnrolmentRequest],
    member_days: int,
    now: int,
) -> SignedRoster:
    """The unsigned next version, with these requests granted until member_days from `now`.

    A request without history admits a new firm; one signed by a member's old identity replaces its
    keys; one with a member's own identity renews it.
    Errors: FoedusError where a request is stale, meant for others, or its keys or name are taken.
    """
    head = versions[-1]
    members = {entry.name: entry for entry in head.members}
    for request in requests:
        request.expect_meant_for(head.consortium, coordinator_keys(versions))
        _expect_fresh(request, now)
        current = _current_entry(head, request, now)
        _expect_new_keys(versions, request, current)
        members[request.name] = MemberEntry(
            request.name,
            request.identity_key,
            request.supernode_key,
            admitted=now,
            expires=now + member_days * DAY_SECONDS,
        )
    if len({name_key(request.name) for request in requests}) < len(requests):
        raise FoedusError("Expected one request of each firm, got two of one.")
    return replace(next_version(head, now), members=tuple(members.values()))


def expel(head: SignedRoster, name: str, now: int) -> SignedRoster:
    """The unsigned next version without this member. Errors: FoedusError where there is none."""
    if head.entry_named(name) is None:
        known = ", ".join(repr(entry.name) for entry in head.members) or "nobody"
        raise FoedusError(f"Expected a member's name, got {name!r}. Members are: {known}.")
    kept = tuple(entry for entry in head.members if entry.name != name)
    return replace(next_version(head, now), members=kept)


def _current_entry(head: SignedRoster, request: EnrolmentRequest, now: int) -> MemberEntry | None:
    """The entry that the request replaces; None for a firm that is new."""
    named = head.entry_named(request.name)
    if named is None:
        _expect_unlike(head, request.name)
        if request.previous_identity_key is not None:
            raise FoedusError(
                f"{request.name!r} asks for new keys and is no member (any more). To come back it "
                "joins anew, in an empty folder."
            )
        return None
    if request.previous_identity_key == named.public_key:
        return named
    if request.identity_key != named.public_key:
        raise FoedusError(
            f"{request.name!r} is a member with other keys, and the request does not show that it "
            "holds them. If it is another firm, it needs another name. If the member has lost its "
            "keys, expel it first and then admit it."
        )
    _expect_renewable(named, request, now)
    return named


def _expect_unlike(head: SignedRoster, name: str) -> None:
    """Errors: FoedusError where people would take the new name for a member's."""
    for entry in head.members:
        if name_key(entry.name) == name_key(name):
            raise FoedusError(
                f"The name {name!r} looks like that of the member {entry.name!r}. If it is this "
                "member, it asks under the name it has; another firm needs another name."
            )


def _expect_renewable(named: MemberEntry, request: EnrolmentRequest, now: int) -> None:
    if request.created <= named.admitted:
        raise FoedusError(
            f"The request of {request.name!r} is not newer than its admission: it was granted "
            "already. To stay longer it makes a new one: foedus client join --renew."
        )
    if named.expired(now) and request.supernode_key == named.supernode_key:
        raise FoedusError(
            f"The membership of {request.name!r} has ended, and SuperLink takes its SuperNode's "
            "key no more. It needs new keys: foedus client join --rotate."
        )


def _expect_new_keys(
    versions: Sequence[SignedRoster], request: EnrolmentRequest, current: MemberEntry | None
) -> None:
    """Errors: FoedusError where a key was a member's before and is not this firm's own now."""
    own = {current.public_key, current.supernode_key} if current else set()
    used = {
        key
        for version in versions
        for entry in version.members
        for key in (entry.public_key, entry.supernode_key)
    }
    if {request.identity_key, request.supernode_key} & (used - own):
        raise FoedusError(
            f"{request.name!r} brings a key that a member had before. Keys are used once: it makes "
            "new ones with `foedus client join` in an empty folder."
        )


def _expect_fresh(request: EnrolmentRequest, now: int) -> None:
    age_days = (now - request.created) / DAY_SECONDS
    if age_days > MOST_REQUEST_DAYS:
        raise FoedusError(
            f"The request of {request.name!r} is {age_days:.0f} days old; expected at most "
            f"{MOST_REQUEST_DAYS}. Ask the firm for a new one: foedus client join --renew."
        )
    if age_days < -1:
        raise FoedusError(
            f"The request of {request.name!r} comes from {-age_days:.0f} days in the future: one "
            "of the two clocks is wrong."
        )

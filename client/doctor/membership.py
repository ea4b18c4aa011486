"""Keys, roster and invitation: whether this site is who the consortium takes it for."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path

from client.doctor.findings import Check, Finding, fail, ok, warn
from client.enrolment.kept_roster import kept_versions
from client.enrolment.keys import load_supernode_key
from client.enrolment.site_files import pending
from client.site import Site
from protocol.consortium.documents import day_of
from protocol.consortium.enrolment import keys_fingerprint
from protocol.consortium.identity import load_identity
from protocol.consortium.invitation import Invitation
from protocol.consortium.passphrase import read_passphrase
from protocol.consortium.roster import read_roster
from protocol.consortium.signed_roster import MemberEntry
from protocol.consortium.supernode_key import public_pem
from protocol.errors import FoedusError

_DAY_SECONDS = 86400
_WARN_DAYS = 30


def membership_checks(site: Site) -> tuple[Check, ...]:
    """All of them; each goes without the others."""
    return (
        Check("identity", lambda: _identity(site)),
        Check("supernode key", lambda: _supernode_key(site)),
        Check("invitation", lambda: _invitation(site)),
        Check("roster", lambda: _roster(site)),
    )


def _identity(site: Site) -> Iterator[Finding]:
    if site.identity_file is None:
        yield warn("identity", "none in site.yaml", "`foedus client join` makes one.")
        return
    yield from _mode(site.identity_file, "identity")
    identity = load_identity(site.identity_file, read_passphrase(site.passphrase_file))
    yield ok("identity", f"opens; member {identity.member_id}")
    if pending(site.identity_file).exists():
        text = "new keys wait for their admission"
        yield warn("identity", text, "Send request.json to the coordinator's operator.")


def _supernode_key(site: Site) -> Iterator[Finding]:
    if site.supernode_key_file is None:
        yield warn("supernode key", "none in site.yaml", "`foedus client join` makes one.")
        return
    yield from _mode(site.supernode_key_file, "supernode key")
    passphrase = read_passphrase(site.passphrase_file)
    supernode = public_pem(load_supernode_key(site.supernode_key_file, passphrase))
    yield ok("supernode key", "opens")
    if site.identity_file is not None:
        identity = load_identity(site.identity_file, passphrase)
        yield ok("fingerprint", f"{keys_fingerprint(identity.public_key, supernode)}, of both keys")


def _mode(file: Path, what: str) -> Iterator[Finding]:
    mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o600
    if mode & 0o077:
        text = f"{file} can be read by others (mode {mode:04o})"
        yield fail(what, text, f"Run chmod 600 {file}, and think about who has read it.")


def _invitation(site: Site) -> Iterator[Finding]:
    if site.invitation_file is None:
        text = "no consortium in site.yaml"
        yield warn("invitation", text, "Join one by `foedus client join INVITATION`.")
        return
    invitation = Invitation.read(site.invitation_file)
    yield ok(
        "invitation",
        f"{invitation.consortium} at {invitation.address}; the coordinator's fingerprint is "
        f"{invitation.fingerprint}",
    )


def _roster(site: Site) -> Iterator[Finding]:
    if site.roster_file is None:
        text = "none in site.yaml; this site takes no part in secure aggregation"
        yield warn("roster", text, "Name the consortium's roster as `roster`.")
        return
    if site.roster_file.suffix != ".jsonl":
        plain = read_roster(site.roster_file)
        text = f"plain, version {plain.version}, {len(plain.members)} members"
        yield warn("roster", f"{text}, unsigned", "Join a consortium that signs its roster.")
        return
    versions = kept_versions(site)
    if not versions:
        text = f"nothing at {site.roster_file} yet"
        yield warn("roster", text, "It comes when `foedus client up` reaches the coordinator.")
        return
    newest = versions[-1]
    yield ok(
        "roster",
        f"version {newest.version} of {len(newest.members)} members, digest {newest.digest[:16]}…; "
        "the chain holds",
    )
    entry = _own_entry(site, newest.members)
    if entry is None:
        yield fail(
            "membership",
            f"this site's identity is not in version {newest.version} of the roster",
            "Send request.json to the coordinator's operator, or ask whether you were expelled.",
        )
        return
    yield _until(entry)
    if site.supernode_key_file is not None:
        yield _same_supernode_key(site, entry)


def _own_entry(site: Site, members: tuple[MemberEntry, ...]) -> MemberEntry | None:
    if site.identity_file is None:
        return None
    identity = load_identity(site.identity_file, read_passphrase(site.passphrase_file))
    return next((m for m in members if m.public_key == identity.public_key), None)


def _until(entry: MemberEntry) -> Finding:
    days = (entry.expires - time.time()) / _DAY_SECONDS
    advice = "Renew by `foedus client join --renew` and send the request."
    if days <= 0:
        return fail("membership", f"{entry.name} ended on {day_of(entry.expires)}", advice)
    text = f"{entry.name} until {day_of(entry.expires)}, {days:.0f} days"
    return warn("membership", text, advice) if days < _WARN_DAYS else ok("membership", text)


def _same_supernode_key(site: Site, entry: MemberEntry) -> Finding:
    assert site.supernode_key_file is not None
    try:
        key = load_supernode_key(site.supernode_key_file, read_passphrase(site.passphrase_file))
    except FoedusError as error:
        return fail("membership", str(error), "Restore the key that was admitted.")
    if public_pem(key) != entry.supernode_key:
        return fail(
            "membership",
            "the SuperNode key here is another than the roster's",
            "Restore the key that was admitted, or ask for new ones by "
            "`foedus client join --rotate`.",
        )
    return ok("membership", "both keys are those that were admitted")

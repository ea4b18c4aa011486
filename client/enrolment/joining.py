"""Making a site's folder and its requests: to join, to stay, to get new keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from client.enrolment.kept_roster import kept_versions
from client.enrolment.keys import load_supernode_key, make_supernode_key, save_supernode_key
from client.enrolment.site_files import (
    CONTRACTS,
    IDENTITY,
    INVITATION,
    REQUEST,
    ROSTER,
    SETTINGS,
    STATE,
    SUPERNODE_KEY,
    enrolment_alone,
    pending,
)
from client.site import Site, SiteSettings
from protocol.consortium.enrolment import EnrolmentRequest
from protocol.consortium.identity import Identity, load_identity, save_identity
from protocol.consortium.invitation import Invitation
from protocol.consortium.passphrase import read_passphrase
from protocol.consortium.supernode_key import public_pem
from protocol.errors import FoedusError
from protocol.files import write_atomically
from protocol.settings_file import commented_yaml

_OPENING = """\
A site of a foedus consortium, made by `foedus client join`. Paths start at this file's folder.
Settings that are commented out show their defaults. Once the coordinator has admitted the site:
  foedus client check --config site.yaml
  foedus client up --config site.yaml"""
_SETTLED = ("name", "contracts", "state", "identity", "roster", "consortium", "supernode_key")


def join(
    folder: Path, invitation: Invitation, name: str, passphrase_file: Path | None, now: int
) -> EnrolmentRequest:
    """Make both keys, the request and the settings, in a folder of the site's own.

    The settings come last: a folder that has keys and none is one where joining was cut off, and
    its keys are used. passphrase_file: opens the keys, see passphrase.read_passphrase. now: Unix
    seconds. Errors: FoedusError where the folder has settings already, or keys that do not open;
    SettingsError for a name that is none.
    """
    if (folder / SETTINGS).exists():
        raise FoedusError(
            f"Expected a folder without {SETTINGS} at {folder}: this site has joined already. "
            "--renew makes its request again, --rotate makes new keys."
        )
    passphrase = read_passphrase(passphrase_file)
    identity_file, supernode_file = folder / IDENTITY, folder / SUPERNODE_KEY
    has_identity, has_supernode = identity_file.exists(), supernode_file.exists()
    identity = load_identity(identity_file, passphrase) if has_identity else Identity.generate()
    supernode = (
        load_supernode_key(supernode_file, passphrase) if has_supernode else make_supernode_key()
    )
    request = _request(name, identity, supernode, invitation, now)
    (folder / CONTRACTS).mkdir(parents=True, exist_ok=True)
    (folder / STATE).mkdir(exist_ok=True, mode=0o700)
    if not has_identity:
        save_identity(identity_file, identity, passphrase)
    if not has_supernode:
        save_supernode_key(supernode_file, supernode, passphrase)
    invitation.save(folder / INVITATION)
    write_atomically(folder / REQUEST, request.to_json().encode())
    write_atomically(folder / SETTINGS, _settings_text(name, passphrase_file).encode())
    return request


def _settings_text(name: str, passphrase_file: Path | None) -> str:
    settings = SiteSettings(
        name=name,
        contracts=CONTRACTS,
        state=STATE,
        identity=IDENTITY,
        roster=ROSTER,
        consortium=INVITATION,
        supernode_key=SUPERNODE_KEY,
        passphrase_file=str(passphrase_file.resolve()) if passphrase_file else "",
    )
    left_out = set(SiteSettings.__dataclass_fields__) - {*_SETTLED}
    if passphrase_file:
        left_out.discard("passphrase_file")
    return commented_yaml(settings, _OPENING, left_out)


def renew(folder: Path, now: int) -> EnrolmentRequest:
    """Write the request anew with the keys that the site has: to stay, or because it was lost.

    Errors: FoedusError where the site has not joined, or a key does not open.
    """
    joined = _Joined.read(folder)
    request = _request(
        joined.member_name, joined.identity, joined.supernode, joined.invitation, now
    )
    write_atomically(folder / REQUEST, request.to_json().encode())
    return request


def rotate(folder: Path, now: int) -> EnrolmentRequest:
    """Make new keys beside the old ones, and a request that both sign.

    The old ones stay in force until the roster names the new ones, see kept_roster. Asked again
    before that, the same new keys are used. Errors: as renew.
    """
    joined = _Joined.read(folder)
    identity_file, supernode_file = pending(joined.identity_file), pending(joined.supernode_file)
    with enrolment_alone(joined.site):
        if not identity_file.exists():
            save_identity(identity_file, Identity.generate(), joined.passphrase)
        if not supernode_file.exists():
            save_supernode_key(supernode_file, make_supernode_key(), joined.passphrase)
    request = _request(
        joined.member_name,
        load_identity(identity_file, joined.passphrase),
        load_supernode_key(supernode_file, joined.passphrase),
        joined.invitation,
        now,
        previous=joined.identity,
    )
    write_atomically(folder / REQUEST, request.to_json().encode())
    return request


@dataclass(frozen=True)
class _Joined:
    """A site that has joined, with its keys open. member_name: as the roster calls it, or, before
    it is in there, as site.yaml does."""

    invitation: Invitation
    passphrase: bytes | None
    identity_file: Path
    supernode_file: Path
    identity: Identity
    supernode: ec.EllipticCurvePrivateKey
    member_name: str
    site: Site

    @classmethod
    def read(cls, folder: Path) -> _Joined:
        site = Site.from_file(folder / SETTINGS)
        if not (site.invitation_file and site.identity_file and site.supernode_key_file):
            raise FoedusError(
                f"Expected `consortium`, `identity` and `supernode_key` in {folder / SETTINGS}, as "
                "`foedus client join` writes them."
            )
        passphrase = read_passphrase(site.passphrase_file)
        identity = load_identity(site.identity_file, passphrase)
        versions = kept_versions(site)
        entry = versions[-1].entry_of(identity.public_key) if versions else None
        return cls(
            Invitation.read(site.invitation_file),
            passphrase,
            site.identity_file,
            site.supernode_key_file,
            identity,
            load_supernode_key(site.supernode_key_file, passphrase),
            entry.name if entry else site.settings.name,
            site,
        )


def _request(
    name: str,
    identity: Identity,
    supernode: ec.EllipticCurvePrivateKey,
    invitation: Invitation,
    now: int,
    previous: Identity | None = None,
) -> EnrolmentRequest:
    unsigned = EnrolmentRequest(
        name,
        identity.public_key,
        public_pem(supernode),
        invitation.consortium,
        invitation.coordinator_key,
        now,
        previous.public_key if previous else None,
    )
    return unsigned.proven(identity, supernode, previous)

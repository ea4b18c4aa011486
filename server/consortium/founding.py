"""Making a consortium's folder, and a new server certificate for it later."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cryptography import x509

from protocol.consortium.chain import append_version, first_version
from protocol.consortium.identity import Identity, save_identity
from protocol.consortium.invitation import Invitation, address_problems, split_address
from protocol.consortium.names import NAME_RULE, is_name
from protocol.consortium.private_pem import is_encrypted, read_private_file
from protocol.errors import FoedusError, SettingsError
from protocol.files import write_atomically
from protocol.settings_file import commented_yaml
from server.consortium.certificates import (
    LOOPBACK_NAMES,
    Certified,
    make_authority,
    make_server_certificate,
    names_of,
)
from server.consortium.folder import ConsortiumFolder
from server.consortium.settings import ConsortiumSettings

_SECRET = 0o600
_OPENING = """\
A foedus consortium, made by `foedus server init`. Start its coordinator with
  foedus server up --consortium FOLDER"""


def found_consortium(
    path: Path,
    settings: ConsortiumSettings,
    signatures_needed: int,
    also_known_as: Iterable[str],
    passphrase: bytes | None,
    now: datetime.datetime,
) -> Invitation:
    """Make the folder: authority, server certificate, coordinator's key, empty roster, settings.

    also_known_as: further host names and addresses of the server certificate. passphrase: for all
    private keys.
    Errors: SettingsError; FoedusError where the folder holds anything already.
    """
    _expect_sound(settings)
    _expect_empty(path)
    folder = ConsortiumFolder(path)
    host, _ = split_address(settings.advertised_address)
    names = (host, *also_known_as, *LOOPBACK_NAMES)
    authority = make_authority(settings.name, now)
    server = make_server_certificate(authority, names, settings.server_certificate_days, now)
    coordinator = Identity.generate()
    server_key_pem = server.key_pem(passphrase, for_openssl=True)
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    save_identity(folder.coordinator_key, coordinator, passphrase)
    write_atomically(folder.ca_key, authority.key_pem(passphrase), mode=_SECRET)
    write_atomically(folder.ca, authority.certificate_pem)
    _write_server(folder, server_key_pem, server)
    issued = int(now.timestamp())
    append_version(
        folder.roster, first_version(settings.name, coordinator, signatures_needed, issued)
    )
    invitation = Invitation(
        settings.name,
        settings.advertised_address,
        coordinator.public_key,
        authority.certificate_pem.decode(),
    ).signed(coordinator)
    invitation.save(folder.invitation)
    folder.runs.mkdir()
    folder.receipts.mkdir()
    # Last: what has this file is a consortium's folder, and whole.
    write_atomically(folder.settings_file, commented_yaml(settings, _OPENING).encode())
    return invitation


def renew_server_certificate(
    folder: ConsortiumFolder,
    also_known_as: Iterable[str],
    passphrase: bytes | None,
    now: datetime.datetime,
) -> x509.Certificate:
    """A new server key and certificate by the same authority, for the names of the old one, the
    address of consortium.yaml and also_known_as. The invitation gets that address too. The key is
    encrypted where the authority's is: a passphrase that opens nothing is not needed later either.

    Errors: FoedusError where a key does not open or others can read it, or the authority's
    certificate ends too soon.
    """
    settings = folder.settings()
    _expect_sound(settings)
    ca_key = read_private_file(folder.ca_key, "the key of the consortium's authority")
    authority = Certified.from_pem(ca_key, _read(folder.ca), passphrase)
    host, _ = split_address(settings.advertised_address)
    names = [host, *names_of(server_certificate(folder)), *also_known_as]
    server = make_server_certificate(authority, names, settings.server_certificate_days, now)
    served = passphrase if is_encrypted(ca_key) else None
    _write_server(folder, server.key_pem(served, for_openssl=True), server)
    invitation = folder.read_invitation()
    if invitation.address != settings.advertised_address:
        moved = replace(invitation, address=settings.advertised_address)
        moved.signed(folder.coordinator(passphrase)).save(folder.invitation)
    return server.certificate


def server_certificate(folder: ConsortiumFolder) -> x509.Certificate:
    """The coordinator's certificate. Errors: FoedusError where there is none."""
    try:
        return x509.load_pem_x509_certificate(_read(folder.server_certificate))
    except ValueError as error:
        raise FoedusError(
            f"Expected a certificate in PEM at {folder.server_certificate}, got something else. "
            "Make a new one: foedus server renew."
        ) from error


def _write_server(folder: ConsortiumFolder, key_pem: bytes, server: Certified) -> None:
    write_atomically(folder.server_key, key_pem, mode=_SECRET)
    write_atomically(folder.server_certificate, server.certificate_pem)


def _expect_sound(settings: ConsortiumSettings) -> None:
    problems = address_problems(settings.advertised_address)
    if not is_name(settings.name):
        problems.append(f"name: expected {NAME_RULE}, got {settings.name!r}.")
    if problems:
        raise SettingsError("the consortium's settings", problems)


def _expect_empty(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FoedusError(
            f"Expected no folder or an empty one at {path}, found something. A consortium's keys "
            "are never overwritten: give another --folder."
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FoedusError(f"Expected a file at {path}: {error.strerror}.") from error

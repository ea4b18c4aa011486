"""`foedus server init` and `renew`: a whole folder, with secrets for its owner alone."""

from __future__ import annotations

import datetime
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from protocol.consortium.invitation import Invitation
from protocol.errors import FoedusError
from protocol.settings_file import commented_yaml
from server.consortium.certificates import LOOPBACK_NAMES, names_of
from server.consortium.folder import ConsortiumFolder
from server.consortium.founding import (
    found_consortium,
    renew_server_certificate,
    server_certificate,
)
from server.consortium.settings import ConsortiumSettings
from tests.protocol.consortium.leagues import LEAGUE
from tests.server.consortium.consortia import MOMENT, founded_in

PASSPHRASE = b"correct horse"


def test_the_folder_has_all_that_a_coordinator_needs(tmp_path: Path) -> None:
    folder = founded_in(tmp_path / "new" / "consortium", signatures_needed=2)
    invitation, (first,) = folder.read_invitation(), folder.chain()
    assert folder.settings() == ConsortiumSettings(LEAGUE, "foedus.example.org:9443")
    assert invitation.consortium == first.consortium == LEAGUE
    assert invitation.coordinator_key == folder.coordinator().public_key == first.coordinator_key
    assert invitation.ca_certificate_pem.encode() == folder.ca.read_bytes()
    assert first.signatures_needed == 2 and first.members == ()
    certificate = server_certificate(folder)
    assert names_of(certificate) == ["foedus.example.org", *LOOPBACK_NAMES]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(folder.ca.read_bytes()))


def test_private_keys_and_the_folder_are_their_owners_alone(tmp_path: Path) -> None:
    folder = founded_in(tmp_path / "consortium")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    for path in (folder.coordinator_key, folder.ca_key, folder.server_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    public = (folder.invitation, folder.roster, folder.ca, folder.server_certificate)
    assert not any(b"PRIVATE" in path.read_bytes() for path in public)


def private_keys_in(folder: ConsortiumFolder) -> list[Path]:
    files = (path for path in folder.path.rglob("*") if path.is_file())
    return sorted(path for path in files if b"PRIVATE KEY" in path.read_bytes())


def test_a_passphrase_encrypts_every_private_key_at_founding_and_at_a_renewal(
    tmp_path: Path,
) -> None:
    folder = founded_in(tmp_path / "consortium", passphrase=PASSPHRASE)
    for _ in range(2):
        keys = private_keys_in(folder)
        assert keys == sorted([folder.coordinator_key, folder.ca_key, folder.server_key])
        for path in keys:
            with pytest.raises(TypeError, match="encrypted"):
                load_pem_private_key(path.read_bytes(), None)
            load_pem_private_key(path.read_bytes(), PASSPHRASE)
        # By OpenSSL too, as nginx opens it.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            folder.server_certificate, folder.server_key, PASSPHRASE
        )
        renew_server_certificate(folder, (), PASSPHRASE, MOMENT)
    with pytest.raises(FoedusError, match="FOEDUS_PASSPHRASE_FILE"):
        folder.coordinator()
    assert folder.coordinator(PASSPHRASE).public_key == folder.chain()[0].coordinator_key


def test_a_renewal_with_a_passphrase_that_opens_nothing_leaves_the_key_open(tmp_path: Path) -> None:
    folder = founded_in(tmp_path / "consortium")
    renew_server_certificate(folder, (), PASSPHRASE, MOMENT)
    load_pem_private_key(folder.server_key.read_bytes(), None)


def test_a_passphrase_too_long_for_a_tls_key_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    with pytest.raises(FoedusError, match="at most 1024 bytes"):
        founded_in(tmp_path / "consortium", passphrase=b"x" * 1025)
    assert not (tmp_path / "consortium").exists()


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    folder = founded_in(tmp_path / "consortium")
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(FoedusError, match="found something"):
        founded_in(folder.path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FoedusError, match="found something"):
        founded_in(tmp_path / "file")
    assert before == {path: path.read_bytes() for path in before}


def test_everything_wrong_is_told_at_once_and_nothing_written(tmp_path: Path) -> None:
    settings = ConsortiumSettings(" spaced", "nowhere")
    with pytest.raises(FoedusError) as refused:
        found_consortium(tmp_path / "consortium", settings, 0, (), None, MOMENT)
    assert "address:" in str(refused.value) and "name:" in str(refused.value)
    assert not (tmp_path / "consortium").exists()


def test_a_folder_that_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match="foedus server init"):
        ConsortiumFolder(tmp_path).settings()


def test_a_renewal_keeps_authority_and_names_and_takes_a_new_key(tmp_path: Path) -> None:
    folder = founded_in(tmp_path / "consortium", passphrase=PASSPHRASE)
    authority, key = folder.ca.read_bytes(), folder.server_key.read_bytes()
    later = MOMENT + datetime.timedelta(days=300)
    renewed = renew_server_certificate(folder, ["second.example.org"], PASSPHRASE, later)
    assert renewed == server_certificate(folder)
    names = ["foedus.example.org", *LOOPBACK_NAMES, "second.example.org"]
    assert names_of(renewed) == names
    assert renewed.not_valid_after_utc == later + datetime.timedelta(days=397)
    assert folder.ca.read_bytes() == authority and folder.server_key.read_bytes() != key
    renewed.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    with pytest.raises(FoedusError, match="passphrase"):
        renew_server_certificate(folder, (), None, later)


def test_an_authoritys_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    folder = founded_in(tmp_path / "consortium")
    before = folder.server_certificate.read_bytes()
    folder.ca_key.chmod(0o644)
    with pytest.raises(FoedusError, match=r"ca\.key .*chmod 600"):
        renew_server_certificate(folder, (), None, MOMENT)
    assert folder.server_certificate.read_bytes() == before


def test_a_coordinator_does_not_start_with_a_tls_key_that_others_can_read(tmp_path: Path) -> None:
    folder = founded_in(tmp_path / "consortium")
    folder.server_key.chmod(0o644)
    command = [sys.executable, "-m", "server.gateway", "--consortium", str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "server.key" in done.stderr and "chmod 600" in done.stderr


def test_a_new_address_comes_into_certificate_and_invitation(tmp_path: Path) -> None:
    folder = founded_in(tmp_path / "consortium")
    before = folder.read_invitation()
    moved = ConsortiumSettings(LEAGUE, "new.example.org:443")
    folder.settings_file.write_text(commented_yaml(moved, "Moved."))
    certificate = renew_server_certificate(folder, (), None, MOMENT)
    assert "new.example.org" in names_of(certificate)
    after = Invitation.read(folder.invitation)
    assert after.address == "new.example.org:443" and after.fingerprint == before.fingerprint

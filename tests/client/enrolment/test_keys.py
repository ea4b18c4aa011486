"""The SuperNode's key: its owner's alone, encrypted where asked, and readable by Flower."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from client.enrolment.keys import (
    load_supernode_key,
    make_supernode_key,
    save_supernode_key,
    supernode_key_unlocked,
)
from protocol.consortium.identity import Identity, save_identity
from protocol.consortium.private_pem import to_private_pem
from protocol.errors import FoedusError


@pytest.mark.parametrize("passphrase", [None, b"correct horse"], ids=["plain", "encrypted"])
def test_a_saved_key_comes_back_and_flower_reads_it_unlocked(
    tmp_path: Path, passphrase: bytes | None
) -> None:
    key, path = make_supernode_key(), tmp_path / "supernode.pem"
    save_supernode_key(path, key, passphrase)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = load_supernode_key(path, passphrase)
    assert loaded.private_numbers() == key.private_numbers()
    # As flower-supernode does with --auth-supernode-private-key.
    flowers = load_ssh_private_key(supernode_key_unlocked(path, passphrase), None)
    assert isinstance(flowers, ec.EllipticCurvePrivateKey)
    assert flowers.private_numbers() == key.private_numbers()


def test_without_a_passphrase_flower_reads_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "supernode.pem"
    save_supernode_key(path, make_supernode_key(), None)
    load_ssh_private_key(path.read_bytes(), None)


def test_an_encrypted_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    path = tmp_path / "supernode.pem"
    save_supernode_key(path, make_supernode_key(), b"correct horse")
    assert b"ENCRYPTED" in path.read_bytes()
    for wrong in (None, b"battery staple"):
        with pytest.raises(FoedusError, match="passphrase"):
            load_supernode_key(path, wrong)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "supernode.pem"
    save_supernode_key(path, make_supernode_key(), None)
    path.chmod(0o640)
    with pytest.raises(FoedusError, match="chmod 600"):
        load_supernode_key(path, None)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "supernode.pem"
    save_supernode_key(path, make_supernode_key(), None)
    before = path.read_bytes()
    with pytest.raises(FoedusError, match="not overwritten"):
        save_supernode_key(path, make_supernode_key(), None)
    assert path.read_bytes() == before


def test_other_keys_and_other_files_are_refused(tmp_path: Path) -> None:
    identity, p256, broken = (tmp_path / name for name in ("identity", "p256", "broken"))
    save_identity(identity, Identity.generate())
    p256.write_bytes(to_private_pem(ec.generate_private_key(ec.SECP256R1()), None))
    broken.write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----\nno\n")
    for path in (p256, broken):
        path.chmod(0o600)
    for path, said in ((identity, "P-384"), (p256, "P-384"), (broken, "does not open")):
        with pytest.raises(FoedusError, match=said):
            load_supernode_key(path, None)
    with pytest.raises(FoedusError, match="Expected the SuperNode's key at"):
        load_supernode_key(tmp_path / "none", None)

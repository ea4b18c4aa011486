"""Where the passphrase comes from, and that a key opens with it alone."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.consortium.identity import Identity
from protocol.consortium.passphrase import VARIABLE, read_passphrase
from protocol.consortium.private_pem import to_private_pem
from protocol.errors import FoedusError


def test_a_file_goes_before_the_variable_and_neither_means_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_passphrase() is None
    monkeypatch.setenv(VARIABLE, "of the environment")
    assert read_passphrase() == b"of the environment"
    file = tmp_path / "passphrase"
    file.write_text("of the file\nand more\n")
    assert read_passphrase(file) == b"of the file"


@pytest.mark.parametrize("text", ["", "\n", "\nsecond line\n"])
def test_an_empty_first_line_is_refused_and_not_taken_for_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "passphrase"
    file.write_text(text)
    with pytest.raises(FoedusError, match="empty"):
        read_passphrase(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match="Expected a passphrase in"):
        read_passphrase(tmp_path / "none")


def test_a_passphrase_that_a_key_does_not_need_is_left_aside() -> None:
    identity = Identity.generate()
    assert Identity.from_pem(identity.to_pem(), b"not needed").public_key == identity.public_key


@pytest.mark.parametrize(
    ("for_openssl", "cost"),
    [
        # N = 2^17, r = 8, p = 1.
        (False, "0203020000" + "020108" + "020101"),
        # N = 2^14, r = 8, p = 8: OpenSSL allows 32 MiB.
        (True, "02024000" + "020108" + "020108"),
    ],
)
def test_guessing_a_passphrase_costs_memory_and_time(for_openssl: bool, cost: str) -> None:
    """The cost stands in the file itself, whatever library wrote it."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = to_private_pem(key, b"correct horse", for_openssl=for_openssl).decode().splitlines()
    data = base64.b64decode("".join(pem[1:-1]))
    scrypt = bytes.fromhex("06092b06010401da47040b")  # OID 1.3.6.1.4.1.11591.4.11
    assert scrypt in data and bytes.fromhex(cost) in data

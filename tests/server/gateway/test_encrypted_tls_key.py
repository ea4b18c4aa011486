"""A coordinator whose keys have a passphrase serves with it, and says what is missing without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from protocol.consortium.passphrase import FILE_VARIABLE, VARIABLE
from server.consortium.folder import ConsortiumFolder
from server.consortium.founding import server_certificate
from tests.server.gateway.little_coordinator import Coordinator, Firm, found, up, wait_for

PASSPHRASE = b"correct horse"
pytestmark = pytest.mark.slow


def founded(folder: Path) -> ConsortiumFolder:
    passphrase = folder / "passphrase"
    passphrase.write_bytes(PASSPHRASE + b"\n")
    return found(folder / "oak", [Firm("Ash").entry()], passphrase_file=str(passphrase))


def foedus_server(*words: str) -> subprocess.CompletedProcess[str]:
    """A command in an environment without a passphrase."""
    hidden = (VARIABLE, FILE_VARIABLE)
    return subprocess.run(
        [sys.executable, "-m", "foedus", "server", *words],
        env={name: value for name, value in os.environ.items() if name not in hidden},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def healthy(coordinator: Coordinator) -> bool:
    with coordinator.outside() as client:
        return client.get("/v1/foedus/health").status_code == 200


@pytest.mark.parametrize("open_before", [False, True], ids=["encrypted", "left-open"])
def test_with_the_passphrase_tls_is_served_and_a_renewed_certificate_without_a_restart(
    tmp_path: Path, open_before: bool
) -> None:
    folder = founded(tmp_path)
    if open_before:
        key = load_pem_private_key(folder.server_key.read_bytes(), PASSPHRASE)
        folder.server_key.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
    assert (b"ENCRYPTED PRIVATE KEY" in folder.server_key.read_bytes()) != open_before
    with up(folder) as coordinator:
        assert healthy(coordinator)
        assert coordinator.served_serial() == server_certificate(folder).serial_number
        renewed = foedus_server("renew", "--consortium", str(folder.path))
        assert renewed.returncode == 0, renewed.stderr
        assert b"ENCRYPTED PRIVATE KEY" in folder.server_key.read_bytes()
        # No handshake fails meanwhile: opening the new key takes a while.
        wait_for(lambda: coordinator.served_serial() == server_certificate(folder).serial_number)
        assert healthy(coordinator) and coordinator.process.poll() is None


def test_without_the_passphrase_it_does_not_start_and_says_what_is_missing(tmp_path: Path) -> None:
    folder = founded(tmp_path)
    settings = yaml.safe_load(folder.settings_file.read_text(encoding="utf-8"))
    settings["passphrase_file"] = ""
    folder.settings_file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    refused = foedus_server("up", "--consortium", str(folder.path))
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    for words in ("server.key", "passphrase", FILE_VARIABLE, "passphrase_file"):
        assert words in refused.stderr

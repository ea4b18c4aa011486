"""`foedus client join`: keys that stay, a request that proves them, settings that work at once."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from client.enrolment.joining import join, renew, rotate
from client.enrolment.keys import load_supernode_key
from client.site import Site
from protocol.consortium.enrolment import EnrolmentRequest
from protocol.consortium.identity import load_identity
from protocol.consortium.invitation import Invitation
from protocol.errors import FoedusError
from tests.client.enrolment.coordinators import AUTHORITY
from tests.client.enrolment.sites import firm_of, joined
from tests.protocol.consortium.leagues import COORDINATOR, LEAGUE, NOW

INVITATION = Invitation(
    LEAGUE,
    "localhost:9443",
    COORDINATOR.public_key,
    AUTHORITY.certificate_pem.decode(),
).signed(COORDINATOR)
NAME = 'Vane & "Alder" # ${x}'


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_folder_is_a_site_whose_request_proves_its_keys(tmp_path: Path) -> None:
    site, firm = joined(tmp_path / "site", INVITATION, NAME)
    assert site.settings.name == NAME and site.contracts_folder.is_dir()
    assert site.invitation_file is not None
    assert Invitation.read(site.invitation_file) == INVITATION
    request = EnrolmentRequest.read(tmp_path / "site" / "request.json")
    assert (request.name, request.identity_key) == (NAME, firm.identity.public_key)
    assert request.supernode_key == firm.entry().supernode_key
    assert abs(request.created - time.time()) < 600 and request.previous_identity_key is None
    request.expect_meant_for(LEAGUE, {COORDINATOR.public_key})


def test_private_keys_are_in_two_files_for_their_owner_alone(tmp_path: Path) -> None:
    joined(tmp_path, INVITATION, NAME)
    secret = {name for name, data in files_of(tmp_path).items() if b"PRIVATE" in data}
    assert secret == {"identity.pem", "supernode.pem"}
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600 for name in secret)


def test_what_the_site_keeps_is_for_its_owner_alone(tmp_path: Path) -> None:
    site, _ = joined(tmp_path, INVITATION, NAME)
    assert stat.S_IMODE(site.state_folder.stat().st_mode) == 0o700


def test_a_passphrase_encrypts_both_keys_and_site_yaml_knows_its_file(tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse\n")
    join(tmp_path / "site", INVITATION, NAME, passphrase, NOW)
    site = Site.from_file(tmp_path / "site" / "site.yaml")
    assert site.passphrase_file == passphrase
    for name in ("identity.pem", "supernode.pem"):
        assert b"ENCRYPTED" in (tmp_path / "site" / name).read_bytes()
    everything = b"".join(files_of(tmp_path / "site").values())
    assert b"correct horse" not in everything
    assert renew(tmp_path / "site", NOW + 1).created == NOW + 1


def test_a_site_joins_once(tmp_path: Path) -> None:
    joined(tmp_path, INVITATION, NAME)
    before = files_of(tmp_path)
    with pytest.raises(FoedusError, match="joined already"):
        join(tmp_path, INVITATION, NAME, None, NOW)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    "written",
    [
        ["identity.pem"],
        ["identity.pem", "supernode.pem"],
        ["identity.pem", "supernode.pem", "consortium.json"],
        ["identity.pem", "supernode.pem", "consortium.json", "request.json"],
    ],
    ids=len,
)
def test_joining_that_was_cut_off_goes_on_with_the_keys_it_made(
    tmp_path: Path, written: list[str]
) -> None:
    """In the order in which they are written; a folder stands for a file that cannot be."""
    order = ["identity.pem", "supernode.pem", "consortium.json", "request.json", "site.yaml"]
    obstacle = tmp_path / order[len(written)]
    (obstacle / "in the way").mkdir(parents=True)
    with pytest.raises((OSError, FoedusError)):
        join(tmp_path, INVITATION, NAME, None, NOW)
    assert set(files_of(tmp_path)) <= {*written}
    (obstacle / "in the way").rmdir()
    obstacle.rmdir()
    made = files_of(tmp_path)
    request = join(tmp_path, INVITATION, NAME, None, NOW)
    after = files_of(tmp_path)
    assert {name: after[name] for name in made if name.endswith(".pem")} == {
        name: data for name, data in made.items() if name.endswith(".pem")
    }
    assert EnrolmentRequest.read(tmp_path / "request.json") == request
    assert request.identity_key == firm_of(tmp_path, NAME).identity.public_key
    assert renew(tmp_path, NOW + 1).fingerprint == request.fingerprint


def test_a_lost_request_is_made_again(tmp_path: Path) -> None:
    joined(tmp_path, INVITATION, NAME)
    (tmp_path / "request.json").unlink()
    assert renew(tmp_path, NOW).name == NAME


def test_a_name_that_is_none_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match="name: expected"):
        join(tmp_path / "site", INVITATION, " spaced", None, NOW)
    assert not (tmp_path / "site").exists()


def test_a_renewal_is_a_newer_request_with_the_same_keys(tmp_path: Path) -> None:
    _, firm = joined(tmp_path, INVITATION, NAME)
    request = renew(tmp_path, NOW + 5)
    assert EnrolmentRequest.read(tmp_path / "request.json") == request
    assert (request.identity_key, request.created) == (firm.identity.public_key, NOW + 5)
    assert request.name == NAME


def test_a_rotation_keeps_the_old_keys_in_force_and_signs_with_them(tmp_path: Path) -> None:
    _, old = joined(tmp_path, INVITATION, NAME)
    request = rotate(tmp_path, NOW)
    assert request.previous_identity_key == old.identity.public_key
    assert firm_of(tmp_path, NAME).identity.public_key == old.identity.public_key
    assert request.identity_key == load_identity(tmp_path / "identity-next.pem").public_key
    assert request.identity_key != old.identity.public_key
    assert request.supernode_key != old.entry().supernode_key
    for name in ("identity-next.pem", "supernode-next.pem"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_rotation_asked_for_twice_brings_the_same_new_keys(tmp_path: Path) -> None:
    joined(tmp_path, INVITATION, NAME)
    first, second = rotate(tmp_path, NOW), rotate(tmp_path, NOW + 1)
    assert first.fingerprint == second.fingerprint and second.created == NOW + 1
    load_supernode_key(tmp_path / "supernode-next.pem", None)


@pytest.mark.parametrize("again", [renew, rotate])
def test_who_has_not_joined_cannot_ask_again(
    tmp_path: Path, again: Callable[[Path, int], EnrolmentRequest]
) -> None:
    with pytest.raises(FoedusError, match="got no file"):
        again(tmp_path, NOW)

"""`foedus server init`, `admit`, `expel` and the rest, as the coordinator's operator types them."""

from __future__ import annotations

import json
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from protocol.consortium.endorsement import Endorsement
from protocol.consortium.enrolment import EnrolmentRequest
from protocol.consortium.passphrase import VARIABLE
from protocol.consortium.signed_roster import SignedRoster
from protocol.errors import FoedusError
from server.cli import app
from server.consortium.folder import ConsortiumFolder
from tests.protocol.consortium.leagues import ANNE, BELL, COLE, LEAGUE, Firm, firm
from tests.server.consortium.consortia import request_of

PASSPHRASE = "correct horse"


def server(*words: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


def done(*words: str | Path, stdin: str = "") -> Result:
    result = server(*words, stdin=stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refusal(*words: str | Path, stdin: str = "") -> str:
    """What is refused; `foedus` prints it and exits with 2."""
    result = server(*words, stdin=stdin)
    assert isinstance(result.exception, FoedusError), result.output
    return str(result.exception)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConsortiumFolder:
    """A consortium named by FOEDUS_CONSORTIUM, so that the commands need not be told."""
    monkeypatch.delenv(VARIABLE, raising=False)
    path = tmp_path / "consortium"
    done("init", LEAGUE, "--folder", path, "--address", "localhost:19443")
    monkeypatch.setenv("FOEDUS_CONSORTIUM", str(path))
    return ConsortiumFolder(path)


def request_file(
    folder: ConsortiumFolder, member: Firm, previous: Firm | None = None
) -> tuple[Path, EnrolmentRequest]:
    key = folder.read_invitation().coordinator_key
    request = request_of(member, key, created=int(time.time()) + 1, previous=previous)
    path = folder.path.parent / f"{member.identity.member_id}.json"
    path.write_text(request.to_json(), encoding="utf-8")
    return path, request


def member_days(folder: ConsortiumFolder, days: int) -> None:
    """As an operator who edits consortium.yaml."""
    text = folder.settings_file.read_text()
    folder.settings_file.write_text(text.replace("member_days: 365", f"member_days: {days}"))


def shown(folder: ConsortiumFolder) -> dict[str, object]:
    return {m["name"]: m for m in json.loads(done("members", "--json").stdout)["members"]}


def test_init_shows_the_fingerprint_to_read_out(tmp_path: Path) -> None:
    path = tmp_path / "consortium"
    words = ("init", "Test League", "--folder", path, "--address", "foedus.example.org:443")
    told = done(*words, "--also-known-as", "10.0.0.7", "--signatures", "2", "--control-port", "7")
    folder = ConsortiumFolder(path)
    assert folder.read_invitation().fingerprint in told.stdout
    assert (folder.settings().public_port, folder.settings().control_port) == (443, 7)
    assert folder.chain()[0].signatures_needed == 2
    assert "found something" in refusal(*words)


def test_init_takes_a_passphrase_from_a_file_and_never_shows_it(tmp_path: Path) -> None:
    file, path = tmp_path / "passphrase", tmp_path / "consortium"
    file.write_text(f"{PASSPHRASE}\n")
    words = ("init", LEAGUE, "--folder", path, "--address", "h:1", "--passphrase-file", file)
    assert PASSPHRASE not in done(*words).output
    everything = b"".join(p.read_bytes() for p in path.rglob("*") if p.is_file())
    assert PASSPHRASE.encode() not in everything
    folder = ConsortiumFolder(path)
    assert b"ENCRYPTED" in folder.coordinator_key.read_bytes()
    done("admit", request_file(folder, ANNE)[0], "--yes", "--consortium", path)
    file.write_text("battery staple")
    assert "passphrase right?" in refusal("expel", ANNE.name, "--yes", "--consortium", path)


@pytest.mark.parametrize("address", ["localhost", "localhost:0", "a b:1"])
def test_init_refuses_what_is_no_address(tmp_path: Path, address: str) -> None:
    words = ("init", "L", "--folder", tmp_path / "c", "--address", address)
    assert "host:port" in refusal(*words)
    assert not (tmp_path / "c").exists()


def test_admit_shows_the_firms_fingerprint_and_asks(folder: ConsortiumFolder) -> None:
    path, request = request_file(folder, ANNE)
    declined = server("admit", path, stdin="n\n")
    assert declined.exit_code == 1 and request.fingerprint in declined.output
    assert folder.chain()[-1].members == ()
    done("admit", path, stdin="y\n")
    assert [entry.name for entry in folder.chain()[-1].members] == [ANNE.name]


def test_admit_takes_the_fingerprints_that_were_read_out_instead(
    folder: ConsortiumFolder,
) -> None:
    (one, anne), (two, bell) = request_file(folder, ANNE), request_file(folder, BELL)
    wrong = refusal("admit", one, two, "--fingerprint", anne.fingerprint)
    assert BELL.name in wrong and "Do not admit" in wrong
    assert folder.chain()[-1].members == ()
    both = ("--fingerprint", anne.fingerprint, "--fingerprint", bell.fingerprint.replace(" ", ""))
    done("admit", one, two, *both)
    assert set(shown(folder)) == {ANNE.name, BELL.name}


def test_admit_refuses_a_request_that_was_changed(folder: ConsortiumFolder) -> None:
    path, _ = request_file(folder, ANNE)
    path.write_text(path.read_text().replace(ANNE.name, "Mallory"))
    assert "altered on its way" in refusal("admit", path, "--yes")


def test_rotation_renewal_and_expulsion(folder: ConsortiumFolder) -> None:
    done("admit", request_file(folder, ANNE)[0], request_file(folder, BELL)[0], "--yes")
    new = replace(firm("Anne's next keys"), name=ANNE.name)
    told = done("admit", request_file(folder, new, previous=ANNE)[0], "--yes")
    assert "new keys" in told.stdout
    assert folder.chain()[-1].entry_of(new.identity.public_key) is not None
    member_days(folder, 500)
    assert f"renews {BELL.name}" in done("admit", request_file(folder, BELL)[0], "--yes").stdout
    done("expel", BELL.name, "--yes")
    assert set(shown(folder)) == {ANNE.name}
    assert "Expected a member's name" in refusal("expel", BELL.name, "--yes")


def test_members_lists_what_is_known_and_warns_of_what_ends(folder: ConsortiumFolder) -> None:
    _, request = request_file(folder, ANNE)
    member_days(folder, 5)
    done("admit", request_file(folder, ANNE)[0], "--yes")
    entry = shown(folder)[ANNE.name]
    assert isinstance(entry, dict)
    assert entry["fingerprint"] == request.fingerprint and entry["status"] == "unknown"
    assert entry["member_id"] == ANNE.identity.member_id and entry["node_id"] is None
    table = server("members")
    assert ANNE.name.split()[0] in table.stdout and f"{ANNE.name} ends in" in table.stderr
    assert request.fingerprint[:23] in table.stdout


def test_a_rule_of_signatures_holds_for_every_change_and_for_itself(
    folder: ConsortiumFolder, tmp_path: Path
) -> None:
    done("admit", request_file(folder, ANNE)[0], request_file(folder, BELL)[0], "--yes")
    done("require-signatures", "1", "--yes")
    for words in (
        ("admit", request_file(folder, COLE)[0]),
        ("expel", ANNE.name),
        ("rotate-key",),
        ("require-signatures", "0"),
    ):
        head = folder.chain()[-1]
        assert "1 more member must sign it" in done(*words, "--yes").stdout
        assert folder.chain()[-1] == head
        newest = max(folder.proposals.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        proposal = SignedRoster.from_line(newest.read_text(), "proposal")
        endorsement = tmp_path / "endorsement.json"
        endorsement.write_text(Endorsement.of(proposal, BELL.identity).to_json())
        assert "in force" in done("adopt", endorsement).stdout
        assert folder.chain()[-1].digest == proposal.digest
    assert folder.chain()[-1].signatures_needed == 0
    assert set(shown(folder)) == {BELL.name, COLE.name}
    assert "changes nothing" in refusal("require-signatures", "0", "--yes")


def test_rotate_key_and_renew_leave_a_working_consortium(folder: ConsortiumFolder) -> None:
    before = folder.read_invitation()
    done("rotate-key", stdin="y\n")
    after = folder.read_invitation()
    assert after.fingerprint != before.fingerprint
    assert stat.S_IMODE(folder.coordinator_key.stat().st_mode) == 0o600
    certificate = folder.server_certificate.read_bytes()
    assert "valid until" in done("renew").stdout
    assert folder.server_certificate.read_bytes() != certificate
    done("admit", request_file(folder, ANNE)[0], "--yes")
    assert set(shown(folder)) == {ANNE.name}


@pytest.mark.parametrize("words", [["members"], ["expel", "x", "--yes"], ["renew"]])
def test_outside_a_consortium_the_commands_say_how_to_name_one(
    tmp_path: Path, words: list[str]
) -> None:
    assert "Expected" in refusal(*words, "--consortium", tmp_path)

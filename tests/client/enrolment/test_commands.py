"""`foedus client join`, `identity`, `roster` and `endorse` as a person types them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.cli import app
from protocol.consortium.chain import append_version, first_version, next_version, verify_chain
from protocol.consortium.endorsement import Endorsement
from protocol.consortium.enrolment import EnrolmentRequest
from protocol.consortium.passphrase import VARIABLE
from tests.client.enrolment.sites import firm_of
from tests.client.enrolment.test_joining import INVITATION
from tests.protocol.consortium.leagues import (
    BELL,
    COORDINATOR,
    YEAR,
    lines_of,
    with_members,
)

NAME = "Vane & Alder"


def client(*words: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


@pytest.fixture
def invitation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(VARIABLE, raising=False)
    INVITATION.save(tmp_path / "invitation.json")
    return tmp_path / "invitation.json"


@pytest.fixture
def folder(tmp_path: Path, invitation: Path) -> Path:
    done = client("join", invitation, "--name", NAME, "--folder", tmp_path / "site")
    assert done.exit_code == 0, done.output
    return tmp_path / "site"


def test_join_shows_both_fingerprints_and_no_secret(tmp_path: Path, invitation: Path) -> None:
    done = client("join", invitation, "--name", NAME, "--folder", tmp_path / "site")
    request = EnrolmentRequest.read(tmp_path / "site" / "request.json")
    assert INVITATION.fingerprint in done.stdout and request.fingerprint in done.stdout
    assert "telephone" in done.stdout and "PRIVATE" not in done.output


def test_join_refuses_a_coordinator_other_than_the_one_named_by_telephone(
    tmp_path: Path, invitation: Path
) -> None:
    words = ("join", invitation, "--name", NAME, "--folder", tmp_path / "site", "--fingerprint")
    refused = client(*words, "00000 " * 8)
    assert refused.exit_code == 2 and "Do not join" in refused.stderr
    assert not (tmp_path / "site").exists()
    assert client(*words, INVITATION.fingerprint.replace(" ", "  ")).exit_code == 0


@pytest.mark.parametrize("nothing", ["", " "])
def test_join_takes_no_empty_fingerprint_for_one_that_was_compared(
    tmp_path: Path, invitation: Path, nothing: str
) -> None:
    words = ("join", invitation, "--name", NAME, "--folder", tmp_path / "site")
    refused = client(*words, "--fingerprint", nothing)
    assert refused.exit_code == 2 and "variable not set" in refused.stderr
    assert not (tmp_path / "site").exists()


def test_join_refuses_an_invitation_that_was_changed(tmp_path: Path, invitation: Path) -> None:
    text = invitation.read_text().replace("localhost:9443", "elsewhere:9443")
    invitation.write_text(text)
    refused = client("join", invitation, "--name", NAME, "--folder", tmp_path / "site")
    assert refused.exit_code == 2 and "altered on its way" in refused.stderr
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    "words", [[], ["--name", NAME], ["--renew", "--rotate"], ["--renew", "--name", NAME]]
)
def test_join_says_what_it_needs(tmp_path: Path, words: list[str]) -> None:
    refused = client("join", *words, "--folder", tmp_path)
    assert refused.exit_code == 2 and "foedus" not in str(refused.exception or "")
    assert "Expected" in refused.stderr or "stand alone" in refused.stderr


def test_join_renew_and_rotate_work_in_the_sites_folder(folder: Path) -> None:
    first = json.loads(client("join", "--renew", "--folder", folder, "--json").stdout)
    own = json.loads(client("identity", "--config", folder / "site.yaml", "--json").stdout)
    assert first["fingerprint"] == own["fingerprint"] and first["name"] == NAME
    rotated = json.loads(client("join", "--rotate", "--folder", folder, "--json").stdout)
    assert rotated["fingerprint"] != own["fingerprint"]


def test_identity_tells_whether_the_kept_roster_admits_the_site(folder: Path) -> None:
    config = folder / "site.yaml"
    assert "no roster fetched yet" in client("identity", "--config", config).stdout
    now = int(time.time())
    first = first_version(INVITATION.consortium, COORDINATOR, 0, now)
    append_version(folder / "roster.jsonl", first)
    assert "not in the roster" in client("identity", "--config", config).stdout
    entry = firm_of(folder, NAME).entry(now, now + YEAR)
    second = with_members(first, entry, issued=now).signed_by(COORDINATOR)
    append_version(folder / "roster.jsonl", second)
    shown = json.loads(client("identity", "--config", config, "--json").stdout)
    assert shown["membership"].startswith(f"{NAME}, until 2")
    assert shown["roster_digest"] == second.digest
    roster = json.loads(client("roster", "--offline", "--config", config, "--json").stdout)
    assert roster["digest"] == second.digest
    assert [member["name"] for member in roster["members"]] == [NAME]
    assert NAME in client("roster", "--offline", "--config", config).stdout


def test_endorse_shows_the_change_asks_and_signs_it(folder: Path, tmp_path: Path) -> None:
    now = int(time.time())
    first = first_version(INVITATION.consortium, COORDINATOR, 1, now)
    entry = firm_of(folder, NAME).entry(now, now + YEAR)
    second = with_members(first, entry, issued=now).signed_by(COORDINATOR)
    for version in (first, second):
        append_version(folder / "roster.jsonl", version)
    third = with_members(second, entry, BELL.entry(now, now + YEAR), issued=now)
    proposal, output = tmp_path / "proposal.json", tmp_path / "endorsement.json"
    proposal.write_text(third.signed_by(COORDINATOR).to_line() + "\n")
    words = ("endorse", proposal, "--config", folder / "site.yaml", "--output", output)

    declined = client(*words, stdin="n\n")
    assert declined.exit_code == 1 and not output.exists()
    assert f"admits {BELL.name}" in declined.stderr
    assert client(*words, stdin="y\n").exit_code == 0
    complete = third.signed_by(COORDINATOR).with_signatures(Endorsement.read(output).signature)
    lines = lines_of(first, second, complete)
    assert len(verify_chain(lines, COORDINATOR.public_key)) == 3


def test_endorse_refuses_what_does_not_follow_from_what_the_site_keeps(
    folder: Path, tmp_path: Path
) -> None:
    now = int(time.time())
    first = first_version(INVITATION.consortium, COORDINATOR, 1, now)
    entry = firm_of(folder, NAME).entry(now, now + YEAR)
    proposal, output = tmp_path / "proposal.json", tmp_path / "endorsement.json"
    words = ("endorse", proposal, "--config", folder / "site.yaml", "--output", output, "--yes")
    good = with_members(first, entry, issued=now)
    proposal.write_text(good.signed_by(COORDINATOR).to_line())
    assert "foedus client roster fetches it" in client(*words).stderr
    append_version(folder / "roster.jsonl", first)
    for line, said in (
        (good.signed_by(BELL.identity).to_line(), "coordinator's signature is missing"),
        (next_version(first, now).signed_by(COORDINATOR).to_line(), "changes nothing"),
        (next_version(good, now).signed_by(COORDINATOR).to_line(), "Expected version 2"),
        ("{}", "problems in"),
    ):
        proposal.write_text(line)
        refused = client(*words)
        assert refused.exit_code == 2 and said in refused.stderr, refused.output
    assert not output.exists()


@pytest.mark.parametrize(("days", "said"), [(-7.1, "7 days ago"), (7.1, "7 days ahead")])
def test_endorse_refuses_a_proposal_dated_away_from_today(
    folder: Path, tmp_path: Path, days: float, said: str
) -> None:
    now = int(time.time())
    first = first_version(INVITATION.consortium, COORDINATOR, 1, now - YEAR)
    append_version(folder / "roster.jsonl", first)
    output = tmp_path / "endorsement.json"

    def endorse(days: float) -> Result:
        entry = firm_of(folder, NAME).entry(now, now + YEAR)
        version = with_members(first, entry, issued=now + int(days * 86_400))
        proposal = tmp_path / "proposal.json"
        proposal.write_text(version.signed_by(COORDINATOR).to_line())
        words = ("endorse", proposal, "--config", folder / "site.yaml", "--output", output, "--yes")
        return client(*words)

    refused = endorse(days)
    assert refused.exit_code == 2 and said in refused.stderr and not output.exists()
    assert endorse(days * 6.9 / 7.1).exit_code == 0 and output.exists()


def test_roster_offline_says_that_there_is_none_yet(folder: Path) -> None:
    refused = client("roster", "--offline", "--config", folder / "site.yaml")
    assert refused.exit_code == 2 and "Fetch it" in refused.stderr

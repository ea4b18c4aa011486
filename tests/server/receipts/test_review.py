"""`foedus server received`: the coordinator's side, checked against what both sides signed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from protocol.consortium.countersigned_file import CountersignedFile
from server.cli import app
from server.consortium.folder import ConsortiumFolder
from server.receipts.countersign import CountersigningDesk
from server.runs.folder import RunFolder, RunRecord
from tests.protocol.consortium.leagues import ANNE, BELL, YEAR
from tests.server.receipts.desks import came, found, log_of, receipt_for, set_members


@pytest.fixture
def folder(tmp_path: Path) -> ConsortiumFolder:
    """Two firms, four replies; Anne has handed in receipts for hers."""
    made = found(tmp_path / "consortium", [ANNE, BELL])
    RunFolder(made.runs / "first").create(RunRecord("first", (), 0.0))
    log = log_of(made)
    for node, round_ in ((11, 1), (12, 1), (11, 2), (99, 2)):
        came(log, node, round_, reason="" if node == 11 else "refused_by_site")
    receipts = [receipt_for(ANNE, log, number, number) for number in (0, 2)]
    body = {"receipts": [one.to_values() for one in receipts]}
    CountersigningDesk.of(made).push(ANNE.entry(0, YEAR), {}, body)
    return made


def received(folder: ConsortiumFolder, *words: str) -> Result:
    command = ["received", "first", "--consortium", str(folder.path), *words]
    return CliRunner().invoke(app, command)


def test_every_reply_is_shown_by_name_with_its_verdict_and_who_signed(
    folder: ConsortiumFolder,
) -> None:
    result = received(folder, "--verify", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    rows = [(r["site"], r["round"], r["reason"], r["signed"]) for r in told["replies"]]
    assert rows == [
        (ANNE.name, 1, "", True),
        (BELL.name, 1, "refused_by_site", False),
        (ANNE.name, 2, "", True),
        ("99", 2, "refused_by_site", False),
    ]
    assert told["problems"] == [] and told["replies"][0]["node_id"] == "11"
    shown = received(folder)
    assert shown.exit_code == 0 and ANNE.name.split()[0] in shown.stdout
    assert "4 replies, 2 of them signed by both sides" in shown.stderr


def test_signatures_hold_after_the_member_has_left(folder: ConsortiumFolder) -> None:
    set_members(folder, [BELL])
    result = received(folder, "--verify", "--json")
    assert result.exit_code == 0
    assert [r["signed"] for r in json.loads(result.stdout)["replies"]] == [True, False, True, False]


def test_a_changed_record_a_cut_one_and_a_changed_signature_each_show(
    folder: ConsortiumFolder,
) -> None:
    log = log_of(folder)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole.replace(b'"round": 1', b'"round": 7', 1))
    changed = received(folder, "--verify")
    assert changed.exit_code == 1 and "line 2 does not follow" in changed.stderr

    log.path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    cut = received(folder, "--verify")
    assert cut.exit_code == 1
    assert f"lacks a reply that was countersigned for {ANNE.name}" in cut.stderr

    log.path.write_bytes(whole)
    file = CountersignedFile(folder.receipts, ANNE.identity.member_id)
    text = file.path.read_text()
    values = json.loads(text.splitlines()[0])
    flipped = "00" if values["coordinator_signature"][:2] != "00" else "01"
    values["coordinator_signature"] = flipped + values["coordinator_signature"][2:]
    file.path.write_text(json.dumps(values) + "\n" + text.splitlines()[1] + "\n")
    forged = received(folder, "--verify", "--json")
    assert forged.exit_code == 1 and "signatures of receipt 0" in forged.stderr
    assert not json.loads(forged.stdout)["replies"][0]["signed"]


def test_without_verify_problems_are_told_and_the_rest_is_shown(folder: ConsortiumFolder) -> None:
    log = log_of(folder)
    log.path.write_bytes(log.path.read_bytes().replace(b'"round": 1', b'"round": 7', 1))
    result = received(folder, "--json")
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)["problems"]) >= 1


def test_a_run_that_is_not_there_is_said_in_words(folder: ConsortiumFolder) -> None:
    command = ["received", "second", "--consortium", str(folder.path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0 and "Traceback" not in result.output

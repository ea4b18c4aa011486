"""Receipts of both sides: neither can change a word of them, or pass one off for another's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.consortium.countersignature import CountersignedReceipt, SentReply, SignedReceipt
from protocol.consortium.countersigned_file import CountersignedFile
from protocol.consortium.identity import Identity
from protocol.consortium.parties import Parties
from protocol.errors import FoedusError, SettingsError
from protocol.reply_facts import KINDS
from tests.protocol.consortium.leagues import ANNE, BELL, COORDINATOR, LEAGUE, three_versions
from tests.protocol.consortium.tampering import tampered

SENT = SentReply(3, "ab" * 32, "0123456789abcdef" * 2, 2, "secure.masked_input", "cd" * 32, 4096)
SITE = ANNE.identity
SIGNED = SignedReceipt.by(SITE, LEAGUE, SENT)
BOTH = CountersignedReceipt.by(COORDINATOR, LEAGUE, SITE.member_id, SIGNED)


def holds(receipt: CountersignedReceipt) -> bool:
    return receipt.holds(LEAGUE, SITE.member_id, SITE.public_key, COORDINATOR.public_key)


def test_both_signatures_hold_and_survive_json() -> None:
    assert holds(BOTH)
    text = json.dumps(BOTH.to_values())
    assert CountersignedReceipt.from_values(json.loads(text), "here") == BOTH
    assert SignedReceipt.from_values(SIGNED.to_values(), "here") == SIGNED


def test_no_change_of_a_receipt_is_believed() -> None:
    text = json.dumps(BOTH.to_values())
    changes = list(tampered(text))
    assert len(changes) > 50
    for what, changed in changes:
        try:
            receipt = CountersignedReceipt.from_values(json.loads(changed), "here")
        except SettingsError:
            continue
        assert not holds(receipt), what


def test_a_receipt_is_one_member_s_in_one_consortium() -> None:
    other = Identity.generate()
    assert not BOTH.holds("Other", SITE.member_id, SITE.public_key, COORDINATOR.public_key)
    assert not BOTH.holds(LEAGUE, other.member_id, SITE.public_key, COORDINATOR.public_key)
    assert not BOTH.holds(LEAGUE, SITE.member_id, other.public_key, COORDINATOR.public_key)
    assert not BOTH.holds(LEAGUE, SITE.member_id, SITE.public_key, other.public_key)


def test_neither_side_can_make_the_other_s_signature() -> None:
    forged = SignedReceipt(SENT, COORDINATOR.sign(SENT.statement(LEAGUE, SITE.member_id)))
    assert not holds(CountersignedReceipt.by(COORDINATOR, LEAGUE, SITE.member_id, forged))
    alone = CountersignedReceipt.by(SITE, LEAGUE, SITE.member_id, SIGNED)
    assert not holds(alone)
    # Nor does the site's own word of the statement pass for the coordinator's that it came.
    assert not holds(replace(BOTH, coordinator_signature=SIGNED.site_signature))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_reply_can_be_signed(kind: str) -> None:
    sent = replace(SENT, kind=kind)
    assert SignedReceipt.from_values(
        SignedReceipt.by(SITE, LEAGUE, sent).to_values(), "here"
    ).holds(LEAGUE, SITE.member_id, SITE.public_key)


@pytest.mark.parametrize("values", [None, [], "text", {}, {"sequence": 1}])
def test_what_is_no_receipt_is_refused_with_its_place(values: object) -> None:
    with pytest.raises(SettingsError, match=r"in receipts\[4\]"):
        SignedReceipt.from_values(values, "receipts[4]")


def test_the_word_of_a_firm_that_left_still_counts_and_that_of_a_stranger_never() -> None:
    parties = Parties.of(three_versions())
    assert parties.signed(SITE.member_id, BOTH)
    assert not parties.signed(BELL.identity.member_id, BOTH)
    stranger = Identity.generate()
    theirs = SignedReceipt.by(stranger, LEAGUE, SENT)
    receipt = CountersignedReceipt.by(COORDINATOR, LEAGUE, stranger.member_id, theirs)
    assert not parties.signed(stranger.member_id, receipt)


def test_a_file_gives_back_what_was_added_and_leaves_out_half_a_line(tmp_path: Path) -> None:
    file = CountersignedFile(tmp_path / "receipts", SITE.member_id)
    assert file.read() == [] and CountersignedFile.all_in(tmp_path / "receipts") == {}
    second = SignedReceipt.by(SITE, LEAGUE, replace(SENT, sequence=4))
    file.append([BOTH])
    file.append([])
    file.append([CountersignedReceipt.by(COORDINATOR, LEAGUE, SITE.member_id, second)])
    with file.path.open("ab") as stream:
        stream.write(b'{"sequence": 5')
    assert [one.receipt.sent.sequence for one in file.read()] == [3, 4]
    file.append([BOTH])
    assert [one.receipt.sent.sequence for one in file.read()] == [3, 4, 3]
    assert set(CountersignedFile.all_in(tmp_path / "receipts")) == {SITE.member_id}


@pytest.mark.parametrize("line", [b"no json", b"[]", b"{}"])
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, line: bytes) -> None:
    file = CountersignedFile(tmp_path, SITE.member_id)
    file.append([BOTH])
    with file.path.open("ab") as stream:
        stream.write(line + b"\n")
    with pytest.raises(FoedusError, match="line 2"):
        file.read()

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.consortium.roster import Member, Roster, read_roster
from protocol.errors import FoedusError, SettingsError, WireError
from protocol.reasons import RefusalReason
from tests.protocol.secure_aggregation.contexts import consortium

ROSTER, IDENTITIES = consortium(3)
OTHER_KEY = Member(ROSTER.members[2].name, consortium(1)[1][0].public_key)


def test_a_written_roster_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    path.write_text(ROSTER.to_json(), encoding="utf-8")
    assert read_roster(path) == ROSTER
    assert read_roster(path).digest == ROSTER.digest


def test_members_are_found_by_id_and_strangers_refused() -> None:
    assert ROSTER.member(IDENTITIES[1].member_id).public_key == IDENTITIES[1].public_key
    with pytest.raises(WireError) as refused:
        ROSTER.member("0" * 32)
    assert refused.value.code == RefusalReason.UNKNOWN_MEMBER


def test_the_digest_covers_the_content_and_not_the_order() -> None:
    turned = replace(ROSTER, members=ROSTER.members[::-1])
    assert turned.digest == ROSTER.digest
    others = [
        replace(ROSTER, consortium="Other consortium"),
        replace(ROSTER, version=2),
        replace(ROSTER, members=ROSTER.members[:2]),
        replace(ROSTER, members=(*ROSTER.members[:2], Member("Other", IDENTITIES[2].public_key))),
        replace(ROSTER, members=(*ROSTER.members[:2], OTHER_KEY)),
    ]
    digests = {ROSTER.digest} | {other.digest for other in others}
    assert len(digests) == len(others) + 1
    assert all(len(digest) == 64 and int(digest, 16) for digest in digests)


def test_everything_wrong_with_a_roster_is_told_at_once(tmp_path: Path) -> None:
    key = IDENTITIES[0].public_key.hex()
    members: list[Any] = [
        {"name": "Doubled", "public_key": key},
        {"name": "Doubled", "public_key": key},
        {"name": " spaces ", "public_key": IDENTITIES[1].public_key.hex()},
        {"name": "Weak", "public_key": "01" + "00" * 31},
    ]
    values = {"schema": 1, "consortium": "", "version": 0, "members": members}
    path = tmp_path / "roster.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(SettingsError) as refused:
        read_roster(path)
    text = str(refused.value)
    assert str(path) in text
    for said in (
        "name 'Doubled' stands 2 times",
        f"public key '{key}' stands 2 times",
        "members[2] (' spaces ')",
        "members[3] ('Weak'): its public key is of low order",
        "consortium: expected",
        "version: expected 1 or more, got 0",
    ):
        assert said in text, said


def test_wrong_forms_are_told_at_once() -> None:
    values = {
        "schema": 2,
        "consortium": 7,
        "version": True,
        "keeper": "who?",
        "members": [{"name": 1, "public_key": "xyz"}, {"nome": "B"}, "C"],
    }
    with pytest.raises(SettingsError) as refused:
        Roster.from_json(json.dumps(values))
    text = str(refused.value)
    for said in (
        "schema: expected one of 1, got 2",
        "consortium: expected",
        "version: expected a whole number, got True",
        "keeper: unknown setting",
        "members[0].name: expected",
        "members[1].nome: unknown setting",
        "members[1].public_key: ",
        "members[2]",
    ):
        assert said in text, said


@pytest.mark.parametrize("key", ["xyz", "abcd", IDENTITIES[0].public_key.hex().upper()])
def test_a_key_is_64_hex_digits_in_their_one_spelling(key: str) -> None:
    members = [{"name": "A", "public_key": key}]
    values = {"schema": 1, "consortium": "League", "version": 1, "members": members}
    with pytest.raises(SettingsError, match=r"members\[0\]\.public_key: expected 64 hex digits"):
        Roster.from_json(json.dumps(values))
    with pytest.raises(SettingsError, match="expected a public key of 32 bytes, got 2"):
        Roster("League", 1, (Member("A", b"ab"),))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}', "null"])
def test_what_is_no_roster_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        Roster.from_json(text)


def test_a_missing_roster_says_where_one_gets_it(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match="keeper"):
        read_roster(tmp_path / "none.json")


def test_a_roster_without_members_cannot_be() -> None:
    with pytest.raises(SettingsError, match="at least one"):
        Roster("Empty", 1, ())

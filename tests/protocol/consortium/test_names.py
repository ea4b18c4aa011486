"""Names that look the same are one name, or none."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest

from protocol.consortium.names import is_name, name_key
from protocol.consortium.roster import Member, Roster
from protocol.errors import SettingsError
from tests.protocol.consortium.leagues import ANNE, BELL, founded, with_members

GOOD = (
    "Ash", "Vane & Alder", "O\u2019Neil, M\u00fcller + Partners (2024)", "3M", "x" * 100,
    "\u0410\u0434\u0432\u043e\u043a\u0430\u0442", "\u0394\u03af\u03ba\u03b7",
    "\u5f01\u8b77\u58eb\u30ab\u30a8\u30c7\u3068\u685c\u30fc", "\ubc95\ubb34",
    "ABC\u6cd5\u5f8b\u4e8b\u52d9\u6240",
    "Gro\u00df & S\u00f8rensen", "GRO\u1e9e", "\u00c6gir \u00deorsteinsson", "Gu\u00f0mundsson",
    "\u0141ukasz \u017b\u00f3\u0142\u0107", "\u0110or\u0111e \u010cavi\u0107",
    "\u0218tef\u0103nescu", "I\u015f\u0131k Y\u0131lmaz", "L\u1eadt \u0110\u1ee9c Nguy\u1ec5n",
    "\u0145ikitins", "\u0160imk\u016fv d\u016fm", "\u018fliyev", "A\u0127mad", "C\u0153ur",
    "Bufete Garc\u00eda \u00d1u\u00f1ez", "\u00c5str\u00f6m",
    "\u0935\u0915\u0940\u0932", "\u05e2\u05d5\u05e8\u05da", "\u0645\u062d\u0627\u0645",
)  # fmt: skip
BAD = {
    "empty": "",
    "too long": "x" * 101,
    "nothing but punctuation": "--",
    "a Cyrillic letter among Latin ones": "\u0410sh",
    "a Greek letter among Latin ones": "\u0391sh",
    "a script g among Latin letters": "Inte\u0261ra",
    "small capitals": "\u1d20ox",
    "another small capital": "\u1d04ox",
    "a saltillo for an apostrophe": "O\ua78cBrien",
    "a letter of phonetics": "Ash\u026a",
    "a click": "A\u01c3sh",
    "a turned letter": "\u01ddsh",
    "an African D with the shape of another": "\u0189or",
    "decomposed": "Mu\u0308ller",
    "a compatibility form": "\uff21sh",
    "a ligature": "\ufb01rm",
    "a blank of Hangul": "Ash\u3164",
    "a filler of Hangul": "\ubc95\u1160",
    "a blank of Braille": "\u2800",
    "a soft hyphen": "A\u00adsh",
    "a zero-width joiner": "A\u200dsh",
    "a grapheme joiner": "A\u034fsh",
    "a variation selector": "Ash\ufe0f",
    "a variation selector of Mongolian": "\u1820\u180b",
    "turned writing": "\u202eesrever",
    "private use": "Ash\ue000",
    "unassigned": "Ash\u0378",
    "half a character": "Ash\ud800",
    "an accent without its letter": "l\u0335",
    "digits of another script": "Ash \u0664",
    "a symbol": "Ash\u2122",
    "a tab": "A\tsh",
    "another space": "A\u00a0sh",
    "Ogham's space": "A\u1680sh",
    "two spaces": "Vane  Alder",
    "a space before": " Ash",
    "a space behind": "Ash ",
}


@pytest.mark.parametrize("name", GOOD)
def test_names_of_firms_anywhere_are_taken(name: str) -> None:
    assert unicodedata.is_normalized("NFC", name) and is_name(name)


@pytest.mark.parametrize("what", BAD)
def test_what_hides_something_or_mixes_scripts_is_no_name(what: str) -> None:
    assert not is_name(BAD[what])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ash", "ASH"),
        ("Vane & Alder", "Vane, Alder"),
        ("O'Neil", "O\u2019Neil"),
        ("COBA", "\u0421\u041e\u0412\u0410"),
        ("AXION", "\u0391\u03a7\u0399\u039f\u039d"),
        ("\u30ab\u30ed", "\u529b\u53e3"),
        ("Strasse", "Stra\u00dfe"),
        ("Isik", "Is\u0131k"),
        ("\u0110or", "\u00d0or"),
        ("\u04d8\u041d", "\u018fH"),
    ],
)
def test_two_names_that_look_alike_cannot_stand_in_one_roster(one: str, other: str) -> None:
    assert is_name(one) and is_name(other) and name_key(one) == name_key(other)
    first, second = replace(ANNE.entry(), name=one), replace(BELL.entry(), name=other)
    with pytest.raises(SettingsError, match=r"the name .* stands 2 times"):
        with_members(founded(), first, second)
    members = tuple(Member(entry.name, entry.public_key) for entry in (first, second))
    with pytest.raises(SettingsError, match="stands 2 times"):
        Roster("League", 1, members)


def test_names_that_differ_do_not_collide() -> None:
    names = ("Ash", "Ash 2", "Ashe", "M\u00fcller", "Muller", "Bell LLP", "Bell", *GOOD[3:])
    assert len({name_key(name) for name in names}) == len(names)

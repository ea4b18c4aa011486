"""What firms and consortia may be called, so that no two names of a roster look the same.

People compare names by eye: when they admit, endorse or expel. A name is therefore written in one
way only, has nothing in it that cannot be seen, mixes no scripts that look alike, and has no Latin
letters of phonetics, many of which look like common ones. Within those rules two names that differ
only in case, spaces, punctuation or letters of different scripts with one shape (`name_key`) cannot
stand in one roster.

What it leaves open: shapes that are near and not the same (l and I, rn and m). Which firm it is,
the fingerprint that was read out on the telephone decides, never the name.
"""

from __future__ import annotations

import unicodedata

MAX_NAME_CHARACTERS = 100
# Letters of living languages that are no ASCII letter with an accent.
_MORE_LATIN = "ßæœøđðłþıəħŋŧ"
NAME_RULE = (
    f"1 to {MAX_NAME_CHARACTERS} characters: letters of one script (Chinese, Japanese and Korean "
    "count as one, and may have Latin ones beside them; Latin are A to Z, with or without accents, "
    f"and {' '.join(_MORE_LATIN)}), digits 0-9, punctuation, and single spaces between words, in "
    "Unicode's form NFKC"
)

# Letters by the first word of their name in Unicode.
_EAST_ASIAN = {
    "BOPOMOFO", "CJK", "HANGUL", "HIRAGANA", "IDEOGRAPHIC", "KATAKANA", "KATAKANA-HIRAGANA",
}  # fmt: skip
# Letters and marks of a script that are drawn as nothing; all others of that kind have no script.
_UNSEEN = ("FILLER", "VARIATION SELECTOR", "VOWEL INHERENT")
# One shape, two letters: small or capital Cyrillic and Greek beside Latin, kana beside ideographs,
# the Turks' i without a dot, the Icelanders' D with a bar.
_SAME_SHAPE = str.maketrans(
    "авекмнорстухіјѕһԛԝԁӏәӕ" "αβεζηικμνορτυχ" "ニカエロトハヘター" "ıð",
    "abekmhopctyxijshqwdləæ" "abezhikmnoptyx" "二力工口卜八へ夕一" "iđ",
)  # fmt: skip


def is_name(name: str) -> bool:
    """True where firms and consortia may be called so, see NAME_RULE."""
    return (
        len(name) <= MAX_NAME_CHARACTERS
        and unicodedata.is_normalized("NFKC", name)
        and name == " ".join(name.split())
        and bool(name_key(name))
        and all(_is_plain(c) or _script(c) for c in name)
        and _go_together({_script(c) for c in name if not _is_plain(c)})
    )


def name_key(name: str) -> str:
    """The same for names that are easily taken for one another; empty where nothing is left."""
    bare = "".join(c for c in name.casefold() if unicodedata.category(c)[0] in "LMN")
    return bare.translate(_SAME_SHAPE)


def _go_together(scripts: set[str]) -> bool:
    """True for one script, and for firms in East Asia that write part of their name in Latin."""
    return len(scripts) <= 1 or scripts == {"LATIN", "CJK"}


def _is_plain(character: str) -> bool:
    """True for what goes with every script: punctuation, and ASCII but for its letters."""
    if character.isascii():
        return character.isprintable() and not character.isalpha()
    return unicodedata.category(character).startswith("P")


def _script(character: str) -> str:
    """The script of a letter or a mark on letters; empty for all else, and for what is unseen."""
    name = unicodedata.name(character, "")
    if unicodedata.category(character)[0] not in "LM" or any(word in name for word in _UNSEEN):
        return ""
    script = name.partition(" ")[0]
    if script == "LATIN" and not _is_common_latin(character):
        return ""
    return "CJK" if script in _EAST_ASIAN else script


def _is_common_latin(letter: str) -> bool:
    bare = "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c))
    return (bare.isascii() and bare.isalpha()) or letter.casefold() in (*_MORE_LATIN, "ss")

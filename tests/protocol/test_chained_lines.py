"""Chained lines: read on where one stopped, beside somebody who writes, and never after damage."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from protocol.chained_lines import ChainedLines
from protocol.errors import FoedusError


@pytest.fixture
def lines(tmp_path: Path) -> ChainedLines:
    made = ChainedLines(tmp_path / "log.jsonl", "record")
    for number in range(3):
        made.append({"number": number})
    return made


def test_reading_goes_on_where_it_stopped(lines: ChainedLines) -> None:
    read = list(lines.verify())
    assert [line.values["number"] for line in read] == [0, 1, 2]
    assert list(lines.verify(read[-1].end)) == []
    lines.append({"number": 3})
    (new,) = lines.verify(read[-1].end)
    assert (new.values["number"], new.values["sequence"]) == (3, 3)
    assert [line.values["number"] for line in lines.verify(read[0].end)] == [1, 2, 3]
    assert new.end.offset == lines.path.stat().st_size


def test_what_is_appended_is_what_is_read(lines: ChainedLines) -> None:
    appended = lines.append({"number": 3})
    assert list(lines.verify())[-1] == appended


def test_a_chain_that_was_changed_behind_the_reader_shows(lines: ChainedLines) -> None:
    read = list(lines.verify())
    data = lines.path.read_bytes()
    lines.path.write_bytes(data.replace(b'"number": 2', b'"number": 7'))
    lines.append({"number": 3})
    with pytest.raises(FoedusError, match=r"line 4 does not follow .* a record was removed"):
        list(lines.verify(read[-1].end))


def test_half_a_line_is_left_to_who_writes_it(lines: ChainedLines) -> None:
    with lines.path.open("ab") as stream:
        stream.write(b'{"number": 3, "prev')
    before = lines.path.read_bytes()
    assert len(list(lines.verify())) == 3
    assert lines.path.read_bytes() == before


def test_a_file_that_holds_only_half_a_line_holds_none(tmp_path: Path) -> None:
    lines = ChainedLines(tmp_path / "log.jsonl", "record")
    lines.path.write_bytes(b'{"numb')
    assert list(lines.verify()) == []


@pytest.mark.parametrize("end", [b"garbage\n", b"{}\n", b'{"sequence": "x"}\n', b"[]\n", b"\n"])
def test_nothing_is_written_after_a_damaged_last_line(lines: ChainedLines, end: bytes) -> None:
    with lines.path.open("ab") as stream:
        stream.write(end)
    before = lines.path.read_bytes()
    with pytest.raises(FoedusError, match="restore the file"):
        lines.append({"number": 3})
    assert lines.path.read_bytes() == before


def test_the_file_is_for_its_owner_alone(lines: ChainedLines) -> None:
    assert stat.S_IMODE(lines.path.stat().st_mode) == 0o600

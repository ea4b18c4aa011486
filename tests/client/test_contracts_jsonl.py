"""JSON lines: what is kept, what is named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from client.contracts import Contract, Unreadable, jsonl
from client.contracts.jsonl import read_jsonl, read_records
from client.contracts.sidecar import Sidecar


def read(path: Path) -> tuple[list[Contract], dict[str, str]]:
    items = list(read_jsonl(path, path.name, Sidecar()))
    contracts = [item for item in items if isinstance(item, Contract)]
    faults = {item.source: item.reason for item in items if isinstance(item, Unreadable)}
    return contracts, faults


def test_a_record_keeps_what_is_known_of_it(tmp_path: Path) -> None:
    record = {
        "text": "Fees are due.",
        "label": "payment",
        "matter": 17,
        "id": "r-1",
        "licence": "CC BY 4.0",
        "company": "Acme",
        "year": 2020,
        "signed": True,
        "nothing": None,
        "spans": [1, 2],
    }
    (tmp_path / "x.jsonl").write_text(json.dumps(record), encoding="utf-8")
    ((contract,), faults) = read(tmp_path / "x.jsonl")
    assert faults == {}
    assert contract == Contract(
        text="Fees are due.",
        source="r-1",
        matter="17",
        licence="CC BY 4.0",
        label="payment",
        fields={"company": "Acme", "year": "2020", "signed": "true"},
        file="x.jsonl",
    )


def test_chat_records_keep_their_turns(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "This."}]
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": turns}), encoding="utf-8")
    ((contract,), _) = read(tmp_path / "x.jsonl")
    assert [(turn.role, turn.content) for turn in contract.messages] == [
        ("user", "What?"),
        ("assistant", "This."),
    ]
    assert contract.text == "What?\n\nThis."


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        '"text"',
        "{}",
        '{"text": ""}',
        '{"text": "  "}',
        '{"text": 5}',
        '{"text": "a", "label": ["b"]}',
        '{"text": "a", "matter": {"id": 1}}',
        '{"text": "a", "consent": "yes"}',
        '{"text": "a", "consent": null}',
        '{"text": "a", "text": "b"}',
        '{"text": "\\ud800"}',
        '{"messages": []}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "bishop", "content": "a"}]}',
        '{"messages": ["a"]}',
        "[" * 100_000,
        '{"text": "a", "n": ' + "9" * 5000 + "}",
    ],
)
def test_a_broken_line_is_named_and_its_neighbours_kept(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.jsonl").write_text(
        f'{{"text": "one"}}\n\n{line}\n{{"text": "four"}}\n', encoding="utf-8"
    )
    contracts, faults = read(tmp_path / "x.jsonl")
    assert [contract.text for contract in contracts] == ["one", "four"]
    assert [contract.source for contract in contracts] == ["x.jsonl:1", "x.jsonl:4"]
    assert list(faults) == ["x.jsonl:3"]


def test_bytes_that_are_no_utf8_break_their_line_only(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "\xff"}\r\n{"text": "three"}'
    )
    contracts, faults = read(tmp_path / "x.jsonl")
    assert [contract.text for contract in contracts] == ["one", "three"]
    assert list(faults) == ["x.jsonl:2"]


def test_a_line_over_the_bound_is_named_and_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 50)
    (tmp_path / "x.jsonl").write_text(
        '{"text": "one"}\n{"text": "' + "long " * 100 + '"}\n{"text": "three"}', encoding="utf-8"
    )
    contracts, faults = read(tmp_path / "x.jsonl")
    assert [contract.source for contract in contracts] == ["x.jsonl:1", "x.jsonl:3"]
    assert list(faults) == ["x.jsonl:2"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip"])
def test_damaged_gzip_gives_what_came_before(tmp_path: Path, damage: str) -> None:
    lines = [json.dumps({"text": f"clause {n} " + hex(hash((n, n)))}) for n in range(20_000)]
    raw = bytearray(gzip.compress("\n".join(lines).encode(), mtime=0))
    if damage == "cut":
        raw = raw[: len(raw) // 2]
    elif damage == "flipped":
        raw[len(raw) // 2 : len(raw) // 2 + 50] = b"\xff" * 50
    else:
        raw = bytearray("\n".join(lines).encode())
    (tmp_path / "x.jsonl.gz").write_bytes(raw)
    contracts, faults = read(tmp_path / "x.jsonl.gz")
    assert faults, "the damage is reported"
    assert all(name.startswith("x.jsonl.gz") for name in faults)
    if damage == "no gzip":
        assert contracts == [] and list(faults) == ["x.jsonl.gz:1"]
    else:
        assert len(contracts) > 1000
        assert contracts[0].text.startswith("clause 0 ")


def test_a_utf16_file_is_one_report_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' * 5, encoding="utf-16")
    contracts, faults = read(tmp_path / "x.jsonl")
    assert contracts == []
    assert "UTF-16" in faults["x.jsonl"]


def test_an_empty_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\n\n")
    assert read(tmp_path / "x.jsonl") == ([], {"x.jsonl": "it holds no record"})


def test_a_file_broken_throughout_gives_a_bounded_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_REPORTED_LINES", 3)
    (tmp_path / "x.jsonl").write_text("oops\n" * 10 + '{"text": "last"}', encoding="utf-8")
    contracts, faults = read(tmp_path / "x.jsonl")
    assert [contract.text for contract in contracts] == ["last"]
    assert list(faults) == ["x.jsonl:1", "x.jsonl:2", "x.jsonl:3", "x.jsonl"]
    assert "7 more" in faults["x.jsonl"]


def test_records_keep_lists_and_objects(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": [1, {"b": 2}]}', encoding="utf-8")
    (record,) = read_records(tmp_path / "x.jsonl", "x.jsonl")
    assert not isinstance(record, Unreadable)
    assert record.line == 1 and record.content == {"a": [1, {"b": 2}]}

"""Contracts of a folder: every kind of file, every kind of damage, consent and matters."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import docx
import pytest
from docx.oxml import parse_xml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen import canvas

from client.contracts import (
    BROKEN_SIDECAR,
    EXCLUDED_MATTER,
    LINKED_ELSEWHERE,
    NO_CONSENT,
    ContractsError,
    ReadResult,
    read_contract_file,
    read_contracts,
)


def texts(result: ReadResult) -> list[str]:
    return [contract.text for contract in result.contracts]


def reasons(result: ReadResult) -> dict[str, str]:
    return {unreadable.source: unreadable.reason for unreadable in result.unreadable}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_pdf(path: Path, pages: list[str], password: str | None = None) -> None:
    drawing = canvas.Canvas(str(path), encrypt=password)
    for text in pages:
        if text == "<picture>":
            drawing.drawImage(_grey_png(path.parent), 10, 80, 50, 50)
        else:
            drawing.drawString(72, 700, text)
        drawing.showPage()
    drawing.save()


def _grey_png(folder: Path) -> str:
    place = folder / ".grey.png"
    Image.new("L", (4, 4), 128).save(place)
    return str(place)


def test_every_kind_of_document_is_read_in_path_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("Alpha clause.\r\nSecond line.", encoding="utf-8")
    (tmp_path / "b" / "b.md").write_text("# Beta", encoding="utf-8")
    word = docx.Document()
    word.add_paragraph("Gamma clause.")
    word.save(str(tmp_path / "c.docx"))
    write_pdf(tmp_path / "d.pdf", ["Delta clause.", "Second page."])
    (tmp_path / "e.jsonl").write_text('{"text": "Epsilon clause."}\n', encoding="utf-8")
    with gzip.open(tmp_path / "f.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write('{"text": "Zeta clause."}\n')
    result = read_contracts(tmp_path)
    assert texts(result) == [
        "Alpha clause.\nSecond line.",
        "# Beta",
        "Gamma clause.",
        "Delta clause.\n\nSecond page.",
        "Epsilon clause.",
        "Zeta clause.",
    ]
    assert [contract.source for contract in result.contracts] == [
        "a.txt",
        "b/b.md",
        "c.docx",
        "d.pdf",
        "e.jsonl:1",
        "f.jsonl.gz:1",
    ]
    assert result.unreadable == () and result.excluded == {}


def test_a_broken_file_of_each_kind_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("Good clause.", encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(b"text\x00\x01\x02")
    (tmp_path / "empty.md").write_text(" \n", encoding="utf-8")
    (tmp_path / "noword.docx").write_bytes(b"not a zip")
    (tmp_path / "locked.docx").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + b"x" * 600)
    (tmp_path / "nopdf.pdf").write_bytes(b"%PDF-1.7 and nothing else")
    (tmp_path / "sheet.xlsx").write_bytes(b"x")
    (tmp_path / "noextension").write_bytes(b"x")
    (tmp_path / "badutf16.txt").write_bytes(b"\xff\xfea\x00\x00\xd8b")
    word = docx.Document()
    word.add_paragraph("Lost.")
    word.save(str(tmp_path / "cut.docx"))
    cut = (tmp_path / "cut.docx").read_bytes()
    (tmp_path / "cut.docx").write_bytes(cut[: len(cut) // 2])
    write_pdf(tmp_path / "secret.pdf", ["Hidden."], password="pass")
    write_pdf(tmp_path / "scan.pdf", ["<picture>", "<picture>"])
    result = read_contracts(tmp_path)
    assert texts(result) == ["Good clause."]
    found = reasons(result)
    assert set(found) == {
        "binary.txt",
        "empty.md",
        "noword.docx",
        "locked.docx",
        "nopdf.pdf",
        "sheet.xlsx",
        "noextension",
        "badutf16.txt",
        "cut.docx",
        "secret.pdf",
        "scan.pdf",
    }
    assert "password" in found["locked.docx"]
    assert "encrypted" in found["secret.pdf"]
    assert "OCR" in found["scan.pdf"]
    assert ".xlsx" in found["sheet.xlsx"]


def test_a_scanned_page_among_others_is_named(tmp_path: Path) -> None:
    write_pdf(tmp_path / "mixed.pdf", ["Read me.", "<picture>"])
    result = read_contracts(tmp_path)
    assert texts(result) == ["Read me."]
    assert list(reasons(result)) == ["mixed.pdf page 2"]


def test_a_pdf_locked_against_printing_only_is_read(tmp_path: Path) -> None:
    drawing = canvas.Canvas(
        str(tmp_path / "owner.pdf"), encrypt=StandardEncryption("", "owner", canPrint=0)
    )
    drawing.drawString(72, 700, "Readable.")
    drawing.save()
    assert texts(read_contracts(tmp_path)) == ["Readable."]


def test_word_gives_paragraphs_and_tables_in_document_order(tmp_path: Path) -> None:
    word = docx.Document()
    word.add_paragraph("Before the table.")
    table = word.add_table(rows=2, cols=2)
    table.cell(0, 0).text, table.cell(0, 1).text = "Fee", "EUR 5"
    table.cell(1, 0).merge(table.cell(1, 1)).text = "Merged cell"
    word.add_paragraph("After the table.")
    word.save(str(tmp_path / "t.docx"))
    assert texts(read_contracts(tmp_path)) == [
        "Before the table.\n\nFee | EUR 5\n\nMerged cell\n\nAfter the table."
    ]


def test_word_is_read_as_if_its_tracked_changes_were_accepted(tmp_path: Path) -> None:
    word = docx.Document()
    namespace = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    run = "<w:r><w:t xml:space='preserve'>{}</w:t></w:r>"
    body = word.element.body
    body.insert(
        0,
        parse_xml(
            f"<w:p {namespace}>{run.format('Term: ')}<w:ins w:id='1'>{run.format('two')}</w:ins>"
            "<w:del w:id='2'><w:r><w:delText>nine</w:delText></w:r></w:del>"
            f"<w:moveFrom w:id='3'>{run.format('gone')}</w:moveFrom>"
            f"<w:sdt><w:sdtContent>{run.format(' years')}</w:sdtContent></w:sdt></w:p>"
        ),
    )
    body.insert(
        1,
        parse_xml(
            f"<w:sdt {namespace}><w:sdtContent><w:p>{run.format('In a control.')}</w:p>"
            "</w:sdtContent></w:sdt>"
        ),
    )
    word.save(str(tmp_path / "t.docx"))
    assert texts(read_contracts(tmp_path)) == ["Term: two years\n\nIn a control."]


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-8", b""), ("utf-8-sig", b""), ("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")],
)
def test_unicode_files_are_read_exactly(tmp_path: Path, encoding: str, mark: bytes) -> None:
    (tmp_path / "t.txt").write_bytes(mark + "§ 1 “Fee”: 5 €".encode(encoding))
    assert texts(read_contracts(tmp_path)) == ["§ 1 “Fee”: 5 €"]


def test_a_windows_text_is_read_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes("“Fee”: 5 €".encode("windows-1252"))
    (contract,) = read_contracts(tmp_path).contracts
    assert contract.text == "“Fee”: 5 €"
    assert contract.fields["encoding"] == "windows-1252"


def test_a_sidecar_describes_its_document(tmp_path: Path) -> None:
    (tmp_path / "nda.txt").write_text("Keep quiet.", encoding="utf-8")
    write_json(
        tmp_path / "nda.txt.meta.json",
        {
            "matter": "M-1",
            "license": "CC0",
            "consent": True,
            "source": "dms/4711",
            "label": "confidentiality",
            "fields": {"company": "Acme", "year": 2024},
        },
    )
    (contract,) = read_contracts(tmp_path).contracts
    assert (contract.matter, contract.licence, contract.label) == ("M-1", "CC0", "confidentiality")
    assert (contract.source, contract.file) == ("dms/4711", "nda.txt")
    assert contract.fields == {"company": "Acme", "year": "2024"}


def test_nearer_sidecars_win_and_records_win_over_sidecars(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    write_json(
        tmp_path / "folder.meta.json", {"matter": "M-0", "licence": "L", "fields": {"a": 1, "b": 1}}
    )
    write_json(tmp_path / "acme.meta.json", {"matter": "M-1"})
    write_json(tmp_path / "acme" / "folder.meta.json", {"fields": {"b": 2}})
    write_json(tmp_path / "acme" / "x.meta.json", {"label": "from stem"})
    rows = [{"text": "one"}, {"text": "two", "matter": "M-2", "b": 3, "label": "own"}]
    (tmp_path / "acme" / "x.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    one, two = read_contracts(tmp_path).contracts
    assert (one.matter, one.licence, one.label) == ("M-1", "L", "from stem")
    assert one.fields == {"a": "1", "b": "2"}
    assert (two.matter, two.label, two.fields["b"]) == ("M-2", "own", "3")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"consnt": false}', "consnt"),
        ('{"consent": "no"}', "consent"),
        ('{"consent": null}', "consent"),
        ('{"consent": false, "consent": true}', "consent"),
        ('{"matter": ["M-1"]}', "matter"),
        ('{"fields": {"a": {}}}', "fields"),
        ('{"matter": "M-1"', "line 1"),
        ("[]", "a list"),
        ("\xff", "UTF-8"),
    ],
)
def test_a_broken_sidecar_leaves_its_file_out(tmp_path: Path, content: str, named: str) -> None:
    (tmp_path / "secret.txt").write_text("Perhaps without consent.", encoding="utf-8")
    (tmp_path / "open.txt").write_text("Open.", encoding="utf-8")
    (tmp_path / "secret.txt.meta.json").write_bytes(content.encode("latin-1"))
    result = read_contracts(tmp_path)
    assert texts(result) == ["Open."]
    assert result.excluded == {BROKEN_SIDECAR: 1}
    assert named in reasons(result)["secret.txt"]
    assert "secret.txt.meta.json" in reasons(result)["secret.txt"]


def test_a_broken_folder_sidecar_leaves_everything_below_out(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "folder.meta.json").write_text("{", encoding="utf-8")
    (tmp_path / "in" / "a.txt").write_text("A.", encoding="utf-8")
    (tmp_path / "in" / "deep" / "b.jsonl").write_text('{"text": "B."}', encoding="utf-8")
    (tmp_path / "c.txt").write_text("C.", encoding="utf-8")
    result = read_contracts(tmp_path)
    assert texts(result) == ["C."]
    assert set(reasons(result)) == {"in/a.txt", "in/deep/b.jsonl"}


def test_a_sidecar_of_no_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "nda.txt").write_text("Text.", encoding="utf-8")
    write_json(tmp_path / "ndaa.txt.meta.json", {"consent": False})
    result = read_contracts(tmp_path)
    assert texts(result) == ["Text."]
    assert list(reasons(result)) == ["ndaa.txt.meta.json"]


def test_consent_withheld_anywhere_stays_withheld(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write_json(tmp_path / "a" / "folder.meta.json", {"consent": False})
    write_json(tmp_path / "a" / "x.txt.meta.json", {"consent": True})
    (tmp_path / "a" / "x.txt").write_text("X.", encoding="utf-8")
    (tmp_path / "a" / "y.jsonl").write_text('{"text": "Y.", "consent": true}', encoding="utf-8")
    (tmp_path / "b" / "z.jsonl").write_text(
        '{"text": "Z1.", "consent": false}\n{"text": "Z2.", "consent": true}', encoding="utf-8"
    )
    result = read_contracts(tmp_path)
    assert texts(result) == ["Z2."]
    assert result.excluded == {NO_CONSENT: 3}


def test_excluded_matters_are_counted_whatever_their_case(tmp_path: Path) -> None:
    rows = [{"text": "one", "matter": "M-1"}, {"text": "two", "matter": 2}, {"text": "three"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "y.txt").write_text("four", encoding="utf-8")
    write_json(tmp_path / "y.txt.meta.json", {"matter": "m-1"})
    result = read_contracts(tmp_path, excluded_matters=[" m-1 ", "2"])
    assert texts(result) == ["three"]
    assert result.excluded == {EXCLUDED_MATTER: 3}


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for folder in (outside, inside):
        folder.mkdir()
    (outside / "foreign.txt").write_text("Another firm's.", encoding="utf-8")
    (inside / "own.txt").write_text("Own.", encoding="utf-8")
    (inside / "link.txt").symlink_to(outside / "foreign.txt")
    (inside / "folder").symlink_to(outside, target_is_directory=True)
    (inside / "dangling.txt").symlink_to(inside / "nowhere.txt")
    (inside / "loop.txt").symlink_to(inside / "loop.txt")
    (inside / "again.txt").symlink_to(inside / "own.txt")
    result = read_contracts(inside)
    assert texts(result) == ["Own."]
    assert set(reasons(result)) == {"link.txt", "folder", "dangling.txt", "loop.txt"}
    assert result.excluded == {LINKED_ELSEWHERE: 1}


def test_pipes_hidden_and_lock_files_do_not_stop_the_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / ".hidden.txt").write_text("hidden", encoding="utf-8")
    (tmp_path / "~$nda.docx").write_bytes(b"lock")
    (tmp_path / "ok.txt").write_text("ok", encoding="utf-8")
    result = read_contracts(tmp_path)
    assert texts(result) == ["ok"]
    assert list(reasons(result)) == ["pipe.txt"]


def test_names_that_are_no_unicode_can_be_reported(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9.xyz"))).write_bytes(b"x")
    (unreadable,) = read_contracts(tmp_path).unreadable
    assert unreadable.source.encode("utf-8") == b"caf\\xe9.xyz"


def test_progress_is_told_file_by_file(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "bad.pdf"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    seen: list[str] = []
    read_contracts(tmp_path, on_file=lambda path: seen.append(path.name))
    assert seen == ["a.txt", "b.txt", "bad.pdf"]


def test_a_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ContractsError, match="nowhere"):
        read_contracts(tmp_path / "nowhere")


def test_a_single_file_is_read_with_its_sidecars(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A.", encoding="utf-8")
    (tmp_path / "b.txt").write_text("B.", encoding="utf-8")
    write_json(tmp_path / "a.txt.meta.json", {"matter": "M-9"})
    write_json(tmp_path / "b.txt.meta.json", {"consent": False})
    assert read_contract_file(tmp_path / "a.txt").contracts[0].matter == "M-9"
    withheld = read_contract_file(tmp_path / "b.txt")
    assert withheld.contracts == () and withheld.excluded == {NO_CONSENT: 1}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(["x.txt", "x.docx", "x.pdf", "x.jsonl", "x.jsonl.gz", "x.txt.meta.json"]),
    head=st.sampled_from([b"", b"PK\x03\x04", b"%PDF-1.4\n", b"\x1f\x8b\x08\x00", b'{"text":']),
    body=st.binary(max_size=200),
)
def test_no_bytes_whatever_make_the_reading_raise(
    tmp_path: Path, name: str, head: bytes, body: bytes
) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    (tmp_path / "sound.md").write_text("Sound.", encoding="utf-8")
    (tmp_path / name).write_bytes(head + body)
    result = read_contracts(tmp_path)
    assert "Sound." in texts(result)
    if not name.endswith(".meta.json"):
        # Each file either gave a contract or is named.
        sources = [contract.file for contract in result.contracts] + list(reasons(result))
        assert any(source.startswith(name) for source in sources)


def test_no_report_quotes_the_contract_that_broke(tmp_path: Path) -> None:
    planted = "PLANTEDSECRET"
    (tmp_path / "a.jsonl").write_text(
        f'{{"text": "{planted}"\n["{planted}"]\n{{"text": ["{planted}"]}}\n'
        f'{{"text": "x", "consent": "{planted}"}}\n',
        encoding="utf-8",
    )
    (tmp_path / "b.pdf").write_bytes(f"%PDF-1.4\n1 0 obj {planted}".encode())
    (tmp_path / "c.docx").write_bytes(planted.encode())
    result = read_contracts(tmp_path)
    assert len(result.unreadable) == 6
    assert planted not in repr(result)

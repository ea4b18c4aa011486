"""Splitting a contract into clauses."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from client.contracts import split_clauses

WORD = """SERVICES AGREEMENT

1. Term

This Agreement runs for twelve months.

2. Fees. The Customer pays within 30 days:

(a) the monthly fee; and

(b) expenses.

Either party may give notice."""

SUSPENSION = "The Supplier may suspend the service for as long as any invoice has not been paid."

PDF = f"""SERVICES AGREEMENT
1. Term
This Agreement runs for twelve months from the date that the parties have agreed
upon, as set out in
Section 4 of this Agreement.
2. Fees
The Customer pays within thirty days of the invoice, and late sums bear interest
at four per cent.
{SUSPENSION}
Governing Law
The law of Norland applies."""


def test_numbered_sections_carry_their_headings_and_lists() -> None:
    assert [clause.text for clause in split_clauses(WORD)] == [
        "SERVICES AGREEMENT",
        "1. Term\n\nThis Agreement runs for twelve months.",
        "2. Fees. The Customer pays within 30 days:\n\n(a) the monthly fee; and\n\n(b) expenses.",
        "Either party may give notice.",
    ]


def test_wrapped_lines_are_one_clause_and_references_are_no_sections() -> None:
    clauses = [clause.text.split("\n") for clause in split_clauses(PDF)]
    assert [(clause[0], clause[-1]) for clause in clauses] == [
        ("SERVICES AGREEMENT", "SERVICES AGREEMENT"),
        ("1. Term", "Section 4 of this Agreement."),
        ("2. Fees", "at four per cent."),
        (SUSPENSION, SUSPENSION),
        ("Governing Law", "The law of Norland applies."),
    ]


def test_a_paragraph_a_line_gives_a_clause_a_line() -> None:
    long = "The Supplier keeps the records of the service in good order and shows them to any " * 3
    text = f"{long}on request.\n{long}without delay.\nShort end."
    assert len(split_clauses(text)) == 3


def test_a_gap_inside_a_sentence_does_not_split_it() -> None:
    text = "The Supplier delivers\n\nthe goods in March."
    assert [clause.text for clause in split_clauses(text)] == [text]


def test_nothing_gives_no_clause() -> None:
    assert split_clauses(" \n\n\t") == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["1. Term", "(a) one;", "TITLE", "The fee is due.", "", "and goes on", "\x0c", "§ 3 x"]
        )
        | st.text(max_size=30),
        max_size=20,
    ).map("\n".join)
)
def test_clauses_cover_every_character_once_and_in_order(text: str) -> None:
    clauses = split_clauses(text)
    position = 0
    for clause in clauses:
        assert clause.text == text[clause.start : clause.end]
        assert clause.text.strip()
        assert clause.start >= position
        assert not text[position : clause.start].strip()
        position = clause.end
    assert not text[position:].strip()

"""Units: the same data is recognised, whatever its order; other data is not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.contracts import ChatMessage, Contract
from client.examples.instruct import chat_examples
from client.privacy.units import NO_MATTER, data_units, matter_digest
from models.examples import ChatExample, ClauseExample, Example
from protocol.errors import FoedusError
from tests.client.ledgers import clauses

EXAMPLES = st.lists(
    st.builds(
        ClauseExample,
        st.sampled_from(["pay", "notice", "term"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["north", "south", None]),
    ),
    max_size=12,
)


@given(EXAMPLES, st.randoms(use_true_random=False))
def test_order_changes_nothing(examples: list[ClauseExample], rng: random.Random) -> None:
    shuffled = sorted(examples, key=lambda _: rng.random())
    for unit in ("matter", "example"):
        first, second = data_units(examples, unit), data_units(shuffled, unit)
        assert first == second
        assert first.digest == second.digest


@given(EXAMPLES)
def test_every_example_is_a_record_of_its_own(examples: list[ClauseExample]) -> None:
    units = data_units(examples, "example")
    assert len({record.example for record in units.records}) == len(examples) == units.num_units


def test_by_matter_examples_without_one_are_left_out_and_counted() -> None:
    units = data_units(clauses("alpha", None, "beta"), "matter")
    assert (units.num_units, len(units.records), units.num_left_out) == (2, 6, 3)
    assert {r.matter for r in units.records} == {matter_digest("alpha"), matter_digest("beta")}
    everything = data_units(clauses("alpha", None, "beta"), "example")
    assert (everything.num_units, everything.num_left_out) == (9, 0)
    assert [r.matter for r in everything.records].count(NO_MATTER) == 3


def test_a_data_set_is_the_same_by_matter_and_by_example() -> None:
    examples = clauses("alpha", "beta")
    digests = {data_units(examples, unit).digest for unit in ("matter", "example", "none")}
    assert len(digests) == 1
    assert data_units(list(reversed(examples)), "matter").digest in digests


def test_any_change_of_text_matter_or_number_is_another_data_set() -> None:
    examples = [ClauseExample("pay", "a", "north"), ClauseExample("term", "b", "north")]
    changed = [
        [ClauseExample("pay.", "a", "north"), examples[1]],
        [ClauseExample("pay", "a", "south"), examples[1]],
        [*examples, examples[0]],
        examples[:1],
    ]
    digests = {data_units(one, "example").digest for one in [examples, *changed]}
    assert len(digests) == len(changed) + 1


def test_the_same_words_are_the_same_example_whatever_a_run_makes_of_them() -> None:
    words = "The tenant shall pay the rent in advance, on the first working day of each month."
    given = Contract(words, "s", "m", messages=(ChatMessage("user", words),))
    labelled = [Contract(words, "s", "m", label=label) for label in ("rent", "term")]
    contracts = [given, Contract(words.replace(", ", ",\n\n"), "s", "m"), *labelled]
    made = [*(chat_examples(contract)[0] for contract in contracts)]
    examples: list[Example] = [*made, *(ClauseExample(words, label, "m") for label in "ab")]
    assert len(set(examples)) == len(examples)
    assert len({data_units([example], "example").digest for example in examples}) == 1


def test_parts_that_run_together_are_told_apart() -> None:
    texts = [ClauseExample("ab", "c"), ClauseExample("a", "bc"), ClauseExample('a", "b', "c")]
    chats = [ChatExample((("user", "ab"), ("assistant", "c"))), ChatExample((("user", "abc"),))]
    examples: list[Example] = [*texts, *chats]
    records = {r.example for e in examples for r in data_units([e], "example").records}
    assert len(records) == 5
    assert matter_digest("north") not in records


def test_no_text_of_an_example_is_kept() -> None:
    units = data_units([ClauseExample("Ruritania", "Moldavia", "north")], "example")
    assert b"Ruritania" not in units.content and b"Moldavia" not in units.content
    assert "Ruritania" not in repr(units)


def test_another_unit_is_refused() -> None:
    with pytest.raises(FoedusError, match="got 'firm'"):
        data_units([], "firm")

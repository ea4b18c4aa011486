"""Contracts as examples, split so that no matter is on both sides, and counted where unused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.contracts import ChatMessage, Contract
from client.examples.build import build_examples, is_held_out
from client.examples.instruct import chat_examples
from models.examples import ChatExample, ClauseExample

SENTENCE = "The supplier shall deliver the goods to the customer within ten days of each order. "


def contracts(count: int, per_matter: int = 3) -> list[Contract]:
    return [
        Contract(f"Clause {n}.", f"source-{n}", f"matter-{n // per_matter}", label="payment")
        for n in range(count)
    ]


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5])
def test_the_split_is_by_matter_and_about_as_large_as_asked(fraction: float) -> None:
    examples = build_examples(contracts(900), "classify", fraction)
    train = {e.matter for e in examples.train}
    held_out = {e.matter for e in examples.held_out}
    assert not train & held_out
    assert len(examples.train) + len(examples.held_out) == 900
    assert abs(len(held_out) / 300 - fraction) < 0.08
    assert (fraction == 0.0) == (not held_out)


def test_without_matters_the_split_is_by_source() -> None:
    texts = [Contract("Clause.", f"s{n % 50}", label="payment") for n in range(200)]
    examples = build_examples(texts, "classify", 0.5)
    assert len(examples.train) % 4 == 0 and len(examples.held_out) % 4 == 0
    assert examples.train and examples.held_out


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_keeps_what_a_smaller_one_kept(group: str, one: float, two: float) -> None:
    low, high = sorted((one, two))
    assert is_held_out(group, high) or not is_held_out(group, low)
    assert not is_held_out(group, 0.0)


def test_new_contracts_do_not_move_old_ones_to_the_other_side() -> None:
    few = build_examples(contracts(90), "classify", 0.3)
    more = build_examples(contracts(900), "classify", 0.3)
    assert set(few.train) <= set(more.train) and set(few.held_out) <= set(more.held_out)


def test_clauses_without_a_label_are_counted() -> None:
    mixed = [*contracts(3), Contract("No label.", "x"), Contract("None either.", "y")]
    examples = build_examples(mixed, "classify", 0.0)
    assert examples.train[0] == ClauseExample("Clause 0.", "payment", "matter-0")
    assert examples.unused == {"no label": 2}


def test_texts_too_short_to_learn_from_are_counted() -> None:
    examples = build_examples([Contract("Signed.", "x")], "instruct", 0.0)
    assert examples.train == () and examples.unused == {"too short to learn from": 1}


def test_given_conversations_are_taken_as_they_are() -> None:
    turns = (ChatMessage("user", "Hi"), ChatMessage("assistant", "Hello"))
    (example,) = chat_examples(Contract("Hi\n\nHello", "s", "m", label="x", messages=turns))
    assert example == ChatExample((("user", "Hi"), ("assistant", "Hello")), "m", "Hi\n\nHello")


def test_a_labelled_clause_becomes_a_request_to_draft_it() -> None:
    (example,) = chat_examples(Contract(SENTENCE * 2, "s", "m", label="GOVERNING_LAW"))
    request, answer = example.messages
    assert request == ("user", "Draft a contract clause on governing law.")
    assert answer == ("assistant", SENTENCE * 2)


def test_a_contract_becomes_passages_that_hold_all_its_words_once() -> None:
    sections = "\n\n".join(f"{n}. Delivery {n}\n\n{SENTENCE * 5}" for n in range(1, 12))
    examples = chat_examples(Contract(sections, "s", "m"))
    assert len(examples) > 3
    told: list[str] = []
    for example in examples:
        (user, request), (assistant, rest) = example.messages
        assert (user, assistant, example.matter) == ("user", "assistant", "m")
        opening = request.removeprefix("Continue this contract: ")
        assert opening != request and len(opening) < len(rest)
        told += [*opening.split(), *rest.split()]
    assert told == sections.split()

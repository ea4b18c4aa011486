"""Canaries: nothing in them repeats, and nothing in them foretells whether they are planted."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.audit.canaries import Canary, as_examples, make_canaries, planted_of, vocabulary_words
from models.adapted import adapted_model
from models.examples import ChatExample, ClauseExample
from protocol.errors import FoedusError
from protocol.settings import AdapterSettings, ModelSettings, RunSettings, TaskSettings
from tests.small_runs import LABELS, small_run

WORDS = tuple("".join(letters) for letters in itertools.product("abcdefg", repeat=3))


def made(count: int = 200, kind: str = "classify", seed: int = 0) -> tuple[Canary, ...]:
    return make_canaries(count, kind, LABELS, WORDS, 6, np.random.default_rng(seed))


@given(
    count=st.integers(20, 120),
    tokens=st.integers(4, 20),
    kind=st.sampled_from(["classify", "instruct"]),
    seed=st.integers(0, 2**32),
)
def test_no_two_canaries_share_text_or_matter(
    count: int, tokens: int, kind: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    canaries = make_canaries(count, kind, LABELS, WORDS, tokens, rng)
    said = [c.text if kind == "classify" else f"{c.text} {c.answer}" for c in canaries]
    assert len(set(said)) == len({c.matter for c in canaries}) == len(canaries) == count
    assert {len(text.split()) for text in said} == {tokens}
    assert set(" ".join(said).split()) <= set(WORDS)


def test_no_word_comes_twice_before_all_came_once() -> None:
    words = " ".join(c.text for c in made(len(WORDS) // 6)).split()
    assert max(Counter(words).values()) == 1
    counts = Counter(" ".join(c.text for c in made(3 * len(WORDS) // 6)).split())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_coins_and_labels_are_fair_and_know_nothing_of_each_other() -> None:
    canaries = make_canaries(6000, "classify", LABELS, WORDS, 6, np.random.default_rng(4))
    planted = planted_of(canaries)
    assert planted.mean() == pytest.approx(0.5, abs=0.03)
    for label in LABELS:
        of_label = np.array([c.answer == label for c in canaries])
        assert of_label.mean() == pytest.approx(1 / 3, abs=0.03)
        assert of_label[planted].mean() == pytest.approx(of_label[~planted].mean(), abs=0.05)


def test_without_a_generator_every_audit_draws_anew() -> None:
    one = make_canaries(40, "classify", LABELS, WORDS, 6)
    other = make_canaries(40, "classify", LABELS, WORDS, 6)
    assert [c.text for c in one] != [c.text for c in other]
    assert [c.planted for c in one] != [c.planted for c in other]
    assert made(seed=5) == made(seed=5)


def test_a_canary_is_one_matter_of_as_many_examples_as_asked_for() -> None:
    canaries = made(20)
    examples = as_examples(canaries, repeats=3)
    assert Counter(e.matter for e in examples) == {c.matter: 3 for c in canaries}
    assert len(set(examples)) == 20
    first = examples[0]
    assert isinstance(first, ClauseExample)
    assert (first.text, first.label) == (canaries[0].text, canaries[0].answer)
    assert len(as_examples(canaries)) == 20
    with pytest.raises(FoedusError, match="repeats=0"):
        as_examples(canaries, repeats=0)


def test_an_instruct_canary_asks_one_random_half_for_the_other() -> None:
    canary = made(20, "instruct")[0]
    (example,) = as_examples([canary])
    assert isinstance(example, ChatExample)
    assert example.messages == (("user", canary.text), ("assistant", canary.answer))
    assert len(canary.text.split()) == len(canary.answer.split()) == 3
    assert not set(canary.text.split()) & set(canary.answer.split())


CAUSAL = replace(
    small_run(),
    task=TaskSettings(kind="instruct"),
    model=ModelSettings(id="novels", precision="float32", max_tokens=48),
    adapter=AdapterSettings(rank=2, alpha=4.0, targets=("q_proj", "v_proj"), last_layers=1),
)


@pytest.mark.parametrize("run", [small_run(), CAUSAL], ids=["word pieces", "byte pairs"])
def test_words_are_single_tokens_of_the_model(run: RunSettings) -> None:
    tokenizer = adapted_model(run).base.tokenizer
    words = vocabulary_words(tokenizer)
    assert len(words) == len(set(words)) > 1000
    sample = words[::97]
    assert len(tokenizer.encode(" " + " ".join(sample), add_special_tokens=False)) == len(sample)


@pytest.mark.parametrize(
    ("count", "kind", "labels", "words", "tokens", "told"),
    [
        (19, "classify", LABELS, WORDS, 6, "at least 20 canaries"),
        (20, "classify", LABELS, WORDS, 3, "of 3"),
        (20, "classify", LABELS[:1], WORDS, 6, "two labels"),
        (20, "classify", LABELS, WORDS[:11], 6, "12 different words"),
        (20, "translate", LABELS, WORDS, 6, "'translate'"),
    ],
)
def test_what_would_prove_nothing_is_refused(
    count: int, kind: str, labels: tuple[str, ...], words: tuple[str, ...], tokens: int, told: str
) -> None:
    with pytest.raises(FoedusError, match=told):
        make_canaries(count, kind, labels, words, tokens)

"""Canaries: random strings that occur nowhere else, each planted or left out by a coin of its own.

A canary is one unit of privacy: one matter of `repeats` examples, or one example. What it says is
random, so nothing but having been trained on it can make a model fit it better than the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from models.examples import ChatExample, ClauseExample, Example
from protocol.errors import FoedusError

# Fewer could not show an epsilon above 1.8, whatever leaked.
FEWEST_CANARIES = 20
TOKENS_PER_CANARY = 12
_FEWEST_TOKENS = 4
_SHORTEST_WORD = 3
_FEWEST_WORDS = 256
_MATTER_PREFIX = "canary-"


@dataclass(frozen=True, slots=True)
class Canary:
    """One canary. answer: its random label, or the random secret a causal model is to learn.

    matter: a name that no other canary has. planted: whether the audited run trains on it.
    """

    kind: str
    text: str
    answer: str
    matter: str
    planted: bool


def vocabulary_words(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Lower-case English-looking words that the model reads as one token, by token id.

    Errors: FoedusError where the vocabulary holds too few to make canaries of.
    """
    words: list[str] = []
    for token_id in sorted(tokenizer.get_vocab().values()):
        word = str(tokenizer.decode([token_id])).strip()
        if len(word) < _SHORTEST_WORD or not (word.isascii() and word.isalpha() and word.islower()):
            continue
        # With a blank before it, as it stands inside a sentence.
        if tokenizer.encode(" " + word, add_special_tokens=False) == [token_id]:
            words.append(word)
    if len(words) < _FEWEST_WORDS:
        raise FoedusError(
            f"Expected {_FEWEST_WORDS} whole words among the model's tokens to make canaries of, "
            f"got {len(words)}. Audit with a model that has words for tokens."
        )
    return tuple(words)


def make_canaries(
    count: int,
    kind: str,
    labels: Sequence[str],
    words: Sequence[str],
    tokens_per_canary: int = TOKENS_PER_CANARY,
    rng: np.random.Generator | None = None,
) -> tuple[Canary, ...]:
    """`count` canaries of a task ("classify" or "instruct"), no two with the same text.

    labels: of a classifier; each canary's is drawn uniformly. words: what texts are drawn from, see
    `vocabulary_words`; no word is used twice before all were used once, so that canaries have as
    little in common as the vocabulary allows. An instruct canary has half its words as a request
    and half as the secret answer.
    rng: the auditor's own; None takes fresh randomness from the system. Never the run's seed, which
    the coordinator knows: whoever can foresee the coins can fake the audit.
    Errors: FoedusError for too few canaries, words or labels.
    """
    _check(count, kind, labels, words, tokens_per_canary)
    rng = np.random.default_rng() if rng is None else rng
    planted = rng.integers(0, 2, size=count).astype(bool)
    dealt = _deal(words, rng)
    canaries: list[Canary] = []
    seen: set[str] = set()
    while len(canaries) < count:
        drawn = [next(dealt) for _ in range(tokens_per_canary)]
        text, answer = " ".join(drawn), ""
        if text in seen:
            continue
        seen.add(text)
        if kind == "classify":
            answer = labels[int(rng.integers(len(labels)))]
        else:
            asked = tokens_per_canary // 2
            text, answer = " ".join(drawn[:asked]), " ".join(drawn[asked:])
        number = len(canaries)
        matter = f"{_MATTER_PREFIX}{number:05d}"
        canaries.append(Canary(kind, text, answer, matter, bool(planted[number])))
    return tuple(canaries)


def _check(
    count: int, kind: str, labels: Sequence[str], words: Sequence[str], tokens_per_canary: int
) -> None:
    if kind not in ("classify", "instruct"):
        raise FoedusError(f"Expected canaries for classify or instruct, got {kind!r}.")
    if count < FEWEST_CANARIES or tokens_per_canary < _FEWEST_TOKENS:
        raise FoedusError(
            f"Expected at least {FEWEST_CANARIES} canaries of {_FEWEST_TOKENS} tokens, got {count} "
            f"of {tokens_per_canary}: fewer prove nothing."
        )
    if kind == "classify" and len(set(labels)) < 2:
        raise FoedusError(f"Expected two labels or more to draw from, got {len(set(labels))}.")
    if len(set(words)) < tokens_per_canary * 2:
        raise FoedusError(
            f"Expected at least {tokens_per_canary * 2} different words, got {len(set(words))}."
        )


def _deal(words: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Words off a shuffled deck, which is shuffled anew when it is used up."""
    deck = sorted(set(words))
    while True:
        for position in rng.permutation(len(deck)):
            yield deck[position]


def as_examples(canaries: Sequence[Canary], repeats: int = 1) -> list[Example]:
    """`repeats` equal examples of each canary, all under its matter, in the order of `canaries`.

    repeats: 1 where the unit of privacy is the example, as two examples would be two units.
    """
    if repeats < 1:
        raise FoedusError(f"Expected each canary at least once, got repeats={repeats}.")
    return [_example(canary) for canary in canaries for _ in range(repeats)]


def _example(canary: Canary) -> Example:
    if canary.kind == "classify":
        return ClauseExample(canary.text, canary.answer, canary.matter)
    return ChatExample((("user", canary.text), ("assistant", canary.answer)), canary.matter)


def planted_of(canaries: Sequence[Canary]) -> np.ndarray:
    """The coins, (canaries,) of bool."""
    return np.array([canary.planted for canary in canaries], dtype=np.bool_)

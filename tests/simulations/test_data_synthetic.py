"""The synthetic contracts: seeded, skewed by firm, and harder than looking for words."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from client.contracts import Contract
from simulations.data import Corpus, DataSettings, load_corpus
from simulations.data.houses import HOUSES
from simulations.data.phrases import choices, clause_types, with_choices


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(DataSettings())


def of_site(contracts: tuple[Contract, ...], site: str) -> tuple[Contract, ...]:
    return tuple(contract for contract in contracts if contract.fields["site"] == site)


def tfidf_accuracy(train: tuple[Contract, ...], test: tuple[Contract, ...]) -> float:
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=500),
    )
    model.fit([contract.text for contract in train], [contract.label for contract in train])
    predicted = model.predict([contract.text for contract in test])
    return float(np.mean(predicted == np.array([contract.label for contract in test])))


def test_the_seed_alone_decides(corpus: Corpus) -> None:
    assert load_corpus(DataSettings()) == corpus
    other = load_corpus(DataSettings(seed=1))
    assert {contract.text for contract in other.train} != {c.text for c in corpus.train}


def test_sizes_are_as_asked() -> None:
    small = load_corpus(DataSettings(firms=3, train_per_firm=25, test_per_firm=7))
    assert len(small.train) == 75 and len(small.test) == 21
    assert set(Counter(contract.fields["site"] for contract in small.train).values()) == {25}


def test_all_clause_types_can_be_learned_and_no_text_occurs_twice(corpus: Corpus) -> None:
    assert len(corpus.labels) == 24
    assert {contract.label for contract in corpus.test} <= set(corpus.labels)
    found = [contract.text for contract in corpus.train + corpus.test]
    assert len(set(found)) == len(found)
    assert len({contract.source for contract in corpus.train + corpus.test}) == len(found)


def test_matters_lie_at_one_firm_and_in_one_part(corpus: Corpus) -> None:
    train = {contract.matter for contract in corpus.train}
    assert train.isdisjoint({contract.matter for contract in corpus.test})
    firms = {(contract.matter, contract.fields["site"]) for contract in corpus.train}
    assert len(firms) == len(train)
    assert max(Counter(contract.matter for contract in corpus.train).values()) == 12


def test_no_slot_is_left_open(corpus: Corpus) -> None:
    for contract in corpus.train + corpus.test:
        assert not re.search(r"[{}|]", contract.text), contract.text


def test_a_firm_alone_does_clearly_worse_than_the_pool(corpus: Corpus) -> None:
    pooled = tfidf_accuracy(corpus.train, corpus.test)
    sites = {contract.fields["site"] for contract in corpus.train}
    alone = [tfidf_accuracy(of_site(corpus.train, site), corpus.test) for site in sorted(sites)]
    assert 0.70 <= pooled <= 0.85, "words alone neither solve it nor fail at it"
    assert max(alone) <= pooled - 0.15


def test_held_out_matters_use_words_that_training_never_has(corpus: Corpus) -> None:
    def vocabulary(contracts: tuple[Contract, ...]) -> set[str]:
        return {word for contract in contracts for word in re.findall("[a-z]+", contract.text)}

    assert len(vocabulary(corpus.test) - vocabulary(corpus.train)) > 100


def test_phrases_name_known_neighbours_and_leave_room_to_hold_out() -> None:
    kinds = clause_types()
    names = {kind.name for kind in kinds}
    assert len(names) == len(kinds) == 24
    for kind in kinds:
        assert kind.about and kind.near and set(kind.near) <= names - {kind.name}
        assert len(kind.bodies) >= 9 and len(set(kind.bodies)) == len(kind.bodies)
        assert len(kind.tails) >= 3
    for house in HOUSES:
        assert set(house.usual) <= names
    assert {name for house in HOUSES[:6] for name in house.usual} == names


def test_choices_are_replaced_from_left_to_right() -> None:
    phrase = "one [a|b] two [c|d|e]"
    assert choices(phrase) == [["a", "b"], ["c", "d", "e"]]
    assert with_choices(phrase, ["b", "e"]) == "one b two e"


def test_each_firm_drafts_its_usual_clauses_most(corpus: Corpus) -> None:
    for house in HOUSES[:6]:
        own = of_site(corpus.train, house.name)
        share = sum(contract.label in house.usual for contract in own) / len(own)
        assert 0.55 < share < 0.9, "a third of the clause types, far more than a third of the work"

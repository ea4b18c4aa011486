"""Seeded contracts of invented firms, hard enough that a firm alone does clearly worse.

What makes it hard, and like life: each firm drafts some clause types often and the others hardly
ever; each has favourite wordings; clauses refer to their neighbours' subjects, so single words
mislead; held-out matters use wordings that no training matter has (half of the bodies drawn, and
the last of three or more alternatives within a sentence).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.contracts import Contract
from simulations.data.corpus import Corpus
from simulations.data.houses import HOUSES, House
from simulations.data.phrases import ClauseType, choices, clause_types, with_choices
from simulations.data.settings import DataSettings

# Odds of a clause type outside a firm's usual ones, against 1 for a usual one.
UNUSUAL_WEIGHT = 0.2
# Chance that a held-out clause uses a body that no training clause has.
UNSEEN_BODY = 0.5
# Chance that a firm words a clause in one of its favourite ways.
FAVOURITE_BODY = 0.75
TAIL = 0.35
CROSS_REFERENCE = 0.45
OPENING = 0.25
CLAUSES_PER_MATTER = 12
CLAUSES_PER_DOCUMENT = 4

_PLACES = ("Norland", "Port Elwin", "the Canton of Arbe", "Westmark", "Sarrow", "New Tamsin")
_DAYS = (5, 7, 10, 14, 20, 30, 45, 60, 90)
_MONTHS = (3, 6, 9, 12, 18, 24, 36)
_MONEY = ("EUR 25,000", "USD 1,500,000", "GBP 80,000", "USD 300,000", "EUR 2,000,000")
_WORDS = {
    3: "three", 5: "five", 6: "six", 7: "seven", 9: "nine", 10: "ten", 12: "twelve",
    14: "fourteen", 18: "eighteen", 20: "twenty", 24: "twenty-four", 30: "thirty",
    36: "thirty-six", 45: "forty-five", 60: "sixty", 90: "ninety",
}  # fmt: skip
_CROSS_REFERENCES = (
    "This is without effect on {about}.",
    "It stands beside {about}, from which it takes nothing away.",
    "Whether {about} can be relied on is decided elsewhere in {deal}.",
    "Read it together with {about}.",
)


@dataclass(frozen=True)
class _Wording:
    """Which wordings training may use and which are held out, for one clause type."""

    kind: ClauseType
    train_bodies: tuple[str, ...]
    unseen_bodies: tuple[str, ...]


@dataclass(frozen=True)
class _Matter:
    """One client engagement: its names and terms hold for all its clauses."""

    name: str
    house: House
    slots: dict[str, str]
    held_out: bool


def synthetic_corpus(settings: DataSettings) -> Corpus:
    """A corpus of `firms` sites. The same settings give the same corpus on every machine.

    Fields of each contract: `site` and `company` (the firm), `contract_type` (its practice area)
    and `doc`. No text occurs twice.
    """
    rng = np.random.default_rng(settings.seed)
    wordings = {kind.name: _hold_out(kind, rng) for kind in clause_types()}
    taken: set[str] = set()
    parts: dict[bool, list[Contract]] = {False: [], True: []}
    for house in HOUSES[: settings.firms]:
        favourites = {
            name: _sample(rng, wording.train_bodies, 3) for name, wording in wordings.items()
        }
        for held_out, count in ((False, settings.train_per_firm), (True, settings.test_per_firm)):
            writer = _Writer(house, wordings, favourites, taken, rng)
            parts[held_out] += writer.clauses(count, held_out)
    return Corpus("synthetic", tuple(parts[False]), tuple(parts[True]))


def _hold_out(kind: ClauseType, rng: np.random.Generator) -> _Wording:
    """A third of the bodies are for held-out matters only."""
    bodies = _sample(rng, kind.bodies, len(kind.bodies))
    unseen = len(bodies) // 3
    return _Wording(kind, bodies[unseen:], bodies[:unseen])


def _sample(
    rng: np.random.Generator, items: list[str] | tuple[str, ...], count: int
) -> tuple[str, ...]:
    return tuple(items[index] for index in rng.permutation(len(items))[:count])


@dataclass(frozen=True)
class _Writer:
    """Drafts the clauses of one firm."""

    house: House
    wordings: dict[str, _Wording]
    favourites: dict[str, tuple[str, ...]]
    taken: set[str]
    rng: np.random.Generator

    def clauses(self, count: int, held_out: bool) -> list[Contract]:
        """`count` clauses, in matters of CLAUSES_PER_MATTER."""
        names = list(self.wordings)
        weights = np.array([1.0 if n in self.house.usual else UNUSUAL_WEIGHT for n in names])
        labels = self.rng.choice(names, size=count, p=weights / weights.sum())
        contracts: list[Contract] = []
        for number, label in enumerate(labels):
            if number % CLAUSES_PER_MATTER == 0:
                matter = self.matter(number // CLAUSES_PER_MATTER, held_out)
            contracts.append(self.contract(str(label), matter, number % CLAUSES_PER_MATTER))
        return contracts

    def matter(self, number: int, held_out: bool) -> _Matter:
        pick = self.pick
        house = self.house
        slots = {
            "A": f"the {pick(house.provider)}",
            "B": f"the {pick(house.customer)}",
            "work": pick(house.works),
            "deal": pick(house.deals),
            "place": pick(_PLACES[-2:] if held_out else _PLACES[:-2]),
        }
        series = "t" if held_out else "m"
        return _Matter(f"{house.name}-{series}{number + 1:02d}", house, slots, held_out)

    def contract(self, label: str, matter: _Matter, position: int) -> Contract:
        text = self.draft(self.wordings[label], matter)
        while text in self.taken:
            text = self.draft(self.wordings[label], matter)
        self.taken.add(text)
        document = f"{matter.name}/doc{position // CLAUSES_PER_DOCUMENT + 1}"
        return Contract(
            text=text,
            source=f"{document}#{position % CLAUSES_PER_DOCUMENT + 1}",
            matter=matter.name,
            licence="Apache-2.0",
            label=label,
            fields={
                "site": self.house.name,
                "company": self.house.name,
                "contract_type": self.house.practice,
                "doc": document,
            },
        )

    def draft(self, wording: _Wording, matter: _Matter) -> str:
        """One clause: number, perhaps an opening, a body, perhaps a tail and a cross-reference."""
        sentences = [self.body(wording, matter)]
        if self.chance(OPENING):
            first = sentences[0]
            # "the" and "a" lose their capital after an opening; defined terms have an article.
            sentences[0] = self.pick(self.house.openings) + first[:1].lower() + first[1:]
        if self.chance(TAIL):
            sentences.append(self.pick(wording.kind.tails))
        if self.chance(CROSS_REFERENCE):
            about = self.wordings[self.pick(wording.kind.near)].kind.about
            sentences.append(self.pick(_CROSS_REFERENCES).replace("{about}", about))
        number = self.house.numbering.format(n=self.number(2, 24), m=self.number(1, 9))
        return number + " ".join(self.filled(sentence, matter) for sentence in sentences)

    def body(self, wording: _Wording, matter: _Matter) -> str:
        if matter.held_out and self.chance(UNSEEN_BODY):
            return self.pick(wording.unseen_bodies)
        favourites = self.favourites[wording.kind.name]
        return self.pick(favourites if self.chance(FAVOURITE_BODY) else wording.train_bodies)

    def filled(self, sentence: str, matter: _Matter) -> str:
        chosen = []
        for alternatives in choices(sentence):
            # The last of three or more words is one that training never sees.
            allowed = len(alternatives) - (len(alternatives) > 2 and not matter.held_out)
            chosen.append(self.pick(tuple(alternatives[:allowed])))
        filled = with_choices(sentence, chosen).format(
            **matter.slots,
            must=self.pick(self.house.duties),
            days=self.figure(_DAYS),
            months=self.figure(_MONTHS),
            hours=self.figure((24, 36)),
            count=self.figure((3, 5)),
            rate=self.figure((3, 5, 6)),
            miles=self.figure((20, 30, 60)),
            money=self.pick(_MONEY),
        )
        return filled[:1].upper() + filled[1:]

    def figure(self, numbers: tuple[int, ...]) -> str:
        number = numbers[self.rng.integers(len(numbers))]
        return _WORDS.get(number, str(number)) if self.house.in_words else str(number)

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def pick(self, items: tuple[str, ...] | list[str]) -> str:
        return items[self.rng.integers(len(items))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

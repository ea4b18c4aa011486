"""ContractNLI: does a non-disclosure agreement entail, contradict or not mention a hypothesis?

One example a pair: the hypothesis, a blank line, and a premise from the NDA. `premise` is
- retrieved: the `premise_spans` sentences that share the rarest words with the hypothesis. Chosen
  without looking at the label, so the score is an honest one for a short context.
- evidence: the annotated evidence. NotMentioned has none; sentences drawn by seed stand in for it,
  so a model can tell it by the topic alone. An upper bound, not a benchmark figure.
- document: the whole NDA, for models with a long context (others see its beginning only).
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client.contracts import Contract, Unreadable, read_records
from simulations.data.corpus import Corpus, DataError
from simulations.data.records import (
    SplitReading,
    scalar_fields,
    source_files,
    source_folder,
    text_of,
)
from simulations.data.settings import DataSettings

LICENCE = "CC BY 4.0"


@dataclass(frozen=True)
class _Nda:
    text: str
    sentences: tuple[str, ...]
    fields: Mapping[str, str]


def contract_nli_corpus(settings: DataSettings) -> Corpus:
    """Fields: company and doc (the NDA: each is another company's), hypothesis, document_type."""
    folder = source_folder(
        settings, "the contract_nli folder (docs.jsonl.gz, pairs.jsonl.gz, hypotheses.json)"
    )
    hypotheses = _hypotheses(folder / "hypotheses.json")
    docs_path, pairs_path = source_files(folder, ["docs", "pairs"])
    reading = SplitReading(settings)
    ndas = _ndas(docs_path, reading.unreadable)

    def to_contract(record: Mapping[str, Any]) -> Contract:
        document = str(record["doc"])
        hypothesis = text_of(record, "hyp")
        nda = ndas[document]
        premise = _premise(nda, hypotheses[hypothesis], record, settings)
        return Contract(
            text=f"{hypotheses[hypothesis]}\n\n{premise}",
            source=f"contract_nli-{document}-{hypothesis}",
            matter=document,
            licence=LICENCE,
            label=text_of(record, "label"),
            fields={**nda.fields, "company": document, "doc": document, "hypothesis": hypothesis},
        )

    reading.read(pairs_path, to_contract)
    return reading.corpus()


def _hypotheses(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: text_of(entry, "hypothesis") for name, entry in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"Expected the 17 hypotheses in data.path, as {path} with "
            "{name: {hypothesis: text}}; the file is missing or of another form."
        ) from None


def _ndas(path: Path, unreadable: list[Unreadable]) -> dict[str, _Nda]:
    ndas: dict[str, _Nda] = {}
    for record in read_records(path, path.name):
        if isinstance(record, Unreadable):
            unreadable.append(record)
            continue
        try:
            text = text_of(record.content)
            spans = [text[start:end].strip() for start, end in record.content["spans"]]
            fields = scalar_fields(record.content, "document_type")
            ndas[str(record.content["doc"])] = _Nda(text, tuple(filter(None, spans)), fields)
        except (KeyError, TypeError, ValueError):
            place = f"{path.name}:{record.line}"
            unreadable.append(Unreadable(place, "expected doc, text and spans of an NDA"))
    return ndas


def _premise(nda: _Nda, hypothesis: str, record: Mapping[str, Any], settings: DataSettings) -> str:
    if settings.premise == "document":
        return nda.text
    if settings.premise == "retrieved":
        return "\n".join(nearest_sentences(hypothesis, nda.sentences, settings.premise_spans))
    evidence = record.get("evidence")
    if isinstance(evidence, str) and evidence.strip():
        return evidence
    pair = f"{settings.seed}:{record['doc']}:{record['hyp']}"
    rng = np.random.default_rng(list(pair.encode("utf-8")))
    count = min(2, len(nda.sentences))
    drawn = sorted(rng.permutation(len(nda.sentences))[:count])
    return "\n".join(nda.sentences[index] for index in drawn)


def nearest_sentences(query: str, sentences: Sequence[str], count: int) -> list[str]:
    """The `count` sentences nearest to `query`, in document order.

    Nearness: the sum over shared words of the squared inverse document frequency log((n + 1) / df),
    divided by the root of the sentence's number of different words. Words are cut to six letters,
    a cheap stem.
    """
    bags = [_stems(sentence) for sentence in sentences]
    frequency = Counter(stem for bag in bags for stem in bag)
    wanted = _stems(query)

    def nearness(index: int) -> float:
        shared = bags[index] & wanted
        weight = sum(math.log((len(bags) + 1) / frequency[stem]) ** 2 for stem in sorted(shared))
        return weight / math.sqrt(len(bags[index]) or 1)

    best = sorted(range(len(sentences)), key=lambda index: (-nearness(index), index))[:count]
    return [sentences[index] for index in sorted(best)]


@functools.lru_cache(maxsize=16384)
def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:6] for word in re.findall(r"[^\W\d_]{3,}", text.lower()))

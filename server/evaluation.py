"""Central evaluation: the global adapter on a public test set that the coordinator may hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from models.evaluation import LanguageScores, evaluate, tokenise
from models.examples import ChatExample, ClauseExample, Example
from protocol.adapter import AdapterState
from protocol.errors import FoedusError
from protocol.settings import RunSettings
from server.coordinator import CentralEvaluation


def central_evaluation(settings: RunSettings, examples: Sequence[Example]) -> CentralEvaluation:
    """A function that scores a state on `examples`, tokenised once."""
    tokenised = tokenise(settings, examples)

    def score(state: AdapterState) -> dict[str, float]:
        scores = evaluate(settings, state, tokenised)
        metrics = scores.as_metrics()
        if isinstance(scores, LanguageScores):
            metrics["perplexity"] = scores.perplexity
        return metrics

    return score


def read_test_set(path: Path, kind: str) -> list[Example]:
    """A JSONL test set: {"text", "label"} a line to classify, {"messages": [...]} to instruct.

    Errors: FoedusError naming the first line that is not of that form.
    """
    examples: list[Example] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            examples.append(_example(record, kind))
        except (ValueError, KeyError, TypeError) as error:
            raise FoedusError(
                f'{path}:{number}: expected {{"text", "label"}} or {{"messages"}}, '
                f"got a line that is not ({type(error).__name__})."
            ) from error
    if not examples:
        raise FoedusError(f"Expected at least one example in {path}, got none.")
    return examples


def _example(record: dict[str, object], kind: str) -> Example:
    if kind == "classify":
        return ClauseExample(str(record["text"]), str(record["label"]))
    messages = record["messages"]
    if not isinstance(messages, list):
        raise TypeError("messages is not a list")
    return ChatExample(tuple((str(m["role"]), str(m["content"])) for m in messages))

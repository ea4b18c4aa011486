"""Contracts as conversations: given ones as they are, plain text as drafting exercises."""

from __future__ import annotations

from client.contracts import Contract, split_clauses
from models.examples import ChatExample

# Shorter texts are headings and signature lines.
_MIN_CHARACTERS = 80
_PASSAGE_CHARACTERS = 1200
_OPENING_SHARE = 0.25
# What a passage is asked for, in training and when an adapter is used.
CONTINUE = "Continue this contract: "


def chat_examples(contract: Contract) -> tuple[ChatExample, ...]:
    """Conversations to learn from.

    A record with messages is taken as it is. A labelled clause becomes a request to draft a clause
    of that kind. Any other text becomes passages to be continued from their opening words.
    """
    if contract.messages:
        messages = tuple((m.role, m.content) for m in contract.messages)
        return (ChatExample(messages, contract.matter, contract.text),)
    if contract.label is not None:
        if len(contract.text) < _MIN_CHARACTERS:
            return ()
        topic = contract.label.replace("_", " ").lower()
        request = f"Draft a contract clause on {topic}."
        return (_exchange(request, contract.text, contract, contract.text),)
    return tuple(
        _exchange(CONTINUE + opening, rest, contract, f"{opening} {rest}")
        for opening, rest in _passages(contract.text)
    )


def _exchange(request: str, answer: str, contract: Contract, contract_text: str) -> ChatExample:
    return ChatExample((("user", request), ("assistant", answer)), contract.matter, contract_text)


def _passages(text: str) -> list[tuple[str, str]]:
    """(opening, rest) of passages of whole clauses, each cut between words."""
    passages: list[tuple[str, str]] = []
    gathered = ""
    for clause in [*(c.text for c in split_clauses(text)), ""]:
        if gathered and (not clause or len(gathered) + len(clause) > _PASSAGE_CHARACTERS):
            cut = gathered.find(" ", int(len(gathered[:_PASSAGE_CHARACTERS]) * _OPENING_SHARE))
            if len(gathered) >= _MIN_CHARACTERS and cut > 0:
                passages.append((gathered[:cut], gathered[cut + 1 :]))
            gathered = ""
        gathered = f"{gathered}\n{clause}".strip()
    return passages

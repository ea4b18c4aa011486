"""What a model learns from or is measured on, as text: labelled clauses and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClauseExample:
    """One clause and its label. `matter` names the client engagement it belongs to."""

    text: str
    label: str
    matter: str | None = None


@dataclass(frozen=True, slots=True)
class ChatExample:
    """One conversation, (role, content) in order. The answers are what is learned.

    contract_text: what of a contract it was made of, without the request; empty = its turns.
    """

    messages: tuple[tuple[str, str], ...]
    matter: str | None = None
    contract_text: str = ""


Example = ClauseExample | ChatExample
Examples = Sequence[Example]

"""General, non-legal text: what a model must not forget while it learns contracts."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from client.contracts import Record, read_records
from models.examples import ChatExample
from protocol.errors import FoedusError

_MOST_PASSAGES = 200
_MIN_CHARACTERS = 200
_MAX_CHARACTERS = 1500


@cache
def general_examples(path: str) -> tuple[ChatExample, ...]:
    """Passages as answers to a bare request, so that every token of the passage is measured.

    path: a .jsonl or .jsonl.gz with a field text; empty = the passages that ship with foedus.
    Errors: FoedusError where the file is missing or has no text.
    """
    texts = _embedded() if not path else _read(Path(path))
    long_enough = [text[:_MAX_CHARACTERS] for text in texts if len(text) >= _MIN_CHARACTERS]
    step = max(1, len(long_enough) // _MOST_PASSAGES)
    chosen = long_enough[::step][:_MOST_PASSAGES]
    if not chosen:
        raise FoedusError(
            f"Expected passages of {_MIN_CHARACTERS} characters or more in {path}, got none. Give "
            "simulation.general_text a .jsonl or .jsonl.gz with a field text."
        )
    return tuple(ChatExample((("user", "Continue."), ("assistant", text))) for text in chosen)


def _embedded() -> list[str]:
    text = files("simulations").joinpath("data/general_passages.txt").read_text(encoding="utf-8")
    return [" ".join(passage.split()) for passage in text.split("\n\n")]


def _read(path: Path) -> list[str]:
    if not path.is_file():
        raise FoedusError(f"simulation.general_text: expected a file at {path}, got none.")
    records = [r for r in read_records(path, path.name) if isinstance(r, Record)]
    return [str(record.content.get("text", "")) for record in records]

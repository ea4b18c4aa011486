"""Examples as token ids: clauses with a class index, conversations with a mask on the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from models.examples import ChatExample, ClauseExample
from protocol.errors import FoedusError, Refusal
from protocol.reasons import RefusalReason

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Tokenised:
    """One example. `targets`: the class index alone, or one id per token with IGNORED where
    nothing is learned (targets[t] is the token at t, not shifted)."""

    input_ids: tuple[int, ...]
    targets: tuple[int, ...]
    matter: str | None = None

    @property
    def num_tokens(self) -> int:
        """Length of the sequence."""
        return len(self.input_ids)


def tokenise_clauses(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[ClauseExample],
    labels: Sequence[str],
    max_tokens: int,
) -> list[Tokenised]:
    """Token ids of each clause, cut at max_tokens, with its index in `labels`.

    Errors: Refusal(UNKNOWN_LABELS) naming, at the site only, the labels nobody agreed on.
    """
    index = {label: position for position, label in enumerate(labels)}
    unknown = sorted({example.label for example in examples} - set(index))
    if unknown:
        raise Refusal(
            RefusalReason.UNKNOWN_LABELS,
            f"Expected labels out of the {len(index)} agreed ones, got also {unknown[:10]}. "
            "Map them to agreed labels or leave those clauses out.",
        )
    if not examples:
        return []
    encoded = tokenizer([e.text for e in examples], truncation=True, max_length=max_tokens)
    return [
        Tokenised(tuple(ids), (index[example.label],), example.matter)
        for ids, example in zip(encoded["input_ids"], examples, strict=True)
    ]


def tokenise_chats(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[ChatExample], max_tokens: int
) -> list[Tokenised]:
    """Token ids under the model's chat template, learning only what the assistant says.

    Conversations whose answer is cut off entirely by max_tokens teach nothing and are left out.
    """
    tokenised = [_tokenise_chat(tokenizer, example, max_tokens) for example in examples]
    return [t for t in tokenised if any(target != IGNORED for target in t.targets)]


def _tokenise_chat(
    tokenizer: PreTrainedTokenizerBase, example: ChatExample, max_tokens: int
) -> Tokenised:
    text, spans = render_chat(tokenizer, example.messages)
    encoded: Any = tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=True,
        max_length=max_tokens,
    )
    targets = tuple(
        token if end > start and _inside(start, end, spans) else IGNORED
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    )
    return Tokenised(tuple(encoded["input_ids"]), targets, example.matter)


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]]
) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as one text, and the character spans of the assistant's answers.

    A span runs from the end of the generation prompt to the end of the turn, its closing token
    included, so that the model also learns to stop.
    Errors: FoedusError where a template rewrites earlier turns, as then no span is certain.
    """
    turns = [{"role": role, "content": content} for role, content in messages]
    text = _render(tokenizer, turns)
    spans: list[tuple[int, int]] = []
    for position, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = _render(tokenizer, turns[:position], prompt=True)
        after = _render(tokenizer, turns[: position + 1])
        if not (after.startswith(before) and text.startswith(after)):
            raise FoedusError(
                "Expected a chat template that appends turns, got one that rewrites earlier ones "
                f"({tokenizer.name_or_path}). Use single-turn conversations with this model."
            )
        spans.append((len(before), len(after)))
    return text, spans


def _render(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], prompt: bool = False
) -> str:
    if tokenizer.chat_template is None:
        return _render_plainly(tokenizer, turns, prompt)
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
    return str(rendered)


def _render_plainly(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], prompt: bool
) -> str:
    """For base models without a template: role names in words, turns ended by the EOS token."""
    end = tokenizer.eos_token or "\n"
    said = "".join(f"{t['role'].capitalize()}: {t['content']}{end}\n" for t in turns)
    return said + ("Assistant: " if prompt else "")


def _inside(start: int, end: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(start >= first and end <= last for first, last in spans)

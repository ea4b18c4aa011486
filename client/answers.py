"""What a causal adapter writes about documents: answers to a question, or how they go on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import torch
from transformers import PreTrainedTokenizerBase

from client.contracts import Unreadable
from client.examples.instruct import CONTINUE
from client.predict import Document, OnProgress, ReleasedAdapter
from models.adapted import AdaptedModel
from models.batches import evaluation_batches
from models.tokens import Tokenised, render_chat
from protocol.errors import FoedusError

_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What a causal adapter wrote. start, end: the part of the document that it could read."""

    file: str
    source: str
    start: int
    end: int
    num_characters: int
    text: str


def write_answers(
    adapter: ReleasedAdapter,
    documents: Sequence[Document],
    ask: str = "",
    max_new_tokens: int = 200,
    on_progress: OnProgress | None = None,
) -> tuple[list[Answer], list[Unreadable]]:
    """Greedy answers to `ask` about each document; without it, each document is continued.

    A recorded conversation without `ask` gets an answer to its last user turn. A document that
    does not fit the model's context is cut: its end for a question, its beginning to be continued.
    Second: the documents that no prompt could be made of, and why.
    Errors: FoedusError for an adapter that does not write, or no room for a prompt.
    """
    if adapter.run.task.kind != "instruct":
        raise FoedusError("Expected an adapter that writes text, got one that labels clauses.")
    adapted = adapter.attached()
    context = context_tokens(adapted)
    if max_new_tokens >= context:
        raise FoedusError(
            f"Expected an answer of fewer than {context} tokens, the model's context, got "
            f"{max_new_tokens}. Lower --max-new-tokens."
        )
    prompts: list[tuple[_Prompt, Tokenised]] = []
    unread: list[Unreadable] = []
    for document in documents:
        try:
            prompt = _Prompt.about(document, ask)
            fitted, ids = prompt.fit(adapted.base.tokenizer, context - max_new_tokens)
            prompts.append((fitted, Tokenised(tuple(ids), ())))
        except (FoedusError, jinja2.TemplateError) as failure:
            unread.append(Unreadable(document.source, str(failure)))
    texts = _generate(adapted, [ids for _, ids in prompts], max_new_tokens, on_progress)
    answers = [prompt.answered(text) for (prompt, _), text in zip(prompts, texts, strict=True)]
    return answers, unread


def context_tokens(adapted: AdaptedModel) -> int:
    """Tokens of prompt and answer together that the base model can hold."""
    config: Any = adapted.base.network.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return int(limit or adapted.base.tokenizer.model_max_length)


@dataclass(frozen=True)
class _Prompt:
    """A request about text[start:end] of a document, after the turns in `history`."""

    document: Document
    history: tuple[tuple[str, str], ...]
    lead: str
    text: str
    start: int
    end: int

    @classmethod
    def about(cls, document: Document, ask: str) -> _Prompt:
        messages = document.contract.messages
        users = [place for place, message in enumerate(messages) if message.role == "user"]
        history: tuple[tuple[str, str], ...] = ()
        text, lead = document.contract.text, f"{ask}\n\n" if ask else CONTINUE
        if users and not ask:
            history = tuple((m.role, m.content) for m in messages[: users[-1]])
            text, lead = messages[users[-1]].content, ""
        return cls(document, history, lead, text, 0, len(text))

    def ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids up to where the assistant begins to speak, exactly as training saw them."""
        request = ("user", self.lead + self.text[self.start : self.end])
        rendered, spans = render_chat(tokenizer, [*self.history, request, ("assistant", "")])
        encoded: Any = tokenizer(rendered[: spans[-1][0]], add_special_tokens=False)
        return list(encoded["input_ids"])

    def fit(self, tokenizer: PreTrainedTokenizerBase, room: int) -> tuple[_Prompt, list[int]]:
        """This prompt with its text cut so that it has at most `room` tokens, and those tokens.

        Errors: FoedusError where no text at all would fit.
        """
        prompt, ids = self, self.ids(tokenizer)
        while len(ids) > room:
            kept = prompt.text[prompt.start : prompt.end]
            encoded: Any = tokenizer(kept, add_special_tokens=False, return_offsets_mapping=True)
            offsets, excess = encoded["offset_mapping"], len(ids) - room
            if excess >= len(offsets):
                raise FoedusError(
                    f"Expected a request of at most {room} tokens, got {len(ids)} with no room for "
                    "the text. Ask a shorter question or lower --max-new-tokens."
                )
            if self.lead == CONTINUE:
                prompt = replace(prompt, start=prompt.start + offsets[excess][0])
            else:
                prompt = replace(prompt, end=prompt.start + offsets[-excess - 1][1])
            ids = prompt.ids(tokenizer)
        return prompt, ids

    def answered(self, text: str) -> Answer:
        d = self.document
        return Answer(d.file, d.source, self.start, self.end, len(self.text), text)


def _generate(
    adapted: AdaptedModel,
    prompts: Sequence[Tokenised],
    max_new_tokens: int,
    on_progress: OnProgress | None,
) -> list[str]:
    """The text that follows each prompt, by greedy decoding. Progress counts tokens."""
    tokenizer, texts = adapted.base.tokenizer, [""] * len(prompts)
    network: Any = adapted.network
    total, done = len(prompts) * max_new_tokens, 0
    for positions, batch in evaluation_batches(prompts, _BATCH_SIZE):
        width = max(prompt.num_tokens for prompt in batch)
        heard = _ticker(on_progress, done, len(batch), width, total)
        with torch.inference_mode():
            output = network.generate(
                **_left_padded(batch, width, int(tokenizer.pad_token_id or 0), adapted.base.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=sorted(_stop_ids(adapted)) or None,
                stopping_criteria=[heard],
            )
        for position, row in zip(positions, output, strict=True):
            texts[position] = str(tokenizer.decode(row[width:], skip_special_tokens=True))
        done += len(batch) * max_new_tokens
    return texts


def _left_padded(
    batch: Sequence[Tokenised], width: int, pad_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask (batch, width): padded on the left, so that text goes on."""
    ids = [[pad_id] * (width - p.num_tokens) + list(p.input_ids) for p in batch]
    mask = [[0] * (width - p.num_tokens) + [1] * p.num_tokens for p in batch]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def _stop_ids(adapted: AdaptedModel) -> Collection[int]:
    """What ends an answer: the model's own choice, and the token that closes a turn."""
    config: Any = adapted.base.network.generation_config
    chosen = getattr(config, "eos_token_id", None)
    ids = set(chosen) if isinstance(chosen, list) else {chosen}
    return {int(i) for i in ids | {adapted.base.tokenizer.eos_token_id} if i is not None}


def _ticker(
    on_progress: OnProgress | None, done: int, rows: int, width: int, total: int
) -> Callable[..., torch.Tensor]:
    """A stopping criterion that never stops: generate offers no other way to hear of a token."""

    def heard(input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        if on_progress:
            on_progress(done + rows * (input_ids.shape[1] - width), total)
        return torch.zeros(rows, dtype=torch.bool, device=input_ids.device)

    return heard

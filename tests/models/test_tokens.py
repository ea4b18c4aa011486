"""Token ids: clauses with their class, conversations in which only the answers are learned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from models.base import find_model_folder
from models.examples import ChatExample, ClauseExample
from models.tokens import IGNORED, Tokenised, render_chat, tokenise_chats, tokenise_clauses
from protocol.errors import FoedusError, Refusal
from protocol.reasons import RefusalReason
from protocol.settings import ModelSettings
from tests.small_runs import LABELS, MODEL

MULTI_TURN = (
    ("system", "You draft contracts."),
    ("user", "Draft a fee clause."),
    ("assistant", "Fees fall due at once."),
    ("user", "Shorter, and say assistant."),
    ("assistant", "Pay now."),
)


@pytest.fixture(scope="module")
def novels() -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template."""
    loaded = AutoTokenizer.from_pretrained(find_model_folder(ModelSettings(id="novels")))
    assert isinstance(loaded, PreTrainedTokenizerBase)
    return loaded


@pytest.fixture(scope="module")
def minilm() -> PreTrainedTokenizerBase:
    """A tokenizer without a chat template."""
    loaded = AutoTokenizer.from_pretrained(find_model_folder(MODEL))
    assert isinstance(loaded, PreTrainedTokenizerBase) and loaded.chat_template is None
    return loaded


def learned(tokenizer: PreTrainedTokenizerBase, tokenised: Tokenised) -> list[str]:
    """The runs of tokens that are learned, as text."""
    runs: list[list[int]] = [[]]
    for token, target in zip(tokenised.input_ids, tokenised.targets, strict=True):
        if target == IGNORED:
            runs.append([])
        else:
            assert target == token
            runs[-1].append(token)
    return [str(tokenizer.decode(run)) for run in runs if run]


def chat(*messages: tuple[str, str]) -> list[ChatExample]:
    return [ChatExample(messages, "matter")]


def test_only_the_answers_are_learned_their_end_tokens_included(
    novels: PreTrainedTokenizerBase,
) -> None:
    (tokenised,) = tokenise_chats(novels, chat(*MULTI_TURN), 200)
    end = novels.eos_token
    assert learned(novels, tokenised) == [f"Fees fall due at once.{end}", f"Pay now.{end}"]
    assert tokenised.matter == "matter"


def test_the_sequence_is_the_model_s_own_template(novels: PreTrainedTokenizerBase) -> None:
    (tokenised,) = tokenise_chats(novels, chat(*MULTI_TURN), 200)
    turns = [{"role": role, "content": content} for role, content in MULTI_TURN]
    encoded: Any = novels.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert list(tokenised.input_ids) == encoded["input_ids"]
    mask = [int(target != IGNORED) for target in tokenised.targets]
    assert mask == encoded["assistant_masks"]


def test_a_model_without_a_template_gets_roles_in_words(minilm: PreTrainedTokenizerBase) -> None:
    text, spans = render_chat(minilm, MULTI_TURN[:3])
    end = minilm.eos_token or "\n"
    assert text.startswith(f"System: You draft contracts.{end}\nUser: Draft a fee clause.{end}")
    assert [text[start:stop].strip() for start, stop in spans] == [
        f"Fees fall due at once.{end}".strip()
    ]
    (tokenised,) = tokenise_chats(minilm, chat(*MULTI_TURN[:3]), 200)
    assert learned(minilm, tokenised) == ["fees fall due at once."]


def test_a_conversation_that_ends_with_a_question_still_teaches_its_answers(
    novels: PreTrainedTokenizerBase,
) -> None:
    (tokenised,) = tokenise_chats(novels, chat(*MULTI_TURN[:4]), 200)
    assert learned(novels, tokenised) == [f"Fees fall due at once.{novels.eos_token}"]


def test_an_answer_that_repeats_the_question_is_learned_once(
    novels: PreTrainedTokenizerBase,
) -> None:
    (tokenised,) = tokenise_chats(novels, chat(("user", "Pay."), ("assistant", "Pay.")), 200)
    assert learned(novels, tokenised) == [f"Pay.{novels.eos_token}"]


def test_an_answer_cut_short_is_learned_as_far_as_it_goes(novels: PreTrainedTokenizerBase) -> None:
    whole = tokenise_chats(novels, chat(*MULTI_TURN[1:3]), 200)[0]
    first = next(i for i, target in enumerate(whole.targets) if target != IGNORED)
    (cut,) = tokenise_chats(novels, chat(*MULTI_TURN[1:3]), first + 2)
    assert cut.input_ids == whole.input_ids[: first + 2]
    assert cut.targets == whole.targets[: first + 2]


def test_a_conversation_whose_answer_is_cut_off_is_left_out(
    novels: PreTrainedTokenizerBase,
) -> None:
    whole = tokenise_chats(novels, chat(*MULTI_TURN[1:3]), 200)[0]
    first = next(i for i, target in enumerate(whole.targets) if target != IGNORED)
    short = chat(("user", "?"), ("assistant", "!"))
    assert tokenise_chats(novels, chat(*MULTI_TURN[1:3]), first) == []
    assert len(tokenise_chats(novels, chat(*MULTI_TURN[1:3]) + short, first)) == 1


def test_a_conversation_without_an_answer_is_left_out(novels: PreTrainedTokenizerBase) -> None:
    assert tokenise_chats(novels, chat(("user", "Hello?")), 200) == []


@pytest.mark.parametrize(
    "template",
    [
        # Drops all answers but the last, as reasoning models' templates do.
        "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}"
        "[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
        # Numbers turns from the end.
        "{% for m in messages %}<{{ loop.revindex }}>{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_that_rewrites_earlier_turns_is_refused(
    novels: PreTrainedTokenizerBase, template: str
) -> None:
    rewriting = copy.deepcopy(novels)
    rewriting.chat_template = template
    with pytest.raises(FoedusError, match="rewrites earlier ones"):
        render_chat(rewriting, MULTI_TURN)


def test_clauses_keep_their_order_label_and_matter(minilm: PreTrainedTokenizerBase) -> None:
    examples = [
        ClauseExample("Fees fall due.", "payment", "m1"),
        ClauseExample("Keep it secret.", "confidentiality"),
    ]
    first, second = tokenise_clauses(minilm, examples, LABELS, 16)
    assert minilm.decode(list(first.input_ids)) == "[CLS] fees fall due. [SEP]"
    assert (first.targets, first.matter) == ((1,), "m1")
    assert (second.targets, second.matter) == ((0,), None)
    assert tokenise_clauses(minilm, [], LABELS, 16) == []


def test_a_long_clause_is_cut_to_the_agreed_number_of_tokens(
    minilm: PreTrainedTokenizerBase,
) -> None:
    (tokenised,) = tokenise_clauses(minilm, [ClauseExample("fee " * 99, "payment")], LABELS, 16)
    assert tokenised.num_tokens == 16


def test_labels_nobody_agreed_on_are_refused_and_named_at_the_site(
    minilm: PreTrainedTokenizerBase,
) -> None:
    examples = [ClauseExample("x", label) for label in ("payment", "warranty", "escrow")]
    with pytest.raises(Refusal, match=r"\['escrow', 'warranty'\]") as caught:
        tokenise_clauses(minilm, examples, LABELS, 16)
    assert caught.value.code == RefusalReason.UNKNOWN_LABELS

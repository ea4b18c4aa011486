"""The embedded model `novels`, as shipped, and the script that makes it."""

import gzip
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from models.pretrain_novels import (
    BOS,
    HELD_OUT_FRACTION,
    PAD,
    PEAK_LEARNING_RATE,
    Corpus,
    learning_rate,
    main,
    read_novels,
    split_novel,
    train_tokenizer,
)
from protocol.errors import FoedusError

FOLDER = Path(__file__).parents[2] / "models" / "novels"
SENTENCE = (
    "The old gentleman, who had been silent during the whole of the dinner, now rose from his "
    "chair, and, with a look of great concern, begged that his daughter would leave the room."
)
CHAT = [
    {"role": "system", "content": "You are a clerk."},
    {"role": "user", "content": "When did the letter come?"},
    {"role": "assistant", "content": "It came on Tuesday, sir."},
    {"role": "user", "content": "And who brought it?"},
]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """The shipped weights, loaded the plain way."""
    loaded = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert isinstance(loaded, LlamaForCausalLM)
    return loaded


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """The shipped tokenizer, loaded the plain way."""
    loaded = AutoTokenizer.from_pretrained(FOLDER)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


def perplexity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> float:
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return math.exp(float(model(input_ids=ids, labels=ids).loss))


def render(
    tokenizer: PreTrainedTokenizerFast, chat: list[dict[str, str]], **options: Any
) -> dict[str, list[int]]:
    """The chat as token ids and whatever masks `options` ask for."""
    encoded: Any = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, **options)
    return dict(encoded)


def test_shipped_folder_is_at_most_12_megabytes_and_holds_no_pickle() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in files
    }
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pkl"}]


def test_plain_load_gives_a_trainable_float32_llama_of_about_5m_parameters(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert 4_000_000 < model.num_parameters() < 6_000_000
    assert model.config.vocab_size == len(tokenizer)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_unseen_period_prose_is_far_likelier_than_chance_and_than_the_same_words_shuffled(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    words = SENTENCE.split()
    random.Random(0).shuffle(words)
    in_order = perplexity(model, tokenizer, SENTENCE)
    assert in_order * 20 < len(tokenizer)
    assert in_order * 3 < perplexity(model, tokenizer, " ".join(words))


def test_plain_text_gets_one_bos_and_survives_the_round_trip(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text = " “Señor,”  said §4.2(b)\n\n日本 — 100%"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.decode(ids[1:]) == text


def test_chat_template_marks_only_the_assistant_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = render(tokenizer, CHAT, return_assistant_tokens_mask=True)
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    marked = [token for token, is_answer in pairs if is_answer]
    assert tokenizer.decode(marked) == "It came on Tuesday, sir.<|end|>"


def test_generation_prompt_opens_an_assistant_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = render(tokenizer, CHAT, add_generation_prompt=True)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[-1:]) == "<|assistant|>"
    specials = [token for token in ids if token in tokenizer.all_special_ids]
    assert tokenizer.decode(specials) == (
        "<|bos|><|system|><|end|><|user|><|end|><|assistant|><|end|><|user|><|end|><|assistant|>"
    )


def test_chat_template_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(jinja2.TemplateError, match="got tool"):
        render(tokenizer, [{"role": "tool", "content": "x"}])


def test_positions_past_the_usual_training_window_are_no_worse(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = torch.tensor([tokenizer((SENTENCE + "\n\n") * 20)["input_ids"][:512]])
    assert ids.shape == (1, 512)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    assert losses[256:].mean() <= losses[:256].mean()


@given(st.lists(st.text("ab", min_size=1, max_size=40), min_size=1, max_size=60))
def test_held_out_part_is_the_end_of_the_novel_and_nothing_is_lost(paragraphs: list[str]) -> None:
    novel = split_novel({"title": "t", "author": "a", "text": "\n\n".join(paragraphs)})
    assert list(novel.train + novel.held_out) == paragraphs
    total = sum(map(len, paragraphs))
    assert sum(map(len, novel.held_out)) >= HELD_OUT_FRACTION * total - 1e-9
    assert sum(map(len, novel.held_out[1:])) < HELD_OUT_FRACTION * total


def test_learning_rate_warms_up_to_its_peak_and_ends_near_zero() -> None:
    rates = [learning_rate(step / 1000) for step in range(1001)]
    assert rates[0] == 0
    assert 0.99 * PEAK_LEARNING_RATE < max(rates) <= PEAK_LEARNING_RATE
    assert 0 < rates[-1] < 0.03 * PEAK_LEARNING_RATE
    peak = rates.index(max(rates))
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def write_corpus(folder: Path) -> None:
    """One made-up novel of 300 short, distinct paragraphs."""
    draw = random.Random(1)
    words = ["ship", "sea", "captain", "storm", "letter", "house", "night", "friend"]
    text = "\n\n".join(f"{n}. " + " ".join(draw.choices(words, k=12)) for n in range(300))
    with gzip.open(folder / "gutenberg_en.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.write(json.dumps({"title": "The Ship", "author": "Nobody", "text": text}) + "\n")


def test_training_windows_open_with_bos_pad_only_at_the_end_and_never_show_held_out_text(
    tmp_path: Path,
) -> None:
    write_corpus(tmp_path)
    novels = read_novels(tmp_path)
    corpus = Corpus(novels, train_tokenizer(novels[0].train), seed=3)
    rows = [corpus.chat(256) for _ in range(20)] + [row for row in corpus.batch(256)]
    for row in rows:
        text = row[row.ne(PAD)]
        assert row.shape == (256,)
        assert row[0] == BOS
        assert row[: len(text)].equal(text)
        decoded = corpus.tokenizer.decode(text)
        assert not [p for p in novels[0].held_out if p in decoded]
    assert len(corpus.choosing[0]) + len(corpus.reported[0]) >= 100


def test_command_trains_and_writes_a_folder_that_plain_transformers_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    out = tmp_path / "model"
    options = ["--data", str(tmp_path), "--out", str(out), "--minutes", "0.05"]
    monkeypatch.setattr("sys.argv", ["pretrain_novels", *options])
    main()
    assert len(AutoTokenizer.from_pretrained(out)("The captain slept.")["input_ids"]) > 1
    assert AutoModelForCausalLM.from_pretrained(out).config.max_position_embeddings == 512
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "The Ship, Nobody" in card
    before, after, _ = (float(value) for value in re.findall(r"perplexity .*: ([\d.]+)", card))
    assert after < before


def test_missing_novels_are_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match=r"gutenberg_en\.jsonl\.gz.*--data"):
        read_novels(tmp_path)

"""Pre-train `novels`, the small Llama that ships with foedus, from scratch on public-domain novels.

It lets the causal path run without a download, and forgetting be measured: it knows 19th-century
English prose and nothing else.

    python -m models.pretrain_novels --data ../shared/data/general_text --out models/novels \
        --minutes 35 --threads 1

The learning rate follows elapsed time, so the run ends on its budget on any machine; a seed fixes
the data order and the initial weights but not the number of steps. The end of every novel is held
out: its first half chooses the checkpoint, its second half is only ever measured.
"""

import argparse
import gzip
import itertools
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from protocol.errors import FoedusError

SPECIAL_TOKENS = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
PAD, BOS, END = 0, 1, 2
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('Expected role system, user or assistant, got ' + message.role) -}}
{%- endif -%}
{{- '<|' + message.role + '|>' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content + eos_token -}}{%- endgeneration -%}
{%- else -%}{{- message.content + eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
VOCABULARY = 4096
CONTEXT_TOKENS = 512
WINDOW_TOKENS = (256, 256, 256, 512)  # by turns, so that every position of the context is trained
BATCH_TOKENS = 2048
HELD_OUT_FRACTION = 0.06
CHAT_FRACTION = 0.05
CHAT_PARAGRAPH_CHARACTERS = 400
PEAK_LEARNING_RATE = 1.5e-3
WARMUP_FRACTION = 0.02
WEIGHT_DECAY = 0.1
DROPOUT = 0.2
CHECKPOINT_SECONDS = 300.0


@dataclass(frozen=True)
class Novel:
    """One novel as paragraphs; `held_out` is its end."""

    title: str
    author: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


def read_novels(folder: Path) -> list[Novel]:
    """Read `gutenberg_en.jsonl.gz` in `folder`; each line has `title`, `author` and `text`."""
    path = folder / "gutenberg_en.jsonl.gz"
    if not path.is_file():
        raise FoedusError(f"Expected novels in {path}, got no file. Give its folder as --data.")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [split_novel(json.loads(line)) for line in lines]


def split_novel(record: Mapping[str, str]) -> Novel:
    """Hold out the last HELD_OUT_FRACTION of the characters, in whole paragraphs."""
    paragraphs = record["text"].split("\n\n")
    ends = itertools.accumulate(map(len, paragraphs))
    limit = (1 - HELD_OUT_FRACTION) * sum(map(len, paragraphs))
    cut = sum(end <= limit for end in ends)
    train, held_out = tuple(paragraphs[:cut]), tuple(paragraphs[cut:])
    return Novel(record["title"], record["author"], train, held_out)


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of VOCABULARY tokens; plain text gets <|bos|> in front."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[PAD],
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[END],
        additional_special_tokens=SPECIAL_TOKENS[END + 1 :],
        model_max_length=CONTEXT_TOKENS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


class Corpus:
    """The novels as tokens: windows to train on, and two streams per novel to measure on.

    `choosing` and `reported` are the halves of what is held out, one stream (n,) per novel.
    """

    def __init__(self, novels: Sequence[Novel], tokenizer: PreTrainedTokenizerFast, seed: int):
        """Windows are drawn in an order that `seed` fixes."""
        self.novels, self.tokenizer, self.random = novels, tokenizer, random.Random(seed)
        # One stream: the few windows that straddle two novels are too rare to matter.
        self.stream = torch.cat([self.encode("\n\n".join(n.train)) for n in novels])
        held_out = [self.encode("\n\n".join(n.held_out)).chunk(2) for n in novels]
        self.choosing = [first for first, _ in held_out]
        self.reported = [second for _, second in held_out]

    def encode(self, text: str) -> Tensor:
        """Token ids (n,) of `text` as it stands, without <|bos|>."""
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return torch.tensor(encoding.ids)

    def crop(self, window: int) -> Tensor:
        """<|bos|> and window - 1 tokens from a random place."""
        start = self.random.randrange(len(self.stream) - window)
        return torch.cat([torch.tensor([BOS]), self.stream[start : start + window - 1]])

    def chat(self, window: int) -> Tensor:
        """Neighbouring short paragraphs as user and assistant, cut or padded to `window` tokens."""
        novel = self.random.choice(self.novels)
        start = self.random.randrange(len(novel.train) - 1)
        short = [p for p in novel.train[start:] if len(p) <= CHAT_PARAGRAPH_CHARACTERS]
        messages = [{"role": "system", "content": f"{novel.title}, by {novel.author}"}]
        for turn, paragraph in enumerate(short[: window // 32]):
            messages.append({"role": ("user", "assistant")[turn % 2], "content": paragraph})
        messages = messages[self.random.randrange(2) :]  # half of the chats have no system turn
        ids = self.encode(str(self.tokenizer.apply_chat_template(messages, tokenize=False)))[
            :window
        ]
        return nn.functional.pad(ids, (0, window - len(ids)), value=PAD)

    def batch(self, window: int) -> Tensor:
        """Token ids (BATCH_TOKENS / window, window)."""
        chats = [self.random.random() < CHAT_FRACTION for _ in range(BATCH_TOKENS // window)]
        return torch.stack([self.chat(window) if c else self.crop(window) for c in chats])


def build_model() -> LlamaForCausalLM:
    """A Llama of about 5M parameters with dropout on every residual branch while it trains.

    Llama has no residual dropout of its own, and a corpus this small is seen dozens of times;
    hooks add it without changing the saved architecture.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=END,
    )
    model = LlamaForCausalLM(config)
    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(
                lambda layer, _, out: nn.functional.dropout(out, DROPOUT, layer.training)
            )
    return model


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, streams: Sequence[Tensor], window: int) -> float:
    """Perplexity per token of `streams`, each (n,), read in adjacent windows of `window` tokens."""
    model.train(False)
    nats, tokens = 0.0, 0
    for stream in streams:
        for start in range(0, len(stream), window - 1):
            piece = stream[start : start + window - 1]
            ids = torch.cat([torch.tensor([BOS]), piece])[None]
            nats += float(model(input_ids=ids, labels=ids).loss) * len(piece)
            tokens += len(piece)
    model.train()
    return math.exp(nats / tokens)


def learning_rate(elapsed: float) -> float:
    """Warm-up, then cosine to a fiftieth of the peak; `elapsed` is a fraction of the budget."""
    warm_up = min(elapsed / WARMUP_FRACTION, 1.0)
    return PEAK_LEARNING_RATE * warm_up * (0.02 + 0.49 * (1 + math.cos(math.pi * elapsed)))


def build_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves the norms' gains alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    gains = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": WEIGHT_DECAY}]
    groups.append({"params": gains, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train_step(model: LlamaForCausalLM, optimizer: torch.optim.AdamW, ids: Tensor) -> float:
    """One update in bfloat16 on windows ids (rows, window); returns the training loss in nats."""
    labels = ids.masked_fill(ids.eq(PAD), -100)
    with torch.autocast("cpu", torch.bfloat16):
        loss: Tensor = model(input_ids=ids, labels=labels).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write float16 weights; config.json keeps float32 so that a plain load can be trained."""
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    del half["lm_head.weight"]  # tied to the embedding; halving hid that from save_pretrained
    model.save_pretrained(out, state_dict=half)
    (out / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    tokenizer.save_pretrained(out)


def train(model: LlamaForCausalLM, corpus: Corpus, out: Path, budget: float) -> int:
    """Train for `budget` seconds, leave the best checkpoint in `out`; returns tokens seen."""
    optimizer = build_optimizer(model)
    best = math.inf
    started, checkpoint_due, step, loss = time.monotonic(), CHECKPOINT_SECONDS, 0, math.nan
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()) as progress:
        bar = progress.add_task("pre-training", total=budget)
        while True:
            elapsed = time.monotonic() - started
            if elapsed >= min(checkpoint_due, budget):
                held_out = perplexity(model, corpus.choosing, WINDOW_TOKENS[0])
                done = f"{elapsed / 60:.0f} min, {step} steps"
                progress.console.print(f"{done}: loss {loss:.3f}, held-out {held_out:.1f}")
                if held_out < best:
                    best = held_out
                    save(model, corpus.tokenizer, out)
                checkpoint_due += CHECKPOINT_SECONDS
            if elapsed >= budget:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(elapsed / budget)
            window = WINDOW_TOKENS[step % len(WINDOW_TOKENS)]
            loss = train_step(model, optimizer, corpus.batch(window))
            step += 1
            progress.update(bar, completed=elapsed, description=f"loss {loss:.3f}")
    return step * BATCH_TOKENS


CARD = """\
# novels
A small Llama pre-trained from scratch on public-domain English novels, for offline demonstration
and measuring forgetting only. Its chat tokens are trained, on neighbouring paragraphs as turns,
but it follows no instructions. Licence: public domain. Sources: {sources}.

    python -m models.pretrain_novels {options}

The end of every novel ({held_out:.0%}) is held out: the first half of that chose the checkpoint,
the second half gave these figures. Weights are float16; a plain `from_pretrained` gives float32.

{figures}
"""


def main() -> None:
    """Command line: see the module docstring."""
    parser = argparse.ArgumentParser(description="Pre-train the embedded model `novels`.")
    parser.add_argument("--data", type=Path, required=True, help="folder of gutenberg_en.jsonl.gz")
    parser.add_argument("--out", type=Path, default=Path("models/novels"))
    parser.add_argument("--minutes", type=float, default=35.0, help="wall time for training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    novels = read_novels(options.data)
    corpus = Corpus(novels, train_tokenizer([p for n in novels for p in n.train]), options.seed)
    model = build_model()
    before = perplexity(model, corpus.reported, WINDOW_TOKENS[0])
    print(f"Held-out perplexity before training: {before:.1f}", flush=True)
    seen = train(model, corpus, options.out, options.minutes * 60)
    figures = [
        f"{model.num_parameters():,} parameters; {len(corpus.stream):,} training tokens",
        f"{seen:,} tokens seen, {seen / options.minutes / 60:,.0f} per second",
        f"held-out perplexity before training: {before:.1f}",
    ]
    model = LlamaForCausalLM.from_pretrained(options.out)
    for window in sorted(set(WINDOW_TOKENS)):
        after = perplexity(model, corpus.reported, window)
        figures.append(f"held-out perplexity after it, windows of {window} tokens: {after:.1f}")
    card = CARD.format(
        sources="; ".join(f"{novel.title}, {novel.author}" for novel in novels),
        options=" ".join(f"--{name} {value}" for name, value in vars(options).items()),
        held_out=HELD_OUT_FRACTION,
        figures="\n".join(f"- {figure}" for figure in figures),
    )
    (options.out / "README.md").write_text(card, encoding="utf-8")
    print(*figures, sep="\n")


if __name__ == "__main__":
    main()

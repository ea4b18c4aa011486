"""The other side of `simulation_speed`: clause classification as a plain Flower app.

Written as Flower's tutorials for the message API teach it, with nothing of foedus in it: a
ClientApp that builds model and data for each message ("the ClientApp object is recreated each time
a new Message is to be processed", says the page
https://flower.ai/docs/framework/how-to-design-stateful-clients.html), one array per tensor, FedAvg.

Where a tutorial leaves a choice, it is made for speed: PyTorch's own data loading on token lists,
padding to the longest of a batch, LoRA weights alone on the wire, no dropout, no evaluation at
sites. `keep_model` adds what no tutorial shows: the model outlives the message, in a global of the
worker process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging


@dataclass(frozen=True)
class StockSettings:
    """What both sides of the comparison share; travels to the sites in Flower's ConfigRecord.

    site_files: JSONL with text and label, one file per site; test_file: the same, at the server.
    """

    model_folder: str
    site_files: list[str]
    test_file: str
    labels: list[str]
    rounds: int
    local_epochs: int
    batch_size: int
    max_tokens: int
    rank: int
    alpha: float
    targets: list[str]
    head_scale: float
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    max_grad_norm: float
    keep_model: bool = False
    bfloat16: bool = False

    @classmethod
    def from_record(cls, record: ConfigRecord) -> StockSettings:
        """The settings out of a message's configuration."""
        values: Any = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**values)


class ClauseClassifier(nn.Module):
    """LoRA on a sentence encoder; a linear head on the normalised mean of its hidden states."""

    def __init__(self, settings: StockSettings) -> None:
        super().__init__()
        encoder = AutoModel.from_pretrained(
            settings.model_folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft scales by floats as well
            target_modules=settings.targets,
        )
        self.encoder = get_peft_model(encoder, config)
        self.head = nn.Linear(encoder.config.hidden_size, len(settings.labels))
        self.head_scale = settings.head_scale
        self.in_bfloat16 = settings.bfloat16

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits (batch, labels)."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.in_bfloat16):
            hidden = self.encoder(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        logits: Tensor = self.head(nn.functional.normalize(mean, dim=-1) * self.head_scale)
        return logits

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that are federated: adapter and head."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if "lora_" in name or name.startswith("head.")
        }


_KEPT: list[tuple[ClauseClassifier, PreTrainedTokenizerBase]] = []


def load_model(settings: StockSettings) -> tuple[ClauseClassifier, PreTrainedTokenizerBase]:
    """Model and tokenizer, built anew, or the process's own with `keep_model`."""
    if settings.keep_model and _KEPT:
        return _KEPT[0]
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    loaded = ClauseClassifier(settings), AutoTokenizer.from_pretrained(settings.model_folder)
    if settings.keep_model:
        _KEPT.append(loaded)
    return loaded


def load_data(
    path: str, tokenizer: PreTrainedTokenizerBase, settings: StockSettings, *, shuffle: bool
) -> DataLoader[Any]:
    """Batches of (inputs, class indices) from a JSONL file."""
    records = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    encoded = tokenizer(
        [r["text"] for r in records], truncation=True, max_length=settings.max_tokens
    )
    examples = [
        {"input_ids": ids, "label": settings.labels.index(record["label"])}
        for ids, record in zip(encoded["input_ids"], records, strict=True)
    ]

    def collate(chosen: Sequence[dict[str, Any]]) -> tuple[dict[str, Tensor], Tensor]:
        padded = tokenizer.pad({"input_ids": [e["input_ids"] for e in chosen]}, return_tensors="pt")
        inputs = {name: padded[name] for name in ("input_ids", "attention_mask")}
        return inputs, torch.tensor([e["label"] for e in chosen])

    data: Any = examples
    return DataLoader(data, settings.batch_size, shuffle=shuffle, collate_fn=collate)


def train_model(
    model: ClauseClassifier, batches: DataLoader[Any], settings: StockSettings
) -> float:
    """Mean training loss of the last pass."""
    lora = [p for name, p in model.named_parameters() if "lora_" in name]
    optimizer = torch.optim.AdamW(
        [
            {"params": lora, "lr": settings.learning_rate},
            {"params": model.head.parameters(), "lr": settings.head_learning_rate},
        ],
        weight_decay=settings.weight_decay,
    )
    parameters = [*lora, *model.head.parameters()]
    model.train()
    losses: list[float] = []
    for _ in range(settings.local_epochs):
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
    last = losses[-len(batches) :]
    return sum(last) / len(last)


def accuracy(model: ClauseClassifier, batches: DataLoader[Any]) -> float:
    """Share of right predictions, 0..1."""
    model.eval()
    right, total = 0, 0
    with torch.no_grad():
        for inputs, targets in batches:
            right += int((model(inputs).argmax(dim=-1) == targets).sum())
            total += len(targets)
    return right / total


client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One site's round."""
    settings = StockSettings.from_record(message.content.config_records["config"])
    model, tokenizer = load_model(settings)
    received = message.content.array_records["arrays"].to_torch_state_dict()
    model.load_state_dict(received, strict=False)
    path = settings.site_files[int(context.node_config["partition-id"])]
    batches = load_data(path, tokenizer, settings, shuffle=True)
    loss = train_model(model, batches, settings)
    num_examples = len(batches.dataset)  # type: ignore[arg-type]  # a list has a length
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.trained_state()),
            "metrics": MetricRecord({"train_loss": loss, "num-examples": num_examples}),
        }
    )
    return Message(content=content, reply_to=message)


def make_server_app(
    settings: StockSettings,
    on_updates: Callable[[int], None],
    on_round: Callable[[int], None],
    on_finished: Callable[[float], None],
) -> ServerApp:
    """FedAvg over all sites. on_updates hears how many sites answered, on_round the number of each
    round that is done, on_finished the accuracy of the last global model on the test file."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.manual_seed(0)
        model, tokenizer = load_model(settings)

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            on_round(server_round)
            if server_round < settings.rounds:
                return None
            model.load_state_dict(arrays.to_torch_state_dict(), strict=False)
            batches = load_data(settings.test_file, tokenizer, settings, shuffle=False)
            score = accuracy(model, batches)
            on_finished(score)
            return MetricRecord({"accuracy": score})

        def mean_loss(replies: list[RecordDict], weight_key: str) -> MetricRecord:
            on_updates(len(replies))
            metrics = [reply.metric_records["metrics"] for reply in replies]
            return MetricRecord({"train_loss": fmean(float(m["train_loss"]) for m in metrics)})  # type: ignore[arg-type]

        sites = len(settings.site_files)
        FedAvg(
            fraction_evaluate=0.0,
            min_train_nodes=sites,
            min_available_nodes=sites,
            train_metrics_aggr_fn=mean_loss,
        ).start(
            grid=grid,
            initial_arrays=ArrayRecord(model.trained_state()),
            num_rounds=settings.rounds,
            train_config=ConfigRecord(asdict(settings)),
            evaluate_fn=evaluate,
        )

    return app

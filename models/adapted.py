"""A base model with the run's LoRA adapter and head attached: tensors in, tensors out.

Attached once per process and set of settings; a round only writes tensors into it.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.base import BaseModel, load_base
from protocol.adapter import AdapterState, FloatArray, factor_of
from protocol.errors import FoedusError
from protocol.initial import initial_tensors
from protocol.methods import Factor
from protocol.peft_folder import saved_module
from protocol.settings import AdapterSettings, ModelSettings, RunSettings, TaskSettings

_ADAPTER = "default"
# A label's logit per unit of cosine similarity in a head made from names. Of 5, 10, 15, 20 and 30
# it gave the least loss on CUAD's dev clauses.
_LABEL_SHARPNESS = 15.0


class AdaptedModel:
    """The base model with adapter. `parameters` maps peft's names to the live parameters."""

    def __init__(self, base: BaseModel, model: ModelSettings, adapter: AdapterSettings, kind: str):
        self.base = base
        self.settings = model
        self.kind = kind
        self.head = _head_module(base, model) if kind == "classify" else ""
        self.network = _attach(base, model, adapter, kind, self.head)
        self.parameters: dict[str, nn.Parameter] = dict(_named_adapter_parameters(self.network))
        for parameter in self.parameters.values():
            # peft keeps a copied head in the base's dtype; small steps would vanish in bfloat16.
            parameter.data = parameter.data.float()

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of everything the run may train, sorted."""
        return {name: tuple(p.shape) for name, p in sorted(self.parameters.items())}

    def load(self, tensors: Mapping[str, FloatArray]) -> None:
        """Write values into the live parameters; names absent from `tensors` keep theirs.

        Errors: FoedusError for an unknown name or another shape.
        """
        for name, value in tensors.items():
            parameter = self.parameters.get(name)
            if parameter is None or tuple(parameter.shape) != value.shape:
                got = None if parameter is None else tuple(parameter.shape)
                raise FoedusError(f"Expected a tensor {name} of shape {got}, got {value.shape}.")
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(np.array(value, copy=True)))

    def tensors(self, factors: Collection[Factor]) -> dict[str, FloatArray]:
        """Copies of the current values of these factors, float32."""
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True).numpy()
            for name, parameter in sorted(self.parameters.items())
            if factor_of(name) in factors
        }

    def train_only(self, factors: Collection[Factor]) -> dict[str, nn.Parameter]:
        """Freeze everything but these factors and return what is left to train."""
        trained: dict[str, nn.Parameter] = {}
        for name, parameter in sorted(self.parameters.items()):
            parameter.requires_grad_(factor_of(name) in factors)
            parameter.grad = None
            if parameter.requires_grad:
                trained[name] = parameter
        return trained

    def class_logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (batch, labels).

        With mean pooling: W (c h / |h|) + b, where h is the mean of the last hidden states over
        real tokens and c the settings' head_scale; otherwise the architecture's own head.
        """
        if self.settings.pooling == "native":
            with self._autocast():
                logits: Tensor = self.network(**batch).logits
            return logits.float()
        inner: Any = self.network.base_model.model
        pooled = self.pooled(batch) * self.settings.head_scale
        scores: Tensor = inner.get_submodule(self.head)(pooled)
        return scores.float()

    def pooled(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean of the last hidden states over real tokens, of length 1: (batch, hidden)."""
        inner: Any = self.network.base_model.model
        with self._autocast():
            hidden = inner.base_model(**batch).last_hidden_state.float()
        weights = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return nn.functional.normalize(mean, dim=-1)

    def token_logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Next-token logits (batch, tokens, vocabulary)."""
        with self._autocast():
            logits: Tensor = self.network(**batch, use_cache=False).logits
        return logits.float()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """Matrix products in the base model's dtype; the adapter's own weights stay float32."""
        if self.base.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.base.device.type, dtype=self.base.dtype)


def initial_state(run: RunSettings) -> AdapterState:
    """The adapter every run with these settings starts from, before a method prepares it."""
    adapted = adapted_model(run)
    tensors = initial_tensors(adapted.layout, run.federation.seed)
    if run.head_from_labels:
        adapted.load(tensors)
        tensors |= head_from_labels(adapted, run)
    return AdapterState(
        tensors, run.adapter.rank, run.adapter.alpha, adapted.base.digest, run.federation.method
    )


def head_from_labels(adapted: AdaptedModel, run: RunSettings) -> dict[str, FloatArray]:
    """A linear head (weight, bias) that prefers the label whose name reads most like the clause.

    Row k is the centred embedding of "NAME clause of a contract" by the base model itself, so it is
    made of public words alone: no contract is read, nothing is trained.
    Needs model.pooling=mean; protocol.compatibility holds that.
    """
    names = [f"{label.replace('_', ' ')} clause of a contract" for label in run.task.labels]
    encoded = adapted.base.tokenizer(names, padding=True, return_tensors="pt")
    batch = {key: encoded[key].to(adapted.base.device) for key in ("input_ids", "attention_mask")}
    adapted.network.eval()
    with torch.no_grad():
        embedded = adapted.pooled(batch)
    rows = (embedded - embedded.mean(dim=0)) * (_LABEL_SHARPNESS / run.model.head_scale)
    tensors: dict[str, FloatArray] = {}
    for name, shape in adapted.layout.items():
        if factor_of(name) == "head":
            zeros = np.zeros(shape, dtype=np.float32)
            tensors[name] = rows.cpu().numpy() if len(shape) == 2 else zeros
    return tensors


def adapted_model(run: RunSettings) -> AdaptedModel:
    """The process's one model for these settings. Its tensors are whatever was loaded last."""
    return _adapted(run.model, run.adapter, run.task.kind, run.task.labels)


@functools.lru_cache(maxsize=1)
def _adapted(
    model: ModelSettings, adapter: AdapterSettings, kind: str, labels: tuple[str, ...]
) -> AdaptedModel:
    base = load_base(model, TaskSettings(kind=kind, labels=labels))
    return AdaptedModel(base, model, adapter, kind)


def target_module_names(network: nn.Module, adapter: AdapterSettings) -> list[str]:
    """Full names of the modules that carry the adapter.

    A target matches a module's last name parts. Errors: FoedusError where a target matches
    nothing, or names an embedding or the output layer, which are tied in many models.
    """
    names = [name for name, module in network.named_modules() if _is_linear(module)]
    unmatched = [t for t in adapter.targets if not any(_matches(n, t) for n in names)]
    if unmatched or not adapter.targets:
        raise FoedusError(
            f"adapter.targets: expected names of linear layers, got {unmatched or 'an empty list'}"
            f". This model has {', '.join(sorted({n.rpartition('.')[2] for n in names}))}."
        )
    chosen = [n for n in names if any(_matches(n, t) for t in adapter.targets)]
    output = network.get_output_embeddings() if isinstance(network, PreTrainedModel) else None
    forbidden = [n for n in chosen if output is not None and network.get_submodule(n) is output]
    if forbidden:
        raise FoedusError(f"adapter.targets: {forbidden} are tied to embeddings; leave them out.")
    return _keep_last_layers(chosen, adapter.last_layers)


def _keep_last_layers(names: list[str], last_layers: int) -> list[str]:
    indices = {name: _layer_index(name) for name in names}
    present = sorted({index for index in indices.values() if index is not None})
    if not last_layers or not present:
        return names
    kept = set(present[-last_layers:])
    return [name for name in names if indices[name] in kept]


def _layer_index(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _is_linear(module: nn.Module) -> bool:
    # Conv1D is GPT-2's transposed Linear; quantised layers subclass Linear.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _head_module(base: BaseModel, model: ModelSettings) -> str:
    """The classification head's name. Mean pooling needs one linear layer to put on top."""
    linear = [
        name
        for name, module in base.network.named_children()
        if name in ("classifier", "score") and isinstance(module, nn.Linear)
    ]
    if model.pooling == "mean" and not linear:
        raise FoedusError(
            "model.pooling=mean expects a linear classification head, got a "
            f"{type(base.network).__name__} without one. Set model.pooling=native."
        )
    return linear[0] if linear else ""


def _fresh_heads(base: BaseModel, model: ModelSettings, head: str) -> list[str]:
    """Modules without pre-trained values; with mean pooling only the head takes part."""
    if model.pooling == "mean":
        return [head]
    return sorted({saved_module(name) for name in (head, *base.fresh_modules) if name})


def _attach(
    base: BaseModel, model: ModelSettings, adapter: AdapterSettings, kind: str, head: str
) -> PeftModel:
    config = LoraConfig(
        task_type="SEQ_CLS" if kind == "classify" else "CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # a float works and keeps s exact
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rs_lora,
        target_modules=target_module_names(base.network, adapter),
        modules_to_save=_fresh_heads(base, model, head) if kind == "classify" else None,
        inference_mode=False,
    )
    with warnings.catch_warnings():
        # peft reads an attribute that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        network = get_peft_model(base.network, config, autocast_adapter_dtype=True)
    if model.gradient_checkpointing:
        base.network.gradient_checkpointing_enable({"use_reentrant": False})
        base.network.enable_input_require_grads()
    return network


def _named_adapter_parameters(network: PeftModel) -> Iterator[tuple[str, nn.Parameter]]:
    """The trainable parameters under the names that peft writes to disk."""
    for name, parameter in network.named_parameters():
        if f".lora_A.{_ADAPTER}." in name or f".lora_B.{_ADAPTER}." in name:
            yield name.replace(f".{_ADAPTER}.", "."), parameter
        elif f".modules_to_save.{_ADAPTER}." in name:
            yield name.replace(f".modules_to_save.{_ADAPTER}.", "."), parameter

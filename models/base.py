"""Base models: found, verified by digest, loaded once per process and kept.

A run names one base model; every site proves by digest that it holds the same weights before a
single gradient is computed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from models.digest import MODEL_FILES, model_digest, sha256_of
from models.memory import keep_freed_memory
from models.presets import PRESETS
from protocol.errors import FoedusError
from protocol.settings import ModelSettings, TaskSettings

# Regularising noise of pre-training. Off here: with a few hundred examples and a low-rank adapter
# it costs time on CPU and, drawn from a global generator, would tie results to unrelated draws.
_DROPOUT_FIELDS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "hidden_dropout",
    "dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "classifier_dropout",
)
_LONGEST_PLAIN_ATTENTION_TOKENS = 256


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model.

    `fresh_modules`: modules the checkpoint has no weights for, that is: the new head. Their initial
    values differ from process to process, so they must be part of what is trained and agreed.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digest: str
    device: torch.device
    dtype: torch.dtype
    fresh_modules: tuple[str, ...]


def find_model_folder(model: ModelSettings) -> Path:
    """The folder with the model's files: embedded, local, or from the Hub's cache or network.

    Errors: FoedusError saying where was looked and what to install or set.
    """
    preset = PRESETS.get(model.id)
    if preset is not None:
        folder = preset.embedded_folder()
        if folder is None or not folder.is_dir():
            raise FoedusError(
                f"Expected the embedded model {model.id!r} in the package "
                f"{preset.package.partition(':')[0]}, got none. Run `make setup`."
            )
        return folder
    local = Path(model.id).expanduser()
    if local.is_dir():
        return local
    return _fetch_from_hub(model)


def _fetch_from_hub(model: ModelSettings) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                model.id,
                revision=model.revision or None,
                allow_patterns=list(MODEL_FILES),
                # A pattern's star matches slashes too.
                ignore_patterns=["*/*"],
            )
        )
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FoedusError(
            f"Model {model.id!r} is no embedded name ({', '.join(PRESETS)}), no local folder, and "
            f"the Hub's cache here lacks it: {type(error).__name__}. Name a folder, or fetch it as "
            'this user: hf download ORG/MODEL --revision REVISION --exclude "*/*" (docs/site.md).'
        ) from error


def public_name(model: ModelSettings) -> str:
    """The name under which a reader of a released adapter finds the base model."""
    preset = PRESETS.get(model.id)
    return preset.public_name if preset else model.id


def _verify_embedded(model: ModelSettings, folder: Path) -> None:
    preset = PRESETS.get(model.id)
    if preset is None or not preset.weights_sha256:
        return
    found = sha256_of(folder / "model.safetensors")
    if found != preset.weights_sha256:
        raise FoedusError(
            f"Expected sha256 {preset.weights_sha256} for the embedded model {model.id!r}, "
            f"got {found}. Its package was changed: reinstall it before training on it."
        )


def load_base(model: ModelSettings, task: TaskSettings) -> BaseModel:
    """Load the base model for a task.

    Not cached here: attaching an adapter rewrites the network in place, so what is kept for the
    life of the process is the adapted model (models.adapted).
    Errors: FoedusError where the model is missing, altered, or asks for hardware that is not here.
    """
    folder = find_model_folder(model)
    _verify_embedded(model, folder)
    digest = model_digest(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(model, device)
    if device.type == "cpu":
        keep_freed_memory()
    # A model folder may name Python files of its own; they are never run.
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for name in _DROPOUT_FIELDS:
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)
    arguments: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        **_quantisation(model, device),
        **_attention(model, device, dtype),
    }
    # The library's own report of missing head weights would alarm: they are expected, see
    # `fresh_modules`.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if task.kind == "classify":
        config.num_labels = len(task.labels)
        config.pad_token_id = tokenizer.pad_token_id
        loader: Any = AutoModelForSequenceClassification
    else:
        loader = AutoModelForCausalLM
    with warnings.catch_warnings():
        # transformers warns about its own deprecated attributes while it loads.
        warnings.simplefilter("ignore", FutureWarning)
        network, info = loader.from_pretrained(folder, **arguments)
    if model.quantisation == "none":
        network.to(device)
    network.requires_grad_(False)
    fresh = sorted({key.rpartition(".")[0] for key in info["missing_keys"]})
    return BaseModel(network, tokenizer, digest, device, dtype, tuple(fresh))


def _dtype(model: ModelSettings, device: torch.device) -> torch.dtype:
    if model.precision == "bfloat16":
        return torch.bfloat16
    if model.precision == "auto" and has_fast_bfloat16(device):
        return torch.bfloat16
    return torch.float32


def has_fast_bfloat16(device: torch.device) -> bool:
    """True where the hardware multiplies bfloat16 itself; elsewhere it is emulated and slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.backends.cpu.get_cpu_capability()
    return capabilities == "AVX512" and bool(torch.cpu._is_avx512_bf16_supported())


def _attention(model: ModelSettings, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """torch's fused attention, but for short bfloat16 sequences on a CPU, where its backward pass
    takes 4 to 13 times as long as plain matrix products (docs/experiments.md)."""
    plain = (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and model.max_tokens <= _LONGEST_PLAIN_ATTENTION_TOKENS
    )
    return {"attn_implementation": "eager"} if plain else {}


def _quantisation(model: ModelSettings, device: torch.device) -> dict[str, Any]:
    if model.quantisation == "none":
        return {}
    if device.type != "cuda":
        raise FoedusError(
            f"model.quantisation={model.quantisation} expects a CUDA device, got none. "
            "Set model.quantisation=none."
        )
    from transformers import BitsAndBytesConfig

    if model.quantisation == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": four_bit, "device_map": {"": 0}}

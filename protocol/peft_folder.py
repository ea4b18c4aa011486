"""An adapter on disk, in the format of peft: safetensors plus adapter_config.json.

Plain peft loads the folder; `foedus.json` beside it holds what peft has no field for (labels,
pooling, the base model's digest).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from protocol.adapter import AdapterState, factor_of
from protocol.codec import decode, encode
from protocol.errors import FoedusError, shown
from protocol.files import write_atomically
from protocol.settings import RunSettings

WEIGHTS, PEFT_CONFIG, FACTS = "adapter_model.safetensors", "adapter_config.json", "foedus.json"
_SCHEMA = 1
_FACTS_KEYS = {"schema", "base_digest", "adapter_digest", "settings"}
_PEFT_PREFIX = "base_model.model."
_HEADS = ("classifier", "score")
_TASK_TYPES = {"classify": "SEQ_CLS", "instruct": "CAUSAL_LM"}


def write_peft_folder(
    folder: Path, state: AdapterState, settings: RunSettings, base_name: str
) -> None:
    """Write adapter weights, peft's configuration and our facts; each file appears whole.

    base_name: where a user of plain peft finds the base model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, safetensors.numpy.save(dict(state.tensors)))
    config = peft_config(settings, base_name, state.tensors)
    write_atomically(folder / PEFT_CONFIG, _json_bytes(config))
    facts = {
        "schema": _SCHEMA,
        "base_digest": state.base_digest,
        "adapter_digest": state.digest(),
        "settings": encode(settings),
    }
    write_atomically(folder / FACTS, _json_bytes(facts))


def read_peft_folder(folder: Path) -> tuple[AdapterState, RunSettings]:
    """Read what `write_peft_folder` wrote.

    Errors: FoedusError naming the file that is missing, damaged or of another schema.
    """
    missing = [name for name in (WEIGHTS, FACTS) if not (folder / name).is_file()]
    if missing:
        raise FoedusError(
            f"Expected an adapter folder with {WEIGHTS} and {FACTS} at {folder}, "
            f"got no {' and no '.join(missing)}. Give the folder that a run released."
        )
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    except (ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise FoedusError(f"The adapter folder {folder} is damaged: {error}.") from error
    except (KeyError, TypeError) as error:  # What NumPy has no type for, such as bfloat16.
        raise _not_float32(folder, str(error)) from error
    schema = facts.get("schema") if isinstance(facts, dict) else None
    if schema != _SCHEMA or facts.keys() != _FACTS_KEYS:
        raise FoedusError(
            f"Expected schema {_SCHEMA} in {folder / FACTS}, got {schema!r} or other keys. "
            "Use the release of foedus that wrote it."
        )
    for name in ("base_digest", "adapter_digest"):
        if not isinstance(facts[name], str):
            raise FoedusError(
                f"Expected a text as {name} in {folder / FACTS}, got {shown(facts[name])}. "
                "Copy the folder again from its source."
            )
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise _not_float32(folder, f"{tensor.dtype} for {shown(name)}")
    settings = decode(RunSettings, facts["settings"], str(folder / FACTS))
    state = AdapterState(
        tensors,
        settings.adapter.rank,
        settings.adapter.alpha,
        facts["base_digest"],
        settings.federation.method,
    )
    if state.digest() != facts["adapter_digest"]:
        raise FoedusError(
            f"The weights in {folder} are not those its {FACTS} names "
            f"({facts['adapter_digest'][:12]}…). Copy the folder again from its source."
        )
    return state, settings


def _not_float32(folder: Path, found: str) -> FoedusError:
    return FoedusError(
        f"Expected float32 tensors in {folder / WEIGHTS}, got {found}. Copy the folder again from "
        "its source: a converted adapter is not the one that was released."
    )


def peft_config(
    settings: RunSettings, base_name: str, tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """The adapter_config.json that rebuilds this adapter in plain peft."""
    heads = {
        saved_module(name.removeprefix(_PEFT_PREFIX).rpartition(".")[0])
        for name in tensors
        if factor_of(name) == "head"
    }
    adapter = settings.adapter
    return {
        "peft_type": "LORA",
        "task_type": _TASK_TYPES[settings.task.kind],
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rs_lora,
        "target_modules": _target_modules(tensors),
        "modules_to_save": sorted(heads) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def saved_module(module: str) -> str:
    """The module that peft has to save for `module` to be saved: its full name, as the last part
    alone ("dense", say) may match layers of the base model; a head as a whole, as peft wraps heads
    of these names by itself and would wrap their layers once more.

    >>> saved_module("bert.pooler.dense"), saved_module("classifier.out_proj")
    ('bert.pooler.dense', 'classifier')
    """
    first = module.partition(".")[0]
    return first if first in _HEADS else module


def _target_modules(tensors: Mapping[str, Any]) -> list[str]:
    """Full module names, so that a choice of layers needs no second field to be understood."""
    suffix = ".lora_A.weight"
    return sorted(
        name.removeprefix(_PEFT_PREFIX).removesuffix(suffix)
        for name in tensors
        if name.endswith(suffix)
    )


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

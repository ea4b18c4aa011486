"""An adapter on disk: read as written, loaded by plain peft, and refused where it was changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from models.adapted import adapted_model, initial_state
from models.base import find_model_folder
from protocol.adapter import AdapterState, FloatArray
from protocol.errors import FoedusError, SettingsError
from protocol.methods import Factors
from protocol.peft_folder import FACTS, PEFT_CONFIG, WEIGHTS, read_peft_folder, write_peft_folder
from protocol.settings import AdapterSettings, RunSettings
from tests.small_runs import LABELS, MODEL, small_run

BOTH: Factors = frozenset({"A", "B", "head"})


def random_state(run: RunSettings) -> AdapterState:
    """An adapter in which no tensor is zero, of the run's layout."""
    rng = np.random.default_rng(4)
    state = initial_state(run)
    return state.replace_tensors(
        {name: rng.normal(size=t.shape).astype(np.float32) for name, t in state.tensors.items()}
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AdapterState]:
    folder = tmp_path_factory.mktemp("adapter")
    state = random_state(small_run())
    write_peft_folder(folder, state, small_run(), "sentence-transformers/all-MiniLM-L6-v2")
    return folder, state


@pytest.fixture
def copied(written: tuple[Path, AdapterState], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for path in written[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def peft_parameters(model: PeftModel) -> dict[str, FloatArray]:
    """Adapter and head of a loaded model under the names that peft writes."""
    names = (".lora_A.default", ".lora_B.default", ".modules_to_save.default")
    found: dict[str, FloatArray] = {}
    for name, parameter in model.named_parameters():
        if any(part in name for part in names):
            short = name.replace(".modules_to_save", "").replace(".default", "")
            found[short] = parameter.detach().numpy()
    return found


def assert_same(found: dict[str, FloatArray], state: AdapterState) -> None:
    assert found.keys() == state.tensors.keys()
    for name, tensor in state.tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_what_is_read_is_what_was_written(written: tuple[Path, AdapterState]) -> None:
    folder, state = written
    read, settings = read_peft_folder(folder)
    assert read.digest() == state.digest()
    assert (read.rank, read.alpha, read.base_digest, read.method) == (
        state.rank,
        state.alpha,
        state.base_digest,
        state.method,
    )
    assert settings == small_run()


def test_plain_peft_loads_it_with_every_parameter_the_head_included(
    written: tuple[Path, AdapterState],
) -> None:
    folder, state = written
    base = AutoModelForSequenceClassification.from_pretrained(
        find_model_folder(MODEL), num_labels=len(LABELS)
    )
    assert_same(peft_parameters(PeftModel.from_pretrained(base, folder)), state)


def test_plain_peft_then_computes_what_we_compute(written: tuple[Path, AdapterState]) -> None:
    folder, state = written
    model_folder = find_model_folder(MODEL)
    base = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=len(LABELS))
    loaded = PeftModel.from_pretrained(base, folder).eval()
    batch = AutoTokenizer.from_pretrained(model_folder)(
        ["Each party keeps it secret.", "Fees fall due."], padding=True, return_tensors="pt"
    )
    batch.pop("token_type_ids", None)
    adapted = adapted_model(small_run())
    adapted.load(state.tensors)
    adapted.network.eval()
    with torch.no_grad():
        inner: Any = loaded.base_model.model
        hidden = inner.bert(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).float()
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        logits = inner.classifier(torch.nn.functional.normalize(mean, dim=-1) * MODEL.head_scale)
        ours = adapted.class_logits(dict(batch))
    torch.testing.assert_close(logits, ours, rtol=1e-5, atol=1e-5)


def test_a_head_of_several_layers_is_loaded_as_it_is_named(tmp_path: Path) -> None:
    """RoBERTa's head has a layer "dense", and so has every encoder layer."""
    config = RobertaConfig(
        vocab_size=40,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=20,
    )
    torch.manual_seed(0)
    folder = tmp_path / "base"
    network: Any = RobertaForSequenceClassification(config)
    network.base_model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(find_model_folder(MODEL)).save_pretrained(folder)
    run = replace(
        small_run(),
        model=replace(MODEL, id=str(folder), pooling="native"),
        adapter=AdapterSettings(rank=2, targets=("query",)),
    )
    state = random_state(run)
    write_peft_folder(tmp_path / "adapter", state, run, str(folder))
    base = AutoModelForSequenceClassification.from_config(
        AutoConfig.from_pretrained(folder, num_labels=len(LABELS))
    )
    assert_same(peft_parameters(PeftModel.from_pretrained(base, tmp_path / "adapter")), state)


def test_weights_that_were_changed_are_refused(copied: Path) -> None:
    tensors = safetensors.numpy.load_file(copied / WEIGHTS)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] * np.float32(1.0001)
    safetensors.numpy.save_file(tensors, copied / WEIGHTS)
    with pytest.raises(FoedusError, match=r"weights .* are not those"):
        read_peft_folder(copied)


@pytest.mark.parametrize("missing", [WEIGHTS, FACTS])
def test_a_missing_file_is_named(copied: Path, missing: str) -> None:
    (copied / missing).unlink()
    with pytest.raises(FoedusError, match=f"got no {missing}"):
        read_peft_folder(copied)


@pytest.mark.parametrize("damaged", [WEIGHTS, FACTS])
def test_a_damaged_file_is_refused(copied: Path, damaged: str) -> None:
    data = (copied / damaged).read_bytes()
    (copied / damaged).write_bytes(data[: len(data) // 2])
    with pytest.raises(FoedusError, match="damaged"):
        read_peft_folder(copied)


def test_another_schema_and_unknown_settings_are_refused(copied: Path) -> None:
    facts = json.loads((copied / FACTS).read_text())
    (copied / FACTS).write_text(json.dumps(facts | {"schema": 2}))
    with pytest.raises(FoedusError, match="Expected schema 1"):
        read_peft_folder(copied)
    facts["settings"]["federation"]["speed"] = 1
    (copied / FACTS).write_text(json.dumps(facts))
    with pytest.raises(SettingsError, match=r"federation\.speed: unknown"):
        read_peft_folder(copied)


@pytest.mark.parametrize("content", ["[]", '"text"', "{}", '{"schema": 1}'])
def test_a_facts_file_that_is_json_but_not_ours_is_refused(copied: Path, content: str) -> None:
    (copied / FACTS).write_text(content)
    with pytest.raises(FoedusError):
        read_peft_folder(copied)


def test_the_peft_configuration_names_full_modules_and_the_task(
    written: tuple[Path, AdapterState],
) -> None:
    config = json.loads((written[0] / PEFT_CONFIG).read_text())
    layer = "bert.encoder.layer.5.attention.self"
    assert config["target_modules"] == [f"{layer}.query", f"{layer}.value"]
    assert config["modules_to_save"] == ["classifier"]
    assert (config["task_type"], config["r"], config["lora_alpha"]) == ("SEQ_CLS", 2, 4.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_another_type_are_refused_by_name_of_the_file(
    copied: Path, dtype: torch.dtype
) -> None:
    tensors = safetensors.torch.load_file(copied / WEIGHTS)
    converted = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    safetensors.torch.save_file(converted, copied / WEIGHTS)
    with pytest.raises(FoedusError, match=rf"Expected float32 tensors in .*{WEIGHTS}"):
        read_peft_folder(copied)


@pytest.mark.parametrize("name", ["base_digest", "adapter_digest"])
@pytest.mark.parametrize("value", [7, None, ["a"], {}])
def test_a_digest_that_is_no_text_is_refused(copied: Path, name: str, value: object) -> None:
    facts = json.loads((copied / FACTS).read_text()) | {name: value}
    (copied / FACTS).write_text(json.dumps(facts))
    with pytest.raises(FoedusError, match=f"Expected a text as {name}"):
        read_peft_folder(copied)


@pytest.mark.parametrize("text", ["[" * 10**5, "9" * 10**5], ids=["deep", "long"])
def test_facts_that_cannot_be_read_are_damage(copied: Path, text: str) -> None:
    (copied / FACTS).write_text(text)
    with pytest.raises(FoedusError, match="is damaged"):
        read_peft_folder(copied)

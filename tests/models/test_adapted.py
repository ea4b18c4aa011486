"""The adapter on a base model: only the wanted layers, tensors in and out, the maths of peft."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from models.adapted import AdaptedModel, adapted_model, initial_state, target_module_names
from models.base import find_model_folder, load_base
from protocol.adapter import FloatArray, factor_of
from protocol.errors import FoedusError
from protocol.settings import AdapterSettings, ModelSettings, RunSettings, TaskSettings
from tests.small_runs import ADAPTER, small_run

BERT = "base_model.model.bert.encoder.layer"
NOVELS = find_model_folder(ModelSettings(id="novels"))


def drawn(adapted: AdaptedModel, seed: int = 0) -> dict[str, FloatArray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in adapted.layout.items()}


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-2, whose Conv1D layers store weights transposed, with a tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(NOVELS / name, folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=4096, n_embd=12, n_layer=2, n_head=2, n_positions=64)
    network: Any = GPT2LMHeadModel(config)
    network.save_pretrained(folder)
    return folder


def gpt2_run(folder: Path, *targets: str) -> RunSettings:
    return replace(
        small_run(),
        task=TaskSettings(kind="instruct"),
        model=ModelSettings(id=str(folder), precision="float32", max_tokens=32),
        adapter=AdapterSettings(rank=2, alpha=6.0, targets=targets),
    )


def test_the_layout_is_the_wanted_modules_of_the_last_layers_and_the_head() -> None:
    adapted = adapted_model(small_run())
    assert adapted.layout == {
        "base_model.model.classifier.bias": (3,),
        "base_model.model.classifier.weight": (3, 384),
        f"{BERT}.5.attention.self.query.lora_A.weight": (2, 384),
        f"{BERT}.5.attention.self.query.lora_B.weight": (384, 2),
        f"{BERT}.5.attention.self.value.lora_A.weight": (2, 384),
        f"{BERT}.5.attention.self.value.lora_B.weight": (384, 2),
    }


@pytest.mark.parametrize(
    ("targets", "last_layers", "expected"),
    [
        (("query",), 2, {(4, "query"), (5, "query")}),
        (("attention.output.dense",), 1, {(5, "dense")}),
        (("self.key", "query"), 1, {(5, "key"), (5, "query")}),
        (("query",), 0, {(layer, "query") for layer in range(6)}),
        (("query",), 99, {(layer, "query") for layer in range(6)}),
    ],
)
def test_targets_match_by_last_name_parts_in_the_last_layers(
    targets: tuple[str, ...], last_layers: int, expected: set[tuple[int, str]]
) -> None:
    base = adapted_model(small_run()).base
    settings = replace(ADAPTER, targets=targets, last_layers=last_layers)
    # Inside an attached layer peft adds sub-layers; the base layers keep their names.
    names = [n for n in target_module_names(_fresh_network(base.network), settings)]
    assert {(int(n.split(".")[3]), n.rpartition(".")[2]) for n in names} == expected


def _fresh_network(network: Any) -> torch.nn.Module:
    """The same architecture without an adapter and without weights."""
    with torch.device("meta"):
        fresh: torch.nn.Module = type(network)(network.config)
    return fresh


def test_an_unknown_target_is_named_beside_what_the_model_has() -> None:
    network = _fresh_network(adapted_model(small_run()).base.network)
    with pytest.raises(FoedusError) as caught:
        target_module_names(network, replace(ADAPTER, targets=("query", "q_proj")))
    assert "['q_proj']" in str(caught.value)
    assert "classifier, dense, key, query, value" in str(caught.value)


@pytest.mark.parametrize("target", ["word_embeddings", "embeddings.word_embeddings"])
def test_embeddings_are_refused(target: str) -> None:
    network = _fresh_network(adapted_model(small_run()).base.network)
    with pytest.raises(FoedusError, match="word_embeddings"):
        target_module_names(network, replace(ADAPTER, targets=(target,)))
    with pytest.raises(FoedusError, match="an empty list"):
        target_module_names(network, replace(ADAPTER, targets=()))


def test_the_output_layer_is_refused_as_it_is_tied(gpt2_folder: Path) -> None:
    network: torch.nn.Module = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    with pytest.raises(FoedusError, match=r"lm_head.*tied"):
        target_module_names(network, AdapterSettings(targets=("lm_head",)))
    with pytest.raises(FoedusError, match="wte"):
        target_module_names(network, AdapterSettings(targets=("wte",)))


def test_tensors_gives_back_what_load_wrote() -> None:
    adapted = adapted_model(small_run())
    values = drawn(adapted)
    adapted.load(values)
    got = adapted.tensors({"A", "B", "head"})
    assert got.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(got[name], value)
    for factor in ("A", "B", "head"):
        assert {factor_of(name) for name in adapted.tensors({factor})} == {factor}


def test_tensors_are_copies_and_load_does_not_keep_its_input() -> None:
    adapted = adapted_model(small_run())
    values = drawn(adapted)
    name = "base_model.model.classifier.weight"
    adapted.load(values)
    before = values[name].copy()
    adapted.tensors({"head"})[name][:] = 7
    values[name][:] = 8
    np.testing.assert_array_equal(adapted.tensors({"head"})[name], before)


def test_loading_some_tensors_leaves_the_others() -> None:
    adapted = adapted_model(small_run())
    adapted.load(drawn(adapted, 1))
    before = adapted.tensors({"A", "B", "head"})
    name = "base_model.model.classifier.bias"
    adapted.load({name: np.ones(3, np.float32)})
    after = adapted.tensors({"A", "B", "head"})
    assert [n for n in before if (before[n] != after[n]).any()] == [name]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("base_model.model.classifier.bias", (4,)), ("base_model.model.other.weight", (3,))],
)
def test_an_unknown_name_or_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(FoedusError, match=name):
        adapted_model(small_run()).load({name: np.zeros(shape, np.float32)})


def test_train_only_leaves_nothing_else_to_train() -> None:
    adapted = adapted_model(small_run())
    trained = adapted.train_only({"B"})
    assert {factor_of(name) for name in trained} == {"B"} and len(trained) == 2
    live = [p for p in adapted.network.parameters() if p.requires_grad]
    assert {id(p) for p in live} == {id(p) for p in trained.values()}


def test_the_same_settings_give_the_one_model_of_the_process() -> None:
    assert adapted_model(small_run()) is adapted_model(small_run("ffa", rounds=9))


def test_the_initial_adapter_leaves_the_base_model_as_it_is() -> None:
    run = small_run()
    adapted = adapted_model(run)
    state = initial_state(run)
    assert state.layout == adapted.layout
    assert (state.rank, state.alpha, state.method) == (2, 4.0, "fedsvd")
    adapted.load(state.tensors)
    adapted.network.eval()
    batch = {
        "input_ids": torch.tensor([[101, 2023, 102]]),
        "attention_mask": torch.ones(1, 3).long(),
    }
    network: Any = adapted.network
    with torch.no_grad():
        with_adapter = network.base_model.model.bert(**batch).last_hidden_state
        with network.disable_adapter():
            without = network.base_model.model.bert(**batch).last_hidden_state
        assert adapted.class_logits(batch).abs().max() == 0.0
    torch.testing.assert_close(with_adapter, without, rtol=0, atol=0)


def test_padding_changes_no_logit_of_a_mean_pooled_classifier() -> None:
    adapted = adapted_model(small_run())
    adapted.load(drawn(adapted))
    adapted.network.eval()
    ids = torch.tensor([[101, 2023, 2003, 102]])
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], dim=1)
    mask = (torch.arange(9) < 4).long().unsqueeze(0)
    with torch.no_grad():
        plain = adapted.class_logits({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        with_padding = adapted.class_logits({"input_ids": padded, "attention_mask": mask})
    torch.testing.assert_close(plain, with_padding, rtol=1e-4, atol=1e-4)


def test_mean_pooling_without_a_linear_head_is_refused(gpt2_folder: Path) -> None:
    model = ModelSettings(id=str(gpt2_folder), precision="float32", pooling="mean")
    base = load_base(model, TaskSettings(kind="classify", labels=("a", "b")))
    base.network.score = torch.nn.Sequential(torch.nn.Linear(12, 2))
    with pytest.raises(FoedusError, match=r"linear classification head.*model\.pooling=native"):
        AdaptedModel(base, model, AdapterSettings(rank=2, targets=("c_attn",)), "classify")


def test_transposed_layers_get_the_update_the_maths_says(gpt2_folder: Path) -> None:
    """GPT-2's Conv1D holds W as (d_in, d_out): adapted, it is W + s (B A)^T."""
    run = gpt2_run(gpt2_folder, "c_attn", "mlp.c_proj")
    adapted = adapted_model(run)
    shapes = {n.split("transformer.")[1]: s for n, s in adapted.layout.items()}
    assert shapes["h.0.attn.c_attn.lora_A.weight"] == (2, 12)
    assert shapes["h.0.attn.c_attn.lora_B.weight"] == (36, 2)
    assert shapes["h.1.mlp.c_proj.lora_A.weight"] == (2, 48)
    assert shapes["h.1.mlp.c_proj.lora_B.weight"] == (12, 2)
    values = drawn(adapted)
    adapted.load(values)
    by_hand: Any = AutoModelForCausalLM.from_pretrained(gpt2_folder).eval()
    with torch.no_grad():
        state = initial_state(run).replace_tensors(values)
        for module, a, b in state.pairs():
            layer = by_hand.get_submodule(module.removeprefix("base_model.model."))
            layer.weight += torch.from_numpy(6.0 / 2 * (b @ a).T)
        ids = torch.tensor([[5, 9, 200, 31]])
        adapted.network.eval()
        ours = adapted.token_logits({"input_ids": ids})
        theirs = by_hand(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_rs_lora_scales_by_the_root_of_the_rank(gpt2_folder: Path) -> None:
    run = gpt2_run(gpt2_folder, "c_attn")
    network: Any = adapted_model(replace(run, adapter=replace(run.adapter, rs_lora=True))).network
    layer = network.get_submodule("base_model.model.transformer.h.0.attn.c_attn")
    assert layer.scaling["default"] == pytest.approx(6.0 / np.sqrt(2))

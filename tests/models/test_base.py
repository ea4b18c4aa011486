"""Base models: found by name, verified before they are loaded, never from code or pickles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils._paths import filter_repo_objects
from safetensors import safe_open

from models.base import find_model_folder, has_fast_bfloat16, load_base, public_name
from models.digest import model_digest
from models.presets import MINILM_SHA256, PRESETS, Preset
from protocol.errors import FoedusError
from protocol.settings import ModelSettings, TaskSettings
from tests.small_runs import LABELS, MODEL

CLASSIFY = TaskSettings(kind="classify", labels=LABELS)
NOVELS = find_model_folder(ModelSettings(id="novels"))


@pytest.fixture
def novels_copy(tmp_path: Path) -> Path:
    """A copy of a small model's folder that a test may change."""
    return Path(shutil.copytree(NOVELS, tmp_path / "novels"))


def test_minilm_is_the_file_whose_digest_the_project_names() -> None:
    assert MINILM_SHA256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert PRESETS["minilm"].weights_sha256 == MINILM_SHA256
    base = load_base(MODEL, CLASSIFY)
    assert base.fresh_modules == ("classifier",)
    assert base.dtype == torch.float32
    assert not any(p.requires_grad for p in base.network.parameters())


def test_an_altered_package_is_refused_before_anything_in_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "altered_minilm"
    folder = package / "model"
    folder.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('its code was run')")
    data = bytearray((find_model_folder(MODEL) / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    (folder / "config.json").write_text("not read")
    monkeypatch.syspath_prepend(tmp_path)
    preset = Preset("x", package="altered_minilm:model", weights_sha256=MINILM_SHA256)
    monkeypatch.setitem(PRESETS, "altered", preset)
    with pytest.raises(FoedusError, match=f"Expected sha256 {MINILM_SHA256}.*altered.*reinstall"):
        load_base(ModelSettings(id="altered"), CLASSIFY)


def test_a_missing_package_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "absent", Preset("x", package="no_such_package:model"))
    with pytest.raises(FoedusError, match=r"no_such_package, got none\. Run `make setup`"):
        find_model_folder(ModelSettings(id="absent"))


def test_a_folder_with_pickled_weights_only_is_refused(novels_copy: Path) -> None:
    (novels_copy / "model.safetensors").rename(novels_copy / "pytorch_model.bin")
    with pytest.raises(FoedusError, match="pickled weights are not loaded"):
        load_base(ModelSettings(id=str(novels_copy)), TaskSettings(kind="instruct"))


def test_code_in_a_model_folder_is_not_run(novels_copy: Path) -> None:
    config = json.loads((novels_copy / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "code.Config"}}
    (novels_copy / "config.json").write_text(json.dumps(config))
    trace = novels_copy / "was_run"
    (novels_copy / "code.py").write_text(f"open({str(trace)!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(ValueError, match="custom"):
        load_base(ModelSettings(id=str(novels_copy)), TaskSettings(kind="instruct"))
    assert not trace.exists()


def test_an_unknown_id_says_where_was_looked_and_what_to_do() -> None:
    with pytest.raises(FoedusError) as caught:
        find_model_folder(ModelSettings(id="nobody/no-such-model"))
    text = str(caught.value)
    assert "'nobody/no-such-model' is no embedded name (minilm, novels), no local folder" in text
    assert "Name a folder, or fetch it" in text and "hf download" in text


def test_the_digest_is_of_content_not_of_place(novels_copy: Path) -> None:
    assert model_digest(novels_copy) == model_digest(NOVELS)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
    ],
)
def test_the_digest_tells_every_file_that_transformers_reads_apart(
    novels_copy: Path, name: str
) -> None:
    data = bytearray((novels_copy / name).read_bytes())
    data[-2] ^= 1
    (novels_copy / name).write_bytes(data)
    assert model_digest(novels_copy) != model_digest(NOVELS)


@pytest.mark.parametrize(
    "name",
    ["special_tokens_map.json", "added_tokens.json", "vocab.txt", "merges.txt", "spiece.model"],
)
def test_a_file_more_that_transformers_reads_is_another_digest(
    novels_copy: Path, name: str
) -> None:
    (novels_copy / name).write_text("{}")
    assert model_digest(novels_copy) != model_digest(NOVELS)


def test_what_transformers_does_not_read_is_not_in_the_digest(novels_copy: Path) -> None:
    """A folder from the Hub and one that holds only what is fetched are the same model."""
    (novels_copy / "README.md").write_text("another text")
    (novels_copy / "pytorch_model.bin").write_bytes(b"pickled")
    (novels_copy / "onnx").mkdir()
    (novels_copy / "onnx" / "config.json").write_text("{}")
    assert model_digest(novels_copy) == model_digest(NOVELS)


def sharded(folder: Path, shard: str) -> None:
    """The folder with an index in place of one file of weights; it names `shard` for them all."""
    (folder / "other").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "other" / "more.safetensors")
    weights = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(weights)
    with safe_open(weights, "pt") as opened:
        weight_map = dict.fromkeys(opened.keys(), shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_weights_in_parts_load_and_their_index_is_in_the_digest(novels_copy: Path) -> None:
    sharded(novels_copy, "model-00001-of-00001.safetensors")
    base = load_base(ModelSettings(id=str(novels_copy)), TaskSettings(kind="instruct"))
    assert base.fresh_modules == ()
    other = novels_copy.parent / "other_index"
    shutil.copytree(novels_copy, other)
    index = other / "model.safetensors.index.json"
    index.write_text(index.read_text() + "\n")
    assert model_digest(other) != base.digest == model_digest(novels_copy)


@pytest.mark.parametrize(
    "shard", ["other/more.safetensors", "../more.safetensors", "missing.safetensors", "config.json"]
)
def test_an_index_that_names_weights_outside_of_the_digest_is_refused(
    novels_copy: Path, shard: str
) -> None:
    sharded(novels_copy, shard)
    model = ModelSettings(id=str(novels_copy))
    with pytest.raises(
        FoedusError, match=r"model\.safetensors\.index\.json names '.*save_pretrained"
    ):
        load_base(model, TaskSettings(kind="instruct"))


def put(path: Path, **values: object) -> None:
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | values))


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("config.json", {"transformers_weights": "other/more.safetensors"}, "other/more"),
        ("config.json", {"text_config": {"transformers_weights": "x.bin"}}, "x.bin"),
        ("config.json", {"transformers_weights": ["a"]}, "names"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["a/tokenizer.4.0.json"]}, "a/tok"),
        ("adapter_config.json", {"base_model_name_or_path": "other"}, "an adapter"),
        ("additional_chat_templates/default.jinja", {}, "chat template"),
    ],
)
def test_a_folder_that_points_to_other_files_is_refused(
    novels_copy: Path, name: str, values: dict[str, object], word: str
) -> None:
    put(novels_copy / name, **values)
    with pytest.raises(FoedusError, match=f"at the top of its folder alone, got: .*{word}"):
        model_digest(novels_copy)


def test_nothing_below_the_top_of_a_model_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(_model: str, **words: Any) -> str:
        asked.update(words)
        return str(NOVELS)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    find_model_folder(ModelSettings(id="org/model"))
    offered = ["config.json", "vocab.txt", "x.safetensors", "sub/config.json", "a/b/x.safetensors"]
    offered += ["run.py", "pytorch_model.bin"]
    taken = filter_repo_objects(
        offered,
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(taken) == ["config.json", "vocab.txt", "x.safetensors"]


def test_a_released_adapter_names_the_base_by_its_public_name() -> None:
    assert public_name(MODEL) == "sentence-transformers/all-MiniLM-L6-v2"
    assert public_name(ModelSettings(id="org/model")) == "org/model"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusal is for machines without CUDA")
def test_a_quantised_base_without_cuda_is_refused_with_the_setting_to_change() -> None:
    with pytest.raises(FoedusError, match=r"Set model\.quantisation=none"):
        load_base(ModelSettings(id="novels", quantisation="4bit"), TaskSettings(kind="instruct"))


def test_auto_precision_is_bfloat16_only_where_the_hardware_multiplies_it() -> None:
    base = load_base(ModelSettings(id="novels"), TaskSettings(kind="instruct"))
    fast = has_fast_bfloat16(base.device)
    assert base.dtype == (torch.bfloat16 if fast else torch.float32)

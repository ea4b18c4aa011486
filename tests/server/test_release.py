"""A released adapter: loadable by others, and tied to its run by digests that are true."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from models.base import find_model_folder
from protocol.errors import FoedusError
from protocol.peft_folder import read_peft_folder
from protocol.settings import PrivacySettings, SecureAggregationSettings
from server.app import CoordinatorSettings, Plan, run_plan
from server.checkpoint import settings_digest
from server.coordinator import RunResult
from server.observer import LogObserver
from server.release import MANIFEST, MODEL_CARD, file_digests, release, verify_release
from simulations.engines.in_process import InProcessGrid
from tests.little_sites import coordinate, little_app, little_run
from tests.small_runs import LABELS, MODEL, RUN_ID, small_run, start_state

RUN = small_run(rounds=3)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult, dict[str, Any]]:
    """The folder, result and manifest of a release whose adapter is random numbers."""
    folder = tmp_path_factory.mktemp("run")
    records = coordinate(InProcessGrid(little_app(), 2), little_run(rounds=3), folder).records
    rng = np.random.default_rng(0)
    state = start_state(RUN)
    drawn = {n: rng.normal(size=t.shape).astype(np.float32) for n, t in state.tensors.items()}
    result = RunResult(RUN_ID, state.replace_tensors(drawn), records)
    return folder / "adapter", result, release(folder / "adapter", result, RUN)


def test_every_digest_of_the_manifest_is_true(
    released: tuple[Path, RunResult, dict[str, Any]],
) -> None:
    folder, result, manifest = released
    assert json.loads((folder / MANIFEST).read_text()) == manifest
    on_disk = {path.name for path in folder.iterdir()} - {MANIFEST}
    assert on_disk == set(manifest["files"]) and len(on_disk) == 4
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert manifest["adapter_digest"] == result.state.digest()
    assert manifest["base_digest"] == result.state.base_digest
    assert manifest["config_digest"] == settings_digest(RUN)


def test_the_manifest_tells_how_the_adapter_came_about(
    released: tuple[Path, RunResult, dict[str, Any]],
) -> None:
    manifest = released[2]
    assert (manifest["method"], manifest["run_id"]) == ("fedsvd", RUN_ID)
    assert (manifest["rounds"], manifest["aggregated_rounds"]) == (3, 3)
    assert manifest["cohort_sizes"] == [2, 2, 2]


def test_plain_peft_loads_the_released_folder(
    released: tuple[Path, RunResult, dict[str, Any]],
) -> None:
    folder, result, _ = released
    base = AutoModelForSequenceClassification.from_pretrained(
        find_model_folder(MODEL), num_labels=len(LABELS)
    )
    loaded = dict(PeftModel.from_pretrained(base, folder).named_parameters())
    for name, tensor in result.state.tensors.items():
        stem, _, last = name.rpartition(".")
        kind = "default" if ".lora_" in name else "modules_to_save.default"
        parameter = loaded[f"{stem}.{kind}.{last}"]
        np.testing.assert_array_equal(parameter.detach().numpy(), tensor)


def test_our_own_reader_and_check_accept_it(
    released: tuple[Path, RunResult, dict[str, Any]],
) -> None:
    folder, result, manifest = released
    state, settings = read_peft_folder(folder)
    assert state.digest() == result.state.digest() and settings == RUN
    assert verify_release(folder) == manifest


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda folder: (folder / MODEL_CARD).write_text("better"), MODEL_CARD),
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json"),
        (lambda folder: (folder / "more.py").write_text("import os"), "more.py"),
        (lambda folder: (folder / MANIFEST).unlink(), MANIFEST),
    ],
)
def test_a_changed_folder_is_not_a_release(
    released: tuple[Path, RunResult, dict[str, Any]],
    tmp_path: Path,
    change: Callable[[Path], Any],
    name: str,
) -> None:
    for path in released[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path)
    with pytest.raises(FoedusError, match=name):
        verify_release(tmp_path)


def test_the_card_names_base_method_scores_and_limits(
    released: tuple[Path, RunResult, dict[str, Any]],
) -> None:
    card = (released[0] / MODEL_CARD).read_text()
    assert card.startswith("---\nbase_model: sentence-transformers/all-MiniLM-L6-v2\n")
    assert "FedSVD (arXiv:2505.12805), rank 2, alpha 4" in card
    assert "| sites per round | 2 to 2 |" in card
    assert "| sites_accuracy |" in card and "num_examples" not in card
    assert "| privacy | no differential privacy |" in card and "can repeat phrases" in card
    assert "off: the coordinator saw each site's update in the clear" in card


def test_the_card_and_the_manifest_tell_the_run_s_privacy(
    released: tuple[Path, RunResult, dict[str, Any]], tmp_path: Path
) -> None:
    run = replace(
        RUN,
        privacy=PrivacySettings(mode="dp", unit="matter", target_epsilon=3.0, delta=1e-6),
        secure_aggregation=SecureAggregationSettings(enabled=True, bits=20),
    )
    manifest = release(tmp_path, released[1], run)
    card = (tmp_path / MODEL_CARD).read_text()
    assert "unit matter, epsilon 3 at delta 1e-06 over all planned rounds" in card
    assert "on: the coordinator saw sums of updates only, the smallest over 2 sites" in card
    assert "in the clear" not in card and "no differential privacy" not in card
    promised = {"mode": "dp", "unit": "matter", "target_epsilon": 3.0, "delta": 1e-6}
    assert manifest["privacy"] == promised
    assert manifest["secure_aggregation"] == {"enabled": True, "bits": 20}
    plain = released[2]
    assert plain["privacy"] == {"mode": "none"} and plain["audit"] is None
    assert plain["secure_aggregation"] == {"enabled": False}


def test_the_card_of_a_personal_method_says_what_is_missing(
    released: tuple[Path, RunResult, dict[str, Any]], tmp_path: Path
) -> None:
    run = small_run("fedsa")
    result = replace(released[1], state=start_state(run))
    release(tmp_path, result, run)
    assert "Factor B stayed at the sites" in (tmp_path / MODEL_CARD).read_text()
    assert "stayed at the sites and" not in (released[0] / MODEL_CARD).read_text()


def test_hidden_leftovers_are_no_part_of_a_release(tmp_path: Path) -> None:
    (tmp_path / ".weights.tmp").write_text("half")
    (tmp_path / "weights").write_text("whole")
    assert list(file_digests(tmp_path)) == ["weights"]


def test_a_plan_ends_with_history_and_a_released_adapter(tmp_path: Path) -> None:
    """The ServerApp's way: settings in, adapter folder out."""
    heard: list[RunResult] = []
    plan = Plan(
        small_run(rounds=1),
        CoordinatorSettings(str(tmp_path)),
        LogObserver(),
        on_finished=heard.append,
    )
    result = run_plan(InProcessGrid(little_app(), 2), plan)
    assert heard == [result]
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["run_id"] == result.run_id and len(history["rounds"]) == 1
    assert history["rounds"][0] == json.loads(json.dumps(result.records[0].to_json()))
    assert verify_release(tmp_path / "adapter")["aggregated_rounds"] == 1


def test_a_run_in_which_nothing_was_learnt_is_not_released(tmp_path: Path) -> None:
    run, folder = little_run(rounds=2, quorum=3), tmp_path / "run"
    result = coordinate(InProcessGrid(little_app(), 2), run, folder)
    assert [record.aggregated for record in result.records] == [False, False]
    with pytest.raises(FoedusError, match="none of 2 rounds"):
        release(folder / "adapter", result, run)
    assert not (folder / "adapter").exists()

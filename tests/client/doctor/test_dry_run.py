"""The dry run shows what would leave, all of it, and does nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.doctor.dry_run import default_run, dry_run
from client.site import Site
from client.trained_update import round_sigma
from client.training.private import PrivateResult, train_private
from models.adapted import adapted_model
from protocol.adapter import subset_layout
from protocol.errors import FoedusError
from protocol.messages import TRAIN_METRICS
from protocol.methods import METHODS, uploaded_factors
from protocol.settings import PrivacySettings
from tests.small_runs import LABELS, open_site, small_run, write_site


def test_every_tensor_and_number_of_a_reply_is_shown(tmp_path: Path) -> None:
    site, run = open_site(tmp_path), small_run("fedit")
    result = dry_run(site, run)
    layout = subset_layout(adapted_model(run).layout, uploaded_factors("fedit", 1))
    assert {t.name: t.shape for t in result.tensors} == layout
    assert result.num_bytes == 4 * sum(int(np.prod(shape)) for shape in layout.values())
    assert set(result.numbers) == TRAIN_METRICS
    assert set(result.words) == {"version", "run_id", "round", "status", "layout_digest"}
    assert result.norm > 0 and result.declined == ""
    assert result.numbers["num_steps"] == 1
    assert result.base_digest == adapted_model(run).base.digest


@pytest.mark.parametrize("method", METHODS)
def test_it_works_for_every_method_and_writes_nothing(tmp_path: Path, method: str) -> None:
    site = open_site(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    dry_run(site, small_run(method))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert not site.state_folder.exists()


def test_by_default_the_site_s_own_labels_are_trained_by_the_repository_s_settings(
    tmp_path: Path,
) -> None:
    run = default_run(open_site(tmp_path))
    assert run.task.labels == LABELS and run.federation.method == "fedsvd"
    assert not run.privacy.enabled


def test_text_without_labels_is_tried_as_text(tmp_path: Path) -> None:
    records = [{"text": f"The supplier shall deliver goods number {n}." * 9} for n in range(4)]
    run = default_run(open_site(tmp_path, records=records))
    assert (run.task.kind, run.model.id) == ("instruct", "novels")


def test_what_a_policy_demands_and_keeps_shows_in_the_dry_run(tmp_path: Path) -> None:
    path = write_site(tmp_path, 1)
    policy = "policy: {minimum_privacy: matter, allowed_metrics: [train_loss]}\n"
    path.write_text(path.read_text() + policy)
    site = Site.from_file(path)
    run = default_run(site)
    assert run.privacy.enabled and run.privacy.unit == "matter"
    result = dry_run(site)
    assert dict(result.numbers) == {}  # Of private training only num_steps may leave at all.
    assert result.declined == "" and not site.ledger.path.exists()


def test_the_noise_of_one_step_is_that_of_a_run_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same epsilon a run of more steps makes each of them noisier."""
    seen: list[float] = []

    def spied(*words: Any, **more: Any) -> PrivateResult:
        seen.append(words[5])
        return train_private(*words, **more)

    monkeypatch.setattr("client.doctor.dry_run.train_private", spied)
    dp = PrivacySettings(mode="dp", unit="example", steps_per_round=50)
    run = replace(small_run("ffa"), privacy=dp)
    dry_run(open_site(tmp_path), run)
    one = replace(run, privacy=replace(dp, steps_per_round=1))
    assert seen == [round_sigma(run)] and seen[0] > round_sigma(one)


def test_a_site_without_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match="got no example"):
        dry_run(open_site(tmp_path, records=[]))

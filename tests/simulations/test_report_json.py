"""report.json: the schema, key by key, and the numbers in it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.errors import FoedusError
from simulations.report.json_report import build_report, read_report, report_bytes
from simulations.report.write import write_report
from tests.simulations.experiments import (
    causal_experiment,
    clause_experiment,
    clause_scores,
    language_scores,
)


def test_the_top_level_has_the_keys_of_schema_1_and_no_others(tmp_path: Path) -> None:
    report = build_report(clause_experiment(tmp_path))
    assert list(report) == [
        "schema", "config", "sites", "rounds", "scores", "bytes", "seconds", "adapter",
    ]  # fmt: skip
    assert report["schema"] == 1
    assert report["sites"] == [
        {"name": "ashford", "train_examples": 6, "test_examples": 4},
        {"name": "birch", "train_examples": 8, "test_examples": 4},
    ]


def test_config_is_nested_as_the_configuration_is(tmp_path: Path) -> None:
    config = build_report(clause_experiment(tmp_path))["config"]
    assert set(config) == {
        "task", "model", "adapter", "training", "federation", "privacy", "secure_aggregation",
        "data", "simulation", "engine", "audit", "output_dir", "resume",
    }  # fmt: skip
    assert config["task"]["labels"] == ["governing law", "notice"]
    assert config["federation"]["rounds"] == 2
    assert config["simulation"]["compare"] == ["centralised", "local", "tfidf"]
    assert config["engine"]["name"] == "in_process"


def test_rounds_say_who_was_asked_and_whose_reply_was_set_aside_and_why(tmp_path: Path) -> None:
    rounds = build_report(clause_experiment(tmp_path))["rounds"]
    assert [r["round"] for r in rounds] == [1, 2]
    assert {"round", "seconds", "cohort", "rejected", "metrics", "site_metrics"} <= set(rounds[0])
    assert rounds[0]["cohort"] == ["ashford", "birch"]
    assert rounds[0]["rejected"] == []
    assert rounds[1]["rejected"] == [{"site": "birch", "reason": "norm_over_bound", "detail": ""}]
    assert rounds[1]["metrics"]["central_accuracy"] == 0.8
    assert rounds[1]["site_metrics"] == {"ashford": {"accuracy": 0.66, "num_examples": 4.0}}


def test_scores_of_each_arm_are_those_on_the_pooled_test(tmp_path: Path) -> None:
    scores = build_report(clause_experiment(tmp_path))["scores"]
    assert scores["centralised"] == {
        "accuracy": 0.85,
        "macro_f1": 0.84,
        "per_site": {
            "ashford": {"accuracy": 0.9, "macro_f1": 0.88},
            "birch": {"accuracy": 0.8, "macro_f1": 0.78},
        },
    }
    assert scores["federated"]["accuracy"] == 0.8
    assert scores["federated"]["per_site"]["birch"] == {"accuracy": 0.78, "macro_f1": 0.77}
    assert "personalised" not in scores["federated"]
    assert scores["local"]["mean"] == pytest.approx({"accuracy": 0.55, "macro_f1": 0.5})
    assert scores["local"]["per_site"] == {
        "ashford": {"accuracy": 0.6, "macro_f1": 0.55},
        "birch": {"accuracy": 0.5, "macro_f1": 0.45},
    }
    assert scores["local"]["own_test"]["ashford"]["accuracy"] == 0.75
    assert scores["tfidf"] == {"accuracy": 0.7, "macro_f1": 0.69}
    assert set(scores) == {"centralised", "federated", "local", "tfidf"}


def test_an_arm_that_was_not_run_is_left_out(tmp_path: Path) -> None:
    scores = build_report(clause_experiment(tmp_path, compare=()))["scores"]
    assert set(scores) == {"federated"}


def test_bytes_are_of_the_round_that_sent_most_per_site_and_of_all_rounds(tmp_path: Path) -> None:
    report = build_report(clause_experiment(tmp_path))
    # Round 2: one site alone sent 1500; round 1: two sites sent 1000 each.
    assert report["bytes"] == {
        "up_per_site_round": 1500,
        "down_per_site_round": 1500,
        "total": 2000 + 1500 + 2 * 3000 + 2 * 1500,
    }


def test_overhead_is_what_rounds_took_beside_training_and_aggregating(tmp_path: Path) -> None:
    report = build_report(clause_experiment(tmp_path))
    assert report["seconds"] == {"train": 12.0, "aggregate": 1.0, "overhead": 7.0, "total": 60.0}


def test_overhead_is_never_negative_where_sites_train_side_by_side(tmp_path: Path) -> None:
    experiment = clause_experiment(tmp_path)
    parallel = tuple(replace(r, train_seconds=30.0) for r in experiment.result.records)
    result = replace(experiment.result, records=parallel)
    seconds = build_report(replace(experiment, result=result))["seconds"]
    assert seconds["train"] == 60.0
    assert seconds["overhead"] == 0.0


def test_the_adapter_is_named_by_its_place_in_the_folder_and_its_digest(tmp_path: Path) -> None:
    report = build_report(clause_experiment(tmp_path))
    weights = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    assert report["adapter"] == {
        "path": "adapter",
        "sha256": hashlib.sha256(weights).hexdigest(),
    }


def test_a_run_without_a_released_adapter_is_refused(tmp_path: Path) -> None:
    experiment = clause_experiment(tmp_path)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(FoedusError, match="Expected the released adapter"):
        build_report(experiment)


def test_a_causal_report_gives_losses_perplexities_and_what_was_forgotten(tmp_path: Path) -> None:
    report = build_report(causal_experiment(tmp_path))
    scores, forgetting = report["scores"], report["forgetting"]
    assert set(scores) == {"centralised", "federated", "local", "base"}
    assert scores["federated"]["loss"] == 2.0
    assert scores["federated"]["perplexity"] == pytest.approx(math.exp(2.0))
    assert scores["base"] == pytest.approx({"loss": 3.0, "perplexity": math.exp(3.0)})
    assert set(forgetting) == {"base", "federated", "centralised", "local"}
    assert forgetting["base"] == pytest.approx({"loss": 2.5, "perplexity": math.exp(2.5)})
    assert forgetting["federated"]["loss"] == 2.75
    assert forgetting["local"] == pytest.approx({"loss": 2.8, "perplexity": math.exp(2.8)})


def test_a_mean_perplexity_is_that_of_the_mean_loss(tmp_path: Path) -> None:
    mean = build_report(causal_experiment(tmp_path))["scores"]["local"]["mean"]
    assert mean == pytest.approx({"loss": 2.3, "perplexity": math.exp(2.3)})


def test_personal_factors_make_federated_the_mean_over_the_sites_own_models(
    tmp_path: Path,
) -> None:
    federated = {
        "ashford": clause_scores(0.92, 0.9),
        "ashford@pooled": clause_scores(0.7, 0.6),
        "birch": clause_scores(0.94, 0.91),
        "birch@pooled": clause_scores(0.8, 0.8),
    }
    experiment = clause_experiment(tmp_path, method="fedsa", federated=dict(federated))
    section = build_report(experiment)["scores"]["federated"]
    assert section["personalised"] is True
    assert section["accuracy"] == pytest.approx(0.75)
    assert section["macro_f1"] == pytest.approx(0.7)
    assert section["per_site"]["ashford"]["accuracy"] == 0.92
    assert section["pooled_per_site"]["birch"] == {"accuracy": 0.8, "macro_f1": 0.8}


def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path) -> None:
    experiment = causal_experiment(tmp_path)
    diverged = {**experiment.federated, "pooled": language_scores(float("nan"))}
    report = build_report(replace(experiment, federated=diverged))
    assert report["scores"]["federated"]["loss"] is None
    assert b"NaN" not in report_bytes(report)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    report = write_report(clause_experiment(tmp_path), tmp_path)
    assert read_report(tmp_path / "report.json") == report
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"schema": 2}', "Expected schema 1"),
        ("[]", "Expected schema 1"),
        ("{", "damaged"),
        ('{"schema": 1, "config": {}}', "sites, rounds"),
    ],
)
def test_a_report_of_another_schema_or_a_damaged_one_is_refused(
    tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(FoedusError, match=problem):
        read_report(path)


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match="no such file"):
        read_report(tmp_path / "report.json")


def test_equal_experiments_give_equal_bytes(tmp_path: Path) -> None:
    experiment = clause_experiment(tmp_path)
    assert report_bytes(build_report(experiment)) == report_bytes(build_report(experiment))
    assert json.loads(report_bytes(build_report(experiment))) == build_report(experiment)

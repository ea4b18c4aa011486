"""Combinations that must not run together are refused, and the documentation lists them all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from protocol.compatibility import RULES, Rule, check_compatibility, compatibility_markdown
from protocol.errors import SettingsError
from protocol.methods import METHODS
from protocol.settings import (
    ModelSettings,
    PrivacySettings,
    RunSettings,
    SecureAggregationSettings,
    TaskSettings,
)
from tests.small_runs import small_run

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
MEDIAN = "flwr.serverapp.strategy.FedMedian"
INSTRUCT = replace(
    small_run(), task=TaskSettings(kind="instruct"), model=ModelSettings(id="novels")
)

PRIVATE = PrivacySettings(mode="dp")
SECURE = SecureAggregationSettings(enabled=True)

# One run that breaks each rule and no other, by the rule's two settings.
BREAKING: dict[tuple[str, str], RunSettings] = {
    ("federation.aggregator", "federation.method=fedsvd or fedsa"): small_run(aggregator=MEDIAN),
    ("federation.aggregator", "federation.server_optimizer"): small_run(
        "ffa", aggregator=MEDIAN, server_optimizer="adam"
    ),
    ("federation.method=rolora", "federation.rounds=1"): small_run("rolora", rounds=1),
    ("federation.quorum", "federation.min_cohort"): small_run(quorum=3, min_cohort=2),
    ("federation.method=fedit or fedsa", "privacy.mode=dp"): replace(
        small_run("fedit"), privacy=PRIVATE
    ),
    ("privacy.mode=dp", "task.packing=true"): replace(
        INSTRUCT, task=TaskSettings(kind="instruct", packing=True), privacy=PRIVATE
    ),
    ("privacy.mode=dp", "federation.weighting=examples"): replace(
        small_run(weighting="examples"), privacy=PRIVATE
    ),
    ("secure_aggregation", "federation.aggregator"): replace(
        small_run("ffa", aggregator=MEDIAN, min_cohort=3, quorum=3), secure_aggregation=SECURE
    ),
    ("secure_aggregation", "federation.min_cohort or quorum below 2"): replace(
        small_run(min_cohort=3), secure_aggregation=SECURE
    ),
    ("model.head_start=labels", "model.pooling=native or task.kind=instruct"): replace(
        small_run(), model=ModelSettings(id="minilm", pooling="native", head_start="labels")
    ),
    ("task.kind=instruct", "model.pooling=mean"): replace(
        INSTRUCT, model=ModelSettings(id="novels", pooling="mean")
    ),
    ("task.kind=classify", "task.packing=true"): replace(
        small_run(), task=TaskSettings(kind="classify", labels=("a", "b"), packing=True)
    ),
    ("task.kind=classify", "fewer than two task.labels"): replace(
        small_run(), task=TaskSettings(kind="classify", labels=("a", "a"))
    ),
    ("task.kind=instruct", "task.labels"): replace(
        INSTRUCT, task=TaskSettings(kind="instruct", labels=("a", "b"))
    ),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.first} {rule.second}")
def test_every_rule_refuses_a_run_that_breaks_it_and_names_both_settings(rule: Rule) -> None:
    run = BREAKING[rule.first, rule.second]
    with pytest.raises(SettingsError) as caught:
        check_compatibility(run, "the test")
    (sentence,) = caught.value.problems
    assert rule.first in sentence and rule.second in sentence
    assert rule.why in sentence and rule.instead in sentence


def broken(run: RunSettings) -> list[str]:
    return [rule.sentence for rule in RULES if rule.broken_by(run)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_with_every_server_optimiser(method: str) -> None:
    for optimizer in ("none", "momentum", "nesterov", "adam"):
        assert broken(small_run(method, server_optimizer=optimizer)) == []
    assert broken(INSTRUCT) == []


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_over_secure_aggregation_with_and_without_privacy(method: str) -> None:
    run = replace(small_run(method, min_cohort=3, quorum=3), secure_aggregation=SECURE)
    assert broken(run) == []
    private = replace(PRIVATE, acknowledge_both_factors=method in {"fedit", "fedsa"})
    assert broken(replace(run, privacy=private)) == []


def test_all_broken_rules_are_said_at_once() -> None:
    run = replace(
        small_run(aggregator=MEDIAN, server_optimizer="adam", quorum=5),
        task=TaskSettings(kind="classify", labels=("a",), packing=True),
    )
    with pytest.raises(SettingsError) as caught:
        check_compatibility(run, "the test")
    assert len(caught.value.problems) == 5


def test_the_documentation_is_printed_from_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.endswith(compatibility_markdown()), (
        f"{DOCUMENT.name} is not what the table says. Write it anew: python -c "
        '"from pathlib import Path; from protocol.compatibility import compatibility_markdown as m;'
        " p = Path('docs/compatibility.md'); head = p.read_text().split('| method')[0];"
        ' p.write_text(head + m())"'
    )


def test_the_table_shows_every_method_and_every_rule() -> None:
    table = compatibility_markdown()
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == len(METHODS) + len(RULES) + 4
    assert len({row.count("|") for row in rows[: len(METHODS) + 2]}) == 1
    assert "| `fedsvd` (FedSVD, arXiv:2505.12805) | B, head | B, head | nothing | yes |" in rows
    assert "| `fedsa` (FedSA-LoRA, arXiv:2410.01463) | A, B, head | A, head | B | no |" in rows
    (rolora,) = [row for row in rows if row.startswith("| `rolora`")]
    assert "| B, head / A, head | B, head / A, head | nothing |" in rolora

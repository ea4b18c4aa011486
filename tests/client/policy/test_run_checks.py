"""What a run must offer before a site takes part: everything it lacks is said at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.policy import PolicySettings, check_run_policy
from client.privacy.composition import Budget
from client.site import Site
from protocol.errors import Refusal, SettingsError
from protocol.messages import Request
from protocol.reasons import RefusalReason
from protocol.settings import PrivacySettings, RunSettings, SecureAggregationSettings
from tests.little_sites import little_run, little_state
from tests.small_runs import RUN_ID, write_site

STRENGTH = {"none": 0, "example": 1, "matter": 2}
RUN = replace(
    little_run("fedsvd"), privacy=PrivacySettings(mode="dp", target_epsilon=4.0, steps_per_round=6)
)
RUN = replace(RUN, adapter=replace(RUN.adapter, targets=("query", "value")))
PLAIN = replace(RUN, privacy=PrivacySettings())
PLAIN = replace(PLAIN, training=replace(PLAIN.training, local_epochs=3, max_steps=20))
BASE = little_state(RUN).base_digest
BATCH_TOKENS = PLAIN.training.batch_size * PLAIN.model.max_tokens


def request(run: RunSettings) -> Request:
    return Request("train", RUN_ID, 1, run, little_state(run))


def offered(unit: str, **privacy: Any) -> Request:
    if unit == "none":
        return request(PLAIN)
    return request(replace(RUN, privacy=PrivacySettings(mode="dp", unit=unit, **privacy)))


def declined(policy: PolicySettings, asked: Request) -> str:
    """The site's own words; empty where it takes part."""
    try:
        check_run_policy(policy, asked)
    except Refusal as refusal:
        assert refusal.code == RefusalReason.POLICY
        return str(refusal)
    return ""


@pytest.mark.parametrize(
    ("policy", "run", "word"),
    [
        ({"allowed_tasks": ("instruct",)}, RUN, "allowed_tasks: one of instruct"),
        ({"allowed_methods": ("ffa", "fedit")}, RUN, "federation.method=fedsvd"),
        ({"maximum_rank": 2}, RUN, "maximum_rank: 2 at most, got adapter.rank=3"),
        ({"allowed_targets": ("query",)}, RUN, r"adapter.targets=['value']"),
        ({"base_digests": ("ab" * 32,)}, RUN, f"got {BASE[:12]}"),
        ({"maximum_local_epochs": 2}, PLAIN, "training.local_epochs=3"),
        ({"maximum_steps_per_round": 19}, PLAIN, "training.max_steps=20"),
        ({"maximum_steps_per_round": 5}, RUN, "privacy.steps_per_round=6"),
        ({"maximum_batch_tokens": BATCH_TOKENS - 1}, PLAIN, "of model.max_tokens="),
        ({"maximum_epsilon": 3.9}, RUN, "privacy.target_epsilon=4"),
        ({"maximum_epsilon": 99.0}, PLAIN, "privacy.mode=none"),
        ({"maximum_delta": 1e-6}, RUN, "privacy.delta=1e-05"),
        ({"maximum_delta": 1e-2}, PLAIN, "privacy.mode=none"),
        ({"require_secure_aggregation": True}, RUN, "secure_aggregation.enabled=false"),
        ({"minimum_cohort": 2}, RUN, "secure_aggregation.enabled=false"),
    ],
)
def test_a_run_that_offers_less_is_declined_in_words_that_name_both(
    policy: dict[str, Any], run: RunSettings, word: str
) -> None:
    assert word in declined(PolicySettings(**policy), request(run))


@pytest.mark.parametrize(
    ("policy", "run"),
    [
        ({"allowed_tasks": ("instruct", "classify")}, RUN),
        ({"allowed_methods": ("fedsvd",)}, RUN),
        ({"maximum_rank": 3}, RUN),
        ({"allowed_targets": ("key", "query", "value")}, RUN),
        ({"base_digests": ("ab" * 32, BASE)}, RUN),
        ({"maximum_local_epochs": 3}, PLAIN),
        ({"maximum_local_epochs": 1}, RUN),  # Private runs count steps, not passes.
        ({"maximum_steps_per_round": 20}, PLAIN),
        ({"maximum_steps_per_round": 6}, RUN),
        ({"maximum_batch_tokens": BATCH_TOKENS}, PLAIN),
        ({"maximum_epsilon": 4.0, "maximum_delta": 1e-5}, RUN),
        ({"minimum_cohort": 1}, RUN),
        ({}, PLAIN),
    ],
)
def test_a_run_that_offers_enough_passes(policy: dict[str, Any], run: RunSettings) -> None:
    assert declined(PolicySettings(**policy), request(run)) == ""


def test_a_run_without_a_bound_on_its_steps_is_declined_where_one_is_demanded() -> None:
    unbounded = replace(PLAIN, training=replace(PLAIN.training, max_steps=0))
    policy = PolicySettings(maximum_steps_per_round=1000)
    assert "training.max_steps=0" in declined(policy, request(unbounded))


def test_steps_of_many_batches_count_as_those_batches() -> None:
    def accumulated(batches: int) -> Request:
        training = replace(PLAIN.training, max_steps=2, gradient_accumulation=batches)
        return request(replace(PLAIN, training=training))

    policy = PolicySettings(maximum_steps_per_round=20)
    assert declined(policy, accumulated(10)) == ""
    text = declined(policy, accumulated(11))
    assert "maximum_steps_per_round: 20 batches at most" in text
    assert "training.gradient_accumulation=11" in text


@pytest.mark.parametrize("unit", ["matter", "example"])
def test_a_matter_larger_than_a_batch_counts_as_several_batches(unit: str) -> None:
    larger = PLAIN.training.batch_size + 1
    asked = offered(unit, examples_per_matter=larger)
    assert declined(PolicySettings(maximum_batch_tokens=BATCH_TOKENS), asked) == ""
    assert declined(PolicySettings(maximum_batch_tokens=BATCH_TOKENS - 1), asked)


def test_a_run_that_names_no_targets_is_declined_where_targets_are_listed() -> None:
    nameless = replace(RUN, adapter=replace(RUN.adapter, targets=()))
    assert "allowed_targets" in declined(
        PolicySettings(allowed_targets=("query",)), request(nameless)
    )


def test_masked_updates_satisfy_who_demands_them() -> None:
    masked = replace(RUN, secure_aggregation=SecureAggregationSettings(enabled=True))
    policy = PolicySettings(require_secure_aggregation=True, minimum_cohort=5)
    assert declined(policy, request(masked)) == ""


def test_everything_that_is_missing_is_said_at_once() -> None:
    policy = PolicySettings(
        allowed_methods=("ffa",), maximum_rank=1, minimum_privacy="matter", minimum_cohort=3
    )
    text = declined(policy, request(PLAIN))
    assert text.count("\n  - ") == 4
    for key in ("allowed_methods", "maximum_rank", "minimum_privacy", "minimum_cohort"):
        assert key in text


@pytest.mark.parametrize("unit", STRENGTH)
@pytest.mark.parametrize("minimum", STRENGTH)
@pytest.mark.parametrize("budget_unit", STRENGTH)
def test_a_run_passes_only_where_its_noise_hides_as_much_as_is_demanded(
    unit: str, minimum: str, budget_unit: str
) -> None:
    policy = PolicySettings(minimum_privacy=minimum)
    if budget_unit != "none":
        policy = replace(policy, budget_epsilon=4.0, budget_unit=budget_unit)
    enough = STRENGTH[unit] >= max(STRENGTH[minimum], STRENGTH[budget_unit])
    text = declined(policy, offered(unit))
    assert (text == "") is enough
    assert enough or "Run with privacy.mode=dp" in text


def test_a_budget_bounds_the_delta_of_a_run() -> None:
    policy = PolicySettings(budget_epsilon=4.0, budget_delta=1e-6)
    assert declined(policy, offered("matter", delta=1e-6)) == ""
    assert "budget_delta: 1e-06 at most" in declined(policy, offered("matter", delta=2e-6))
    assert declined(PolicySettings(budget_delta=1e-6), offered("matter")) == ""


def test_without_a_policy_every_run_passes_and_nothing_is_limited() -> None:
    for unit in STRENGTH:
        assert declined(PolicySettings(), offered(unit)) == ""
    assert PolicySettings().budget is None


def test_a_site_file_sets_the_budget_and_wrong_words_are_refused(tmp_path: Path) -> None:
    path = write_site(tmp_path, 1)
    plain = path.read_text()
    path.write_text(f"{plain}policy: {{budget_epsilon: 3, budget_unit: example}}\n")
    site = Site.from_file(path)
    assert site.settings.policy.budget == Budget("example", 3.0, 1e-5)
    assert site.ledger.path == site.state_folder / "privacy.sqlite3"
    assert site.ledger is site.ledger
    path.write_text(f"{plain}policy: {{budget_epsilon: -1, budget_unit: firm, budget: 3}}\n")
    with pytest.raises(SettingsError) as caught:
        Site.from_file(path)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        ("hours: ['Mon-Fri 19:00-07:00', 'always']", r"policy.hours[1]: expected days and times"),
        ("base_digests: [ab]", r"policy.base_digests[0]: expected 64 hex digits"),
        ("allowed_metrics: [train_loss]", "policy.allowed_metrics: without num_examples no reply"),
        ("allowed_metrics: [names]", r"policy.allowed_metrics[0]: expected one of accuracy"),
        ("allowed_methods: [fedavg]", r"policy.allowed_methods[0]: expected one of fedsvd"),
        ("consent: maybe", "policy.consent: expected one of auto, ask"),
        ("consents: ask", "policy.consents: unknown setting"),
    ],
)
def test_a_policy_that_could_be_misread_is_refused_when_it_is_loaded(
    tmp_path: Path, policy: str, problem: str
) -> None:
    path = write_site(tmp_path, 1)
    path.write_text(f"{path.read_text()}policy:\n  {policy}\n")
    with pytest.raises(SettingsError) as caught:
        Site.from_file(path)
    assert len(caught.value.problems) == 1 and problem in caught.value.problems[0]


def test_the_number_of_examples_may_be_kept_where_no_run_needs_it(tmp_path: Path) -> None:
    path = write_site(tmp_path, 1)
    policy = "policy: {allowed_metrics: [num_steps], minimum_privacy: example}\n"
    path.write_text(path.read_text() + policy)
    assert Site.from_file(path).settings.policy.allowed_metrics == ("num_steps",)

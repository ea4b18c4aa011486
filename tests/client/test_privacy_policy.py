"""What a site demands of a run's privacy before its data is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from client.policy import PolicySettings, check_privacy_policy
from client.privacy.composition import Budget
from client.site import Site
from protocol.errors import Refusal, SettingsError
from protocol.reasons import RefusalReason
from protocol.settings import PrivacySettings
from tests.small_runs import write_site

STRENGTH = {"none": 0, "example": 1, "matter": 2}


def offered(unit: str) -> PrivacySettings:
    if unit == "none":
        return PrivacySettings(mode="none")
    return PrivacySettings(mode="dp", unit=unit)


@pytest.mark.parametrize("unit", STRENGTH)
@pytest.mark.parametrize("minimum", STRENGTH)
@pytest.mark.parametrize("budget_unit", STRENGTH)
def test_a_run_passes_only_where_its_noise_hides_as_much_as_is_demanded(
    unit: str, minimum: str, budget_unit: str
) -> None:
    policy = PolicySettings(minimum_privacy=minimum)
    if budget_unit != "none":
        policy = replace(policy, budget_epsilon=4.0, budget_unit=budget_unit)
    if STRENGTH[unit] >= max(STRENGTH[minimum], STRENGTH[budget_unit]):
        check_privacy_policy(policy, offered(unit))
        return
    with pytest.raises(Refusal, match=r"Run with privacy\.mode=dp") as refused:
        check_privacy_policy(policy, offered(unit))
    assert refused.value.code == RefusalReason.POLICY


def test_a_budget_bounds_the_delta_of_a_run() -> None:
    policy = PolicySettings(budget_epsilon=4.0, budget_delta=1e-6)
    check_privacy_policy(policy, replace(offered("matter"), delta=1e-6))
    with pytest.raises(Refusal, match="delta of 1e-06 at most") as refused:
        check_privacy_policy(policy, replace(offered("matter"), delta=2e-6))
    assert refused.value.code == RefusalReason.POLICY
    check_privacy_policy(PolicySettings(budget_delta=1e-6), offered("matter"))


def test_without_a_policy_every_run_passes_and_nothing_is_limited() -> None:
    for unit in STRENGTH:
        check_privacy_policy(PolicySettings(), offered(unit))
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

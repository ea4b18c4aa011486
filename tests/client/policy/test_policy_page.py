"""docs/policy.md names every key and reason there is, and its example is a policy."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import yaml

from client.policy import PolicySettings
from protocol.codec import decode
from protocol.reasons import RefusalReason

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "policy.md").read_text(encoding="utf-8")


def test_every_key_of_the_policy_is_in_the_example_and_in_the_table() -> None:
    (example,) = re.findall(r"```yaml\npolicy:\n(.*?)```", PAGE, re.DOTALL)
    values = yaml.safe_load("policy:\n" + example)["policy"]
    values["base_digests"] = ["ab" * 32]
    decode(PolicySettings, values, "the page")
    keys = {field.name for field in dataclasses.fields(PolicySettings)}
    assert set(values) == keys
    table = PAGE.partition("| key | stops |")[2].partition("\n\n")[0]
    assert {key for key in keys if f"`{key}`" in table} | {"consent_wait_seconds"} == keys


def test_every_reason_for_which_a_site_declines_is_explained() -> None:
    site_page = (DOCS / "site.md").read_text(encoding="utf-8")
    table = site_page.partition("## When it declines")[2].partition("\n## ")[0]
    assert {reason for reason in RefusalReason if f"`{reason}`" not in table} == set()
    own = {"policy", "outside_hours", "consent_pending", "consent_denied", "time_limit"}
    assert all(f"`{reason}`" in PAGE.partition("## Reason codes")[2] for reason in own)

"""docs/policy.md names every key and reason there is, and its example is a policy."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import yaml

from client.policy import PolicySettings
from protocol.codec import decode
from protocol.reasons import RefusalReason

PAGE = (Path(__file__).parents[3] / "docs" / "policy.md").read_text(encoding="utf-8")


def test_every_key_of_the_policy_is_in_the_example_and_in_the_table() -> None:
    (example,) = re.findall(r"```yaml\npolicy:\n(.*?)```", PAGE, re.DOTALL)
    values = yaml.safe_load("policy:\n" + example)["policy"]
    values["base_digests"] = ["ab" * 32]
    decode(PolicySettings, values, "the page")
    keys = {field.name for field in dataclasses.fields(PolicySettings)}
    assert set(values) == keys
    table = PAGE.partition("| key | stops |")[2].partition("\n\n")[0]
    assert {key for key in keys if f"`{key}`" in table} | {"consent_wait_seconds"} == keys


def test_every_reason_that_a_site_owner_can_act_on_is_explained() -> None:
    table = PAGE.partition("## Reason codes")[2]
    silent = {  # Faults of a message or of foedus itself: their text is in the site's log.
        "malformed_request", "wrong_version", "wrong_layout", "no_data", "missing_personal_state",
        "egress", "internal",
    }  # fmt: skip
    assert {reason for reason in RefusalReason if f"`{reason}`" not in table} == silent

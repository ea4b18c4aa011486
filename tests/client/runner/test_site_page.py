"""docs/site.md names what a site can say and everything that can be set."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from client.runner.node_state import NodeState
from client.site import SiteSettings
from protocol.reasons import RefusalReason

PAGE = (Path(__file__).parents[3] / "docs" / "site.md").read_text(encoding="utf-8")


def test_every_reason_to_decline_and_what_to_do_is_on_the_page() -> None:
    table = PAGE.partition("## When it declines")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| .+ \|$", table, re.MULTILINE)
    named = [reason for row in rows for reason in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(RefusalReason)


def test_every_state_of_the_node_is_on_the_page() -> None:
    assert all(f"`{state}`" in PAGE for state in NodeState)


def test_the_example_of_site_yaml_has_every_setting() -> None:
    example = PAGE.partition("```yaml\n")[2].partition("```")[0]
    named = set(re.findall(r"^(\w+):", example, re.MULTILINE))
    assert named == {field.name for field in fields(SiteSettings)}

"""What a firm demands holds against a coordinator in another process: `foedus server up`, three
`foedus client up`, and people who decide by `foedus client approve`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.deployment import BIN, SETTINGS, Deployment, SiteAtWork, environment, foedus
from tests.faults.processes import wait_for

POLICIES: tuple[Mapping[str, Any], ...] = (
    {"maximum_rank": 1},
    # As long as the round's deadline lets it.
    {"consent": "ask"},
    {"consent": "ask", "consent_wait_seconds": 0},
)
SETTINGS_OF_BOTH = (
    *SETTINGS,
    "federation.min_cohort=3",
    "federation.quorum=1",
    "federation.deadline_seconds=600",
)
# What the first site's own log says of the first run.
DEMAND = "maximum_rank: 1 at most, got adapter.rank=2"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    try:
        for site, policy in zip(made.sites, POLICIES, strict=True):
            values = yaml.safe_load(site.config.read_text(encoding="utf-8"))
            site.config.write_text(yaml.safe_dump({**values, "policy": policy}), encoding="utf-8")
        made.make_whole()
        yield made
    finally:
        made.end()


def start(deployment: Deployment, name: str, *overrides: str) -> None:
    words = (*SETTINGS_OF_BOTH, *overrides, "--consortium", deployment.coordinator.folder.path)
    foedus("server", "run", *words, "--name", name, "--detach")


def rounds_of(deployment: Deployment, name: str) -> list[dict[str, Any]]:
    """What `foedus server history` tells once the run has finished."""
    words = (name, "--consortium", deployment.coordinator.folder.path)
    foedus("server", "status", *words, "--follow")
    history: dict[str, Any] = json.loads(foedus("server", "history", *words, "--json"))
    return list(history["rounds"])


def asked(site: SiteAtWork) -> dict[str, str]:
    """Run id to decision, as the people at the site see it."""
    told = json.loads(foedus("client", "approve", "--config", site.config, "--json"))
    return {run["run_id"]: run["decision"] for run in told["runs"]}


def num_asked(site: SiteAtWork) -> int:
    """Runs that people have been asked about."""
    return len(list((site.folder / "state" / "consent").glob("*.json")))


def answered(site: SiteAtWork) -> list[tuple[int, str]]:
    """Round and status of every reply to train that has left."""
    path = site.folder / "state" / "receipts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    # The last one may still be written.
    receipts = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(r["round"], r["status"]) for r in receipts if r["kind"] == "train"]


def aside(site: SiteAtWork, code: str) -> dict[str, str]:
    """All that a history has of a site that declined."""
    return {"site": site.name, "reason": "refused_by_site", "detail": code}


def in_order(rejected: list[dict[str, str]]) -> list[dict[str, str]]:
    """Replies come in any order."""
    return sorted(rejected, key=lambda entry: entry["site"])


def test_a_policy_and_people_decide_at_the_site_and_the_coordinator_learns_the_code_alone(
    deployment: Deployment,
) -> None:
    strict, patient, hasty = deployment.sites
    start(deployment, "first", "federation.rounds=2")

    wait_for("a refusal by policy", lambda: answered(strict) == [(1, "policy")])
    wait_for("a refusal for want of consent", lambda: answered(hasty) == [(1, "consent_pending")])
    wait_for("a question to people", lambda: num_asked(patient) == 1)
    ((run_id, decision),) = asked(patient).items()
    assert decision == "pending" and answered(patient) == []
    foedus("client", "approve", run_id, "--deny", "--yes", "--config", hasty.config)
    foedus("client", "approve", run_id, "--yes", "--config", patient.config)

    first, second = rounds_of(deployment, "first")
    for record in (first, second):
        assert sorted(record["cohort"]) == [site.name for site in deployment.sites]
        assert record["admitted"] == [patient.name] and record["aggregated"]
    assert in_order(first["rejected"]) == [aside(strict, "policy"), aside(hasty, "consent_pending")]
    assert in_order(second["rejected"]) == [aside(strict, "policy"), aside(hasty, "consent_denied")]
    assert DEMAND in log_of(strict)
    expect_unknown_to_the_coordinator(deployment, DEMAND, str(strict.folder))

    # No setting of a run speaks of a site's policy.
    for override in ("policy.consent=auto", "+policy.maximum_rank=8"):
        refused = refused_run(deployment, override)
        assert "policy" in refused and "Traceback" not in refused
    # Another run is asked for anew, also where it was made to fit the one policy.
    start(deployment, "second", "federation.rounds=1", "adapter.rank=1")
    wait_for("a question to people", lambda: num_asked(patient) == 2)
    decisions = asked(patient)
    assert decisions.pop(run_id) == "approved"
    ((another, decision),) = decisions.items()
    assert decision == "pending"
    foedus("client", "approve", another, "--deny", "--yes", "--config", patient.config)
    (record,) = rounds_of(deployment, "second")
    assert record["admitted"] == [strict.name]
    codes = [aside(patient, "consent_denied"), aside(hasty, "consent_pending")]
    assert in_order(record["rejected"]) == codes


def refused_run(deployment: Deployment, override: str) -> str:
    """What the operator is told of a run that does not start."""
    words = (*SETTINGS_OF_BOTH, override, "--consortium", str(deployment.coordinator.folder.path))
    ended = subprocess.run(
        [str(BIN / "foedus"), "server", "run", *words, "--detach"],
        env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stdout
    return ended.stderr


def log_of(site: SiteAtWork) -> str:
    return (site.folder / "state" / "up.log").read_text(encoding="utf-8")


def expect_unknown_to_the_coordinator(deployment: Deployment, *details: str) -> None:
    """In nothing that it keeps, its database and logs included."""
    folder = deployment.coordinator.folder.path
    kept = [deployment.coordinator.log, *(path for path in folder.rglob("*") if path.is_file())]
    assert deployment.coordinator.folder.database in kept
    for path in kept:
        content = path.read_bytes()
        assert not any(detail.encode() in content for detail in details), path

"""What the site holds: contracts, policy, ledger, receipts, and the process that serves it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime

from client.consent import ConsentBook, Decision
from client.countersigned import KeptCountersignatures
from client.doctor.findings import Check, Finding, fail, ok, warn
from client.inventory import take_inventory
from client.policy.hours import within_hours
from client.runner.supervisor import UP_STATE, is_up
from client.site import Site
from protocol.codec import encode


def holdings_checks(site: Site) -> tuple[Check, ...]:
    """All of them; none writes anything."""
    return (
        Check("contracts", lambda: _contracts(site)),
        Check("policy", lambda: _policy(site)),
        Check("consent", lambda: _consent(site)),
        Check("ledger", lambda: _ledger(site)),
        Check("receipts", lambda: _receipts(site)),
        Check("service", lambda: _service(site)),
    )


def _contracts(site: Site) -> Iterator[Finding]:
    folder = site.contracts_folder
    if not folder.is_dir():
        yield fail("contracts", f"no folder at {folder}", "Name it as `contracts` in site.yaml.")
        return
    inventory = take_inventory(site)
    counts = [
        f"{task.train} examples for {kind} ({task.held_out} held out, {len(task.matters)} matters)"
        for kind, task in inventory.tasks.items()
    ]
    text = "; ".join(counts)
    if not any(task.train for task in inventory.tasks.values()):
        yield fail("contracts", text, "`foedus client data` says what was read and left out.")
    elif inventory.unreadable:
        broken = f"{len(inventory.unreadable)} files cannot be read"
        yield warn("contracts", f"{text}; {broken}", "`foedus client data` names them.")
    else:
        yield ok("contracts", text)
    if os.access(folder, os.W_OK):
        text = f"this account may change what lies in {folder}"
        yield warn("contracts", text, "Mount it read-only for the site: foedus only reads.")
    else:
        yield ok("contracts", f"{folder} is read-only here")


def _policy(site: Site) -> Iterator[Finding]:
    policy = site.settings.policy
    values, unset = encode(policy), encode(type(policy)())
    said = [f"{name}={value}" for name, value in values.items() if value != unset[name]]
    if said:
        yield ok("policy", ", ".join(said))
    else:
        advice = "docs/policy.md says what each key stops."
        yield warn("policy", "none: this site takes part in anything", advice)
    if not within_hours(policy.hours, datetime.now()):
        text = f"outside of {', '.join(policy.hours)} now"
        yield warn("policy", text, "Requests are declined until then.")


def _consent(site: Site) -> Iterator[Finding]:
    runs = ConsentBook(site.state_folder).all()
    waiting = [run_id[:8] for run_id, form in runs.items() if form.decision is Decision.PENDING]
    if waiting:
        text = f"{len(waiting)} runs wait: {', '.join(waiting)}"
        yield warn("consent", text, "Decide by `foedus client approve`.")
    else:
        yield ok("consent", f"policy.consent={site.settings.policy.consent}, no run waits")


def _ledger(site: Site) -> Iterator[Finding]:
    rows = site.ledger.verify()
    yield ok("ledger", f"{rows} rounds, whole; the receipts vouch for them")


def _receipts(site: Site) -> Iterator[Finding]:
    number = sum(1 for _ in site.receipts.verify())
    if site.invitation_file is None:
        yield ok("receipts", f"{number}, the chain is whole")
        return
    standing = KeptCountersignatures(site).standing()
    if standing.problems:
        advice = "Restore state/receipts.jsonl; `foedus client log --verify` says more."
        yield fail("receipts", " ".join(standing.problems), advice)
        return
    signed = standing.left - len(standing.not_countersigned)
    yield ok("receipts", f"{number}, the chain is whole; {signed} of {standing.left} countersigned")


def _service(site: Site) -> Iterator[Finding]:
    if not is_up(site.state_folder):
        yield warn("service", "foedus client up is not running", "Start it to take part.")
        return
    try:
        told = json.loads((site.state_folder / UP_STATE).read_text(encoding="utf-8"))
        state = str(told["node_state"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        yield warn("service", f"up, with no {UP_STATE} yet", "See state/up.log.")
        return
    if problem := told.get("problem"):
        yield warn("service", f"up, {state}: {problem}", "See state/up.log.")
    else:
        yield ok("service", f"up, {state}")

"""What must hold after every fault, whatever it was."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing

from client.receipts import Receipt
from protocol.reply_facts import phase_kind
from protocol.secure_aggregation.wire import Phase
from server.receipts.received import FILE, ReceivedLog, ReceivedReply
from server.release import verify_release
from server.runs.folder import RunStatus
from tests.faults.deployment import SiteAtWork
from tests.faults.scene import Outcome, Scene

_TRAINED = {"train", phase_kind(Phase.MASKED_INPUT)}


def expect_survived(scene: Scene) -> Outcome:
    """All checks of a run that is over; returns what was measured. Errors: AssertionError."""
    record = scene.run.read()
    assert record.status is RunStatus.FINISHED, f"{record.status}: {record.message}"
    verify_release(scene.run.adapter)
    outcome = scene.outcome()
    expect_right_cohorts(scene)
    for site in scene.sites:
        expect_sound_budget(scene, site)
        if site is not scene.victim or scene.scenario.honest:
            expect_both_sides_agree(scene, site)
    for said in scene.scenario.said:
        assert scene.was_said(said), f"{said.text!r} was not said at the {said.where}"
    return outcome


def expect_right_cohorts(scene: Scene) -> None:
    """Every round is there once, in order, with the sites it should have."""
    scenario, records = scene.scenario, scene.records()
    assert [record.round for record in records] == list(range(1, scenario.rounds + 1))
    for record in records:
        right = scenario.cohorts.get(record.round, {len(scene.sites)})
        assert len(record.admitted) in right, f"round {record.round}: {record}"
        lost = record.round in scenario.lost_rounds
        assert record.aggregated or lost, f"round {record.round} has no sum: {record}"


def expect_sound_budget(scene: Scene, site: SiteAtWork) -> None:
    """No round was charged twice that was trained for once, none went uncharged, and every charge
    is in the receipts too."""
    run_id = _run_id(scene)
    charged = _charges(site, run_id)
    twice = {round_ for round_, times in charged.items() if times > 1}
    assert twice <= scene.scenario.redone_rounds, f"{site.name} was charged twice: {charged}"
    took_part = {r.round for r in scene.records() if site.name in r.admitted}
    assert took_part <= set(charged), f"{site.name} took part in {took_part}, paid for {charged}"
    opened = site.open()
    opened.ledger.verify()
    told = Counter(r.round for r in scene.receipts(site) if r.kind == "ledger")
    assert told == charged, f"{site.name}: receipts of {told}, charges of {charged}"


def expect_both_sides_agree(scene: Scene, site: SiteAtWork) -> None:
    """The site's receipts hold; what the coordinator says it received of the site has a receipt
    there, and every update that was used is among it."""
    sent = Counter(_sent(receipt) for receipt in site.open().receipts.verify())
    received = [reply for reply in _received(scene, site) if reply.digest]
    strange = Counter(_arrived(reply) for reply in received) - sent
    assert not strange, f"{site.name} has no receipt of {strange}"
    used = {r.round for r in received if r.admitted and r.kind in _TRAINED}
    took_part = {r.round for r in scene.records() if site.name in r.admitted}
    assert took_part <= used, f"{site.name} took part in {took_part}, received were {used}"


def expect_used_once(scene: Scene) -> None:
    """Of every round one update of each site was used, and the round was tried once."""
    assert all(record.secure_attempts == 1 for record in scene.records())
    once = dict.fromkeys(range(1, scene.scenario.rounds + 1), 1)
    for site in scene.sites:
        used = Counter(r.round for r in _received(scene, site) if r.admitted and r.kind in _TRAINED)
        assert used == once, f"{site.name}: {used}"


def _run_id(scene: Scene) -> str:
    """Of the run as the sites know it."""
    (run_id,) = {reply.run_id for reply, _ in ReceivedLog(scene.run.path / FILE).verify()}
    return run_id


def _charges(site: SiteAtWork, run_id: str) -> Counter[int]:
    path = site.open().ledger.path
    if not path.exists():
        return Counter()
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT round FROM rounds WHERE run_id = ?", (run_id,))
        return Counter(round_ for (round_,) in rows)


def _received(scene: Scene, site: SiteAtWork) -> list[ReceivedReply]:
    node_id = scene.deployment.node_id(site)
    replies = [reply for reply, _ in ReceivedLog(scene.run.path / FILE).verify()]
    return [reply for reply in replies if reply.node_id == node_id]


def _sent(receipt: Receipt) -> tuple[str, str, int, str]:
    return receipt.kind, receipt.run_id, receipt.round, receipt.digest


def _arrived(reply: ReceivedReply) -> tuple[str, str, int, str]:
    return reply.kind, reply.run_id, reply.round, reply.digest

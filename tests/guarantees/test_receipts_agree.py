"""Receipts of both sides over a real run: all that left and came is signed twice, and what either
side cuts, changes or hides afterwards shows at the other."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flwr.app import Context, Message
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from typer.testing import CliRunner

from client.app import make_app
from client.cli import app
from client.countersigned import KeptCountersignatures, ReceiptExchange
from client.enrolment.keys import load_supernode_key, save_supernode_key
from client.receipts import Receipt
from client.site import Site
from protocol.consortium.countersigned_file import CountersignedFile
from protocol.consortium.identity import Identity, load_identity, save_identity
from protocol.errors import FoedusError
from protocol.files import write_atomically
from protocol.settings import RunSettings, SecureAggregationSettings
from server.checkpoint import CheckpointStore
from server.consortium.folder import ConsortiumFolder
from server.coordinator import Coordinator
from server.observer import LogObserver
from server.receipts.received import ReceivedReply
from simulations.engines.in_process import InProcessGrid
from strategies.registry import build_strategy
from tests.guarantees.member_api import member_api
from tests.protocol.consortium.leagues import ANNE, BELL, COLE, Firm
from tests.server.receipts.desks import found, log_of, set_members
from tests.small_runs import small_run, start_state, write_site

FIRMS = (ANNE, BELL, COLE)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def site_of(folder: Path, consortium: ConsortiumFolder, firm: Firm, number: int) -> Site:
    """A member's site as `foedus client join` and the roster's exchange leave it."""
    path = write_site(folder, number)
    save_identity(folder / "identity.pem", firm.identity)
    write_atomically(folder / "consortium.json", consortium.invitation.read_bytes())
    write_atomically(folder / "roster.jsonl", consortium.roster.read_bytes())
    # The second firm takes part in no run of this method, and says so.
    policy = "policy: {allowed_methods: [fedit]}\n" if number == 2 else ""
    keys = "identity: identity.pem\nroster: roster.jsonl\nconsortium: consortium.json\n"
    path.write_text(path.read_text() + keys + policy)
    return Site.from_file(path)


class WireGrid(InProcessGrid):
    """What is pulled has been bytes in between, as between processes."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            reply.content = recorddict_from_proto(recorddict_to_proto(reply.content))
        return replies


class Consortium:
    """Three firms, each a node in one process, and their coordinator's folder."""

    def __init__(self, path: Path) -> None:
        self.folder = found(path / "consortium", FIRMS, f"127.0.0.1:{free_port()}")
        nodes = {one.identity.member_id: node for node, one in enumerate(FIRMS, start=1)}
        write_atomically(self.folder.nodes, json.dumps(nodes).encode())
        self.path = path
        self.sites = {
            node: site_of(path / f"site-{node}", self.folder, one, node)
            for node, one in enumerate(FIRMS, start=1)
        }

    def run(self, settings: RunSettings, name: str = "first") -> None:
        """A whole run by the real coordinator and the real ClientApp."""
        log = log_of(self.folder, name)

        def find_site(context: Context) -> Site:
            return self.sites[context.node_id]

        coordinator = Coordinator(
            WireGrid(make_app(find_site), len(FIRMS)),
            settings,
            build_strategy(settings.federation),
            CheckpointStore(log.path.parent / "checkpoints", settings),
            LogObserver(),
            roster=self.folder.chain()[-1].roster(),
            received=log,
        )
        coordinator.run(start_state(settings), resume=False)

    def received(self, node: int) -> list[ReceivedReply]:
        return [reply for reply, _ in log_of(self.folder).verify() if reply.node_id == node]

    def config(self, node: int) -> str:
        return str(self.path / f"site-{node}" / "site.yaml")


def plain_run(**federation: Any) -> RunSettings:
    return small_run("ffa", **{"rounds": 2, "min_cohort": 3, "quorum": 1, **federation})


def left(site: Site) -> list[Receipt]:
    return [receipt for receipt in site.receipts.verify() if receipt.kind != "ledger"]


def log_command(config: str, *words: str) -> Result:
    return CliRunner().invoke(app, ["log", "--config", config, *words])


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    made = Consortium(tmp_path)
    made.run(plain_run())
    return made


@pytest.fixture
def online(consortium: Consortium) -> Iterator[Consortium]:
    with member_api(consortium.folder):
        yield consortium


def test_every_receipt_has_its_record_and_both_sides_wrote_down_the_same(
    consortium: Consortium,
) -> None:
    for node, site in consortium.sites.items():
        sent = [(r.kind, r.run_id, r.round, r.status, r.digest, r.num_bytes) for r in left(site)]
        facts = [r.facts for r in consortium.received(node)]
        assert sent == [(f.kind, f.run_id, f.round, f.status, f.digest, f.num_bytes) for f in facts]
        assert len(sent) == 4 and {s[3] for s in sent} == ({"policy"} if node == 2 else {"ok"})


def test_all_that_left_is_countersigned_refusals_too(online: Consortium) -> None:
    for node, site in online.sites.items():
        result = log_command(online.config(node), "--verify", "--fetch")
        assert result.exit_code == 0, result.output
        assert "Countersigned by the coordinator: 4 of 4" in result.stderr
        standing = KeptCountersignatures(site).standing()
        assert (standing.left, standing.not_countersigned, standing.problems) == (4, (), ())
        stored = CountersignedFile(online.folder.receipts, FIRMS[node - 1].identity.member_id)
        assert len(stored.read()) == 4


def test_a_masked_run_agrees_as_well(tmp_path: Path) -> None:
    made = Consortium(tmp_path)
    for site in made.sites.values():
        site.settings = replace(site.settings, policy=type(site.settings.policy)())
    secure = SecureAggregationSettings(enabled=True)
    made.run(replace(plain_run(rounds=1), secure_aggregation=secure))
    with member_api(made.folder):
        for node, site in made.sites.items():
            ReceiptExchange(site).submit()
            kinds = [receipt.kind for receipt in left(site)]
            assert len([kind for kind in kinds if kind.startswith("secure.")]) == 5
            standing = KeptCountersignatures(site).standing()
            assert standing.left == len(made.received(node)) == 6
            assert standing.not_countersigned == () and standing.problems == ()


def test_a_reply_that_never_arrived_stays_without_and_is_named(online: Consortium) -> None:
    site = online.sites[1]
    lost = site.receipts.append(
        kind="train", run_id="f" * 32, round_=9, status="ok", digest="d" * 64, num_bytes=9
    )
    result = log_command(online.config(1), "--verify", "--fetch", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["countersigned"] == {"left": 5, "not_countersigned": [lost.sequence]}
    assert f"Not received, or not asked yet (--fetch): {lost.sequence}." in result.stderr


def test_new_receipts_are_handed_in_as_they_come_and_old_ones_not_twice(
    online: Consortium,
) -> None:
    site, stored = online.sites[1], online.folder.receipts
    exchange = ReceiptExchange(site)
    exchange.submit()
    exchange.submit()
    online.run(plain_run(rounds=1), "second")
    exchange.submit()
    assert len(CountersignedFile(stored, ANNE.identity.member_id).read()) == 6
    assert len(KeptCountersignatures(site).standing().not_countersigned) == 0
    ReceiptExchange(site).submit()
    assert len(CountersignedFile(stored, ANNE.identity.member_id).read()) == 6


def test_a_log_that_was_cut_shows_by_what_the_coordinator_holds(online: Consortium) -> None:
    site = online.sites[1]
    ReceiptExchange(site).submit()
    path = site.receipts.path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    # What is kept here shows it, and where that was deleted too, what is fetched.
    for words in (["--verify"], ["--verify", "--fetch"]):
        if "--fetch" in words:
            for file in KeptCountersignatures(site).folder.iterdir():
                file.unlink()
        result = log_command(online.config(1), *words)
        assert result.exit_code == 1
        assert f"countersigned receipt {len(lines) - 1} (evaluate, round 2" in result.stderr
    path.unlink()
    result = log_command(online.config(1), "--verify", "--fetch")
    assert result.exit_code == 1 and result.stderr.count("the log was cut, or begun anew") == 4


def test_new_keys_and_a_new_state_folder_begin_anew_and_the_folder_alone_does_not(
    online: Consortium,
) -> None:
    """The way that docs/privacy.md shows out of a lost ledger."""
    site, folder, config = online.sites[1], online.path / "site-1", online.config(1)
    settings = folder / "site.yaml"
    save_supernode_key(folder / "supernode.pem", ANNE.supernode, None)
    settings.write_text(settings.read_text() + "supernode_key: supernode.pem\n")
    ReceiptExchange(site).submit()
    settings.write_text(settings.read_text().replace("state: state", "state: state-2"))
    assert log_command(config, "--verify", "--fetch").exit_code == 1

    settings.write_text(settings.read_text().replace("state: state-2", "state: state"))
    result = CliRunner().invoke(app, ["join", "--rotate", "--folder", str(folder)])
    assert result.exit_code == 0, result.output
    renewed = Firm(
        ANNE.name,
        load_identity(folder / "identity-next.pem"),
        load_supernode_key(folder / "supernode-next.pem", None),
    )
    set_members(online.folder, [renewed, BELL, COLE])
    assert CliRunner().invoke(app, ["roster", "--config", config]).exit_code == 0
    settings.write_text(settings.read_text().replace("state: state", "state: state-3"))
    result = log_command(config, "--verify", "--fetch")
    assert result.exit_code == 0, result.output
    assert "Nothing has left this site" in result.stderr

    nodes = {one.identity.member_id: node for node, one in enumerate((renewed, BELL, COLE), 1)}
    write_atomically(online.folder.nodes, json.dumps(nodes).encode())
    online.sites[1] = Site.from_file(settings)
    online.run(plain_run(rounds=1), "second")
    result = log_command(config, "--verify", "--fetch")
    assert result.exit_code == 0, result.output
    assert "Countersigned by the coordinator: 2 of 2" in result.stderr


def test_without_having_asked_a_cut_at_the_end_is_only_seen_by_fetching(
    online: Consortium,
) -> None:
    site = online.sites[1]
    ReceiptExchange(site).submit()
    for file in KeptCountersignatures(site).folder.iterdir():
        file.unlink()
    lines = site.receipts.path.read_bytes().splitlines(keepends=True)
    site.receipts.path.write_bytes(b"".join(lines[:-1]))
    assert log_command(online.config(1), "--verify").exit_code == 0
    assert log_command(online.config(1), "--verify", "--fetch").exit_code == 1


def test_a_forged_countersignature_is_neither_taken_nor_kept(online: Consortium) -> None:
    site = online.sites[1]
    exchange = ReceiptExchange(site)
    exchange.submit()
    ours = CountersignedFile(KeptCountersignatures(site).folder, ANNE.identity.member_id)
    theirs = CountersignedFile(online.folder.receipts, ANNE.identity.member_id)
    values = json.loads(ours.path.read_text().splitlines()[0])
    values["coordinator_signature"] = values["site_signature"]
    ours.path.write_text(json.dumps(values) + "\n")
    result = log_command(online.config(1), "--verify")
    assert result.exit_code == 1 and "signatures of receipt 1 do not hold" in result.stderr
    ours.path.unlink()
    theirs.path.write_text(json.dumps(values) + "\n")
    with (
        member_api_again(online),
        pytest.raises(FoedusError, match="which key it signs with"),
    ):
        ReceiptExchange(site).fetch()
    assert ours.read() == []


@pytest.mark.parametrize("total", [10**18, "x", None, 2.5, True])
def test_a_coordinator_that_says_it_holds_more_than_it_sends_is_not_asked_for_ever(
    consortium: Consortium, total: object
) -> None:
    site = consortium.sites[1]
    with member_api(consortium.folder):
        ReceiptExchange(site).submit()
    first: list[dict[str, Any]] = []

    def told(page: dict[str, Any]) -> dict[str, Any]:
        first.append(page)
        return {**first[0], "total": total}

    with (
        member_api_again(consortium, told),
        pytest.raises(FoedusError, match=r"got 4 and then none|how many countersigned"),
    ):
        ReceiptExchange(site).fetch()
    assert len(first) <= 2


def member_api_again(
    online: Consortium, told: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> AbstractContextManager[None]:
    """A coordinator that started anew, at another port that the site is told of."""
    settings = online.folder.settings()
    address = f"127.0.0.1:{free_port()}"
    text = online.folder.settings_file.read_text()
    online.folder.settings_file.write_text(text.replace(settings.advertised_address, address))
    moved = replace(online.folder.read_invitation(), address=address)
    moved.signed(online.folder.coordinator()).save(online.path / "site-1" / "consortium.json")
    return member_api(online.folder, told)


def test_nothing_is_handed_in_by_a_log_that_was_changed(online: Consortium) -> None:
    site = online.sites[1]
    data = site.receipts.path.read_bytes()
    site.receipts.path.write_bytes(data.replace(b'"status": "ok"', b'"status": "ko"', 1))
    with pytest.raises(FoedusError, match="does not follow"):
        ReceiptExchange(site).submit()
    assert log_command(online.config(1), "--verify", "--fetch").exit_code != 0


def test_without_a_coordinator_the_chain_is_still_checked(consortium: Consortium) -> None:
    result = log_command(consortium.config(1), "--verify")
    assert result.exit_code == 0
    assert "Countersigned by the coordinator: 0 of 4" in result.stderr
    result = log_command(consortium.config(1), "--verify", "--fetch")
    assert result.exit_code == 2 and "got no answer" in result.stderr


def test_a_stranger_gets_nothing_countersigned(online: Consortium) -> None:
    path = online.path / "site-1"
    (path / "identity.pem").unlink()
    save_identity(path / "identity.pem", Identity.generate())
    with pytest.raises(FoedusError, match="does not answer this site as a member"):
        ReceiptExchange(Site.from_file(path / "site.yaml")).submit()


@pytest.mark.slow
def test_the_coordinator_s_own_process_countersigns(tmp_path: Path) -> None:
    made = Consortium(tmp_path)
    made.run(plain_run(rounds=1))
    text = made.folder.settings_file.read_text()
    port = int(made.folder.settings().advertised_address.rpartition(":")[2])
    ports = {"public_port": port, "control_port": free_port(), "metrics_port": free_port()}
    lines = [line for line in text.splitlines() if line.partition(":")[0] not in ports]
    lines += [f"{name}: {number}" for name, number in ports.items()]
    made.folder.settings_file.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "foedus", "server", "up", "--consortium"]
    process = subprocess.Popen(
        [*command, str(made.folder.path)], cwd=Path(__file__).parents[2], env=dict(os.environ)
    )
    try:
        give_up = time.monotonic() + 120
        while not made.folder.gateway_state.exists():
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.1)
        # The coordinator gives the members their nodes; those of the run were the test's own.
        nodes = {one.identity.member_id: node for node, one in enumerate(FIRMS, start=1)}
        write_atomically(made.folder.nodes, json.dumps(nodes).encode())
        result = log_command(made.config(1), "--verify", "--fetch")
        assert result.exit_code == 0, result.output
        assert "2 of 2 replies that left" in result.stderr
    finally:
        process.terminate()
        process.wait(60)

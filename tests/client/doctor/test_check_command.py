"""`foedus client check`: what is wrong is found and said with what to do; nothing is changed."""

from __future__ import annotations

import datetime
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.consent import ConsentBook
from client.enrolment.keys import save_supernode_key
from client.runner.supervisor import UP_STATE, only_one
from client.site import Site
from protocol.codec import encode
from protocol.consortium.identity import Identity, save_identity
from protocol.files import write_atomically
from protocol.messages import Request
from protocol.settings import PrivacySettings
from server.consortium.certificates import Certified, make_server_certificate
from server.consortium.folder import ConsortiumFolder
from tests.client.ledgers import ledger_with
from tests.guarantees.member_api import member_api
from tests.little_sites import little_run, little_state
from tests.protocol.consortium.leagues import ANNE, BELL
from tests.server.receipts.desks import found, set_members
from tests.small_runs import RUN_ID, small_run, write_site

KEYS = (
    "identity: identity.pem\nsupernode_key: supernode.pem\nroster: roster.jsonl\n"
    "consortium: consortium.json\n"
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def consortium(tmp_path: Path) -> ConsortiumFolder:
    return found(tmp_path / "consortium", [ANNE, BELL], f"127.0.0.1:{free_port()}")


@pytest.fixture
def site(tmp_path: Path, consortium: ConsortiumFolder) -> Path:
    """A member's site in good order; returns its folder."""
    path = write_site(tmp_path / "site", 1)
    folder = path.parent
    save_identity(folder / "identity.pem", ANNE.identity)
    save_supernode_key(folder / "supernode.pem", ANNE.supernode, None)
    write_atomically(folder / "consortium.json", consortium.invitation.read_bytes())
    write_atomically(folder / "roster.jsonl", consortium.roster.read_bytes())
    path.write_text(path.read_text() + KEYS)
    return folder


@pytest.fixture
def up(consortium: ConsortiumFolder) -> Iterator[ConsortiumFolder]:
    with member_api(consortium):
        yield consortium


def check(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit status, and what was found."""
    command = ["check", "--config", str(folder / "site.yaml"), "--json", *words]
    result = CliRunner().invoke(app, command)
    assert result.exit_code in (0, 1), result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return result.exit_code, told


def states(folder: Path, what: str) -> list[tuple[str, str]]:
    """(state, text) of what is said of one thing, without a dry run."""
    _, told = check(folder, "--no-dry-run")
    return [(f["state"], f["text"]) for f in told["findings"] if f["what"] == what]


def test_a_site_in_good_order_passes_and_every_finding_says_what_it_is_about(
    site: Path, up: ConsortiumFolder
) -> None:
    status, told = check(site, "--no-dry-run")
    found_states = {f["what"]: f["state"] for f in told["findings"]}
    assert status == 0 and "fail" not in found_states.values(), told
    for what in ("identity", "supernode key", "invitation", "roster", "membership", "tls", "clock",
                 "disk", "memory", "versions", "ledger", "receipts"):  # fmt: skip
        assert found_states[what] == "ok", what
    assert all(f["text"] and (f["advice"] or f["state"] == "ok") for f in told["findings"])
    assert told["dry_run"] is None


def test_checking_changes_nothing_and_works_without_a_network(site: Path) -> None:
    def everything() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in site.rglob("*") if p.is_file()}

    before = everything()
    status, told = check(site)
    assert everything() == before and not (site / "state").exists()
    assert status == 1  # The coordinator does not answer.
    failed = {f["what"]: f["text"] for f in told["findings"] if f["state"] == "fail"}
    assert set(failed) == {"tls", "clock"}
    assert "no connection" in failed["tls"] and "does not answer" in failed["clock"]
    assert told["dry_run"]["num_bytes"] > 0


@pytest.mark.parametrize(("more_than_cores", "state"), [(1, "warn"), (0, "ok")])
def test_threads_are_those_that_the_site_will_train_with(
    site: Path, more_than_cores: int, state: str
) -> None:
    threads = (os.cpu_count() or 1) + more_than_cores
    path = site / "site.yaml"
    path.write_text(f"{path.read_text()}threads: {threads}\n")
    ((found_state, text),) = states(site, "threads")
    assert found_state == state and f"{threads} threads" in text


def test_keys_that_others_can_read_are_found(site: Path) -> None:
    for name, what in (("identity.pem", "identity"), ("supernode.pem", "supernode key")):
        os.chmod(site / name, 0o644)
        assert states(site, what)[0][0] == "fail" and "0644" in states(site, what)[0][1]
        os.chmod(site / name, 0o600)
        assert [state for state, _ in states(site, what)] == ["ok"]


def test_keys_that_do_not_open_are_found(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOEDUS_PASSPHRASE", raising=False)
    (site / "identity.pem").unlink()
    save_identity(site / "identity.pem", ANNE.identity, b"open sesame")
    assert states(site, "identity")[0][0] == "fail"
    monkeypatch.setenv("FOEDUS_PASSPHRASE", "open sesame")
    assert states(site, "identity")[0][0] == "ok"


def test_a_site_that_is_not_in_the_roster_or_has_another_key_than_its_is_found(
    site: Path, consortium: ConsortiumFolder
) -> None:
    assert [state for state, _ in states(site, "membership")] == ["ok", "ok"]
    (site / "supernode.pem").unlink()
    save_supernode_key(site / "supernode.pem", BELL.supernode, None)
    assert states(site, "membership")[1] == (
        "fail",
        "the SuperNode key here is another than the roster's",
    )
    (site / "identity.pem").unlink()
    save_identity(site / "identity.pem", Identity.generate())
    assert "is not in version 2" in states(site, "membership")[0][1]


def test_a_roster_that_was_altered_is_found_and_one_that_is_not_there_yet_is_said(
    site: Path,
) -> None:
    path = site / "roster.jsonl"
    path.write_text(path.read_text().replace("Bell LLP", "Ball LLP"))
    assert states(site, "roster")[0][0] == "fail"
    path.unlink()
    ((state, text),) = states(site, "roster")
    assert state == "warn" and "yet" in text


@pytest.mark.parametrize(("days", "state"), [(31, "ok"), (29, "warn"), (0, "fail")])
def test_a_membership_that_ends_soon_or_has_ended_is_said(
    site: Path, consortium: ConsortiumFolder, days: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + (365 - days) * 86400 - 60 + 3600 * (days == 0))
    assert states(site, "membership")[0][0] == state


def test_a_certificate_of_another_authority_is_found(
    site: Path, consortium: ConsortiumFolder, tmp_path: Path
) -> None:
    other = found(tmp_path / "other", [ANNE], consortium.settings().advertised_address)
    for name in ("server_certificate", "server_key"):
        write_atomically(getattr(consortium, name), getattr(other, name).read_bytes())
    with member_api(consortium):
        ((state, text),) = states(site, "tls")
    assert state == "fail" and "shows no certificate of the consortium's" in text


@pytest.mark.parametrize(("days", "state"), [(29, "warn"), (31, "ok")])
def test_a_certificate_that_ends_soon_is_said(
    site: Path, consortium: ConsortiumFolder, days: int, state: str
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    authority = Certified.from_pem(consortium.ca_key.read_bytes(), consortium.ca.read_bytes(), None)
    server = make_server_certificate(authority, ("127.0.0.1",), days, now)
    write_atomically(consortium.server_key, server.key_pem())
    write_atomically(consortium.server_certificate, server.certificate_pem)
    with member_api(consortium):
        assert states(site, "tls")[0][0] == state


@pytest.mark.parametrize(
    ("ahead_seconds", "state"), [(0, "ok"), (30, "warn"), (-30, "warn"), (3600, "fail")]
)
def test_a_clock_that_is_off_is_said(
    site: Path,
    up: ConsortiumFolder,
    ahead_seconds: int,
    state: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "uvicorn.server.formatdate",
        lambda seconds, usegmt: formatdate(seconds - ahead_seconds, usegmt=usegmt),
    )
    time.sleep(1.2)  # uvicorn makes the header once a second.
    ((found_state, text),) = states(site, "clock")
    assert found_state == state
    assert state == "ok" or ("ahead of" in text) is (ahead_seconds > 0)


def test_runs_that_wait_for_consent_and_a_cut_log_are_said(site: Path) -> None:
    state = Site.from_file(site / "site.yaml").state_folder
    ConsentBook(state).ask(Request("train", RUN_ID, 1, little_run(), little_state(little_run())))
    assert states(site, "consent") == [("warn", f"1 runs wait: {RUN_ID[:8]}")]
    (state / "receipts.jsonl").write_text('{"sequence": 4}\n')
    assert states(site, "receipts")[0][0] == "fail"
    assert states(site, "ledger")[0][0] == "fail"


def test_a_ledger_and_a_log_that_a_crash_left_half_written_are_left_as_they_are(
    site: Path,
) -> None:
    state = Site.from_file(site / "site.yaml").state_folder
    ledger_with(state, 2).path.chmod(0o640)
    with (state / "receipts.jsonl").open("ab") as stream:
        stream.write(b'{"digest": "ab')
    before = {path: (path.read_bytes(), path.stat().st_mode) for path in state.iterdir()}
    assert states(site, "ledger") == [("ok", "2 rounds, whole; the receipts vouch for them")]
    assert states(site, "receipts")[0][0] == "ok"
    assert {p: (p.read_bytes(), p.stat().st_mode) for p in state.iterdir()} == before


def test_a_site_is_up_while_its_supervisor_is_whoever_has_its_process_id_since(site: Path) -> None:
    state = Site.from_file(site / "site.yaml").state_folder
    told = {"pid": os.getpid(), "node_state": "unreachable", "problem": "away"}
    write_atomically(state / UP_STATE, json.dumps(told).encode())
    (state / "up.lock").write_text(str(os.getpid()))
    ((found_state, text),) = states(site, "service")
    assert found_state == "warn" and "not running" in text
    with only_one(state):
        assert states(site, "service") == [("warn", "up, unreachable: away")]
        (state / UP_STATE).unlink()
        assert states(site, "service")[0][1].startswith("up, with no up.json")


def test_a_policy_is_summed_up_and_none_is_said_to_be_none(site: Path) -> None:
    assert states(site, "policy")[0][0] == "warn"
    path = site / "site.yaml"
    path.write_text(path.read_text() + "policy: {maximum_rank: 4, consent: ask}\n")
    assert states(site, "policy") == [("ok", "maximum_rank=4, consent=ask")]


@pytest.mark.parametrize("broken", ["no folder", "no examples"])
def test_a_site_without_data_is_found(site: Path, broken: str) -> None:
    (site / "contracts" / "clauses.jsonl").unlink()
    if broken == "no folder":
        (site / "contracts").rmdir()
    assert states(site, "contracts")[0][0] == "fail"


def test_a_run_that_the_policy_would_decline_is_tried_and_said(site: Path) -> None:
    path = site / "site.yaml"
    path.write_text(path.read_text() + "policy: {maximum_rank: 4}\n")
    _, told = check(site)
    assert "maximum_rank: 4 at most" in told["dry_run"]["declined"]
    assert {f["state"] for f in told["findings"] if f["what"] == "dry run"} == {"warn"}


@pytest.mark.parametrize("private", [False, True])
def test_a_run_of_more_steps_than_the_policy_allows_is_said_though_one_step_is_tried(
    site: Path, tmp_path: Path, private: bool
) -> None:
    path = site / "site.yaml"
    limits = "maximum_steps_per_round: 3, maximum_local_epochs: 1"
    path.write_text(f"{path.read_text()}policy: {{{limits}}}\n")
    run = small_run(training={"max_steps": 9, "local_epochs": 2})
    words = ["training.max_steps=9", "training.local_epochs=2"]
    if private:
        dp = PrivacySettings(mode="dp", unit="example", steps_per_round=4)
        run, words = replace(run, privacy=dp), ["privacy.steps_per_round=4"]
    settings = tmp_path / "run.json"
    settings.write_text(json.dumps(encode(run)))
    _, told = check(site, "--settings", str(settings))
    for word in words:
        assert word in told["dry_run"]["declined"]
    assert {f["state"] for f in told["findings"] if f["what"] == "dry run"} == {"warn"}
    assert told["dry_run"]["numbers"]["num_steps"] == 1


def test_the_table_is_for_people(site: Path, up: ConsortiumFolder) -> None:
    command = ["check", "--config", str(site / "site.yaml")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    for word in ("membership", "warn", "lora_B", "num_examples", "Nothing was sent"):
        assert word in result.stdout.replace("\n", " ")


def test_an_unforeseen_fault_of_a_check_does_not_keep_the_others_from_going_on(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("Acme pays Globex")

    monkeypatch.setattr("shutil.disk_usage", breaks)
    ((state, text),) = states(site, "disk")
    assert state == "fail" and "RuntimeError" in text and "Acme" not in text
    assert states(site, "memory")[0][0] in ("ok", "warn")


def test_the_roster_s_newest_version_counts(site: Path, consortium: ConsortiumFolder) -> None:
    set_members(consortium, [BELL])
    write_atomically(site / "roster.jsonl", consortium.roster.read_bytes())
    assert states(site, "membership")[0][0] == "fail"
    set_members(consortium, [replace(ANNE, name="Anne again"), BELL])
    write_atomically(site / "roster.jsonl", consortium.roster.read_bytes())
    assert states(site, "membership")[0][0] == "ok"

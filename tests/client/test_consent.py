"""Consent: a run waits for people, who decide on what they were shown and on nothing else."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.cli import app
from client.consent import ConsentBook, ConsentDesk, Decision, consent_digest
from client.policy import PolicySettings
from client.rounds import answer
from client.site import Site
from protocol.errors import FoedusError, Refusal
from protocol.messages import CONFIG, Request, train_request
from protocol.reasons import RefusalReason
from protocol.secure_aggregation.wire import Phase
from protocol.settings import RunSettings
from tests.little_sites import little_run, little_state
from tests.secure_conversations import Conversation, refusal, status_of
from tests.small_runs import RUN_ID, downloaded, small_run, start_state, write_site

PATIENT = 60.0


def asked(run: RunSettings | None = None, run_id: str = RUN_ID) -> Request:
    run = run or little_run(deadline_seconds=1000.0)
    return Request("train", run_id, 1, run, little_state(run))


@pytest.fixture
def book(tmp_path: Path) -> ConsentBook:
    return ConsentBook(tmp_path / "state")


def wait_for(holds: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENT
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def code(desk: ConsentDesk, request: Request) -> str:
    try:
        desk.require(request)
    except Refusal as refused:
        return str(refused.code)
    return "ok"


def test_the_first_request_of_a_run_is_written_down_for_people(book: ConsentBook) -> None:
    assert code(ConsentDesk(book, 0.0), asked()) == RefusalReason.CONSENT_PENDING
    (path,) = book.folder.glob("*.json")
    assert path.name == f"{RUN_ID}.json" and stat.S_IMODE(path.stat().st_mode) == 0o600
    (form,) = book.all().values()
    assert form.decision is Decision.PENDING
    told = form.summary
    assert (told["task"], told["method"], told["rank"], told["rounds"]) == (
        "classify", "fedsvd", 3, 2,
    )  # fmt: skip
    assert told["privacy"] == "none" and told["secure aggregation"] is False
    assert told["base_digest"] == little_state(little_run()).base_digest
    assert told["deadline of a round, s"] == 1000.0


@pytest.mark.parametrize(
    ("decision", "expected"), [(Decision.APPROVED, "ok"), (Decision.DENIED, "consent_denied")]
)
def test_a_request_waits_until_people_decide(
    book: ConsentBook, decision: Decision, expected: str
) -> None:
    codes: list[str] = []
    waiting = threading.Thread(target=lambda: codes.append(code(ConsentDesk(book, 500.0), asked())))
    waiting.start()
    wait_for(lambda: book.newest(RUN_ID))
    assert codes == []
    book.decide(RUN_ID, consent_digest(asked()), decision)
    waiting.join(PATIENT)
    assert codes == [expected]
    assert code(ConsentDesk(book, 0.0), asked()) == expected  # It holds for the whole run.


def test_a_request_waits_for_half_a_round_at_most(book: ConsentBook) -> None:
    hurried = asked(little_run(deadline_seconds=0.2))
    assert code(ConsentDesk(book, 10**6), hurried) == RefusalReason.CONSENT_PENDING


def test_other_settings_or_another_base_model_under_the_same_run_are_asked_for_anew(
    book: ConsentBook,
) -> None:
    desk = ConsentDesk(book, 0.0)
    code(desk, asked())
    book.decide(RUN_ID, consent_digest(asked()), Decision.APPROVED)
    assert code(desk, asked()) == "ok"
    run = little_run(deadline_seconds=1000.0)
    longer = asked(replace(run, federation=replace(run.federation, rounds=99)))
    other_base = replace(asked(), state=replace(little_state(run), base_digest="f" * 64))
    for changed in (longer, other_base):
        assert code(desk, changed) == RefusalReason.CONSENT_PENDING
        assert book.newest(RUN_ID) is not None
    assert code(desk, asked()) == "ok"  # What was approved stays approved.


def test_nobody_decides_on_settings_they_have_not_seen(book: ConsentBook) -> None:
    desk = ConsentDesk(book, 0.0)
    code(desk, asked())
    seen = consent_digest(asked())
    code(desk, asked(little_run(rounds=99)))
    with pytest.raises(FoedusError, match="other settings meanwhile"):
        book.decide(RUN_ID, seen, Decision.APPROVED)
    assert code(desk, asked(little_run(rounds=99))) == RefusalReason.CONSENT_PENDING
    with pytest.raises(FoedusError, match="other settings"):
        book.decide("f" * 32, seen, Decision.APPROVED)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 2}', "[]", '{"schema": 1, "forms": [{}]}'])
def test_a_damaged_file_lets_nothing_pass(book: ConsentBook, text: str) -> None:
    code(ConsentDesk(book, 0.0), asked())
    book.decide(RUN_ID, consent_digest(asked()), Decision.APPROVED)
    next(book.folder.glob("*.json")).write_text(text)
    with pytest.raises(FoedusError, match="Delete it to be asked again"):
        ConsentDesk(book, 0.0).require(asked())


def site_that_asks(folder: Path, wait_seconds: float = 0.0) -> Path:
    path = write_site(folder, 1)
    policy = f"policy: {{consent: ask, consent_wait_seconds: {wait_seconds}}}\n"
    path.write_text(path.read_text() + policy)
    return path


def status(site: Site, run: RunSettings) -> str:
    content = train_request(RUN_ID, 1, run, downloaded(run, start_state(run))).to_content()
    return str(answer(site, content, "train").config_records[CONFIG]["status"])


def command(*words: object, answers: str = "") -> Result:
    return CliRunner().invoke(app, ["approve", *map(str, words)], input=answers)


def test_a_run_trains_once_it_is_approved_by_command_and_stops_when_it_is_denied(
    tmp_path: Path,
) -> None:
    path, run = site_that_asks(tmp_path), small_run("ffa")
    site = Site.from_file(path)
    assert "No run has asked" in command("--config", path).stderr
    assert status(site, run) == "consent_pending"
    assert not site.ledger.path.exists()  # Waiting costs no privacy budget.
    listed = command("--config", path)
    assert RUN_ID[:8] in listed.stdout and "pending" in listed.stdout
    shown = command(RUN_ID[:6], "--config", path, answers="n\n")
    assert shown.exit_code == 1 and "minilm" in shown.stdout and "ffa" in shown.stdout
    assert status(site, run) == "consent_pending"
    assert command(RUN_ID[:6], "--config", path, answers="y\n").exit_code == 0
    assert status(site, run) == "ok"
    denied = command(RUN_ID, "--deny", "--yes", "--json", "--config", path)
    (told,) = json.loads(denied.stdout)["runs"]
    assert (told["run_id"], told["decision"]) == (RUN_ID, "denied")
    assert status(site, run) == "consent_denied"


def test_a_script_decides_on_a_digest_and_on_no_other(tmp_path: Path) -> None:
    path = site_that_asks(tmp_path)
    site = Site.from_file(path)
    status(site, small_run("ffa"))
    (told,) = json.loads(command("--json", "--config", path).stdout)["runs"]
    status(site, small_run("ffa", rounds=99))
    refused = command(RUN_ID, "--digest", told["settings_digest"][:12], "--config", path)
    assert refused.exit_code == 2 and "Look at it again" in refused.stderr
    (told,) = json.loads(command("--json", "--config", path).stdout)["runs"]
    decided = command(RUN_ID, "--digest", told["settings_digest"][:12], "--config", path)
    assert decided.exit_code == 0
    assert status(site, small_run("ffa", rounds=99)) == "ok"
    assert status(site, small_run("ffa")) == "consent_pending"


@pytest.mark.parametrize("run", ["zz", ""])
def test_a_run_that_never_asked_cannot_be_approved(tmp_path: Path, run: str) -> None:
    path = site_that_asks(tmp_path)
    result = command(*([run] if run else []), "--config", path)
    assert result.exit_code == (2 if run else 0)
    assert "one run that has asked" in result.stderr if run else "No run" in result.stderr


def test_in_a_session_a_denied_site_makes_no_keys_and_an_unknown_run_is_asked_for_by_its_settings(
    tmp_path: Path,
) -> None:
    talk = Conversation(tmp_path)
    site = talk.sites.site(1)
    policy = PolicySettings(consent="ask", consent_wait_seconds=0.0)
    site.settings = replace(site.settings, policy=policy)
    talk.until(Phase.MASKED_INPUT)  # Its first messages tell no settings.
    assert refusal(talk.ask(Phase.MASKED_INPUT, 1)) == "consent_pending"
    book = ConsentBook(site.state_folder)
    (form,) = book.all().values()
    talk.new_session(attempt=2)
    assert refusal(talk.ask(Phase.ADVERTISE, 1)) == "consent_pending"
    book.decide(RUN_ID, form.digest, Decision.DENIED)
    assert refusal(talk.ask(Phase.ADVERTISE, 1)) == "consent_denied"
    book.decide(RUN_ID, form.digest, Decision.APPROVED)
    talk.until(Phase.MASKED_INPUT)
    assert status_of(talk.ask(Phase.MASKED_INPUT, 1)) == "ok"


_WAITS = """
import signal, sys
from pathlib import Path
from client.rounds import answer
from client.site import Site
from tests.small_runs import RUN_ID, downloaded, small_run, start_state
from protocol.messages import train_request

def end(number, frame):
    raise SystemExit(7)

signal.signal(signal.SIGTERM, end)
run = small_run("ffa", deadline_seconds=10000.0)
content = train_request(RUN_ID, 1, run, downloaded(run, start_state(run))).to_content()
answer(Site.from_file(Path(sys.argv[1])), content, "train")
"""


@pytest.mark.slow
def test_a_process_that_waits_for_people_can_be_ended(tmp_path: Path) -> None:
    path = site_that_asks(tmp_path, wait_seconds=5000.0)
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITS, str(path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        book = ConsentBook(Site.from_file(path).state_folder)
        wait_for(lambda: process.poll() is not None or book.newest(RUN_ID))
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENT) == 7
    finally:
        process.kill()
        process.wait()
    assert list(Site.from_file(path).receipts.verify()) == []

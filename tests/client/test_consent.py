"""Consent: a run waits for people, who decide on what they were shown and on nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.admission import admit_request, admit_session
from client.cli import app
from client.consent import ConsentBook, ConsentDesk, Decision, consent_digest
from client.policy import PolicySettings
from client.rounds import answer
from client.site import Site
from protocol.errors import FoedusError, Refusal
from protocol.messages import CONFIG, Kind, Request, train_request
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


def longer() -> RunSettings:
    """Another form of the same run."""
    return little_run(rounds=99, deadline_seconds=1000.0)


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
    code(desk, asked(longer()))  # Comes while people look at the first form.
    book.decide(RUN_ID, seen, Decision.APPROVED)
    assert code(desk, asked(longer())) == RefusalReason.CONSENT_PENDING
    assert code(desk, asked()) == "ok"
    for run_id, digest in ((RUN_ID, "f" * 64), ("f" * 32, seen)):
        with pytest.raises(FoedusError, match="Look at it again"):
            book.decide(run_id, digest, Decision.APPROVED)


def test_a_denial_withdraws_the_approval_of_every_form_of_the_run(book: ConsentBook) -> None:
    desk = ConsentDesk(book, 0.0)
    code(desk, asked())
    book.decide(RUN_ID, consent_digest(asked()), Decision.APPROVED)
    code(desk, asked(longer()))
    assert code(desk, asked()) == "ok"
    book.decide(RUN_ID, consent_digest(asked(longer())), Decision.DENIED)
    for run in (None, longer()):
        assert code(desk, asked(run)) == RefusalReason.CONSENT_DENIED
    # Of another run nothing was said.
    assert code(desk, asked(run_id="e" * 32)) == RefusalReason.CONSENT_PENDING


def test_a_form_that_is_asked_for_again_is_the_one_that_people_see(book: ConsentBook) -> None:
    desk = ConsentDesk(book, 0.0)
    first, second = asked(), asked(longer())
    for request in (first, second, first):
        code(desk, request)
    newest = book.newest(RUN_ID)
    assert newest is not None and newest.digest == consent_digest(first)
    assert len(book.forms(RUN_ID)) == 2
    book.decide(RUN_ID, newest.digest, Decision.APPROVED)
    assert code(desk, second) == RefusalReason.CONSENT_PENDING
    # An approved form that goes on hides none that still waits.
    assert code(desk, first) == "ok"
    assert [form.digest for form in book.all().values()] == [consent_digest(second)]


def in_rounds(rounds: int) -> Request:
    return asked(little_run(rounds=rounds, deadline_seconds=1000.0))


def test_of_many_forms_those_that_people_decided_on_and_the_newest_that_wait_are_kept(
    book: ConsentBook,
) -> None:
    desk = ConsentDesk(book, 0.0)
    code(desk, in_rounds(1))
    book.decide(RUN_ID, consent_digest(in_rounds(1)), Decision.APPROVED)
    for rounds in range(2, 100):
        assert code(desk, in_rounds(rounds)) == RefusalReason.CONSENT_PENDING
    kept = [form.summary["rounds"] for form in book.forms(RUN_ID)]
    assert kept == [1, 95, 96, 97, 98, 99]
    assert code(desk, in_rounds(1)) == "ok"


def test_a_form_that_was_approved_once_stays_known_when_its_approval_is_used_up(
    book: ConsentBook,
) -> None:
    desk = ConsentDesk(book, 0.0)
    code(desk, in_rounds(1))
    book.decide(RUN_ID, consent_digest(in_rounds(1)), Decision.APPROVED)
    while code(desk, in_rounds(1)) == "ok":
        pass
    for rounds in range(2, 20):
        code(desk, in_rounds(rounds))
    assert book.forms(RUN_ID)[0].answered == {"train": 12}


def test_of_many_runs_those_that_people_decided_on_and_the_newest_that_wait_are_kept(
    book: ConsentBook,
) -> None:
    desk = ConsentDesk(book, 0.0)
    run_ids = [f"{number:032x}" for number in range(70)]
    for run_id in run_ids[:2]:
        code(desk, asked(run_id=run_id))
    book.decide(run_ids[0], consent_digest(asked()), Decision.APPROVED)
    book.decide(run_ids[1], consent_digest(asked()), Decision.DENIED)
    for run_id in run_ids[2:]:
        assert code(desk, asked(run_id=run_id)) == RefusalReason.CONSENT_PENDING
    assert set(book.all()) == {*run_ids[:2], *run_ids[20:]}
    assert code(desk, asked(run_id=run_ids[0])) == "ok"
    assert code(desk, asked(run_id=run_ids[1])) == RefusalReason.CONSENT_DENIED


def test_a_run_that_nobody_could_read_is_declined_and_not_written_down(book: ConsentBook) -> None:
    run = little_run()
    run = replace(run, task=replace(run.task, labels=("x" * 10**6, "y")))
    assert code(ConsentDesk(book, 0.0), asked(run)) == RefusalReason.POLICY
    assert book.all() == {}


def test_a_denial_covers_no_request(book: ConsentBook) -> None:
    code(ConsentDesk(book, 0.0), asked())
    assert book.decide(RUN_ID, consent_digest(asked()), Decision.DENIED).covered == {}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_an_approval_covers_each_round_twice_and_ten_requests_more(
    book: ConsentBook, kind: Kind
) -> None:
    desk = ConsentDesk(book, 0.0)
    request = replace(asked(), kind=kind)
    covered = 2 * request.settings.federation.rounds + 10
    code(desk, request)
    book.decide(RUN_ID, consent_digest(request), Decision.APPROVED)
    assert [code(desk, request) for _ in range(covered)] == ["ok"] * covered
    other: Kind = "evaluate" if kind == "train" else "train"
    assert code(desk, replace(request, kind=other)) == "ok"  # Counted apart.
    for _ in range(2):
        assert code(desk, request) == RefusalReason.CONSENT_PENDING
    (form,) = book.all().values()
    assert form.decision is Decision.PENDING
    counts = {kind: covered, other: 1}
    told = f"{counts['train']} to train, {counts['evaluate']} to evaluate"
    assert form.told()["answered so far"] == told
    book.decide(RUN_ID, form.digest, Decision.APPROVED)
    assert [code(desk, request) for _ in range(covered)] == ["ok"] * covered
    assert code(desk, request) == RefusalReason.CONSENT_PENDING


def test_requests_that_come_at_the_same_time_get_no_more_than_was_approved(
    book: ConsentBook,
) -> None:
    code(ConsentDesk(book, 0.0), asked())
    book.decide(RUN_ID, consent_digest(asked()), Decision.APPROVED)
    covered = 2 * asked().settings.federation.rounds + 10

    def ask(_: int) -> list[str]:
        desk = ConsentDesk(ConsentBook(book.folder.parent), 0.0)
        return [code(desk, asked()) for _ in range(covered)]

    with ThreadPoolExecutor(4) as pool:
        codes = [each for part in pool.map(ask, range(4)) for each in part]
    assert codes.count("ok") == covered


@contextmanager
def wall_clock(zone: str) -> Iterator[None]:
    """This process lives in another time zone; 12 hours away, all of a day's hours are others."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = zone
    time.tzset()
    try:
        yield
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


@pytest.mark.parametrize("of_session", [False, True])
def test_a_request_that_waited_beyond_the_hours_is_declined_though_it_is_approved(
    tmp_path: Path, of_session: bool
) -> None:
    now = datetime.now(UTC)
    opens, closes = (now + timedelta(hours=hours) for hours in (-3, 3))
    hours = f"Mon-Sun {opens:%H:%M}-{closes:%H:%M}"
    site = Site.from_file(write_site(tmp_path, 1))
    policy = PolicySettings(hours=(hours,), consent="ask", consent_wait_seconds=500.0)
    site.settings = replace(site.settings, policy=policy)
    book = ConsentBook(site.state_folder)
    if of_session:
        book.ask(asked())
    codes: list[str] = []

    def admit() -> None:
        try:
            admit_session(site, RUN_ID) if of_session else admit_request(site, asked())
            codes.append("ok")
        except Refusal as refused:
            codes.append(str(refused.code))

    waiting = threading.Thread(target=admit)
    with wall_clock("UTC"):
        waiting.start()
        wait_for(lambda: book.newest(RUN_ID))
        waiting.join(0.5)  # A message of a session leaves no trace while it waits.
        assert codes == []
    with wall_clock("AWAY-12"):
        book.decide(RUN_ID, consent_digest(asked()), Decision.APPROVED)
        waiting.join(PATIENT)
    assert codes == [RefusalReason.OUTSIDE_HOURS]


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b'{"schema": 2}', b"[]", b'{"schema": 1, "forms": [{}]}', b"\xff", b"[" * 10**5],
    ids=["empty", "no schema", "schema", "list", "form", "no UTF-8", "deep"],
)
def test_a_damaged_file_lets_nothing_pass(book: ConsentBook, data: bytes) -> None:
    code(ConsentDesk(book, 0.0), asked())
    book.decide(RUN_ID, consent_digest(asked()), Decision.APPROVED)
    next(book.folder.glob("*.json")).write_bytes(data)
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


def command(*words: object, answers: str = "", columns: int = 100) -> Result:
    runner = CliRunner(env={"COLUMNS": str(columns)})
    return runner.invoke(app, ["approve", *map(str, words)], input=answers)


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


def test_a_script_decides_on_the_form_whose_digest_it_names_and_on_no_other(
    tmp_path: Path,
) -> None:
    path = site_that_asks(tmp_path)
    site = Site.from_file(path)
    runs = (small_run("ffa"), small_run("ffa", rounds=99))
    digests = []
    for run in runs:
        status(site, run)
        (told,) = json.loads(command("--json", "--config", path).stdout)["runs"]
        assert told["approved_elsewhere"] == []
        digests.append(told["settings_digest"])
    refused = command(RUN_ID, "--digest", "0123", "--config", path)
    assert refused.exit_code == 2 and "Look at it again" in refused.stderr
    # The older of the two; the newer one goes on waiting, and the list says both.
    assert command(RUN_ID, "--digest", digests[0][:12], "--config", path).exit_code == 0
    assert [status(site, run) for run in runs] == ["ok", "consent_pending"]
    (told,) = json.loads(command("--json", "--config", path).stdout)["runs"]
    assert (told["settings_digest"], told["decision"]) == (digests[1], "pending")
    assert told["approved_elsewhere"] == [digests[0]]
    shown = command(RUN_ID, "--config", path, answers="n\n").stdout
    assert "approved in another form" in shown and digests[0][:12] in shown
    listed = command("--config", path, columns=300).stdout
    assert f"other form approved: {digests[0][:12]}" in listed
    assert "answered: 0 to train" in listed
    denied = command(RUN_ID, "--deny", "--digest", digests[1][:12], "--json", "--config", path)
    assert json.loads(denied.stdout)["runs"][0]["approved_elsewhere"] == []
    assert [status(site, run) for run in runs] == ["consent_denied"] * 2


def test_an_older_form_that_is_asked_for_again_is_shown_and_can_be_approved(
    tmp_path: Path,
) -> None:
    path = site_that_asks(tmp_path)
    site = Site.from_file(path)
    first, second = small_run("ffa"), small_run("ffa", rounds=99)
    for run in (first, second, first):
        status(site, run)
    shown = command(RUN_ID, "--config", path, answers="y\n")
    assert shown.exit_code == 0
    assert re.search(rf"\brounds +{first.federation.rounds}\b", shown.stdout)
    assert [status(site, run) for run in (first, second)] == ["ok", "consent_pending"]


def test_without_a_question_only_the_form_that_is_named_is_approved_where_there_are_several(
    tmp_path: Path,
) -> None:
    path = site_that_asks(tmp_path)
    site = Site.from_file(path)
    first, second = small_run("ffa"), small_run("ffa", rounds=99)
    status(site, first)
    (told,) = json.loads(command("--json", "--config", path).stdout)["runs"]
    status(site, second)  # Comes after people have looked.
    refused = command(RUN_ID, "--yes", "--config", path)
    assert refused.exit_code == 2 and told["settings_digest"][:12] in refused.stderr
    assert [status(site, run) for run in (first, second)] == ["consent_pending"] * 2
    words = [RUN_ID, "--yes", "--digest", told["settings_digest"], "--config", path]
    assert command(*words).exit_code == 0
    assert [status(site, run) for run in (first, second)] == ["ok", "consent_pending"]
    assert command(RUN_ID, "--deny", "--yes", "--config", path).exit_code == 0


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
    book.ask(asked(longer()))  # Another form that waits keeps no approved one from going on.
    talk.until(Phase.MASKED_INPUT)
    assert status_of(talk.ask(Phase.MASKED_INPUT, 1)) == "ok"
    counts = {known.digest: known.answered for known in book.forms(RUN_ID)}
    assert counts[form.digest] == {"train": 1}  # Session messages apart.


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

"""A site's answers in a secure session: on disk before they leave, guarded, and never two."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from client.app import make_app
from client.policy import PolicySettings
from client.rounds import answer
from client.secure_aggregation.answer import answer_phase
from client.secure_aggregation.kept_update import KeptUpdate, UpdateStore
from client.secure_aggregation.memory import MemoryStore
from client.site import Site, SiteSettings
from protocol.errors import FoedusError, Refusal
from protocol.messages import ARRAYS, CONFIG, Request, train_request
from protocol.reasons import RefusalReason
from protocol.secure_aggregation.messages import (
    AdvertiseRequest,
)
from protocol.secure_aggregation.wire import (
    MASKED,
    SECURE,
    Phase,
    message_digest,
)
from protocol.settings import RunSettings
from tests.little_secure_sites import LittleTrainer
from tests.secure_conversations import Conversation, refusal, status_of
from tests.small_runs import RUN_ID, downloaded, open_site, small_run, start_state


def state_files(site: Site) -> list[Path]:
    return [p for p in (site.state_folder / "secure_aggregation").rglob("*") if p.is_file()]


def test_sites_that_are_restarted_between_all_phases_finish_the_session(tmp_path: Path) -> None:
    talk = Conversation(tmp_path)
    for phase in Phase:
        for node in talk.nodes:
            talk.sites.restart(node)
        talk.phase(phase)
    mean, weight = talk.session.open_sum()
    assert weight == 3 and np.abs(mean).max() > 0


@pytest.mark.parametrize("phase", Phase)
def test_a_site_that_died_after_it_answered_does_not_answer_that_phase_again(
    tmp_path: Path, phase: Phase
) -> None:
    """The reply was lost with the process; the site cannot know that nobody has read it."""
    talk = Conversation(tmp_path).until(phase)
    sent = talk.content(phase, 1)
    assert status_of(talk.ask(phase, 1, sent)) == "ok"
    talk.sites.restart(1)
    assert refusal(talk.ask(phase, 1, sent)) == "wrong_phase"


def test_a_site_that_dies_in_training_sends_nothing_more_in_that_attempt_and_masks_in_the_next(
    tmp_path: Path,
) -> None:
    talk = Conversation(tmp_path).until(Phase.MASKED_INPUT)

    class Dies(LittleTrainer):
        def train(self, request: Request) -> KeptUpdate:
            raise KeyboardInterrupt

    talk.sites.trainers[1] = Dies(1)
    sent = talk.content(Phase.MASKED_INPUT, 1)
    with pytest.raises(KeyboardInterrupt):
        talk.ask(Phase.MASKED_INPUT, 1, sent)
    talk.sites.trainers[1] = LittleTrainer(1)
    talk.sites.restart(1)
    assert refusal(talk.ask(Phase.MASKED_INPUT, 1, sent)) == "wrong_phase"
    talk.new_session(attempt=2)
    talk.until(Phase.UNMASK).phase(Phase.UNMASK)
    assert talk.session.open_sum()[1] == 3


def test_two_requests_at_once_give_one_masked_input(tmp_path: Path) -> None:
    talk = Conversation(tmp_path).until(Phase.MASKED_INPUT)
    sent, replies = talk.content(Phase.MASKED_INPUT, 1), []
    site = talk.sites.site(1)

    def ask() -> None:
        again = Site(site.settings, tmp_path / "site-1")
        replies.append(answer_phase(again, sent, training=True, trainer=LittleTrainer(1)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status_of(reply) for reply in replies) == ["ok", *["wrong_phase"] * 3]


def test_another_attempt_masks_the_update_that_was_trained_once(tmp_path: Path) -> None:
    talk = Conversation(tmp_path).until(Phase.CONFIRM)
    for attempt in (2, 3):
        for node in talk.nodes:
            before = talk.sites.trainers[node].trained
            talk.sites.restart(node)
            assert before == (1 if attempt == 2 else 0)
        talk.new_session(attempt)
        talk.until(Phase.CONFIRM)
    assert all(talk.sites.trainers[node].trained == 0 for node in talk.nodes)


def test_what_is_kept_is_for_the_owner_alone_and_goes_when_it_is_no_longer_needed(
    tmp_path: Path,
) -> None:
    talk = Conversation(tmp_path).until(Phase.UNMASK)
    site = talk.sites.site(1)
    memory = MemoryStore(site.state_folder, RUN_ID).load()
    assert memory.current is not None
    secrets = [
        memory.current.keys.encryption_private,
        memory.current.keys.masking_seed,
        memory.current.keys.self_mask_seed,
        *(pair.self_mask for pair in memory.current.received.values()),
    ]
    files = state_files(site)
    assert {p.suffix for p in files} == {".json", ".safetensors", ""}
    assert all(stat.S_IMODE(p.stat().st_mode) & 0o077 == 0 for p in files if p.stat().st_size)
    assert any(secrets[0].hex() in p.read_text() for p in files if p.suffix == ".json")
    talk.phase(Phase.UNMASK)
    for path in state_files(site):
        text = path.read_bytes()
        assert not any(s in text or s.hex().encode() in text for s in secrets)
    assert any(p.suffix == ".safetensors" for p in state_files(site))
    talk.new_session(round_=2)
    talk.phase(Phase.ADVERTISE)
    assert not any(p.suffix == ".safetensors" for p in state_files(site))


def test_every_answer_has_a_receipt_of_its_phase(tmp_path: Path) -> None:
    talk = Conversation(tmp_path)
    sent: list[RecordDict] = []
    for phase in Phase:
        for node in talk.nodes:
            reply = talk.ask(phase, node)
            talk.take(phase, node, reply)
            if node == 1:
                sent.append(reply)
        talk.close(phase)
    talk.ask(Phase.UNMASK, 1)
    receipts = list(talk.sites.site(1).receipts.verify())
    kinds = [f"secure.{phase}" for phase in Phase]
    assert [r.kind for r in receipts] == [*kinds, "secure.unmask"]
    assert [r.status for r in receipts] == ["ok"] * 5 + ["wrong_phase"]
    assert [r.digest for r in receipts[:5]] == [message_digest(c).hex() for c in sent]
    packed = sent[2].array_records[MASKED][MASKED].data
    assert receipts[2].num_bytes > len(packed)


def test_what_breaks_the_agreement_is_held_back(tmp_path: Path) -> None:
    class Wide(LittleTrainer):
        def train(self, request: Request) -> KeptUpdate:
            kept = super().train(request)
            return replace(kept, values=np.append(kept.values, np.float32(0.1)))

    talk = Conversation(tmp_path).until(Phase.MASKED_INPUT)
    talk.sites.trainers[1] = Wide(1)
    assert refusal(talk.ask(Phase.MASKED_INPUT, 1)) == "egress"
    assert [r.status for r in talk.sites.site(1).receipts.verify()][-1] == "egress"


def test_a_declining_site_says_its_code_and_keeps_no_update(tmp_path: Path) -> None:
    class Declines(LittleTrainer):
        def train(self, request: Request) -> KeptUpdate:
            raise Refusal(RefusalReason.BUDGET_SPENT, "Acme's budget is spent.")

    talk = Conversation(tmp_path).until(Phase.MASKED_INPUT)
    talk.sites.trainers[1] = Declines(1)
    assert refusal(talk.ask(Phase.MASKED_INPUT, 1)) == "budget_spent"
    assert not any(p.suffix == ".safetensors" for p in state_files(talk.sites.site(1)))


def test_nothing_that_a_model_said_travels_beside_the_masked_input(tmp_path: Path) -> None:
    talk = Conversation(tmp_path).until(Phase.MASKED_INPUT)
    record = talk.ask(Phase.MASKED_INPUT, 1).config_records[SECURE]
    header = {"version", "phase", "run_id", "round", "attempt", "status", "signature"}
    assert set(record) - header == {"train_seconds"}


def test_one_site_cannot_be_made_to_train_on_another_adapter_or_other_settings(
    tmp_path: Path,
) -> None:
    talk = Conversation(tmp_path).until(Phase.MASKED_INPUT)
    genuine = talk.content(Phase.MASKED_INPUT, 1)
    state = talk.request.state
    moved = state.replace_tensors({n: t + np.float32(1e-3) for n, t in state.tensors.items()})
    federation = talk.run.federation
    others = [
        train_request(RUN_ID, 1, talk.run, moved),
        train_request(RUN_ID, 2, talk.run, state),
        train_request("f" * 32, 1, talk.run, state),
        train_request(RUN_ID, 1, replace(talk.run, federation=replace(federation, seed=9)), state),
    ]
    for other in others:
        content = RecordDict({SECURE: genuine[SECURE], **dict(other.to_content())})
        assert refusal(talk.ask(Phase.MASKED_INPUT, 1, content)) == "wrong_phase"
    assert talk.sites.trainers[1].trained == 0
    assert status_of(talk.ask(Phase.MASKED_INPUT, 1, genuine)) == "ok"


def test_terms_that_do_not_follow_from_the_run_s_settings_are_refused(tmp_path: Path) -> None:
    talk = Conversation(tmp_path)
    for change in ({"bits": 16}, {"coordinate_bound": 1e-6}, {"weight_cap": 5}, {"degree": 2}):
        session = talk.new_session(attempt=talk.session.session.attempt + 1)
        session.terms = replace(session.terms, **change)
        session._context = session.terms.context(session.session)
        talk.until(Phase.MASKED_INPUT)
        assert refusal(talk.ask(Phase.MASKED_INPUT, 1)) == "policy"


def test_a_phase_as_another_type_of_message_is_refused(tmp_path: Path) -> None:
    talk = Conversation(tmp_path).until(Phase.MASKED_INPUT)
    masked = talk.content(Phase.MASKED_INPUT, 1)
    assert refusal(talk.sites.answer(1, masked, training=False)) == "wrong_phase"
    assert status_of(talk.ask(Phase.MASKED_INPUT, 1, masked)) == "ok"
    talk.new_session(attempt=2)
    advertise = talk.content(Phase.ADVERTISE, 1)
    assert refusal(talk.sites.answer(1, advertise, training=True)) == "wrong_phase"


def test_a_damaged_memory_keeps_the_site_out_of_the_run_and_of_no_other(tmp_path: Path) -> None:
    talk = Conversation(tmp_path).until(Phase.SHARE)
    path = tmp_path / "site-1" / "state" / "secure_aggregation" / RUN_ID / "memory.json"
    values = json.loads(path.read_text())
    del values["attempt"]
    path.write_text(json.dumps(values))
    assert refusal(talk.ask(Phase.SHARE, 1)) == "internal"
    session = replace(talk.session.session, attempt=2)
    again = AdvertiseRequest(session, talk.session.terms).to_content()
    assert refusal(talk.ask(Phase.ADVERTISE, 1, again)) == "internal"
    other = AdvertiseRequest(replace(session, run_id="e" * 32), talk.session.terms).to_content()
    assert status_of(talk.ask(Phase.ADVERTISE, 1, other)) == "ok"


def other_run(talk: Conversation) -> None:
    """Another run asks the first site for a session."""
    session = replace(talk.session.session, run_id="e" * 32)
    content = AdvertiseRequest(session, talk.session.terms).to_content()
    assert status_of(talk.ask(Phase.ADVERTISE, 1, content)) == "ok"


def test_the_secrets_of_a_session_that_nobody_finished_are_deleted_after_a_week(
    tmp_path: Path,
) -> None:
    talk = Conversation(tmp_path).until(Phase.CONFIRM)
    store = MemoryStore(talk.sites.site(1).state_folder, RUN_ID)
    before, path = store.load(), store.folder / "memory.json"
    assert before.current
    week_ago = path.stat().st_mtime - 7 * 86400 - 1
    os.utime(path, (week_ago, week_ago))
    other_run(talk)
    assert store.load() == replace(before, current=None)
    assert before.current.keys.to_bytes().hex() not in path.read_text()
    # The run can still go on, and masks what it has trained.
    talk.sites.trainers[1] = again = LittleTrainer(1)
    talk.new_session(attempt=2)
    talk.until(Phase.UNMASK).phase(Phase.UNMASK)
    assert talk.session.open_sum()[1] == 3 and again.trained == 0


def test_a_session_that_goes_on_is_left_alone_by_another_runs(tmp_path: Path) -> None:
    talk = Conversation(tmp_path).until(Phase.CONFIRM)
    other_run(talk)
    talk.phase(Phase.CONFIRM)
    talk.phase(Phase.UNMASK)
    assert talk.session.open_sum()[1] == 3


def test_secrets_and_updates_that_a_crash_left_under_temporary_names_are_deleted(
    tmp_path: Path,
) -> None:
    talk = Conversation(tmp_path).until(Phase.CONFIRM)
    site = talk.sites.site(1)
    folder = MemoryStore(site.state_folder, RUN_ID).folder
    kept = {path.name for path in folder.iterdir()}
    left = [".memory.json.ab12cd34", f".update-00001-{'ab' * 8}.safetensors.x_y_z_12"]
    for name in left:
        (folder / name).write_text("secret")
    talk.phase(Phase.CONFIRM)
    assert {path.name for path in folder.iterdir()} == kept


def test_a_damaged_update_is_not_sent_in_its_place_trained_anew(tmp_path: Path) -> None:
    store = UpdateStore(tmp_path)
    update = KeptUpdate(np.arange(3, dtype=np.float32), 7, 0.25)
    assert store.load(1, "ab" * 32) is None
    store.save(1, "ab" * 32, update)
    known = store.load(1, "ab" * 32)
    assert known is not None and (known.weight, known.train_seconds) == (7, 0.25)
    np.testing.assert_array_equal(known.values, update.values)
    assert store.load(1, "cd" * 32) is None and store.load(2, "ab" * 32) is None
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FoedusError, match="damaged"):
        store.load(1, "ab" * 32)
    store.save(2, "ab" * 32, update)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == [
        f"update-00002-{'ab' * 8}.safetensors"
    ]


def test_a_site_without_identity_or_roster_refuses_and_says_why_in_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    talk = Conversation(tmp_path / "others")
    site = Site(SiteSettings("lone", "contracts", "state"), tmp_path)
    reply = answer_phase(site, talk.content(Phase.ADVERTISE, 1), training=False)
    assert refusal(reply) == "internal" and "identity" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({SECURE: ConfigRecord({"version": 1})}),
        RecordDict({SECURE: ConfigRecord({"version": 2, "phase": "share"})}),
        RecordDict({SECURE: ArrayRecord({})}),
    ],
)
def test_what_cannot_be_read_is_refused_as_malformed(tmp_path: Path, content: RecordDict) -> None:
    talk = Conversation(tmp_path)
    assert refusal(talk.sites.answer(1, content, training=False)) in (
        "malformed_request",
        "wrong_version",
    )


# --- Updates that the coordinator could read ---


def plain(site: Site, run: RunSettings, run_id: str = RUN_ID) -> str:
    request = train_request(run_id, 1, run, downloaded(run, start_state(run)))
    return str(answer(site, request.to_content(), "train").config_records[CONFIG]["status"])


def test_a_readable_update_is_refused_where_policy_or_run_say_so(tmp_path: Path) -> None:
    run = small_run()
    masked = replace(run, secure_aggregation=replace(run.secure_aggregation, enabled=True))
    site = open_site(tmp_path)
    assert plain(site, masked) == "policy"
    settings = site.settings
    for policy in (
        PolicySettings(require_secure_aggregation=True),
        PolicySettings(minimum_cohort=3),
    ):
        strict = Site(replace(settings, policy=policy), tmp_path)
        assert plain(strict, run) == "policy"
    assert plain(site, run) == "ok"


def test_a_run_that_was_secure_gets_no_readable_update_later(tmp_path: Path) -> None:
    talk = Conversation(tmp_path / "little")
    talk.phase(Phase.ADVERTISE)
    site = open_site(tmp_path / "site")
    folder = talk.sites.site(1).state_folder / "secure_aggregation"
    folder.rename(site.state_folder.parent / "moved")
    site.state_folder.mkdir(exist_ok=True)
    (site.state_folder.parent / "moved").rename(site.state_folder / "secure_aggregation")
    assert plain(site, small_run()) == "policy"
    assert plain(site, small_run(), "e" * 32) == "ok"


def test_the_client_app_routes_sessions_to_the_site(tmp_path: Path) -> None:
    from flwr.app import Context, Message

    talk = Conversation(tmp_path)
    app = make_app(lambda context: talk.sites.site(1))
    context = Context(1, 1, {}, RecordDict(), {})
    message = Message(talk.content(Phase.ADVERTISE, 1), 1, "query")
    reply: Any = app(message, context)
    assert status_of(reply.content) == "ok"
    request = RecordDict({**dict(talk.content(Phase.ADVERTISE, 1)), ARRAYS: ArrayRecord({})})
    as_training: Any = app(Message(request, 1, "train"), context)
    assert refusal(as_training.content) == "wrong_phase"


_DIES_WHILE_TRAINING = """
import os, sys
from pathlib import Path
from flwr.common.serde import recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict
from client.secure_aggregation.answer import answer_phase
from client.site import Site, SiteSettings
from tests.little_secure_sites import LittleTrainer

class Dies(LittleTrainer):
    def train(self, request):
        os.kill(os.getpid(), 9)

folder = Path(sys.argv[1])
site = Site(
    SiteSettings("site 1", "contracts", "state", identity="identity.pem", roster="roster.json"),
    folder,
)
content = recorddict_from_proto(RecordDict.FromString((folder / "request").read_bytes()))
answer_phase(site, content, training=True, trainer=Dies(1))
"""


@pytest.mark.faults
@pytest.mark.slow
def test_a_process_killed_in_training_leaves_a_site_that_masks_in_the_next_attempt_alone(
    tmp_path: Path,
) -> None:
    talk = Conversation(tmp_path).until(Phase.MASKED_INPUT)
    sent = talk.content(Phase.MASKED_INPUT, 1)
    data = recorddict_to_proto(sent).SerializeToString()
    (tmp_path / "site-1" / "request").write_bytes(data)
    words = [sys.executable, "-c", _DIES_WHILE_TRAINING, str(tmp_path / "site-1")]
    assert subprocess.run(words, cwd=Path(__file__).parents[2], check=False).returncode == -9
    assert refusal(talk.ask(Phase.MASKED_INPUT, 1, sent)) == "wrong_phase"
    talk.new_session(attempt=2)
    talk.until(Phase.UNMASK).phase(Phase.UNMASK)
    assert talk.session.open_sum()[1] == 3

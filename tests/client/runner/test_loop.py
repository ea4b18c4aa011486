"""The runner between a real Runtime API of Flower's and a real site: what it answers, and that
nothing it is sent ends it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.cli.build import build_fab_from_disk

from client.runner.bundle import Release
from client.runner.loop import Runner
from client.runner.memory_file import MemoryFile
from client.runner.supernode_tasks import SuperNodeSilent, SuperNodeTasks, TaskLost
from client.runner.task_phase import PhaseMark, TaskPhase
from client.site import Site
from protocol.messages import CONFIG, UNKNOWN_RUN, Kind, evaluate_request, train_request
from protocol.reasons import RefusalReason
from protocol.reply_facts import reply_facts
from protocol.secure_aggregation.wire import SECURE
from tests.client.runner.checkouts import copy_checkout, release_of
from tests.client.runner.lone_supernode import SECRET, LoneSuperNode
from tests.small_runs import RUN_ID, downloaded, open_site, small_run, start_state


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module")
def bundle(code: Path) -> bytes:
    return build_fab_from_disk(code)


@pytest.fixture(scope="module")
def release(code: Path) -> Release:
    return release_of(code)


@contextmanager
def runner(
    folder: Path, bundle: bytes, release: Release
) -> Iterator[tuple[LoneSuperNode, Runner, Site, PhaseMark]]:
    site = open_site(folder)
    mark = PhaseMark(MemoryFile("phase", TaskPhase.IDLE.value).path)
    with LoneSuperNode(bundle) as supernode:
        tasks = SuperNodeTasks(supernode.address, SECRET)
        yield supernode, Runner(tasks, site, release, mark), site, mark


def train_content(**training: int) -> RecordDict:
    run = small_run(training=training)
    return train_request(RUN_ID, 1, run, downloaded(run, start_state(run))).to_content()


def status_of(reply: Message | None) -> object:
    assert reply is not None and reply.has_content()
    key = SECURE if SECURE in reply.content else CONFIG
    record = reply.content[key]
    assert isinstance(record, ConfigRecord)
    return record["status"]


def test_a_message_with_the_installed_bundle_is_answered_by_the_installed_code(
    tmp_path: Path, bundle: bytes, release: Release
) -> None:
    with runner(tmp_path, bundle, release) as (supernode, runs, _, mark):
        asked = supernode.put(train_content(), "train")
        assert runs.work_once()
        reply = supernode.reply()
        assert status_of(reply) == "ok"
        assert reply and reply.metadata.reply_to_message_id == asked
        assert supernode.task_results() == ["completed"]
        assert mark.get() is TaskPhase.IDLE and mark.num_done == 1
        assert not runs.work_once()


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_another_bundle_is_declined_with_a_reason_and_a_receipt(
    tmp_path: Path, bundle: bytes, release: Release, kind: Kind
) -> None:
    run = small_run()
    state = downloaded(run, start_state(run))
    request = (train_request if kind == "train" else evaluate_request)(RUN_ID, 2, run, state)
    with runner(tmp_path, bundle[:-1], release) as (supernode, runs, site, _):
        supernode.put(request.to_content(), kind)
        assert runs.work_once()
        reply = supernode.reply()
    assert status_of(reply) == RefusalReason.CODE_DIFFERS
    assert reply and set(reply.content) == {CONFIG, "metrics"}
    assert reply.content[CONFIG]["run_id"] == RUN_ID and reply.content[CONFIG]["round"] == 2
    assert isinstance(reply.content["metrics"], MetricRecord) and not reply.content["metrics"]
    (receipt,) = site.receipts.verify()
    assert (receipt.kind, receipt.status) == (kind, RefusalReason.CODE_DIFFERS)
    assert (receipt.run_id, receipt.round) == (RUN_ID, 2)
    assert receipt.digest == reply_facts(reply.content, kind).digest


def test_a_declined_request_is_read_for_its_run_alone(
    tmp_path: Path, bundle: bytes, release: Release
) -> None:
    newer = ConfigRecord({"version": 99, "run_id": RUN_ID, "round": 3, "what": "is this"})
    odd = ConfigRecord({"version": 99, "run_id": RUN_ID, "round": -1})
    nothing = ConfigRecord({"a": 1})
    with runner(tmp_path, bundle[:-1], release) as (supernode, runs, _, _):
        for record, run_id in ((newer, RUN_ID), (odd, UNKNOWN_RUN), (nothing, UNKNOWN_RUN)):
            supernode.put(RecordDict({CONFIG: record}), "train")
            assert runs.work_once()
            reply = supernode.reply()
            assert status_of(reply) == RefusalReason.CODE_DIFFERS
            assert reply and reply.content[CONFIG]["run_id"] == run_id


def test_another_bundle_is_declined_in_a_secure_session_too(
    tmp_path: Path, bundle: bytes, release: Release
) -> None:
    header = ConfigRecord(
        {"version": 1, "phase": "share", "run_id": RUN_ID, "round": 1, "attempt": 2}
    )
    with runner(tmp_path, bundle[:-1], release) as (supernode, runs, site, _):
        supernode.put(RecordDict({SECURE: header}), "query")
        assert runs.work_once()
        reply = supernode.reply()
    assert status_of(reply) == RefusalReason.CODE_DIFFERS
    (receipt,) = site.receipts.verify()
    assert (receipt.kind, receipt.status) == ("secure.share", RefusalReason.CODE_DIFFERS)


def test_what_nobody_can_answer_gets_an_error_without_words_and_the_next_is_answered(
    tmp_path: Path, bundle: bytes, release: Release
) -> None:
    with runner(tmp_path, bundle, release) as (supernode, runs, _, _):
        supernode.put(RecordDict({"a contract": ConfigRecord({"text": "secret"})}), "train.other")
        supernode.put(train_content(), "train")
        assert runs.work_once() and runs.work_once()
        error, answer = supernode.reply(), supernode.reply()
    assert error and error.has_error() and error.error.reason == "no reply"
    assert status_of(answer) == "ok"


def test_without_a_receipt_nothing_leaves(tmp_path: Path, bundle: bytes, release: Release) -> None:
    with runner(tmp_path, bundle, release) as (supernode, runs, site, _):
        site.receipts.path.parent.mkdir(parents=True, exist_ok=True)
        site.receipts.path.mkdir()
        supernode.put(train_content(), "train")
        assert runs.work_once()
        error = supernode.reply()
    assert error and error.has_error() and error.error.reason == "no reply"


def test_told_to_end_at_work_it_says_that_no_reply_will_come(
    tmp_path: Path, bundle: bytes, release: Release
) -> None:
    def end(*_: object) -> None:
        raise SystemExit(0)

    def end_at_work(mark: PhaseMark) -> None:
        while mark.get() is not TaskPhase.WORKING:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, end)
    try:
        with runner(tmp_path, bundle, release) as (supernode, runs, _, mark):
            # Minutes of training, if nobody ends it.
            supernode.put(train_content(local_epochs=1000, batch_size=1), "train")
            ending = threading.Thread(target=end_at_work, args=(mark,))
            ending.start()
            with pytest.raises(SystemExit):
                runs.work_once()
            ending.join()
            error = supernode.reply()
            assert error and error.has_error() and error.error.reason == "no reply"
            assert mark.get() is TaskPhase.IDLE
    finally:
        signal.signal(signal.SIGUSR1, before)


def kill_at_work(runs: Runner, mark: PhaseMark) -> None:
    """Another process takes the waiting message and is killed over it."""
    if (pid := os.fork()) == 0:
        with suppress(BaseException):
            runs.work_once()
        os._exit(0)
    while mark.get() is not TaskPhase.WORKING:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_next_runner_says_that_a_killed_one_will_not_reply(
    tmp_path: Path, bundle: bytes, release: Release
) -> None:
    with runner(tmp_path, bundle, release) as (supernode, runs, _, mark):
        asked = supernode.put(train_content(local_epochs=1000, batch_size=1), "train")
        kill_at_work(runs, mark)
        runs.answer_for_predecessor()
        error = supernode.reply()
        assert error and error.has_error() and error.error.reason == "no reply"
        assert error.metadata.reply_to_message_id == asked
        assert mark.get() is TaskPhase.IDLE
        # The SuperNode hands out the next one: it does not wait for the dead.
        supernode.put(train_content(), "train")
        assert runs.work_once()
        assert status_of(supernode.reply()) == "ok"
        runs.answer_for_predecessor()
        assert supernode.reply() is None


def test_a_killed_runners_message_that_the_supernode_knows_no_more_is_let_go(
    tmp_path: Path, bundle: bytes, release: Release
) -> None:
    with runner(tmp_path, bundle, release) as (supernode, runs, _, mark):
        supernode.put(train_content(local_epochs=1000, batch_size=1), "train")
        kill_at_work(runs, mark)
        supernode.give_up()
        runs.answer_for_predecessor()
        assert mark.get() is TaskPhase.IDLE


def test_a_task_that_the_supernode_gave_up_is_lost_and_the_next_is_answered(
    tmp_path: Path, bundle: bytes, release: Release
) -> None:
    with runner(tmp_path, bundle, release) as (supernode, runs, _, _):
        supernode.put(train_content(), "train")
        tasks = SuperNodeTasks(supernode.address, SECRET)
        token = tasks.acquire()
        assert token
        with tasks.open(token) as task:
            supernode.give_up()
            with pytest.raises(TaskLost):
                task.fail()
        supernode.put(train_content(), "train")
        assert runs.work_once()
        assert status_of(supernode.reply()) == "ok"


def test_without_the_secret_no_task_is_given(bundle: bytes) -> None:
    with LoneSuperNode(bundle) as supernode:
        supernode.put(train_content(), "train")
        with pytest.raises(SuperNodeSilent):
            SuperNodeTasks(supernode.address, b"a guess").acquire()


def test_a_message_whose_parts_are_still_coming_is_waited_for(
    tmp_path: Path, bundle: bytes, release: Release
) -> None:
    with runner(tmp_path, bundle, release) as (supernode, runs, _, _):
        supernode.put(train_content(), "train", late_seconds=0.5)
        assert runs.work_once()
        assert status_of(supernode.reply()) == "ok"


def test_a_phase_survives_the_process_that_set_it() -> None:
    file = MemoryFile("phase", TaskPhase.IDLE.value)
    if (pid := os.fork()) == 0:
        mark = PhaseMark(file.path)
        mark.count()
        mark.set(TaskPhase.REPLYING)
        os._exit(0)
    os.waitpid(pid, 0)
    mark = PhaseMark(file.path)
    assert mark.get() is TaskPhase.REPLYING and mark.get().hangs_the_supernode
    assert mark.num_done == 1
